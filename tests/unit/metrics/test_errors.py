"""The split of errors: by hand, by repairing the predictions themselves, and by counting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_scenes import scene

from cvpipe.data.targets import Objects
from cvpipe.metrics.coco import coco_summary
from cvpipe.metrics.errors import KINDS, MEANINGS, Errors, missed_at, split_errors
from cvpipe.metrics.matching import Matches, match
from cvpipe.metrics.operating import confusion, operating_point
from cvpipe.metrics.overlaps import Overlaps, overlaps
from cvpipe.predictions import DetectionPrediction

CLASSES = ("c0", "c1", "c2", "c3")


def objects(*boxes: tuple[int, ...], crowd: tuple[int, ...] = ()) -> Objects:
    """(class, x1, y1, x2, y2) each."""
    rows = np.array(boxes, np.float32).reshape(-1, 5)
    flags = np.isin(np.arange(len(rows)), crowd)
    areas = np.prod(rows[:, 3:] - rows[:, 1:3], axis=1)
    return Objects(rows[:, 1:], rows[:, 0].astype(np.int64), flags, areas)


def detections(*boxes: tuple[float, ...]) -> DetectionPrediction:
    """(score, class, x1, y1, x2, y2) each."""
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return DetectionPrediction(CLASSES, rows[:, 2:], rows[:, 0], rows[:, 1].astype(np.int64))


def split(predictions: Any, targets: Any, kind: Any = "bbox") -> tuple[Overlaps, Matches, Errors]:
    found = overlaps(predictions, targets, kind, len(CLASSES))
    outcome = match(found)
    return found, outcome, split_errors(found, outcome)


def kinds(errors: Errors) -> list[str]:
    return ["" if k < 0 else KINDS[k] for k in errors.kind]


def test_one_of_each_kind() -> None:
    target = objects((0, 0, 0, 20, 20), (1, 50, 0, 70, 20), (2, 0, 50, 20, 70), (0, 90, 90, 120, 120))
    prediction = detections(
        (0.9, 0, 0, 0, 20, 20),  # right
        (0.8, 0, 1, 0, 21, 20),  # the same object again
        (0.7, 3, 50, 0, 70, 20),  # on the object of class 1
        (0.6, 2, 10, 50, 30, 70),  # half off the object of class 2
        (0.5, 1, 10, 50, 30, 70),  # that, and another class
        (0.4, 0, 0, 100, 10, 110),  # nothing there
    )
    found, outcome, errors = split([prediction], [target])
    assert kinds(errors) == ["", "duplicate", "classification", "localisation", "both", "background"]
    assert errors.target.tolist() == [-1, -1, 1, 2, -1, -1]
    assert errors.missed.tolist() == [False, False, False, True]
    assert set(errors.lost) == set(KINDS) == set(MEANINGS)
    # three classes; with its class right the object of class 1 is found, with its place right that of class 2
    assert errors.lost["classification"] == pytest.approx(1 / 3)
    assert errors.lost["localisation"] == pytest.approx(1 / 3)
    # class 0 has two objects: 51 of 101 recalls are reached without the second
    assert errors.lost["missed"] == pytest.approx(50 / 101 / 3)
    assert missed_at(found, outcome, errors, 0.65).tolist() == [False, False, True, True]
    assert missed_at(found, outcome, errors, 0.95).tolist() == [True] * 4


def test_crowds_are_no_error() -> None:
    target = objects((0, 0, 0, 60, 60), crowd=(0,))
    _, _, errors = split([detections((0.9, 0, 5, 5, 20, 20), (0.8, 0, 5, 5, 25, 25))], [target])
    assert kinds(errors) == ["", ""]
    assert not errors.missed.any()
    assert errors.lost == {}, "no class has objects that count"


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_detection_and_object_is_accounted_for(kind: Any, seed: int) -> None:
    predictions, targets = scene(seed, 8, len(CLASSES), kind, crowd=0.2)
    found, outcome, errors = split(predictions, targets, kind)
    right, counted = outcome.right[:, 0], outcome.counted[:, 0]
    assert ((errors.kind >= 0) == (counted & ~right)).all()
    aimed = errors.target >= 0
    assert (aimed == np.isin(errors.kind, [0, 1])).all()
    assert outcome.wanted[errors.target[aimed]].all()
    assert not (errors.missed & ~outcome.wanted).any()
    assert all(value >= 0 for value in errors.lost.values())
    for threshold in (0.0, 0.3, 0.7):
        matrix = confusion(found, outcome, threshold)
        kept = counted & (found.dt_score >= threshold)
        assert (matrix[:, :-1].sum(axis=0) == np.bincount(found.dt_label[kept], minlength=4)).all()
        assert (matrix[:-1].sum(axis=1) == np.bincount(found.gt_label[outcome.wanted], minlength=4)).all()
        assert matrix.trace() == (right & kept).sum()
        assert matrix[-1, -1] == 0
    assert (missed_at(found, outcome, errors, 0.0) == errors.missed).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_errors_cost_is_what_their_repair_brings(seed: int) -> None:
    """The predictions themselves are put right, and measured again by the COCO tool."""
    predictions, targets = scene(seed, 10, len(CLASSES), crowd=0)
    if not any(map(len, targets)):
        return
    found, outcome, errors = split(predictions, targets)
    base = coco_summary(predictions, targets, "bbox", CLASSES)["map_50"]
    used = set(outcome.objects[outcome.right[:, 0], 0].tolist())
    best: dict[int, int] = {}
    for d in np.argsort(-found.dt_score):
        if errors.target[d] >= 0 and int(errors.target[d]) not in used:
            best.setdefault(int(errors.target[d]), int(d))
    repaired = set(best.values())
    boxes = np.concatenate([t.boxes for t in targets])
    for number, name in enumerate(KINDS):
        answers, truth = [], list(targets)
        for i, prediction in enumerate(predictions):
            keep, box, label = [], prediction.boxes.copy(), prediction.indices.copy()
            for d in np.flatnonzero(found.dt_image == i):
                position = int(found.dt_index[d])
                if errors.kind[d] != number or d in repaired:
                    keep.append(position)
                if errors.kind[d] == number and d in repaired:
                    goal = errors.target[d]
                    if name == "classification":
                        label[position] = found.gt_label[goal]
                    else:
                        box[position] = boxes[goal]
            answers.append(DetectionPrediction(CLASSES, box[keep], prediction.scores[keep], label[keep]))
            if name == "missed":
                left = ~errors.missed[found.gt_image == i]
                old = targets[i]
                truth[i] = replace(
                    old, boxes=old.boxes[left], labels=old.labels[left], crowd=old.crowd[left], areas=old.areas[left]
                )
        now = coco_summary(answers, truth, "bbox", CLASSES).get("map_50", 0.0)
        assert errors.lost[name] == pytest.approx(max(0.0, now - base), abs=1e-6), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_best_score_is_best(seed: int) -> None:
    predictions, targets = scene(seed, 8, len(CLASSES), crowd=0.2)
    found, outcome, _ = split(predictions, targets)
    right, counted = outcome.right[:, 0], outcome.counted[:, 0]
    for label in (None, 0, 3):
        own = np.ones(len(right), bool) if label is None else found.dt_label == label
        objects = (outcome.wanted & ((found.gt_label == label) | (label is None))).sum()

        def f1(threshold: float, own: Any = own, objects: Any = objects) -> float:
            kept = own & counted & (found.dt_score >= threshold)
            return float(2 * (kept & right).sum() / max(1, kept.sum() + objects))

        best = operating_point(found, outcome, label)
        values = [f1(score) for score in found.dt_score]
        assert (best is None) == (max(values, default=0.0) == 0.0)
        if best is not None:
            assert f1(best.threshold) == pytest.approx(max(values))
            assert f1(best.threshold) == pytest.approx(
                2 * best.precision * best.recall / (best.precision + best.recall)
            )


def test_what_is_taken_for_what() -> None:
    target = objects((0, 0, 0, 20, 20), (1, 50, 0, 70, 20), (2, 0, 50, 20, 70))
    prediction = detections(
        (0.9, 0, 0, 0, 20, 20), (0.8, 2, 50, 0, 70, 20), (0.7, 3, 50, 0, 70, 20), (0.2, 2, 0, 50, 20, 70)
    )
    found, outcome, _ = split([prediction], [target])
    matrix = confusion(found, outcome, 0.5)
    expected = np.zeros((5, 5), np.int64)
    expected[0, 0] = expected[1, 2] = expected[4, 3] = expected[2, 4] = 1
    np.testing.assert_array_equal(matrix, expected)
