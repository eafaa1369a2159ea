"""Feeds the segmentation network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from cvpipe.data.geometry import Geometry, Size, fit_geometry
from cvpipe.data.loader import SampleTransform
from cvpipe.data.module import ImageDataModule
from cvpipe.data.spatial import SpatialEval, SpatialTrain
from cvpipe.data.splits import Split, Splits
from cvpipe.errors import ImageError
from cvpipe.tasks.semantic_segmentation.config import SemanticConfig, SemanticDataConfig
from cvpipe.tasks.semantic_segmentation.processor import SemanticProcessor

MOST_COUNTED = 1000
"""Masks that class shares are estimated from; more would not change them, and take minutes."""


class SemanticDataModule(ImageDataModule):
    """Batches with class maps (N, h, w) int64, IGNORE where a pixel counts nowhere."""

    config: SemanticConfig

    def __init__(self, config: SemanticConfig, splits: Splits) -> None:
        super().__init__(config, splits, SemanticProcessor(config, splits.labels).preprocess, stack_maps)

    def train_transform(self) -> SampleTransform:
        return RandomParts(self.config.data)

    def val_transform(self) -> SampleTransform:
        data = self.config.data
        return SpatialEval(data.image_size, data.resize, kind="classes")


class RandomParts(SpatialTrain):
    """Training images on a canvas of `crop_size`, at the scale that fits them to `image_size`.

    So the network sees things as large as it will see them in use, and fewer pixels a step.
    """

    def __init__(self, data: SemanticDataConfig) -> None:
        super().__init__(data.augment, data.crop_size or data.image_size, data.resize, kind="classes")
        self.fitted = data.image_size

    def _placed(
        self,
        source: Any,
        area: tuple[int, int, int, int],
        shrink: float,
        mirrored: tuple[bool, bool],
        rng: random.Random,
    ) -> Geometry:
        if self.fitted != self.size:
            size = (source.window[2], source.window[3])
            shrink *= _scale(size, self.fitted, self.policy) / _scale(size, self.size, self.policy)
        return super()._placed(source, area, shrink, mirrored, rng)


def _scale(source: Size, size: Size, policy: str) -> float:
    """Canvas pixels for a pixel of the image."""
    geometry = fit_geometry(source, size, policy)
    return max(geometry.scale)


def stack_maps(maps: list[torch.Tensor]) -> torch.Tensor:
    """(h, w) each -> (N, h, w) int64"""
    return torch.stack(maps).long() if maps else torch.zeros((0, 0, 0), dtype=torch.long)


def count_pixels(split: Split, classes: int) -> torch.Tensor:
    """(classes,) int64 pixels of each class in the split's masks, of at most 1000 of them, evenly chosen.

    Masks that can't be read are left out: training meets and reports them.
    """
    step = max(1, -(-len(split) // MOST_COUNTED))
    counts = torch.zeros(classes, dtype=torch.long)
    for target in _maps(split.targets[::step]):
        try:
            found = torch.from_numpy(target.load())
        except ImageError:
            continue
        counts += torch.bincount(found.flatten().long(), minlength=256)[:classes]
    return counts


def _maps(targets: Sequence[Any]) -> list[Any]:
    """The class maps, each file once, whatever windows of them are targets."""
    found = [getattr(target, "target", target) for target in targets]
    return list({target.path: target for target in found}.values())
