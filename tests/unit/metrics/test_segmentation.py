"""Metrics of class maps, compared with scikit-learn, torchmetrics and a definition written out slowly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from cvpipe.data.targets import IGNORE
from cvpipe.metrics.segmentation import (
    TOLERANCE,
    Counter,
    boundary_f1,
    class_rows,
    confused_rows,
    confusion_of,
    image_ious,
    statistics_of,
)

CLASSES = 4
Map = npt.NDArray[np.uint8]


@st.composite
def pairs(draw: Any, ignore: bool = True, side: int = 12) -> tuple[Map, Map]:
    """(truth, found) of one size; the truth may hold IGNORE, and some classes need not occur."""
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    values = st.sampled_from([*range(CLASSES), *([IGNORE] if ignore else [])])
    truth = draw(hnp.arrays(np.uint8, shape, elements=values))
    found = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)))
    return truth, found


def counted(*images: tuple[Map, Map]) -> Any:
    counter = Counter(CLASSES)
    for truth, found in images:
        counter.add(truth, found)
    return counter.counts()


def values_of(counts: Any, weights: Any = None) -> dict[str, float]:
    ones = np.ones((1, len(counts.hits))) if weights is None else np.asarray([weights], float)
    return {name: float(value[0]) for name, value in statistics_of(counts)(ones).items()}


def flat(images: list[tuple[Map, Map]]) -> tuple[Any, Any]:
    truth, found = (np.concatenate([pair[i].reshape(-1) for pair in images]) for i in (0, 1))
    return truth[truth != IGNORE], found[truth != IGNORE]


@given(st.lists(pairs(), min_size=1, max_size=4))
def test_the_values_of_scikit_learn(images: list[tuple[Map, Map]]) -> None:
    counts, (truth, found) = counted(*images), flat(images)
    values = values_of(counts)
    if not len(truth):
        assert all(math.isnan(value) for value in values.values())
        return
    # scikit-learn's macro mean too is taken over the labels that occur on either side
    assert values["miou"] == pytest.approx(jaccard_score(truth, found, average="macro"))
    assert values["dice"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert values["pixel_accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert np.array_equal(counts.confusion, confusion_matrix(truth, found, labels=range(CLASSES)))


@given(st.lists(pairs(), min_size=1, max_size=3))
def test_the_values_of_torchmetrics(images: list[tuple[Map, Map]]) -> None:
    counts = counted(*images)
    occurs = (counts.truth + counts.found).sum(axis=0) > 0
    metric = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORE, validate_args=False)
    for truth, found in images:
        metric.update(torch.from_numpy(found.astype(np.int64))[None], torch.from_numpy(truth.astype(np.int64))[None])
    expected = metric.compute().numpy()
    rows = class_rows(counts, ("a", "b", "c", "d"))
    for c, row in enumerate(rows):
        assert (row["iou"] is not None) == occurs[c]
        if occurs[c]:
            assert row["iou"] == pytest.approx(float(expected[c]), abs=1e-6)


@given(st.lists(st.tuples(pairs(), st.integers(0, 3)), min_size=1, max_size=4))
def test_a_weight_is_a_number_of_copies(drawn: list[tuple[tuple[Map, Map], int]]) -> None:
    copies = [image for image, times in drawn for _ in range(times)]
    if not copies:
        return
    weighted = values_of(counted(*(image for image, _ in drawn)), [times for _, times in drawn])
    expected = values_of(counted(*copies))
    for name, value in expected.items():
        assert weighted[name] == pytest.approx(value, nan_ok=True), name


@given(pairs(), st.integers(0, CLASSES - 1))
def test_what_is_ignored_counts_nowhere(pair: tuple[Map, Map], other: int) -> None:
    truth, found = pair
    changed = np.where(truth == IGNORE, np.uint8(other), found)
    assert np.array_equal(confusion_of(truth, found, CLASSES), confusion_of(truth, changed, CLASSES))
    np.testing.assert_array_equal(boundary_f1(truth, found, CLASSES), boundary_f1(truth, changed, CLASSES))


@given(pairs(ignore=False))
def test_right_is_one_and_sides_can_be_swapped(pair: tuple[Map, Map]) -> None:
    truth, found = pair
    same = values_of(counted((truth, truth)))
    assert same["miou"] == same["dice"] == same["pixel_accuracy"] == 1
    assert math.isnan(same["boundary_f1"]) or same["boundary_f1"] == 1
    one, other = boundary_f1(truth, found, CLASSES), boundary_f1(found, truth, CLASSES)
    np.testing.assert_allclose(one, other)


def slow_boundary_f1(truth: Map, found: Map, index: int) -> float:
    """With distance transforms, and boundaries looked for pixel by pixel."""
    height, width = truth.shape

    def outline(side: Map) -> npt.NDArray[np.bool_]:
        marked = np.zeros(side.shape, bool)
        for y in range(height):
            for x in range(width):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= v < height and 0 <= u < width and truth[v, u] != IGNORE and truth[y, x] != IGNORE:
                        marked[y, x] |= side[y, x] == index and side[v, u] != index
        return marked

    reach = TOLERANCE * math.hypot(height, width)
    true, said = outline(truth), outline(found)
    if not true.any() and not said.any():
        return math.nan
    if not true.any() or not said.any():
        return 0.0
    recall = (distance_transform_edt(~said)[true] <= reach).mean()
    precision = (distance_transform_edt(~true)[said] <= reach).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([(20, 30), (150, 220), (60, 400)]))
def test_boundaries_as_the_distance_transform_has_them(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)

    def blobs() -> Map:
        coarse = rng.integers(0, CLASSES, (3, 4)).astype(np.uint8)
        rows = np.sort(rng.integers(0, 3, shape[0]))
        columns = np.sort(rng.integers(0, 4, shape[1]))
        return coarse[rows][:, columns]

    truth = blobs()
    found = np.roll(truth, rng.integers(0, 4, 2), (0, 1)) if rng.random() < 0.7 else blobs()
    if shape == (20, 30):
        truth[rng.random(shape) < 0.1] = IGNORE
        np.testing.assert_allclose(
            boundary_f1(truth, found, CLASSES), [slow_boundary_f1(truth, found, c) for c in range(CLASSES)]
        )
        return
    # the larger ones only where the slow search is not needed
    scores = boundary_f1(truth, found, CLASSES)
    for c in range(CLASSES):
        outlines = []
        for side in (truth, found):
            member = np.pad(side == c, 1, mode="edge")
            inner = member[:-2, 1:-1] & member[2:, 1:-1] & member[1:-1, :-2] & member[1:-1, 2:]
            outlines.append((side == c) & ~inner)
        if not any(outline.any() for outline in outlines):
            assert math.isnan(scores[c])
            continue
        if not all(outline.any() for outline in outlines):
            assert scores[c] == 0
            continue
        reach = TOLERANCE * math.hypot(*shape)
        recall, precision = (
            (distance_transform_edt(~outlines[other])[outlines[own]] <= reach).mean() for own, other in ((0, 1), (1, 0))
        )
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert scores[c] == pytest.approx(expected)


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    truth = np.zeros((300, 400), np.uint8)  # a diagonal of 500: 3.75 pixels
    truth[:, 200:] = 1
    for shift, expected in ((0, 1.0), (3, 1.0), (4, 0.0)):
        found = np.zeros_like(truth)
        found[:, 200 + shift :] = 1
        assert boundary_f1(truth, found, 2).tolist() == [expected] * 2, shift


def test_rows_of_classes() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]], np.uint8)
    found = np.array([[0, 0, 0, 1], [0, 2, 1, 3]], np.uint8)
    rows = class_rows(counted((truth, found)), ("a", "b", "c", "d"))
    assert [row["images"] for row in rows] == [1, 1, 0, 0]
    assert [row["iou"] for row in rows] == [3 / 5, 2 / 3, 0.0, None]
    assert [row["precision"] for row in rows] == [3 / 4, 1.0, 0.0, None]
    assert [row["recall"] for row in rows] == [3 / 4, 2 / 3, None, None]
    assert [row["share of pixels"] for row in rows] == [4 / 7, 3 / 7, 0.0, 0.0]


def test_the_most_confused() -> None:
    confusion = np.array([[90, 10, 0], [0, 50, 0], [30, 0, 20]])
    assert confused_rows(confusion, ("a", "b", "c")) == [
        {"true": "c", "predicted": "a", "share of true": 0.6, "share of all wrong pixels": 0.75},
        {"true": "a", "predicted": "b", "share of true": 0.1, "share of all wrong pixels": 0.25},
    ]
    assert confused_rows(np.diag([3, 4, 5]), ("a", "b", "c")) == []


def test_the_iou_of_each_image() -> None:
    good = np.zeros((4, 4), np.uint8)
    bad = np.ones((4, 4), np.uint8)
    nothing = np.full((4, 4), IGNORE, np.uint8)
    ious = image_ious(counted((good, good), (good, bad), (nothing, bad)))
    assert ious[:2].tolist() == [1, 0]
    assert math.isnan(ious[2])
