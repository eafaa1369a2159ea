"""The LightningModule of semantic segmentation."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchmetrics import Metric

from cvpipe.data.loader import Batch
from cvpipe.data.targets import IGNORE
from cvpipe.models.segmenters import build_segmenter
from cvpipe.tasks.base import TaskModule
from cvpipe.tasks.semantic_segmentation.config import SemanticConfig
from cvpipe.tasks.semantic_segmentation.losses import balanced_weights, build_loss
from cvpipe.types import Labels


class SemanticModule(TaskModule):
    """A class for each pixel; watches the mean IoU over the validation images' canvases."""

    config: SemanticConfig
    class_weights: torch.Tensor | None

    def __init__(self, config: SemanticConfig, labels: Labels) -> None:
        network = build_segmenter(config, labels, config.model.pretrained)
        super().__init__(config, network, network.head, "val/miou")
        self.notes.append(network.note)
        self.register_buffer("class_weights", None, persistent=False)
        self.score = MeanIou(len(labels.classes))

    def setup(self, stage: str) -> None:
        splits = getattr(getattr(self.trainer, "datamodule", None), "splits", None)
        if self.config.training.class_weights == "balanced" and splits is not None and self.class_weights is None:
            from cvpipe.tasks.semantic_segmentation.data import count_pixels

            pixels = count_pixels(splits.train, len(splits.labels.classes))
            self.class_weights = balanced_weights(pixels).to(self.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self._loss(self._logits(batch), batch.targets)

    def _loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        training = self.config.training
        return build_loss(training.loss, self.class_weights, training.label_smoothing)(logits, target)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """(N, classes, h, w) float32, enlarged to the canvas."""
        logits: torch.Tensor = self.network(batch.images)
        size = batch.targets.shape[1:]
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        count = len(batch.indices)
        if count == 0:
            return
        logits = self._logits(batch)
        self.score(logits.argmax(dim=1), batch.targets)
        self.log("val/loss", self._loss(logits, batch.targets), batch_size=count, on_epoch=True)
        self.log(self.monitor, self.score, on_epoch=True, batch_size=count)


class MeanIou(Metric):
    """Mean intersection over union of the classes that occur, in the targets or in the answers.

    Counts over all images and processes; pixels whose target is IGNORE are left out.
    """

    full_state_update = False
    higher_is_better = True
    hits: torch.Tensor
    mass: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("hits", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("mass", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, found: torch.Tensor, target: torch.Tensor) -> None:
        """Both (N, h, w) int64 positions in the classes."""
        valid = target != IGNORE
        found, target = found[valid], target[valid]
        self.hits += self._count(target[found == target])
        self.mass += self._count(found) + self._count(target)

    def compute(self) -> torch.Tensor:
        occurs = self.mass > 0
        if not occurs.any():
            return torch.zeros((), device=self.hits.device)
        return (self.hits[occurs] / (self.mass - self.hits)[occurs]).float().mean()

    def _count(self, classes: torch.Tensor) -> torch.Tensor:
        return torch.bincount(classes, minlength=self.classes)
