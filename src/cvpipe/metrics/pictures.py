"""Pictures of images with what is annotated on the left and what was found on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cvpipe import draw
from cvpipe.data.targets import Objects, decode_rle
from cvpipe.metrics.coco import target_masks
from cvpipe.predictions import DetectionPrediction, InstancePrediction, KeypointPrediction
from cvpipe.types import Labels

if TYPE_CHECKING:
    import PIL.Image

_WIDTH, _HEIGHT = 318, 480  # of one half, pixels: two of them and the gap are 640 wide
_MOST_ENLARGED = 4.0


def beside(
    path: str, target: Objects, prediction: DetectionPrediction, threshold: float, labels: Labels
) -> PIL.Image.Image:
    """At most 640 x 480 pixels. Of the prediction only what has at least that score. Raises ImageError."""
    from PIL import Image

    image = draw.open_image(path)
    scale = min(_WIDTH / image.width, _HEIGHT / image.height, _MOST_ENLARGED)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    # both sides on their own: rounding to whole pixels changes the proportions of a small picture
    factors = np.array([size[0] / image.width, size[1] / image.height])
    return draw.beside(
        _annotated(small, target, prediction, factors, labels), _found(small, prediction, threshold, factors, labels)
    )


def _annotated(
    image: PIL.Image.Image, target: Objects, prediction: DetectionPrediction, factors: Any, labels: Labels
) -> PIL.Image.Image:
    crowds = zip(target.labels.tolist(), target.crowd.tolist(), strict=True)
    names = [labels.classes[c] + (" (crowd)" if crowd else "") for c, crowd in crowds]
    masks = target_masks(target, prediction.size, "") if isinstance(prediction, InstancePrediction) else []
    image = _painted(image, masks, target.labels.tolist())
    image = draw.boxes(image, _moved(target.boxes, factors), target.labels.tolist(), names)
    if target.points is None:
        return image
    return draw.points(image, _moved_points(target.points, factors), labels.skeleton)


def _found(
    image: PIL.Image.Image, prediction: DetectionPrediction, threshold: float, factors: Any, labels: Labels
) -> PIL.Image.Image:
    kept = np.flatnonzero(prediction.scores >= threshold)
    indices = prediction.indices[kept].tolist()
    if isinstance(prediction, InstancePrediction):
        image = _painted(image, [prediction.masks[i] for i in kept], indices)
    names = [f"{labels.classes[c]} {s:.2f}" for c, s in zip(indices, prediction.scores[kept], strict=True)]
    image = draw.boxes(image, _moved(prediction.boxes[kept], factors), indices, names)
    if isinstance(prediction, KeypointPrediction):
        # all points count in the metrics, whatever their confidence
        image = draw.points(image, _moved_points(prediction.points[kept], factors), labels.skeleton, -np.inf)
    return image


def _painted(image: PIL.Image.Image, masks: Sequence[Any], indices: Sequence[int]) -> PIL.Image.Image:
    from PIL import Image

    if not masks:
        return image
    small = [
        np.asarray(Image.fromarray(decode_rle(mask)).resize(image.size, Image.Resampling.NEAREST)) for mask in masks
    ]
    return draw.masks(image, small, indices)


def _moved(boxes: npt.NDArray[Any], factors: Any) -> npt.NDArray[Any]:
    moved: npt.NDArray[Any] = (boxes.reshape(-1, 2, 2) * factors).reshape(-1, 4)
    return moved


def _moved_points(points: npt.NDArray[Any], factors: Any) -> npt.NDArray[Any]:
    moved = points.astype(np.float64)
    moved[..., :2] *= factors
    return moved
