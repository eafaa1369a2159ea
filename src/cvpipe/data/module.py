"""Feeds a task's network while it is trained: the LightningDataModule that all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils._pytree import tree_leaves

from cvpipe.config import Config
from cvpipe.data.batches import EpochBatches
from cvpipe.data.loader import ImageDataset, ImageOnly, Loader, SampleTransform, Transform
from cvpipe.data.splits import Split, Splits
from cvpipe.data.transforms import Augment
from cvpipe.data.workers import (
    MEASURE_FROM,
    PREFETCH,
    Workers,
    choose_workers,
    shared_memory_free,
    within_shared_memory,
)
from cvpipe.utils.console import say, warn


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
        self._workers: Workers | None = None

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

    def workers(self) -> Workers:
        """How many processes load. Tried out when first asked for, where the setting is auto and the run is long."""
        if self._workers is None:
            training = self.config.training
            images = len(self.splits.train) * training.epochs
            chosen = choose_workers(training.num_workers, images, self.measured_loader)
            free, auto = shared_memory_free(), training.num_workers == "auto"
            size = self._batch_bytes() if chosen.count else 0
            self._workers, shortage = within_shared_memory(chosen, size, free, auto)
            if images >= MEASURE_FROM and auto:
                say(f"loading with {self._workers.count} processes: {self._workers.reason}")
            if shortage:
                warn(shortage)
        return self._workers

    def measured_loader(self, workers: int) -> Loader:
        """Training batches by so many processes, apart from the ones that training sees."""
        return self._made(self.splits.train, self.train_transform(), True, Workers(workers, PREFETCH, ""))

    def _loader(self, split: Split, transform: SampleTransform, train: bool) -> Loader:
        return self._made(split, transform, train, self.workers())

    def _made(self, split: Split, transform: SampleTransform, train: bool, workers: Workers) -> Loader:
        seed = self.config.training.seed
        most, scaled = self.config.inference.max_pixels, self.config.data.scaled_decoding
        dataset = ImageDataset(split, transform, seed, most, replace=train, scaled=scaled)
        batches = self._batches(split, shuffle=train)
        return Loader(dataset, batches, self.collate_targets, workers.count, workers.prefetch)

    def _batch_bytes(self) -> int:
        """A batch with its targets, from one image of it."""
        item = self.measured_loader(0).dataset[(0, 0, 0)]
        return self.batch_size * sum(leaf.nbytes for leaf in tree_leaves(item[:2]) if isinstance(leaf, torch.Tensor))

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
