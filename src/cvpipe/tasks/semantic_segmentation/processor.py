"""Pre- and postprocessing of semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cvpipe.config import Config
from cvpipe.data.geometry import Size, fit_geometry
from cvpipe.data.tiles import merge_maps, tile_views
from cvpipe.predictions import SegmentationPrediction
from cvpipe.tasks.spatial import SpatialConfig
from cvpipe.types import Labels, View

_MOST_VALUES = 64_000_000
"""Scores of an image's pixels that are in memory at a time, 256 MB: large images get them a few classes at a time."""


class SemanticProcessor:
    """Fits images to the network's size; turns its logits into a class for each pixel of the original image."""

    def __init__(self, config: Config, labels: Labels) -> None:
        assert isinstance(config, SpatialConfig)
        self.data, self.inference, self.labels = config.data, config.inference, labels

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 RGB -> (3, h, w) uint8 RGB."""
        size = int(image.shape[1]), int(image.shape[2])
        return fit_geometry(size, self.data.image_size, self.data.resize).image(image)

    def views(self, size: tuple[int, int]) -> list[View]:
        """Tiles with `inference.tile`, each mirrored too with `inference.tta`; else nothing."""
        inference = self.inference
        return tile_views(size, inference.tile, inference.tile_overlap, inference.tta, whole=False)

    def postprocess(self, outputs: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[SegmentationPrediction]:
        """(N, classes, h', w') logits over the canvas -> N predictions of the images' own sizes."""
        return [self._one(logits, size) for logits, size in zip(outputs, sizes, strict=True)]

    def merge(self, outputs: torch.Tensor, views: Sequence[View], size: tuple[int, int]) -> SegmentationPrediction:
        """The mean probabilities of all views of one image, those near a view's border counting less."""
        scores = outputs.float().softmax(dim=1)

        def shares(part: slice) -> torch.Tensor:
            return merge_maps(scores[:, part], views, size, self.data.image_size, self.data.resize)

        indices, best, _ = _best(shares, scores.shape[1], size)
        return self._prediction(indices, float(best.mean()))

    def _one(self, logits: torch.Tensor, size: Size) -> SegmentationPrediction:
        geometry = fit_geometry(size, self.data.image_size, self.data.resize)
        indices, best, total = _best(lambda part: geometry.uncanvas(logits[part].float()), len(logits), size)
        return self._prediction(indices, float((best - total).exp().mean()))

    def _prediction(self, indices: torch.Tensor, confidence: float) -> SegmentationPrediction:
        return SegmentationPrediction.of(self.labels.classes, indices.numpy().astype(np.uint8), confidence)


def _best(
    scores: Callable[[slice], torch.Tensor], classes: int, size: Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The class with the highest score for each pixel; of equal ones the first.

    Args:
        scores: some of the classes -> their (n, height, width) scores.

    Returns:
        (height, width) each: positions of the best classes, their scores, the logarithm of the sum of exp(score) of
        all classes.
    """
    step = max(1, min(classes, _MOST_VALUES // (size[0] * size[1])))
    indices = torch.zeros(size, dtype=torch.long)
    best, total = torch.full(size, -torch.inf), torch.full(size, -torch.inf)
    for start in range(0, classes, step):
        part = scores(slice(start, start + step))
        values, where = part.max(dim=0)
        indices = torch.where(values > best, where + start, indices)
        best = torch.maximum(best, values)
        total = torch.logaddexp(total, part.logsumexp(dim=0))
    return indices, best, total
