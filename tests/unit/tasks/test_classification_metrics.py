"""Classification metrics against scikit-learn, their intervals, and what is left out."""

from __future__ import annotations

import json
import math
import warnings
import xml.etree.ElementTree as ET
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cvpipe.config import Config
from cvpipe.config_file import parse_config
from cvpipe.data.splits import Split
from cvpipe.metrics import plots
from cvpipe.predictions import ClassificationPrediction
from cvpipe.tasks.classification.metrics import assess, intervals, rank_scores, single_label_statistics
from cvpipe.types import Assessment, Failure

FAILED = "Images without a prediction (in no metric)"


def config(**evaluation: int) -> Config:
    return parse_config({"data": "unused", "evaluation": {"bootstrap": 0, **evaluation}})


def predictions(scores: Any, classes: tuple[str, ...] | None = None) -> list[Any]:
    names = classes or tuple(f"c{i}" for i in range(np.shape(scores)[1]))
    rows = np.asarray(scores, dtype=np.float32)
    return [ClassificationPrediction(names, row, (names[int(row.argmax())],)) for row in rows]


def split(targets: Any, groups: Any = None) -> Split:
    return Split("test", tuple(f"{i}.png" for i in range(len(targets))), tuple(targets), groups)


def single(seed: int, images: int, classes: int, levels: int = 1000) -> tuple[Any, list[int]]:
    """Scores that add up to 1, with ties where `levels` is small, and targets that follow them loosely."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, levels, size=(images, classes)) + 0.0
    targets = rng.integers(classes, size=images)
    raw[np.arange(images), targets] *= 2
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32), targets.tolist()


def multi(seed: int, images: int, classes: int, levels: int = 1000) -> tuple[Any, Any, list[tuple[int, ...]]]:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, classes)) < 0.3
    scores = ((rng.integers(0, levels, size=truth.shape) / levels) * 0.7 + 0.3 * truth).astype(np.float32)
    return scores, truth, [tuple(np.flatnonzero(row).tolist()) for row in truth]


def no_nan(found: Assessment) -> None:
    """Everything is JSON without NaN, and every drawing is XML."""
    values = {
        "metrics": {k: asdict(v) for k, v in found.metrics.items()},
        "tables": found.tables,
        "gallery": found.gallery,
        "headline": found.headline,
    }
    json.dumps(values, allow_nan=False)
    for svg in found.figures.values():
        ET.fromstring(svg)
    assert set(found.headline) <= set(found.metrics)
    for metric in found.metrics.values():
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high


cases = given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 60),
    classes=st.integers(2, 9),
    levels=st.sampled_from([3, 7, 1000]),
)


@settings(max_examples=60, deadline=None)
@cases
def test_single_label_agrees_with_scikit_learn(seed: int, images: int, classes: int, levels: int) -> None:
    scores, targets = single(seed, images, classes, levels)
    statistics = single_label_statistics(scores, np.asarray(targets))
    found = {name: float(values[0]) for name, values in statistics(np.ones((1, images))).items()}
    predicted = scores.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro", zero_division=0))
    labels = list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sums of float32 scores are not exactly 1
        assert found["log_loss"] == pytest.approx(reference.log_loss(targets, scores, labels=labels), rel=1e-4)
    assert ("top5_accuracy" in found) == (classes > 5)
    # scikit-learn breaks ties its own way
    if classes > 5 and all(len(set(row)) == classes for row in scores.tolist()):
        expected = reference.top_k_accuracy_score(targets, scores, k=5, labels=labels)
        assert found["top5_accuracy"] == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@cases
def test_weights_count_images(seed: int, images: int, classes: int, levels: int) -> None:
    """A weight of 2 is the same as the image twice: that is what makes the bootstrap right."""
    scores, targets = single(seed, images, classes, levels)
    times = np.random.default_rng(seed).integers(0, 4, size=images)
    times[0] += 1
    weighted = single_label_statistics(scores, np.asarray(targets))(times[None].astype(float))
    repeated = np.repeat(np.arange(images), times)
    plain = single_label_statistics(scores[repeated], np.asarray(targets)[repeated])(np.ones((1, len(repeated))))
    for name, values in weighted.items():
        assert values[0] == pytest.approx(plain[name][0]), name


@settings(max_examples=80, deadline=None)
@cases
def test_ranks_agree_with_scikit_learn(seed: int, images: int, classes: int, levels: int) -> None:
    scores, truth, _ = multi(seed, images, classes, levels)
    weights = np.random.default_rng(seed).integers(0, 3, size=images).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in range(classes):
            rows = np.stack([np.ones(images), weights])
            precisions, areas = rank_scores(rows, scores[:, c], truth[:, c])
            for w, precision, area in zip(rows, precisions, areas, strict=True):
                positives, negatives = w[truth[:, c]].sum(), w[~truth[:, c]].sum()
                assert math.isnan(precision) == (positives == 0)
                assert math.isnan(area) == (positives == 0 or negatives == 0)
                if positives:
                    kept = w > 0
                    expected = reference.average_precision_score(truth[kept, c], scores[kept, c], sample_weight=w[kept])
                    assert precision == pytest.approx(expected)
                if positives and negatives:
                    expected = reference.roc_auc_score(truth[:, c], scores[:, c], sample_weight=w)
                    assert area == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 40), classes=st.integers(2, 7))
def test_multi_label_agrees_with_scikit_learn(seed: int, images: int, classes: int) -> None:
    scores, truth, targets = multi(seed, images, classes)
    found = assess(predictions(scores), split(targets), config())
    no_nan(found)
    called = scores >= 0.5
    occur = (truth | called).any(axis=0)
    if occur.any():
        values = {name: metric.value for name, metric in found.metrics.items()}
        options: dict[str, Any] = {"zero_division": 0}
        micro = reference.f1_score(truth, called, average="micro", **options)
        macro = reference.f1_score(truth[:, occur], called[:, occur], average="macro", **options)
        if occur.sum() > 1:
            assert values["micro_f1"] == pytest.approx(micro)
            assert values["macro_f1"] == pytest.approx(macro)
    positive = truth.any(axis=0)
    if positive.any():
        expected = np.mean(
            [reference.average_precision_score(truth[:, c], scores[:, c]) for c in np.where(positive)[0]]
        )
        assert found.metrics["map"].value == pytest.approx(expected)
    else:
        assert "map" not in found.metrics
        assert "auroc" not in found.metrics


def test_calibration_error_by_hand() -> None:
    """Ten answers with confidence 0.8, half of them right: off by 0.3."""
    scores = np.tile([0.8, 0.2], (10, 1))
    found = assess(predictions(scores), split([0] * 5 + [1] * 5), config())
    assert found.metrics["calibration_error"].value == pytest.approx(0.3, abs=1e-6)


def test_calibration_error_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, targets = single(3, 500, 6)
    expected = multiclass_calibration_error(torch.tensor(scores), torch.tensor(targets), num_classes=6, n_bins=15)
    found = assess(predictions(scores), split(targets), config())
    assert found.metrics["calibration_error"].value == pytest.approx(float(expected), abs=1e-5)


def test_a_certain_and_wrong_answer_has_a_finite_log_loss() -> None:
    found = assess(predictions([[1.0, 0.0]]), split([1]), config())
    assert found.metrics["log_loss"].value == pytest.approx(-math.log(np.finfo(np.float32).eps))
    no_nan(found)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_intervals_hold_the_value_and_repeat(kind: str) -> None:
    if kind == "single":
        scores, targets = single(0, 200, 7)
    else:
        scores, _, targets = multi(0, 200, 7)  # type: ignore[assignment]
    first = assess(predictions(scores), split(targets), config(bootstrap=200))
    no_nan(first)
    assert all(m.low is not None and m.high is not None and m.low < m.high for m in first.metrics.values())
    assert first == assess(predictions(scores), split(targets), config(bootstrap=200))


def test_without_bootstrap_there_are_values_only() -> None:
    scores, targets = single(0, 20, 3)
    found = assess(predictions(scores), split(targets), config(bootstrap=0))
    assert {(m.low, m.high) for m in found.metrics.values()} == {(None, None)}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Accuracy 0.8 in the population; intervals of 200 samples of 300 images (±3 deviations: 90..99 %)."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        right = (rng.random(300) < 0.8).astype(float)
        found = intervals(lambda w, right=right: {"x": w @ right / w.sum(axis=1)}, np.arange(300), 300, seed)["x"]  # type: ignore[misc]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.8 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_images_of_a_group_are_drawn_together() -> None:
    """Ten copies of each image say nothing new: the interval must not become narrower."""
    scores, targets = single(1, 60, 3)
    alone = assess(predictions(scores), split(targets), config(bootstrap=500)).metrics["accuracy"]
    tenfold, many = np.repeat(scores, 10, axis=0), np.repeat(targets, 10).tolist()
    groups = tuple(f"g{i // 10}" for i in range(600))
    together = assess(predictions(tenfold), split(many, groups), config(bootstrap=500)).metrics["accuracy"]
    apart = assess(predictions(tenfold), split(many), config(bootstrap=500)).metrics["accuracy"]
    width = {n: (i.high or 0) - (i.low or 0) for n, i in (("alone", alone), ("together", together), ("apart", apart))}
    assert width["together"] == pytest.approx(width["alone"], rel=0.15)
    assert width["apart"] < width["alone"] / 2


@pytest.mark.parametrize("resamples", [1, 7, 1000])
def test_resamples_in_pieces(resamples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvpipe.metrics.bootstrap._CHUNK", 100)
    scores, targets = single(0, 33, 3)
    no_nan(assess(predictions(scores), split(targets), config(bootstrap=resamples)))


def test_fewer_resamples_for_large_ranks_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvpipe.tasks.classification.metrics._RANK_BUDGET", 1)
    scores, _, targets = multi(0, 30, 3)
    found = assess(predictions(scores), split(targets), config(bootstrap=300))
    assert found.tables["Fewer resamples"] == [{"metrics": "map, auroc", "resamples": 100, "configured": 300}]


def test_failures_are_counted_and_in_no_metric() -> None:
    answers = [*predictions([[0.9, 0.1], [0.2, 0.8]]), Failure("broken"), Failure("broken"), Failure("absent")]
    found = assess(answers, split([0, 0, 0, 0, 1]), config())
    assert found.metrics["accuracy"].value == 0.5
    assert found.tables[FAILED] == [
        {"reason": "broken", "images": 2, "first": "2.png"},
        {"reason": "absent", "images": 1, "first": "4.png"},
    ]
    assert FAILED not in assess(answers[:2], split([0, 0]), config()).tables


def test_nothing_but_failures() -> None:
    found = assess([Failure("broken")], split([0]), config())
    assert found.metrics == {}
    assert found.tables[FAILED][0]["images"] == 1
    no_nan(found)


def test_an_answer_for_each_image() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 images"):
        assess(predictions([[1.0, 0.0]]), split([0, 1]), config())


def test_a_class_without_images_has_empty_cells_and_no_part_in_the_mean() -> None:
    found = assess(predictions([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0]]), split([0, 1]), config())
    assert found.metrics["macro_f1"].value == 1.0
    assert found.tables["Classes"][2] == {"class": "c2", "images": 0, "precision": None, "recall": None, "f1": None}
    no_nan(found)


def test_multi_label_class_without_positives_or_negatives() -> None:
    scores = [[0.9, 0.9, 0.1], [0.8, 0.2, 0.2]]
    found = assess(predictions(scores), split([(0, 1), (0,)]), config(bootstrap=50))
    rows = found.tables["Classes"]
    assert [row["auroc"] for row in rows] == [None, 1.0, None]
    assert [row["average precision"] for row in rows] == [1.0, 1.0, None]
    assert found.metrics["map"].value == 1.0
    no_nan(found)


def test_images_without_any_label() -> None:
    found = assess(predictions([[0.9, 0.1], [0.2, 0.1]]), split([(), ()]), config(bootstrap=20))
    assert "map" not in found.metrics
    assert found.metrics["micro_f1"].value == 0.0
    assert found.gallery == [("0.png", "true none, predicted c0 0.90")]
    no_nan(found)


@pytest.mark.parametrize("images", [1, 2])
def test_very_few_images(images: int) -> None:
    scores, targets = single(0, images, 12)
    no_nan(assess(predictions(scores), split(targets), config(bootstrap=30)))


def test_gallery_shows_the_most_confident_mistakes_first() -> None:
    scores = [[0.1, 0.9], [0.4, 0.6], [0.2, 0.8], [0.99, 0.01]]
    found = assess(predictions(scores, ("cat", "dog")), split([0, 0, 0, 0]), config(gallery=2))
    assert found.gallery == [("0.png", "true cat, predicted dog 0.90"), ("2.png", "true cat, predicted dog 0.80")]


def test_multi_label_gallery_names_what_is_wrong() -> None:
    scores = [[0.9, 0.02], [0.97, 0.1], [0.9, 0.9]]
    answers = predictions(scores, ("cat", "dog"))
    found = assess(answers, split([(0, 1), (), (0, 1)]), config())
    assert found.gallery == [
        ("0.png", "true cat, dog, missed dog 0.02"),
        ("1.png", "true none, predicted cat 0.97"),
    ]


def test_most_confused_pairs() -> None:
    answers = predictions([[0.1, 0.9]] * 3 + [[0.9, 0.1]] * 5, ("cat", "dog"))
    found = assess(answers, split([0, 0, 0, 0, 1, 1, 1, 1]), config())
    assert found.tables["Most confused"] == [
        {"true": "dog", "predicted": "cat", "images": 4, "share of true": 1.0},
        {"true": "cat", "predicted": "dog", "images": 3, "share of true": 0.75},
    ]


NAMES = ("_hidden", "$x$ & <b>", "猫", "a" * 60, "new\nline\x01\udcff", "")


def test_drawings_are_the_same_each_time_and_fetch_nothing() -> None:
    scores, targets = single(0, 50, len(NAMES))
    truth = np.asarray(targets)[:, None] == np.arange(len(NAMES))
    confusion = np.arange(len(NAMES) ** 2).reshape(len(NAMES), -1)
    for draw in (
        lambda: plots.confusion_matrix(confusion, NAMES),
        lambda: plots.precision_recall(scores, truth, NAMES),
        lambda: plots.reliability(np.array([0, 3]), np.array([np.nan, 0.7]), np.array([np.nan, 0.5]), "x", "y"),
    ):
        svg = draw()
        assert svg == draw()
        ET.fromstring(svg)
        assert "DOCTYPE" not in svg
        assert 'href="http' not in svg
        assert "url(http" not in svg
        assert "#010203" not in svg
    assert "class _hidden" in plots.precision_recall(scores, truth, NAMES)
    assert "$x$ &amp; &lt;b&gt;" in plots.confusion_matrix(confusion, NAMES)


def test_many_classes_show_only_the_most_confused() -> None:
    confusion = np.diag(np.full(50, 10))
    confusion[33, 34] = 9
    names = [f"class-{i}" for i in range(50)]
    svg = plots.confusion_matrix(confusion, names)
    assert "the 20 of 50 classes with the most mistakes" in svg
    assert "class-33" in svg
    assert "class-34" in svg
    assert "class-49" not in svg
