"""Which detections and objects of an image overlap, and how much: boxes, masks or points.

All of it works on flat arrays over the whole data set: D detections, G objects, P pairs of them that overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cvpipe.data.targets import Objects
from cvpipe.metrics.coco import MOST, Floats, Kind, extents, oks_sigmas, packed, target_masks, target_points
from cvpipe.predictions import DetectionPrediction, InstancePrediction, KeypointPrediction

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEAST = 0.1
"""Overlap below which two things have nothing to do with each other (TIDE, arXiv:2008.08115)."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Detections, objects, and the pairs of them in one image that overlap by at least `LEAST`, of any two classes.

    Attributes:
        images, classes: how many.
        dt_image, dt_label, dt_score, dt_area: (D,), sorted by image, best score first; at most 100 for an image and
            class (20 for keypoints).
        dt_index: (D,) position in the image's prediction.
        gt_image, gt_label, gt_area, gt_crowd: (G,), sorted by image.
        gt_ignore: (G,) objects that need not be found: crowds, and for keypoints those without a visible point.
        pair_dt, pair_gt, pair_value: (P,) positions, and the overlap: intersection over union of boxes or masks (of a
            crowd: the share of the detection inside), or object keypoint similarity. Sorted by detection, then object.
    """

    images: int
    classes: int
    dt_image: Ints
    dt_label: Ints
    dt_score: Floats
    dt_area: Floats
    dt_index: Ints
    gt_image: Ints
    gt_label: Ints
    gt_area: Floats
    gt_crowd: Bools
    gt_ignore: Bools
    pair_dt: Ints
    pair_gt: Ints
    pair_value: Floats


def overlaps(
    predictions: Sequence[DetectionPrediction],
    targets: Sequence[Objects],
    kind: Kind,
    classes: int,
    sigmas: Sequence[float] | None = None,
    places: Sequence[str] | None = None,
) -> Overlaps:
    """Flattens the data and compares all detections of an image with all its objects.

    Args:
        sigmas: see `cvpipe.metrics.coco.oks_sigmas`.
        places: names of the images, for messages.

    Raises:
        DataError: masks or points are missing or don't fit.
    """
    dt_image, gt_image = _owners(predictions), _owners(targets)
    scores = _joined([p.scores for p in predictions], np.float64)
    labels = _joined([p.indices for p in predictions], np.int64)
    indices = _joined([np.arange(len(p)) for p in predictions], np.int64)
    order = np.lexsort((-scores, dt_image))
    order = order[ranks_of(dt_image[order], labels[order]) < MOST[kind]]
    bounds = np.searchsorted(dt_image[order], np.arange(len(predictions) + 1))
    firsts = np.searchsorted(gt_image, np.arange(len(targets) + 1))
    names = places or [f"image {i + 1}" for i in range(len(predictions))]
    areas: list[Floats] = []
    ignored: list[Bools] = []
    parts: list[tuple[Ints, Ints, Floats]] = []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        kept = indices[order[bounds[i] : bounds[i + 1]]]
        values, area, ignore = _compare(prediction, kept, target, kind, sigmas, names[i])
        areas.append(area)
        ignored.append(ignore)
        rows, columns = np.nonzero(values >= LEAST)
        parts.append((rows + bounds[i], columns + firsts[i], values[rows, columns]))
    return Overlaps(
        images=len(predictions),
        classes=classes,
        dt_image=dt_image[order],
        dt_label=labels[order],
        dt_score=scores[order],
        dt_area=_joined(areas, np.float64),
        dt_index=indices[order],
        gt_image=gt_image,
        gt_label=_joined([t.labels for t in targets], np.int64),
        gt_area=_joined([t.areas for t in targets], np.float64),
        gt_crowd=_joined([t.crowd for t in targets], np.bool_),
        gt_ignore=_joined(ignored, np.bool_),
        pair_dt=_joined([part[0] for part in parts], np.int64),
        pair_gt=_joined([part[1] for part in parts], np.int64),
        pair_value=_joined([part[2] for part in parts], np.float64),
    )


def _compare(
    prediction: DetectionPrediction,
    kept: Ints,
    target: Objects,
    kind: Kind,
    sigmas: Sequence[float] | None,
    place: str,
) -> tuple[Floats, Floats, Bools]:
    """(overlaps (detections, objects), areas of the detections, objects that need not be found) of one image."""
    if kind == "keypoints":
        return _compare_points(cast(KeypointPrediction, prediction), kept, target, sigmas)
    if kind == "segm":
        return _compare_masks(cast(InstancePrediction, prediction), kept, target, place)
    boxes = prediction.boxes[kept].astype(np.float64)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return box_overlaps(boxes, target.boxes.astype(np.float64), target.crowd), area, target.crowd


def box_overlaps(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """(n, 4) and (m, 4) x1 y1 x2 y2 -> (n, m) intersection over union; of crowds, over the area of the first box."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - low
    shared = np.prod(np.maximum(sides, 0.0), axis=2)
    area, other = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.prod(others[:, 2:] - others[:, :2], axis=1)
    union = area[:, None] + np.where(crowd, 0.0, other[None] - shared)
    value: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return value


def _compare_masks(
    prediction: InstancePrediction, kept: Ints, target: Objects, place: str
) -> tuple[Floats, Floats, Bools]:
    from faster_coco_eval.core import mask as coco

    masks = [packed(prediction.masks[i]) for i in kept]
    truth = target_masks(target, prediction.size, place)
    area = np.asarray(coco.area(masks) if masks else (), dtype=np.float64)
    if not masks or not truth:
        return np.zeros((len(masks), len(truth))), area, target.crowd
    values = np.asarray(coco.iou(masks, truth, target.crowd.astype(int).tolist()), dtype=np.float64)
    return values.reshape(len(masks), len(truth)), area, target.crowd


def _compare_points(
    prediction: KeypointPrediction, kept: Ints, target: Objects, sigmas: Sequence[float] | None
) -> tuple[Floats, Floats, Bools]:
    count = prediction.points.shape[1]
    found = prediction.points[kept].astype(np.float64)
    truth = target_points(target, count)
    values = point_similarity(found, truth, target, oks_sigmas(count, sigmas))
    return values, extents(found), target.crowd | ~(truth[..., 2] > 0).any(axis=1)


def point_similarity(found: Floats, truth: Floats, target: Objects, sigmas: Floats) -> Floats:
    """(n, points, 3) and (m, points, 3) -> (n, m) object keypoint similarity (cocodataset.org/#keypoints-eval).

    Of an object without visible points only the distance from its box, doubled on each side, counts.
    """
    visible: Bools = truth[..., 2] > 0
    offset = found[:, None, :, :2] - truth[None, :, :, :2]
    boxes = target.boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - sides)[None, :, None], (boxes[:, 2:] + sides)[None, :, None]
    position = found[:, None, :, :2]
    blind: Bools = np.asarray(~visible.any(axis=1))
    away = np.maximum(low - position, 0.0) + np.maximum(position - high, 0.0)
    offset = np.where(blind[None, :, None, None], away, offset)
    scale = (2 * sigmas) ** 2 * (target.areas.astype(np.float64)[:, None] + np.spacing(1)) * 2
    likeness = np.exp(-(offset**2).sum(axis=3) / scale[None])
    counted = visible | blind[:, None]
    value: Floats = (likeness * counted[None]).sum(axis=2) / np.maximum(counted.sum(axis=1), 1)[None]
    return value


def _owners(items: Sequence[Any]) -> Ints:
    """(sum of lengths,) the position of the item that each element belongs to."""
    return np.repeat(np.arange(len(items)), [len(item) for item in items])


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def ranks_of(images: Ints, labels: Ints) -> Ints:
    """(n,) 0, 1, … within each image and class, in the given order."""
    order = np.lexsort((np.arange(len(images)), labels, images))
    new = np.append(True, (images[order][1:] != images[order][:-1]) | (labels[order][1:] != labels[order][:-1]))
    starts = np.flatnonzero(new[: len(order)])
    within = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = within
    return ranks
