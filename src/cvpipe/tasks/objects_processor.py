"""Pre- and postprocessing of the tasks with objects: from the network's slots to objects in the original image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cvpipe.data.geometry import Floats, Geometry, fit_geometry
from cvpipe.data.targets import encode_rle
from cvpipe.data.tiles import Merged, merge_boxes, points_back, tile_views, view_geometry
from cvpipe.models.detectors import Kind
from cvpipe.predictions import DetectionPrediction, InstancePrediction, KeypointPrediction
from cvpipe.tasks.objects_config import ObjectsConfig
from cvpipe.types import Labels, View

Slots = Mapping[str, torch.Tensor]
"""A detector's outputs (see `cvpipe.models.detector_network.Detector`)."""

_INSIDE = 0.5
"""Probability from which a pixel belongs to the object."""


class ObjectsProcessor:
    """Fits images to the network's canvas; moves boxes, masks and points back."""

    def __init__(self, config: ObjectsConfig, labels: Labels, kind: Kind) -> None:
        self.size, self.policy = config.data.image_size, config.data.resize
        self.inference, self.labels, self.kind = config.inference, labels, kind

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 RGB -> (3, h, w) uint8 RGB."""
        return fit_geometry((int(image.shape[1]), int(image.shape[2])), self.size, self.policy).image(image)

    def views(self, size: tuple[int, int]) -> list[View]:
        """Tiles with `inference.tile`, mirrored copies with `inference.tta`, else nothing."""
        return tile_views(size, self.inference.tile, self.inference.tile_overlap, self.inference.tta)

    def postprocess(
        self, outputs: Slots, sizes: Sequence[tuple[int, int]], threshold: float | None = None
    ) -> list[DetectionPrediction]:
        """The slots of N images -> N predictions.

        Args:
            sizes: original (height, width) of each image.
            threshold: score from which an object is in the answer; the config's `inference.threshold` if left out.
        """
        least = self._least(threshold)
        scores, labels, boxes = (outputs[name].cpu().numpy() for name in ("scores", "labels", "boxes"))
        found = []
        for i, size in enumerate(sizes):
            geometry = fit_geometry(size, self.size, self.policy)
            rows = np.flatnonzero(scores[i] > least)
            rows = rows[np.argsort(-scores[i][rows], kind="stable")]
            moved = geometry.boxes_back(boxes[i][rows])
            views = np.full(len(rows), i)
            found.append(self._prediction(outputs, Merged(moved, scores[i][rows], labels[i][rows], views, rows), size))
        return found

    def merge(
        self, outputs: Slots, views: Sequence[View], size: tuple[int, int], threshold: float | None = None
    ) -> DetectionPrediction:
        """The slots of all views of one image -> its prediction; what several views show is kept once."""
        boxes, scores, labels = (list(outputs[name].cpu().numpy()) for name in ("boxes", "scores", "labels"))
        # all of them: what a box below the threshold repeats must not come back when the threshold rises
        found = merge_boxes(boxes, scores, labels, views, size, self.size, self.policy, self.inference.nms)
        return self._prediction(outputs, found.take(found.scores > self._least(threshold)), size, views)

    def _least(self, threshold: float | None) -> float:
        """What a score must exceed: just below the threshold, and above the 0 of slots that are not used."""
        least = self.inference.threshold if threshold is None else threshold
        return max(0.0, float(np.nextafter(np.float32(least), np.float32(-1))))

    def _prediction(
        self, outputs: Slots, found: Merged, size: tuple[int, int], views: Sequence[View] | None = None
    ) -> DetectionPrediction:
        """Fetches what belongs to the chosen boxes. `found.views` are rows of the outputs."""
        # a box that lies in the grey border has nothing left in the image
        found = found.take((found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1))
        classes = self.labels.classes
        common = (classes, found.boxes, found.scores, found.labels)
        if self.kind == "boxes":
            return DetectionPrediction(*common)

        def geometry(view: int) -> Geometry:
            if views is None:
                return fit_geometry(size, self.size, self.policy)
            return view_geometry(views[view], size, self.size, self.policy)

        places = [(int(v), int(r), geometry(int(v))) for v, r in zip(found.views, found.rows, strict=True)]
        if self.kind == "masks":
            masks = [encode_rle(_mask(outputs, view, row, where, size)) for view, row, where in places]
            return InstancePrediction(*common, masks=tuple(masks), size=size)
        pairs = self.labels.flip_pairs
        points = [
            points_back(outputs["points"][view, row].cpu().numpy()[None], where, pairs)[0]
            for view, row, where in places
        ]
        none = np.zeros((0, len(self.labels.keypoints), 3), np.float32)
        return KeypointPrediction(*common, points=np.stack(points) if points else none)


def _mask(outputs: Slots, view: int, row: int, geometry: Geometry, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(height, width) of 0 and 1, of one slot."""
    if "masks" in outputs:
        corners = geometry.back(outputs["boxes"][view, row].cpu().numpy().reshape(2, 2))
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        inside = outputs["masks"][view, row].float().cpu()
        return paste_mask(inside.flip(-1) if geometry.hflip else inside, box, size)
    whole = np.zeros(size, np.uint8)
    top, left, height, width = geometry.window
    part = geometry.uncanvas(outputs["mask_maps"][view, row].float().cpu()[None])[0]
    whole[top : top + height, left : left + width] = (part >= _INSIDE).numpy()
    return whole


def paste_mask(inside: torch.Tensor, box: Floats, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A mask that was predicted inside a box -> the mask of the image.

    Each pixel takes the value at its centre, between the nearest four cells, as Detectron2 does (torchvision's
    `paste_masks_in_image` rounds the box to whole pixels first).

    Args:
        inside: (s, s) float32 probabilities.
        box: (4,) x1 y1 x2 y2 in pixels of the image; may reach beyond it.
        size: (height, width) of the image.

    Returns:
        (height, width) uint8 of 0 and 1.
    """
    whole = np.zeros(size, np.uint8)
    x1, y1, x2, y2 = box.tolist()
    left, right = max(0, math.floor(x1)), min(size[1], math.ceil(x2))
    top, bottom = max(0, math.floor(y1)), min(size[0], math.ceil(y2))
    if left >= right or top >= bottom or x2 <= x1 or y2 <= y1:
        return whole
    x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)
    values = F.grid_sample(inside[None, None], grid[None].float(), mode="bilinear", align_corners=False)[0, 0]
    whole[top:bottom, left:right] = (values >= _INSIDE).numpy()
    return whole


def draw_objects(image: Any, what: Any, labels: Labels) -> Any:
    """A Pillow image with boxes, masks and points of a prediction, or of the annotated `Objects`, drawn in."""
    from cvpipe import draw
    from cvpipe.data.targets import Objects, mask_on_canvas

    size = (image.height, image.width)
    if isinstance(what, Objects):
        names = [labels.classes[i] for i in what.labels]
        indices, boxes, points = what.labels, what.boxes, what.points
        whole = fit_geometry(size, size, "stretch")
        masks = [mask_on_canvas(mask, whole).numpy() for mask in what.masks or ()]
    else:
        found = cast(DetectionPrediction, what)
        names = [f"{label} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
        indices, boxes, points = found.indices, found.boxes, getattr(found, "points", None)
        masks = [_decoded(mask) for mask in getattr(found, "masks", ())]
    if masks:
        image = draw.masks(image, masks, indices.tolist())
    image = draw.boxes(image, boxes, indices.tolist(), names)
    return image if points is None else draw.points(image, points, labels.skeleton)


def _decoded(mask: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    from cvpipe.data.targets import decode_rle

    return decode_rle(mask)
