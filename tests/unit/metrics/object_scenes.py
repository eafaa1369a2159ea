"""Random objects and detections of any kind, and what pycocotools says about them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from cvpipe.data.targets import NO_OBJECTS, Objects, encode_rle
from cvpipe.predictions import DetectionPrediction, InstancePrediction, KeypointPrediction

SIDE = 150
POINTS = 5


def scene(
    seed: int, images: int = 12, classes: int = 4, kind: str = "bbox", crowd: float = 0.1, most: int = 7
) -> tuple[list[Any], list[Objects]]:
    """Predictions without equal scores, and targets; the last class has no objects, some images have none either.

    Objects have all sizes, a few of them overlap. Detections are moved objects, some with another class, some twice,
    some of nothing.
    """
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(images):
        count = int(rng.integers(0, most + 1))
        corner = rng.uniform(0, 100, (count, 2))
        sides = rng.choice([12.0, 45.0, 110.0], (count, 1)) * rng.uniform(0.6, 1.3, (count, 2))
        truth = np.clip(np.concatenate([corner, corner + sides], axis=1), 0, SIDE).astype(np.float32)
        labels = rng.integers(0, max(1, classes - 1), count)
        flags = rng.random(count) < crowd
        source = np.repeat(np.arange(count), rng.integers(0, 3, count))
        moved = truth[source] + rng.normal(0, 1, (len(source), 4)) * rng.choice([0.5, 4.0, 15.0], (len(source), 1))
        stray = rng.uniform(0, 100, (int(rng.integers(0, 5)), 2))
        stray = np.concatenate([stray, stray + rng.uniform(4, 50, stray.shape)], axis=1)
        boxes = np.concatenate([moved, stray])
        low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
        boxes = np.clip(np.concatenate([low, high + 1], axis=1), 0, SIDE).astype(np.float32)
        given = np.where(rng.random(len(source)) < 0.2, rng.integers(0, classes, len(source)), labels[source])
        given = np.concatenate([given, rng.integers(0, classes, len(stray))]).astype(np.int64)
        scores = rng.random(len(boxes)).astype(np.float32)
        order = np.argsort(-scores)
        boxes, given, scores = boxes[order], given[order], scores[order]
        target = _objects(rng, truth, labels, flags, kind)
        targets.append(target if count else NO_OBJECTS)
        source = np.concatenate([source, np.full(len(stray), -1)])[order]
        predictions.append(_prediction(rng, boxes, given, scores, kind, target, source, classes))
    return predictions, targets


def _objects(rng: Any, boxes: Any, labels: Any, crowd: Any, kind: str) -> Objects:
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32)
    masks = points = None
    if kind == "segm":
        pixels = [_ellipse(box) for box in boxes]
        areas = np.array([p.sum() for p in pixels], np.float32)
        masks = tuple(_mask(rng, p, box) for p, box in zip(pixels, boxes, strict=True))
    if kind == "keypoints":
        places = boxes[:, None, :2] + rng.random((len(boxes), POINTS, 2)) * (boxes[:, None, 2:] - boxes[:, None, :2])
        visible = rng.choice([0, 1, 2], (len(boxes), POINTS, 1)) * (rng.random((len(boxes), 1, 1)) < 0.85)
        points = np.concatenate([places, visible], axis=2).astype(np.float32)
        areas = (areas * 0.6).astype(np.float32)
    return Objects(boxes, labels.astype(np.int64), crowd, areas, masks, points)


def _mask(rng: Any, pixels: Any, box: Any) -> Any:
    """A compressed or plain RLE, or a polygon: the forms that annotations come in."""
    form = rng.integers(3)
    if form == 0:
        return encode_rle(pixels)
    if form == 1:
        flat = pixels.reshape(-1, order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        return {"size": [SIDE, SIDE], "counts": [0, *counts] if flat[0] else counts}
    x1, y1, x2, y2 = box
    return (np.array([[x1, y1], [x2, y1], [x2, y2], [(x1 + x2) / 2, (y1 + y2) / 2], [x1, y2]], np.float32),)


def _ellipse(box: Any) -> Any:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    x1, y1, x2, y2 = box
    inside = ((x - (x1 + x2) / 2) / max(x2 - x1, 1)) ** 2 + ((y - (y1 + y2) / 2) / max(y2 - y1, 1)) ** 2
    return (inside <= 0.25).astype(np.uint8)


def _prediction(
    rng: Any, boxes: Any, given: Any, scores: Any, kind: str, target: Objects, source: Any, classes: int
) -> Any:
    names = tuple(f"c{i}" for i in range(classes))
    if kind == "segm":
        masks = tuple(encode_rle(_ellipse(box)) for box in boxes)
        return InstancePrediction(names, boxes, scores, given, masks, (SIDE, SIDE))
    if kind == "keypoints":
        points = boxes[:, None, :2] + rng.random((len(boxes), POINTS, 2)) * (boxes[:, None, 2:] - boxes[:, None, :2])
        near = source >= 0
        assert target.points is not None
        noise = rng.normal(0, 1, (int(near.sum()), POINTS, 2)) * rng.choice([0.3, 2, 8], (int(near.sum()), 1, 1))
        points[near] = target.points[source[near], :, :2] + noise
        full = np.concatenate([points, rng.random((len(boxes), POINTS, 1))], axis=2).astype(np.float32)
        return KeypointPrediction(names, boxes, scores, given, full)
    return DetectionPrediction(names, boxes, scores, given)


def pycocotools_evaluation(predictions: Any, targets: Any, kind: str, classes: int, sigmas: Any = None) -> Any:
    """A pycocotools evaluation that was run; `stats` are its figures."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True), start=1):
        for i in range(len(target)):
            x1, y1, x2, y2 = (float(v) for v in target.boxes[i])
            record = {"id": len(annotations) + 1, "image_id": image, "category_id": int(target.labels[i]) + 1}
            record |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(target.areas[i])}
            record |= {"iscrowd": int(target.crowd[i])}
            if kind == "segm":
                mask = target.masks[i]
                record["segmentation"] = [p.reshape(-1).tolist() for p in mask] if isinstance(mask, tuple) else mask
            if kind == "keypoints":
                points = target.points[i].astype(float)
                record |= {"keypoints": points.reshape(-1).tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
            annotations.append(record)
        for i in range(len(prediction)):
            x1, y1, x2, y2 = (float(v) for v in prediction.boxes[i])
            record = {"image_id": image, "category_id": int(prediction.indices[i]) + 1}
            record["score"] = float(prediction.scores[i])
            if kind == "bbox":
                record["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if kind == "segm":
                record["segmentation"] = prediction.masks[i]
                assert coco_mask.area(prediction.masks[i]) >= 0
            if kind == "keypoints":
                record["keypoints"] = prediction.points[i].astype(float).reshape(-1).tolist()
            results.append(record)
    images = [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(targets))]
    categories = [{"id": c + 1, "name": f"c{c}"} for c in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        if kind == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
