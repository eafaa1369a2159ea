"""Feeds the classification network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from cvpipe.data.module import ImageDataModule
from cvpipe.data.splits import Splits
from cvpipe.tasks.classification.config import ClassificationConfig
from cvpipe.tasks.classification.utils import ClassificationProcessor
from cvpipe.types import Labels


class ClassificationDataModule(ImageDataModule):
    """Batches with class indices (N,) int64, or (N, classes) float32 of 0 and 1 for multi-label."""

    def __init__(self, config: ClassificationConfig, splits: Splits) -> None:
        labels = splits.labels
        weights = None
        if config.training.class_balance == "sampler":
            by_class = class_weights(splits.train.targets, labels)
            weights = [max((by_class[c] for c in _members(t)), default=1.0) for t in splits.train.targets]
        super().__init__(
            config, splits, ClassificationProcessor(config, labels).preprocess, CollateTargets(labels), weights
        )


class CollateTargets:
    """Class indices -> int64 tensor; tuples of them -> float 0/1 matrix."""

    def __init__(self, labels: Labels) -> None:
        self.classes = len(labels.classes)
        self.multi_label = labels.multi_label

    def __call__(self, targets: list[Any]) -> torch.Tensor:
        if not self.multi_label:
            return torch.tensor(targets, dtype=torch.long)
        matrix = torch.zeros(len(targets), self.classes)
        for row, members in enumerate(targets):
            matrix[row, list(members)] = 1.0
        return matrix


def class_weights(targets: Sequence[Any], labels: Labels) -> list[float]:
    """Single label: n / (classes * count), whose mean over the images is 1. Multi-label: negatives / positives."""
    counts = Counter(c for target in targets for c in _members(target))
    total, classes = len(targets), len(labels.classes)
    if labels.multi_label:
        return [(total - counts[c]) / counts[c] if counts[c] else 1.0 for c in range(classes)]
    return [total / (classes * counts[c]) if counts[c] else 0.0 for c in range(classes)]


def _members(target: Any) -> tuple[int, ...]:
    return target if isinstance(target, tuple) else (target,)
