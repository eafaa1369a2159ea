"""Feeds a task's network while it is trained: the LightningDataModule that all tasks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from cvpipe.config import Config
from cvpipe.data.batches import EpochBatches
from cvpipe.data.loader import ImageDataset, ImageOnly, Loader, SampleTransform, Transform
from cvpipe.data.splits import Split, Splits
from cvpipe.data.transforms import Augment


class ImageDataModule(LightningDataModule):
    """Train and validation loaders for images with targets.

    Args:
        config: the run's settings.
        splits: file names and targets.
        preprocess: the tail that evaluation and serving run too: uint8 (3, H, W) -> uint8 (3, h, w).
        collate_targets: list of targets -> what the loss takes.
        weights: probability weight of each training image for balanced sampling, or None.

    Attributes:
        notes: lines for the start-up messages.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        preprocess: Transform,
        collate_targets: Callable[[list[Any]], Any],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.splits = config, splits
        self.preprocess, self.collate_targets, self.weights = preprocess, collate_targets, weights
        self.batch_size = config.training.batch_size
        self.notes: list[str] = []

    def train_transform(self) -> SampleTransform:
        """What training images go through. Tasks whose targets move with the pixels put their own here."""
        return ImageOnly(self.preprocess, Augment(self.config.data.augment, self.config.data.image_size))

    def val_transform(self) -> SampleTransform:
        """The same for validation, without randomness."""
        return ImageOnly(self.preprocess, None)

    def train_batches(self, world_size: int = 1) -> int:
        """Batches of one epoch, the same number for each of so many processes."""
        return len(self._batches(self.splits.train, shuffle=True, world_size=world_size))

    def train_dataloader(self) -> Loader:
        return self._loader(self.splits.train, self.train_transform(), train=True)

    def val_dataloader(self) -> Loader:
        return self._loader(self.splits.val, self.val_transform(), train=False)

    def _loader(self, split: Split, transform: SampleTransform, train: bool) -> Loader:
        seed = self.config.training.seed
        dataset = ImageDataset(split, transform, seed, self.config.inference.max_pixels, replace=train)
        batches = self._batches(split, shuffle=train)
        return Loader(dataset, batches, self.collate_targets, worker_count(self.config.training.num_workers))

    def _batches(self, split: Split, shuffle: bool, world_size: int | None = None) -> EpochBatches:
        trainer = self.trainer
        return EpochBatches(
            len(split),
            self.batch_size,
            shuffle=shuffle,
            seed=self.config.training.seed,
            weights=self.weights if shuffle else None,
            rank=trainer.global_rank if trainer and world_size is None else 0,
            world_size=world_size or (trainer.world_size if trainer else 1),
        )


def worker_count(setting: int | str) -> int:
    """The number of loader processes: the setting, or one less than the CPUs this process may use, at most 8."""
    if isinstance(setting, int):
        return setting
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, available - 1))
