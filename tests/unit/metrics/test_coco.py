"""COCO figures against pycocotools: the summary of training, and the weighted form that intervals come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_scenes import POINTS, SIDE, pycocotools_evaluation, scene

from cvpipe.data.targets import NO_OBJECTS, Objects
from cvpipe.errors import DataError
from cvpipe.metrics import matching
from cvpipe.metrics.coco import coco_summary, oks_sigmas, target_masks
from cvpipe.metrics.matching import class_precision, match, precision_statistics
from cvpipe.metrics.overlaps import overlaps, point_similarity
from cvpipe.predictions import DetectionPrediction
from cvpipe.types import Failure

CLASSES = ("c0", "c1", "c2", "c3")
SIZES = {"bbox": ("small", "medium", "large"), "segm": ("small", "medium", "large"), "keypoints": ("medium", "large")}
DETECTION_STATS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "ar_1", "ar_10", "ar_100")
POINT_STATS = ("map", "map_50", "map_75", "map_medium", "map_large", "ar_20")
KINDS = ("bbox", "segm", "keypoints")


def statistics(predictions: Any, targets: Any, kind: Any, classes: int = len(CLASSES)) -> Any:
    found = overlaps(predictions, targets, kind, classes)
    matches = {"all": match(found)} | {size: match(found, size) for size in SIZES[kind]}
    names = ("map", "map_50", "map_75", *(f"map_{size}" for size in SIZES[kind]), "ar")
    return precision_statistics(found, matches, names)[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(4, 14), crowd=st.sampled_from([0.0, 0.3]))
def test_agrees_with_pycocotools(kind: Any, seed: int, images: int, crowd: float) -> None:
    predictions, targets = scene(seed, images, len(CLASSES), kind, crowd)
    if not any(map(len, predictions)) or not any(map(len, targets)):
        return
    sigmas = np.linspace(0.03, 0.09, POINTS).tolist() if kind == "keypoints" else None
    expected = pycocotools_evaluation(predictions, targets, kind, len(CLASSES), sigmas)
    found = coco_summary(predictions, targets, kind, CLASSES, sigmas)
    for name, value in zip(POINT_STATS if sigmas else DETECTION_STATS, expected.stats, strict=False):
        assert found.get(name, -1.0) == pytest.approx(value, abs=1e-6), name
    for c, name in enumerate(CLASSES):
        part = expected.eval["precision"][:, :, c, 0, -1]
        assert found.get(f"map/{name}", -1.0) == pytest.approx(part[part > -1].mean() if (part > -1).any() else -1.0)
    assert all(0 <= value <= 1 for value in found.values())
    assert "map/c3" not in found, "no object is of that class"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 14), many=st.booleans())
def test_weights_of_one_give_cocos_values(kind: Any, seed: int, images: int, many: bool) -> None:
    predictions, targets = scene(seed, images, len(CLASSES), kind)
    before = matching._MANY
    matching._MANY = 0 if many else before
    try:
        found = statistics(predictions, targets, kind)(np.ones((2, images)))
    finally:
        matching._MANY = before
    expected = coco_summary(predictions, targets, kind, CLASSES)
    expected["ar"] = expected.get("ar_100", expected.get("ar_20", float("nan")))
    for name, values in found.items():
        assert values == pytest.approx([expected.get(name, float("nan"))] * 2, abs=1e-6, nan_ok=True), name
    flat = overlaps(predictions, targets, kind, len(CLASSES))
    averages, _ = class_precision(flat, match(flat))
    assert averages == pytest.approx([expected.get(f"map/{c}", float("nan")) for c in CLASSES], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 12))
def test_weights_count_images(kind: Any, seed: int, images: int) -> None:
    """A weight of 2 is the same as the image twice: that is what makes the bootstrap right."""
    predictions, targets = scene(seed, images, len(CLASSES), kind)
    times = np.random.default_rng(seed).integers(0, 3, images)
    times[0] += 1
    weighted = statistics(predictions, targets, kind)(times[None].astype(float))
    repeated = np.repeat(np.arange(images), times)
    expected = coco_summary([predictions[i] for i in repeated], [targets[i] for i in repeated], kind, CLASSES)
    expected["ar"] = expected.get("ar_100", expected.get("ar_20", float("nan")))
    for name, values in weighted.items():
        assert values == pytest.approx([expected.get(name, float("nan"))], abs=1e-6, nan_ok=True), name


def test_rows_of_weights_are_worked_off_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = scene(1, 10)
    weights = np.random.default_rng(0).integers(0, 3, (7, 10)).astype(float)
    whole = statistics(predictions, targets, "bbox")(weights)
    monkeypatch.setattr(matching, "_CELLS", 50)
    for name, values in statistics(predictions, targets, "bbox")(weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_more_detections_than_count() -> None:
    """COCO looks at the best hundred of an image and class."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (180, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    target = Objects(boxes[:90], np.zeros(90, np.int64), np.zeros(90, bool), np.full(90, 400, np.float32))
    labels = (np.arange(180) % 4 == 0).astype(np.int64)
    prediction = DetectionPrediction(("a", "b"), boxes, rng.permutation(180).astype(np.float32) / 180, labels)
    expected = pycocotools_evaluation([prediction], [target], "bbox", 2).stats
    found = coco_summary([prediction], [target], "bbox", ("a", "b"))
    assert found["map"] == pytest.approx(expected[0], abs=1e-6)
    assert found["ar_100"] == pytest.approx(expected[8], abs=1e-6)
    weighted = statistics([prediction], [target], "bbox", 2)(np.ones((1, 1)))
    assert weighted["map"][0] == pytest.approx(expected[0], abs=1e-6)


def test_images_with_a_failure_are_left_out() -> None:
    predictions, targets = scene(3, 8)
    expected = coco_summary(predictions[1:], targets[1:], "bbox", CLASSES)
    assert coco_summary([Failure("broken"), *predictions[1:]], targets, "bbox", CLASSES) == expected
    assert coco_summary([Failure("broken")], targets[:1], "bbox", CLASSES) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_and_nothing_there(kind: Any) -> None:
    predictions, targets = scene(5, 6, kind=kind)
    blank = [_first(prediction, 0) for prediction in predictions]
    assert coco_summary(blank, targets, kind, CLASSES)["map"] == 0.0
    assert coco_summary(predictions, [NO_OBJECTS] * 6, kind, CLASSES) == {}
    assert coco_summary(blank, [NO_OBJECTS] * 6, kind, CLASSES) == {}
    assert statistics(blank, targets, kind)(np.ones((1, 6)))["map"][0] == 0.0
    assert np.isnan(statistics(blank, [NO_OBJECTS] * 6, kind)(np.ones((1, 6)))["map"][0])


def _first(prediction: Any, count: int) -> Any:
    parts = {"boxes": prediction.boxes, "scores": prediction.scores, "indices": prediction.indices}
    parts |= {name: getattr(prediction, name) for name in ("masks", "points") if hasattr(prediction, name)}
    return replace(prediction, **{name: part[:count] for name, part in parts.items()})


def test_perfect_answers_are_perfect() -> None:
    _, targets = scene(2, 10, crowd=0)
    answers = [
        DetectionPrediction(CLASSES, t.boxes, np.linspace(0.9, 0.5, len(t)).astype(np.float32), t.labels)
        for t in targets
    ]
    found = coco_summary(answers, targets, "bbox", CLASSES)
    assert found["map"] == found["ar_100"] == found["map/c0"] == pytest.approx(1.0)


def test_sigmas() -> None:
    assert oks_sigmas(17)[0] == 0.026
    assert oks_sigmas(5).tolist() == [0.05] * 5
    assert oks_sigmas(2, [0.1, 0.2]).tolist() == [0.1, 0.2]
    with pytest.raises(DataError, match="found 2 values, expected one for each of the 3 points"):
        oks_sigmas(3, [0.1, 0.2])


def test_similarity_of_points_by_hand() -> None:
    """Off by the root of twice the area times twice the sigma: e to the power of -1; an unmarked point is skipped."""
    target = Objects(
        np.array([[0, 0, 10, 10]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool), np.array([50], np.float32)
    )
    truth = np.array([[[5.0, 5.0, 2.0], [1.0, 1.0, 1.0], [9.0, 9.0, 0.0]]])
    guess = np.array([[[5.0, 5.0 + 10 * 2 * 0.1, 1.0], [1.0, 1.0, 1.0], [90.0, 90.0, 1.0]]])
    value = point_similarity(guess, truth, target, np.full(3, 0.1))
    assert value[0, 0] == pytest.approx((np.exp(-1) + 1) / 2)


def test_masks_that_are_missing_or_of_another_size() -> None:
    predictions, targets = scene(1, 6, kind="segm")
    boxes_only = [replace(t, masks=None) for t in targets]
    with pytest.raises(DataError, match="have boxes only; expected a mask for each"):
        coco_summary(predictions, boxes_only, "segm", CLASSES)
    position = next(i for i, t in enumerate(targets) if len(t))
    wrong = replace(targets[position], masks=({"size": [7, 9], "counts": [63]},) * len(targets[position]))
    with pytest.raises(DataError, match=f"a.png: the mask of object 0 is 7 x 9 pixels, the image {SIDE} x {SIDE}"):
        target_masks(wrong, (SIDE, SIDE), "a.png")


def test_masks_without_area() -> None:
    """No polygon, or one of two points, covers nothing; two points are no box."""
    empty = Objects(
        np.zeros((2, 4), np.float32),
        np.zeros(2, np.int64),
        np.zeros(2, bool),
        np.ones(2, np.float32),
        masks=((), (np.array([[1, 1], [20, 20]], np.float32),)),
    )
    from faster_coco_eval.core import mask as coco_mask

    assert coco_mask.area(target_masks(empty, (30, 30), "")).tolist() == [0, 0]


def test_points_that_do_not_fit_the_model() -> None:
    predictions, targets = scene(1, 6, kind="keypoints")
    with pytest.raises(DataError, match="have no points; expected 5 for each"):
        coco_summary(predictions, [replace(t, points=None) for t in targets], "keypoints", CLASSES)
    fewer = [replace(t, points=None if t.points is None else t.points[:, :2]) for t in targets]
    with pytest.raises(DataError, match="an object has 2 points, the model 5"):
        overlaps(predictions, fewer, "keypoints", len(CLASSES))
