"""The assessment of found objects: metrics and intervals, tables, drawings, pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_scenes import POINTS, SIDE, scene
from PIL import Image

from cvpipe.config import Config
from cvpipe.config_file import parse_config
from cvpipe.data.splits import Split
from cvpipe.data.targets import NO_OBJECTS, Objects
from cvpipe.errors import DataError
from cvpipe.metrics import objects, plots
from cvpipe.metrics.coco import coco_summary
from cvpipe.metrics.objects import assess_objects
from cvpipe.metrics.points import point_distances, point_rows, point_statistics, within
from cvpipe.predictions import DetectionPrediction, KeypointPrediction
from cvpipe.types import Assessment, Failure, Labels

CLASSES = ("c0", "c1", "c2", "c3")
NAMES = tuple(f"point {i}" for i in range(POINTS))
LABELS = Labels(CLASSES, keypoints=NAMES, skeleton=((0, 1), (1, 2)))
KINDS = (("boxes", "bbox"), ("masks", "segm"), ("points", "keypoints"))
FAILED = "Images without a prediction (in no metric)"


def config(**evaluation: int) -> Config:
    return parse_config({"data": "unused", "evaluation": {"bootstrap": 0, "gallery": 0, **evaluation}})


def split(targets: Any, folder: Path | None = None, groups: Any = None) -> Split:
    paths = tuple(str((folder or Path("street")) / f"{i}.png") for i in range(len(targets)))
    for path in paths if folder else ():
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(path)
    return Split("test", paths, tuple(targets), groups)


def no_nan(found: Assessment) -> None:
    """Everything is JSON without NaN, every drawing is XML, the rows of a table have equal keys."""
    values = {"metrics": {k: asdict(v) for k, v in found.metrics.items()}, "tables": found.tables}
    json.dumps(values | {"captions": [caption for _, caption in found.gallery]}, allow_nan=False)
    for svg in found.figures.values():
        ET.fromstring(svg)
    for rows in found.tables.values():
        assert len({tuple(row) for row in rows}) == 1
    assert set(found.headline) <= set(found.metrics)
    for metric in found.metrics.values():
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high


@pytest.mark.parametrize(("kind", "compared"), KINDS)
def test_metrics_are_cocos(kind: Any, compared: Any, tmp_path: Path) -> None:
    predictions, targets = scene(4, 12, len(CLASSES), compared)
    found = assess_objects(predictions, split(targets, tmp_path), config(bootstrap=40, gallery=3), kind, LABELS)
    no_nan(found)
    values = {name: metric.value for name, metric in found.metrics.items()}
    boxes = coco_summary(predictions, targets, "bbox", CLASSES)
    expected = {name: boxes[name] for name in ("map", "map_50", "map_75", "map_small", "map_medium", "ar_100")}
    if "map_large" in boxes:
        expected["map_large"] = boxes["map_large"]
    if kind == "masks":
        masks = coco_summary(predictions, targets, "segm", CLASSES)
        expected |= {f"mask_{name}": masks[name] for name in ("map", "map_50", "map_75")}
    if kind == "points":
        similar = coco_summary(predictions, targets, "keypoints", CLASSES)
        expected = {f"oks_{name}": similar[name] for name in ("map", "map_50")}
        expected |= {name: values[name] for name in ("pck", "pck_05")}
    assert values == pytest.approx(expected, abs=1e-6)
    headlines = {
        "boxes": ("map_50", "map"),
        "masks": ("mask_map_50", "mask_map", "map_50"),
        "points": ("pck", "oks_map"),
    }
    assert found.headline[: len(headlines[kind])] == headlines[kind]
    assert all(m.low is not None and m.high is not None for m in found.metrics.values())
    assert len(found.gallery) == 3
    again = assess_objects(predictions, split(targets, tmp_path), config(bootstrap=40, gallery=3), kind, LABELS)
    assert (again.metrics, again.tables, again.figures) == (found.metrics, found.tables, found.figures)


def test_classes_and_errors_are_tables() -> None:
    predictions, targets = scene(4, 12, len(CLASSES))
    found = assess_objects(predictions, split(targets), config(), "boxes", LABELS)
    summary = coco_summary(predictions, targets, "bbox", CLASSES)
    overall, *rows = found.tables["Classes"]
    assert overall["class"] == "(all)"
    assert (overall["AP"], overall["AP50"]) == pytest.approx((summary["map"], summary["map_50"]))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [row["AP"] for row in rows[:3]] == pytest.approx([summary[f"map/{name}"] for name in CLASSES[:3]])
    counted = sum(int((~t.crowd).sum()) for t in targets)
    assert overall["objects"] == sum(row["objects"] for row in rows) == counted
    assert rows[3] == {
        "class": "c3", "objects": 0, "AP": None, "AP50": None, "best threshold": None, "precision": None, "recall": None
    }  # fmt: skip
    errors = found.tables["Errors"]
    score = f"score from {overall['best threshold']:.2f}"
    assert all(0 <= row[score] <= row["any score"] for row in errors if row["error"] != "missed")
    missed = next(row for row in errors if row["error"] == "missed")
    assert missed[score] >= missed["any score"]
    assert set(found.figures) == {"Precision and recall", "Confusion matrix", "Choice of the threshold", "Errors"}
    assert score in found.figures["Confusion matrix"]


def test_failures_are_counted_and_in_no_metric() -> None:
    predictions, targets = scene(4, 8, len(CLASSES))
    answers = [Failure("broken"), *predictions[1:]]
    found = assess_objects(answers, split(targets), config(), "boxes", LABELS)
    alone = assess_objects(predictions[1:], split(targets[1:]), config(), "boxes", LABELS)
    assert found.metrics == alone.metrics
    assert found.tables[FAILED] == [{"reason": "broken", "images": 1, "first": "street/0.png"}]
    nothing = assess_objects([Failure("broken")], split(targets[:1]), config(), "boxes", LABELS)
    assert (nothing.metrics, nothing.headline) == ({}, ())
    assert nothing.tables[FAILED][0]["images"] == 1
    with pytest.raises(ValueError, match="7 predictions for 8 images"):
        assess_objects(predictions[1:], split(targets), config(), "boxes", LABELS)


@pytest.mark.parametrize(("kind", "compared"), KINDS)
def test_nothing_found_and_nothing_there(kind: Any, compared: Any) -> None:
    predictions, targets = scene(4, 5, len(CLASSES), compared)
    empty = [replace(p, **{name: getattr(p, name)[:0] for name in _parts(p)}) for p in predictions]
    for answers, truth in ((empty, targets), (predictions, [NO_OBJECTS] * 5), (empty, [NO_OBJECTS] * 5)):
        found = assess_objects(answers, split(truth), config(bootstrap=5, gallery=2), kind, LABELS)
        no_nan(found)
        assert {m.value for m in found.metrics.values()} == ({0.0} if truth is targets else set())


def _parts(prediction: Any) -> list[str]:
    names = ("boxes", "scores", "indices", "masks", "points")
    return [name for name in names if hasattr(prediction, name)]


def test_fewer_resamples_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_BUDGET", 1)
    monkeypatch.setattr(objects, "_LEAST_RESAMPLES", 20)
    predictions, targets = scene(4, 8, len(CLASSES), "keypoints")
    found = assess_objects(predictions, split(targets), config(bootstrap=50), "points", LABELS)
    assert found.tables["Fewer resamples"] == [{"metrics": "oks_map, oks_map_50", "resamples": 20, "configured": 50}]


def test_images_of_a_group_are_drawn_together() -> None:
    """Five copies of each image say nothing new: the interval must not become narrower."""
    predictions, targets = scene(7, 16, 2, most=3)
    labels = Labels(("c0", "c1"))

    def width(times: int, groups: Any) -> float:
        many = split(targets * times, groups=groups)
        found = assess_objects(predictions * times, many, config(bootstrap=300), "boxes", labels).metrics["map_50"]
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    alone, together = width(1, None), width(5, tuple(f"g{i % 16}" for i in range(80)))
    assert together == pytest.approx(alone, rel=0.2)
    assert width(5, None) < alone / 1.5


def test_the_worst_images_come_first(tmp_path: Path) -> None:
    box = np.array([[10, 10, 60, 60]], np.float32)
    target = Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), np.array([2500], np.float32))
    two = Objects(
        np.array([[10, 10, 60, 60], [80, 80, 140, 140]], np.float32),
        np.array([0, 1]),
        np.zeros(2, bool),
        np.array([2500, 3600], np.float32),
    )

    def answer(*rows: tuple[float, ...]) -> DetectionPrediction:
        flat = np.array(rows, np.float32).reshape(-1, 6)
        return DetectionPrediction(CLASSES, flat[:, 2:], flat[:, 0], flat[:, 1].astype(np.int64))

    predictions = [
        answer((0.3, 0, 10, 10, 60, 60)),  # right, and so weak that the best threshold lies below the mistakes
        answer((0.9, 0, 10, 10, 60, 60), (0.8, 2, 100, 0, 140, 30)),  # one too many
        answer((0.9, 1, 10, 10, 60, 60)),  # wrong class, and a missed one
        answer((0.95, 0, 10, 10, 60, 60), (0.85, 0, 30, 10, 80, 60), (0.1, 3, 0, 0, 9, 9)),
        answer(),
    ]
    where = split([target, target, two, target, NO_OBJECTS], tmp_path)
    found = assess_objects(predictions, where, config(gallery=9), "boxes", LABELS)
    folder = tmp_path.name
    assert [caption for _, caption in found.gallery] == [
        f"{folder}/2.png: 1 missed, 1 wrong class",
        f"{folder}/1.png: 1 not there",
        f"{folder}/3.png: 1 badly placed",
    ]
    for picture, _ in found.gallery:
        assert picture.width <= 640
    assert len(assess_objects(predictions, where, config(gallery=1), "boxes", LABELS).gallery) == 1


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    predictions, targets = scene(4, 8, len(CLASSES))
    found = assess_objects(predictions, split(targets), config(gallery=2), "boxes", LABELS)
    assert [str(shown).startswith("street/") for shown, _ in found.gallery] == [True, True]


@pytest.mark.parametrize(("kind", "compared"), KINDS)
def test_pictures_show_both_sides(kind: Any, compared: Any, tmp_path: Path) -> None:
    predictions, targets = scene(4, 6, len(CLASSES), compared)
    found = assess_objects(predictions, split(targets, tmp_path), config(gallery=6), kind, LABELS)
    assert found.gallery
    for picture, _ in found.gallery:
        left, right = np.asarray(picture)[:, :318], np.asarray(picture)[:, -318:]
        assert picture.size == (640, 318)
        assert (left != 90).any() or (right != 90).any()
        assert (left != right).any()


def test_masks_that_do_not_fit_name_the_image() -> None:
    predictions, targets = scene(4, 6, len(CLASSES), "segm")
    bare = [replace(t, masks=None) for t in targets]
    with pytest.raises(DataError, match=r"street/\d.png: its \d objects have boxes only"):
        assess_objects(predictions, split(bare), config(), "masks", LABELS)


def points_of(*offsets: float) -> tuple[list[KeypointPrediction], list[Objects]]:
    """An object of 100 x 50 pixels with a point for each offset, found that many pixels off, and one that is missed."""
    count = len(offsets)
    truth = np.zeros((2, count, 3), np.float32)
    truth[..., 0], truth[..., 1], truth[..., 2] = 50, 25, 2
    target = Objects(
        np.array([[0, 0, 100, 50], [0, 80, 100, 130]], np.float32),
        np.zeros(2, np.int64),
        np.zeros(2, bool),
        np.full(2, 5000, np.float32),
        points=truth,
    )
    guess = truth[:1].copy()
    guess[0, :, 0] += offsets
    one = np.ones(1, np.float32)
    return [KeypointPrediction(("c0",), target.boxes[:1], one, np.zeros(1, np.int64), guess)], [target]


def test_correct_keypoints_by_hand() -> None:
    predictions, targets = points_of(0, 4, 9, 11)
    found = point_distances(predictions, targets, 1)
    values = point_statistics(found)(np.ones((1, 1)))
    assert values["pck"][0] == 3 / 8
    assert values["pck_05"][0] == 2 / 8
    assert within(found, np.array([0.0, 0.1, 0.2])).tolist() == [1 / 8, 3 / 8, 4 / 8]
    rows = point_rows(found, "abcd")
    assert rows[2] == {
        "point": "c", "annotated": 2, "found": 1, "pck": 0.5, "pck_05": 0.0, "median distance": pytest.approx(0.09)
    }  # fmt: skip


def test_points_that_are_not_annotated_count_nowhere() -> None:
    predictions, targets = points_of(0, 4, 9, 11)
    assert targets[0].points is not None
    targets[0].points[:, 3, 2] = 0
    targets[0].points[1, :, 2] = 0  # nothing of the object that was missed
    found = point_distances(predictions, targets, 1)
    assert point_statistics(found)(np.ones((1, 1)))["pck"][0] == 1.0
    assert point_rows(found, "abcd")[3] == {
        "point": "d", "annotated": 0, "found": 0, "pck": None, "pck_05": None, "median distance": None
    }  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_weights_of_points_count_images(seed: int) -> None:
    predictions, targets = scene(seed, 6, len(CLASSES), "keypoints")
    times = np.random.default_rng(seed).integers(1, 4, 6)
    weighted = point_statistics(point_distances(predictions, targets, 4))(times[None].astype(float))
    rows = np.repeat(np.arange(6), times)
    again = point_distances([predictions[i] for i in rows], [targets[i] for i in rows], 4)
    for name, values in point_statistics(again)(np.ones((1, len(rows)))).items():
        assert weighted[name] == pytest.approx(values, nan_ok=True)


def test_points_have_a_table_and_a_curve() -> None:
    predictions, targets = scene(4, 8, len(CLASSES), "keypoints")
    found = assess_objects(predictions, split(targets), config(), "points", LABELS)
    assert [row["point"] for row in found.tables["Points"]] == list(NAMES)
    total = sum(row["annotated"] for row in found.tables["Points"])
    share = sum(row["pck"] * row["annotated"] for row in found.tables["Points"]) / total
    assert found.metrics["pck"].value == pytest.approx(share)
    assert "Points within a distance" in found.figures
    nameless = assess_objects(predictions, split(targets), config(), "points", Labels(CLASSES))
    assert [row["point"] for row in nameless.tables["Points"]] == ["1", "2", "3", "4", "5"]


def test_drawings_are_the_same_each_time() -> None:
    names = ("_hidden", "$x$ & <b>", "a" * 60)
    curve = np.linspace(0, 1, 3)
    for draw in (
        lambda: plots.bars(names, (0.1, 0.0, 0.3), "lost"),
        lambda: plots.lines([(name, curve, curve) for name in names], "x", "y", ("all", curve, curve)),
        lambda: plots.confusion_matrix(np.eye(3, dtype=np.int64), names, "a note"),
    ):
        svg = draw()
        assert svg == draw()
        ET.fromstring(svg)
        assert "#010203" not in svg
    assert "_hidden" in plots.lines([("_hidden", curve, curve)], "x", "y")


def test_a_thinned_curve_keeps_its_ends() -> None:
    x = np.linspace(0, 0.7, 5000)
    thin_x, thin_y = plots.thin(x, x**2)
    assert len(thin_x) <= 400
    assert (thin_x[0], thin_x[-1]) == (0.0, 0.7)
    np.testing.assert_array_equal(thin_y, thin_x**2)
