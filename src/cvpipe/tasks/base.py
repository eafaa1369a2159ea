"""The LightningModule that all tasks share: optimizer, schedule, freezing. A task fills in the loss and validation."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from cvpipe.config import Config
from cvpipe.data.loader import Batch
from cvpipe.errors import TrainingError
from cvpipe.models.optim import build_optimizer, build_schedule
from cvpipe.models.weights import inside


class TaskModule(LightningModule):
    """A network with its loss.

    Subclasses define `loss` and `validation_step`, and log the metric that `monitor` names.

    Args:
        config: the run's settings.
        network: (N, 3, h, w) uint8 -> raw outputs. What the bundle will hold.
        head: name prefixes, inside `network`, of the parameters of the last layer.
        monitor: logged validation metric that decides which weights are best; higher is better.

    Attributes:
        learning_rate: peak learning rate; the range test may change it before the fit.
        total_steps: optimizer steps of the whole fit, set before it. Not Lightning's `estimated_stepping_batches`:
            asking for that starts the loader before a checkpoint has put it in its place.
        notes: lines for the start-up messages.
        learns_by_gradient: False where nothing is differentiated: `training_step` collects and returns None,
            `conclude` makes the network of it, and there is no optimizer.
    """

    learns_by_gradient = True

    def __init__(self, config: Config, network: nn.Module, head: tuple[str, ...], monitor: str) -> None:
        super().__init__()
        self.config, self.network, self.head, self.monitor = config, network, head, monitor
        rate = config.training.learning_rate
        self.learning_rate = 1e-3 if rate == "auto" else float(rate)
        self.total_steps = 1
        self.notes: list[str] = []
        self._frozen: list[nn.Module] = []
        if config.training.freeze == "backbone":
            self._freeze()

    def loss(self, batch: Batch) -> torch.Tensor:
        """The scalar to minimise for a training batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor | None:
        return self.loss(batch)

    def conclude(self) -> None:
        """Makes the network of what the training steps have collected, where nothing is learnt by gradients."""

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(
            getattr(self.network, "body", self.network), self.config.training, self.learning_rate
        )
        schedule = build_schedule(optimizer, self.config.training, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        # not when the epoch starts: a run that is resumed within an epoch never comes by there
        epochs = self.config.training.freeze_epochs
        if self._frozen and epochs is not None and self.current_epoch >= epochs:
            self._thaw()
        # Lightning puts the whole module into train mode after each validation
        for module in self._frozen:
            module.eval()

    def _freeze(self) -> None:
        if not any(inside(name, self.head) for name, _ in self.network.named_parameters()):
            raise TrainingError("training.freeze=backbone leaves nothing to train: the network has no last layer.")
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(inside(name, self.head))
        # batch normalisation and dropout of frozen parts stay as they are at inference
        self._frozen = [
            module
            for name, module in self.network.named_modules()
            if name and not inside(name, self.head) and not any(inside(head, (name,)) for head in self.head)
        ]

    def _thaw(self) -> None:
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        for module in self._frozen:
            module.train()
        self._frozen = []


def is_finite(loss: torch.Tensor) -> bool:
    return math.isfinite(float(loss.detach()))
