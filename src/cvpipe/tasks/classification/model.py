"""The classification network and its LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cvpipe.config import Config
from cvpipe.data.loader import Batch
from cvpipe.models.sources import Body, classifier
from cvpipe.tasks.base import TaskModule
from cvpipe.tasks.classification.config import ClassificationConfig
from cvpipe.types import Labels


class ClassificationNetwork(nn.Module):
    """Normalisation and network in one: what is exported and served takes raw pixels.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB. Output (N, classes) logits, float32.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body.module
        self.register_buffer("mean", torch.tensor(body.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(body.std).view(1, 3, 1, 1) * 255)
        self.architecture = body.architecture
        self.head = tuple(f"body.{prefix}" for prefix in body.head)
        self.note = body.note

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # in place on a copy: two passes over memory instead of three, and no second buffer
        pixels = images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)
        logits: torch.Tensor = self.body(pixels)
        return logits.float()


def build_network(
    config: Config, labels: Labels, pretrained: bool | str, architecture: Mapping[str, Any] | None = None
) -> ClassificationNetwork:
    body = classifier(
        config.model.name,
        num_classes=len(labels.classes),
        image_size=config.data.image_size,
        dropout=config.model.dropout,
        pretrained=pretrained,
        servers=(config.tracking.tracking_uri, config.tracking.registry_uri),
        architecture=architecture,
    )
    return ClassificationNetwork(body)


class ClassificationModule(TaskModule):
    """Cross-entropy over one class an image, or binary cross-entropy over each class (multi-label)."""

    class_weights: torch.Tensor | None

    def __init__(self, config: ClassificationConfig, labels: Labels) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

        network = build_network(config, labels, config.model.pretrained)
        super().__init__(config, network, network.head, "val/map" if labels.multi_label else "val/accuracy")
        self.notes.append(network.note)
        self.labels = labels
        self.smoothing = config.training.label_smoothing
        self.mixing = _mixing(config, len(labels.classes))
        self.register_buffer("class_weights", None, persistent=False)
        count = len(labels.classes)
        self.score: MultilabelAveragePrecision | MulticlassAccuracy = (
            MultilabelAveragePrecision(count) if labels.multi_label else MulticlassAccuracy(count, average="micro")
        )

    def setup(self, stage: str) -> None:
        splits = getattr(getattr(self.trainer, "datamodule", None), "splits", None)
        if self.config.training.class_balance == "weights" and splits is not None:  # type: ignore[attr-defined]
            from cvpipe.tasks.classification.data import class_weights

            weights = class_weights(splits.train.targets, self.labels)
            self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        images, targets = batch.images, batch.targets
        if self.mixing is not None:
            onehot = targets if self.labels.multi_label else F.one_hot(targets, len(self.labels.classes)).float()
            images, targets = self.mixing(images.float(), onehot)
        return self._loss(self.network(images), targets, self.smoothing)

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        if self.labels.multi_label:
            targets = targets * (1 - smoothing) + 0.5 * smoothing
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.class_weights)
        return F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch.indices) == 0:
            return
        logits = self.network(batch.images)
        targets = batch.targets
        self.score(logits, targets.long())
        self.log("val/loss", self._loss(logits, targets, 0.0), batch_size=len(targets), on_epoch=True)
        self.log(self.monitor, self.score, on_epoch=True, batch_size=len(targets))


def _mixing(config: ClassificationConfig, classes: int) -> nn.Module | None:
    """mixup, cutmix, or one of them at random for each batch."""
    from torchvision.transforms import v2

    augment = config.data.augment
    ops: list[nn.Module] = []
    if augment.mixup:
        ops.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        ops.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    if not ops:
        return None
    return ops[0] if len(ops) == 1 else v2.RandomChoice(ops)
