"""The COCO metrics of detection, instance segmentation and keypoints, by faster-coco-eval, without files.

The definitions are those of pycocotools (Lin et al. 2014, arXiv:1405.0312; cocodataset.org/#detection-eval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from cvpipe.data.targets import Objects
from cvpipe.errors import DataError
from cvpipe.predictions import DetectionPrediction, InstancePrediction, KeypointPrediction
from cvpipe.types import Failure

Kind = Literal["bbox", "segm", "keypoints"]
Floats = npt.NDArray[np.float64]
Rle = dict[str, Any]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""Of the overlap from which a detection counts as right."""

RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Where the precision-recall curve is read."""

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Size ranges, square pixels, borders included."""

MOST = {"bbox": 100, "segm": 100, "keypoints": 20}
"""Detections that count for one image and class, best first."""

_COCO_SIGMAS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)
_OTHER_SIGMA = 0.05


def coco_summary(
    predictions: Sequence[DetectionPrediction | Failure],
    targets: Sequence[Objects],
    kind: Kind,
    classes: Sequence[str],
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    """The figures that COCO's own tool prints, and the average precision of each class.

    `map` (mean over overlaps 0.5, 0.55 … 0.95), `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `ar_1`,
    `ar_10`, `ar_100` (recall with that many detections an image), and `map/CLASS`. Keypoints have no small objects
    and at most 20 detections: `map_small` and the three recalls are replaced by `ar_20`. What the data leave
    undefined, such as a class without objects, is absent.

    Args:
        predictions: one for each image; images with a Failure are left out with their objects.
        targets: what is annotated. Crowds are found or not without consequence.
        kind: whether boxes, masks (`InstancePrediction`) or points (`KeypointPrediction`) are compared.
        sigmas: see `oks_sigmas`.

    Raises:
        DataError: an object has no mask, or one that is not of its image's size.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    answered = [(p, t) for p, t in zip(predictions, targets, strict=True) if not isinstance(p, Failure)]
    if not answered:
        return {}
    images, objects, found = _annotations(answered, kind)
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(classes)]
    sides = []
    for records in (objects, found):
        # not COCO(dataset): version 1.6 and 1.8 differ in what else that takes
        side = COCO()
        side.dataset = {"images": images, "annotations": records, "categories": categories}
        side.createIndex()
        sides.append(side)
    points = _point_count(answered) if kind == "keypoints" else 0
    evaluation = COCOeval_faster(
        *sides,
        iouType=kind,
        print_function=_silent,
        kpt_oks_sigmas=oks_sigmas(points, sigmas).tolist() if points else None,
    )
    evaluation.params.catIds = [category["id"] for category in categories]
    evaluation.evaluate()
    evaluation.accumulate()
    return _summary(evaluation, classes)


def oks_sigmas(points: int, sigmas: Sequence[float] | None = None) -> Floats:
    """How far annotators are off, as a share of the object's size, for each point: the scale of its similarity.

    Args:
        points: how many an object has.
        sigmas: one for each point. Left out: COCO's for 17 points (they were measured for people), else 0.05, which
            is about the mean of COCO's. Values of data sets with other sigmas can't be compared.
    """
    if sigmas is None:
        return np.array(_COCO_SIGMAS) / 1000 if points == len(_COCO_SIGMAS) else np.full(points, _OTHER_SIGMA)
    if len(sigmas) != points:
        raise DataError(f"sigmas: found {len(sigmas)} values, expected one for each of the {points} points.")
    return np.asarray(sigmas, dtype=np.float64)


def target_masks(objects: Objects, size: tuple[int, int], place: str) -> list[Rle]:
    """The masks of an image's objects as compressed RLE with bytes; polygons are filled as COCO fills them.

    Args:
        size: (height, width) of the image.
        place: names the image in messages.
    """
    from faster_coco_eval.core import mask as coco

    if not len(objects):
        return []
    if objects.masks is None:
        raise DataError(f"{place}: its {len(objects)} objects have boxes only; expected a mask for each.")
    height, width = size
    masks = []
    for number, mask in enumerate(objects.masks):
        if isinstance(mask, Mapping):
            if tuple(mask["size"]) != (height, width):
                name = objects.ids[number] if objects.ids else number
                found = " x ".join(str(v) for v in mask["size"])
                raise DataError(f"{place}: the mask of object {name} is {found} pixels, the image {height} x {width}.")
            masks.append(packed(mask))
        else:
            # two points would be taken for a box; a line covers nothing
            outlines = [np.asarray(p, np.float64).reshape(-1).tolist() for p in mask if len(p) > 2]
            filled = coco.frPyObjects(outlines, height, width) if outlines else [_empty(height, width)]
            masks.append(coco.merge(filled))
    return masks


def packed(mask: Mapping[str, Any]) -> Rle:
    """A COCO RLE with any kind of counts -> a compressed one with bytes."""
    from faster_coco_eval.core import mask as coco

    height, width = mask["size"]
    counts = mask["counts"]
    if isinstance(counts, (list, tuple)):
        return cast(Rle, coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width))
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def target_points(objects: Objects, points: int) -> Floats:
    """(n, points, 3) x, y, visibility; an image without objects has none of the right shape."""
    if objects.points is None:
        if len(objects):
            raise DataError(f"{len(objects)} objects have no points; expected {points} for each.")
        return np.zeros((0, points, 3))
    if objects.points.shape[1] != points:
        raise DataError(f"an object has {objects.points.shape[1]} points, the model {points}.")
    return objects.points.astype(np.float64)


def _empty(height: int, width: int) -> Rle:
    return packed({"size": [height, width], "counts": [height * width]})


def _silent(*_: object) -> None:
    return None


def _point_count(answered: Sequence[tuple[DetectionPrediction, Objects]]) -> int:
    return int(cast(KeypointPrediction, answered[0][0]).points.shape[1])


def _annotations(
    answered: Sequence[tuple[DetectionPrediction, Objects]], kind: Kind
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(images, annotated objects, found objects) as COCO's files hold them. Ids start at 1: COCO takes 0 for none."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (prediction, target) in enumerate(answered, start=1):
        height, width = prediction.size if isinstance(prediction, InstancePrediction) else (0, 0)
        images.append({"id": number, "height": height, "width": width})
        truth = _records(number, target.boxes, target.labels, len(objects))
        for record, area, crowd in zip(truth, target.areas.tolist(), target.crowd.tolist(), strict=True):
            record |= {"area": area, "iscrowd": int(crowd)}
        answers = _records(number, prediction.boxes, prediction.indices, len(found))
        for record, score in zip(answers, prediction.scores.tolist(), strict=True):
            _, _, w, h = record["bbox"]
            record |= {"area": w * h, "score": score, "iscrowd": 0}
        if kind == "segm":
            _add_masks(cast(InstancePrediction, prediction), target, truth, answers)
        elif kind == "keypoints":
            _add_points(cast(KeypointPrediction, prediction), target, truth, answers)
        objects += truth
        found += answers
    return images, objects, found


def _records(image: int, boxes: npt.NDArray[Any], labels: npt.NDArray[Any], before: int) -> list[dict[str, Any]]:
    exact = boxes.astype(np.float64).reshape(-1, 4)
    exact[:, 2:] -= exact[:, :2]
    return [
        {"id": before + i, "image_id": image, "category_id": label + 1, "bbox": box}
        for i, (label, box) in enumerate(zip(labels.tolist(), exact.tolist(), strict=True), start=1)
    ]


def _add_masks(
    prediction: InstancePrediction, target: Objects, truth: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    from faster_coco_eval.core import mask as coco

    place = f"image {truth[0]['image_id']}" if truth else "an image"
    for record, mask in zip(truth, target_masks(target, prediction.size, place), strict=True):
        record["segmentation"] = mask
    masks = [packed(mask) for mask in prediction.masks]
    areas = coco.area(masks) if masks else ()
    for record, mask, area in zip(answers, masks, areas, strict=True):
        record |= {"segmentation": mask, "area": float(area)}


def _add_points(
    prediction: KeypointPrediction, target: Objects, truth: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    count = prediction.points.shape[1]
    for record, points in zip(truth, target_points(target, count), strict=True):
        record |= {"keypoints": points.reshape(-1).tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
    found = prediction.points.astype(np.float64)
    for record, points, area in zip(answers, found, extents(found), strict=True):
        record |= {"keypoints": points.reshape(-1).tolist(), "area": float(area)}


def extents(points: Floats) -> Floats:
    """(n, points, 3) -> (n,) areas of the boxes around the points, which COCO takes for the size of what was found."""
    if not points.size:
        return np.zeros(len(points))
    sides: Floats = points[..., :2].max(axis=1) - points[..., :2].min(axis=1)
    return cast(Floats, sides.prod(axis=1))


def _summary(evaluation: Any, classes: Sequence[str]) -> dict[str, float]:
    shape = evaluation.eval["counts"]
    overlaps, _, _, _, limits = shape
    # (overlaps, recalls, classes, areas, limits) and the same without recalls; -1 where undefined
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64).reshape(shape)[..., -1]
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64).reshape(overlaps, *shape[2:])
    sizes = evaluation.params.areaRngLbl
    values = {
        "map": _mean(precision[..., 0]),
        "map_50": _mean(precision[0, ..., 0]),
        "map_75": _mean(precision[5, ..., 0]),
    }
    values |= {f"map_{size}": _mean(precision[..., a]) for a, size in enumerate(sizes) if size != "all"}
    values |= {f"ar_{evaluation.params.maxDets[m]}": _mean(recall[:, :, 0, m]) for m in range(limits)}
    values |= {f"map/{name}": _mean(precision[:, :, c, 0]) for c, name in enumerate(classes)}
    return {name: value for name, value in values.items() if value is not None}


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
