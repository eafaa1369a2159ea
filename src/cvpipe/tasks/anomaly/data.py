"""Feeds the network whose memory is filled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cvpipe.data.loader import ImageOnly, SampleTransform
from cvpipe.data.module import ImageDataModule
from cvpipe.data.splits import Splits
from cvpipe.data.targets import Inspection
from cvpipe.tasks.anomaly.config import AnomalyConfig
from cvpipe.tasks.anomaly.processor import AnomalyProcessor


class AnomalyDataModule(ImageDataModule):
    """Batches with (N,) bool: whether an image shows a defect. Nothing is random: each image is seen once."""

    config: AnomalyConfig

    def __init__(self, config: AnomalyConfig, splits: Splits) -> None:
        super().__init__(config, splits, AnomalyProcessor(config, splits.labels).preprocess, are_anomalous)

    def train_transform(self) -> SampleTransform:
        return ImageOnly(self.preprocess, None)


def are_anomalous(targets: Sequence[Inspection]) -> torch.Tensor:
    """(N,) bool"""
    return torch.tensor([not target.is_good for target in targets], dtype=torch.bool)
