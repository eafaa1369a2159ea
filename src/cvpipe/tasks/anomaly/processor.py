"""Pre- and postprocessing of anomaly detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cvpipe.config import Config
from cvpipe.data.geometry import Geometry, Size, fit_geometry
from cvpipe.data.tiles import tile_views
from cvpipe.predictions import AnomalyPrediction
from cvpipe.tasks.anomaly.config import AnomalyConfig
from cvpipe.types import Labels, View


class AnomalyProcessor:
    """Fits images to the network's size; cuts the heat out of its canvas."""

    def __init__(self, config: Config, labels: Labels) -> None:
        assert isinstance(config, AnomalyConfig)
        self.data, self.inference, self.labels = config.data, config.inference, labels

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 RGB -> (3, h, w) uint8 RGB."""
        return self._geometry((int(image.shape[1]), int(image.shape[2]))).image(image)

    def views(self, size: tuple[int, int]) -> list[View]:
        """The image and its mirror image with `inference.tta`; else nothing."""
        return tile_views(size, 0, 0.0, self.inference.tta)

    def postprocess(
        self, outputs: Mapping[str, torch.Tensor], sizes: Sequence[tuple[int, int]], threshold: float = 0.0
    ) -> list[AnomalyPrediction]:
        """The network's answers for N images -> N predictions. The heat keeps the network's resolution.

        Args:
            sizes: original (height, width) of each image.
            threshold: score from which an image counts as anomalous; 0: the config's, else the network's own.
        """
        return [
            self._prediction(
                float(outputs["score"][i]), outputs["heat"][i], float(outputs["threshold"][i]), size, threshold
            )
            for i, size in enumerate(sizes)
        ]

    def merge(
        self,
        outputs: Mapping[str, torch.Tensor],
        views: Sequence[View],
        size: tuple[int, int],
        threshold: float = 0.0,
    ) -> AnomalyPrediction:
        """The mean of an image and its mirror image."""
        heat = torch.stack(
            [map_.flip([-1]) if view.hflip else map_ for map_, view in zip(outputs["heat"], views, strict=True)]
        ).mean(dim=0)
        return self._prediction(float(outputs["score"].mean()), heat, float(outputs["threshold"][0]), size, threshold)

    def _prediction(
        self, score: float, heat: torch.Tensor, own: float, size: tuple[int, int], threshold: float
    ) -> AnomalyPrediction:
        top, left, height, width = self._geometry(size).place
        part = heat[top : top + height, left : left + width].float().cpu().contiguous().numpy()
        return AnomalyPrediction(score, threshold or self.inference.threshold or own, part, size)

    def _geometry(self, size: Size) -> Geometry:
        return fit_geometry(size, self.data.image_size, self.data.resize)
