"""Feeds the network whose memory is filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cvpipe.data.formats.mvtec import read_mask
from cvpipe.data.geometry import Size, fit_geometry
from cvpipe.data.loader import Another, SampleTransform
from cvpipe.data.module import ImageDataModule
from cvpipe.data.splits import Splits
from cvpipe.data.targets import IGNORE, Inspection
from cvpipe.errors import ImageError
from cvpipe.tasks.anomaly.config import AnomalyConfig
from cvpipe.tasks.anomaly.processor import AnomalyProcessor


class Truth(NamedTuple):
    """What is known about the images of a batch.

    Attributes:
        anomalous: (N,) bool.
        masks: (N, h, w) uint8 on the network's canvas: 1 where the defect is, 0 elsewhere, IGNORE where it is not known
            and beside the image.
    """

    anomalous: torch.Tensor
    masks: torch.Tensor


class AnomalyDataModule(ImageDataModule):
    """Batches with their `Truth`. Nothing is random: each image is seen once."""

    config: AnomalyConfig

    def __init__(self, config: AnomalyConfig, splits: Splits) -> None:
        super().__init__(config, splits, AnomalyProcessor(config, splits.labels).preprocess, stack_truth)

    def train_transform(self) -> SampleTransform:
        return self.val_transform()

    def val_transform(self) -> SampleTransform:
        return FittedInspection(self.config.data.image_size, self.config.data.resize)


class FittedInspection:
    """Brings an image and the mask of its defect to the canvas of the network."""

    def __init__(self, size: Size, policy: str) -> None:
        self.size, self.policy = size, policy

    def __call__(
        self, image: torch.Tensor, target: Inspection, seed: int, another: Another
    ) -> tuple[torch.Tensor, tuple[bool, torch.Tensor]]:
        """See `cvpipe.data.loader.SampleTransform`. Raises ImageError where the mask is missing, broken, or of another
        size than the image."""
        size = (int(image.shape[1]), int(image.shape[2]))
        geometry = fit_geometry(size, self.size, self.policy)
        if target.mask is not None:
            mask = torch.from_numpy(read_mask(target.mask)).to(torch.uint8)
            if mask.shape != size:
                raise ImageError(
                    f"{target.mask}: the mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[1]}x{size[0]}"
                )
        else:
            mask = torch.full(size, 0 if target.is_good else IGNORE, dtype=torch.uint8)
        return geometry.image(image), (not target.is_good, geometry.class_map(mask, IGNORE))


def stack_truth(targets: Sequence[tuple[bool, torch.Tensor]]) -> Truth:
    if not targets:
        return Truth(torch.zeros(0, dtype=torch.bool), torch.zeros((0, 0, 0), dtype=torch.uint8))
    return Truth(torch.tensor([one for one, _ in targets]), torch.stack([mask for _, mask in targets]))
