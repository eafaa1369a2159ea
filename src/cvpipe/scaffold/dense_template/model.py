"""The network of the dense template, its loss, and what is measured after each epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cvpipe.data.loader import Batch
from cvpipe.models.features import Stages, build_stages, fill_stages
from cvpipe.scaffold.dense_template.config import CLOSE, DenseTemplateConfig
from cvpipe.tasks.base import TaskModule

_STAGES = 4
_WIDTH = 64


class DenseTemplateNetwork(nn.Module):
    """Normalisation, backbone and decoder in one: what is exported and served takes raw pixels.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB. Output (N, h', w') float32 above 0, over the whole input, at the
    resolution of the finest features.

    Attributes:
        head: name prefixes of the parameters that `training.freeze: backbone` trains.
        architecture: what is needed beyond the config to build it again offline; JSON-safe.
        note: a line on where the weights came from.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages
        self.register_buffer("mean", torch.tensor(stages.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(stages.std).view(1, 3, 1, 1) * 255)
        # REPLACE: the decoder. This one adds up all feature maps, widened, and smooths the sum
        self.laterals = nn.ModuleList(nn.Conv2d(channels, _WIDTH, kernel_size=1) for channels in stages.channels)
        self.smooth = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, kernel_size=3, padding=1), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(_WIDTH, 1, kernel_size=1)
        self.head = ("laterals", "smooth", "last")
        self.architecture: dict[str, Any] = {}
        self.note = stages.note

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stages(images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std))
        finest = maps[0].shape[-2:]
        total = sum(
            F.interpolate(lateral(features), size=finest, mode="bilinear", align_corners=False)
            for lateral, features in zip(self.laterals, maps, strict=True)
        )
        # softplus keeps depths above 0
        values: torch.Tensor = F.softplus(self.last(self.smooth(total)))[:, 0]
        return values.float()


def build_network(config: DenseTemplateConfig, pretrained: bool | str) -> DenseTemplateNetwork:
    """The network with weights from `pretrained` (see `ModelConfig.pretrained`). Raises ModelError."""
    name, size = config.model.backbone, config.data.image_size
    stages = build_stages(name, size, _STAGES, download=pretrained is True)
    if isinstance(pretrained, str):
        servers = (config.tracking.tracking_uri, config.tracking.registry_uri)
        stages.note = fill_stages(stages, name, size, pretrained, servers)
    return DenseTemplateNetwork(stages)


class DenseTemplateModule(TaskModule):
    """Smooth L1 loss (Girshick, 2015, arXiv:1504.08083) over the pixels whose value is known."""

    def __init__(self, config: DenseTemplateConfig) -> None:
        from torchmetrics import MeanMetric

        network = build_network(config, config.model.pretrained)
        # REPLACE: the metric that decides which epoch's weights are kept; higher is better, `assess` gives it too
        super().__init__(config, network, network.head, monitor="val/delta1")
        self.notes.append(network.note)
        self.beta = config.training.beta
        self.delta1 = MeanMetric()

    def loss(self, batch: Batch) -> torch.Tensor:
        return self._loss(self._full(batch), batch.targets)

    def _full(self, batch: Batch) -> torch.Tensor:
        """(N, h, w) values at the resolution of the targets."""
        values = self.network(batch.images)[:, None]
        return F.interpolate(values, size=batch.targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def _loss(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = targets.isfinite()
        if not known.any():
            return values.sum() * 0.0  # nothing to learn from, and no mean of nothing
        return F.smooth_l1_loss(values[known], targets[known], beta=self.beta)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch.indices) == 0:
            return
        values, targets = self._full(batch), batch.targets
        known = targets.isfinite()
        ratio = values[known] / targets[known]
        self.delta1.update((torch.maximum(ratio, 1 / ratio) < CLOSE).float())
        self.log("val/loss", self._loss(values, targets), batch_size=len(targets), on_epoch=True)
        self.log(self.monitor, self.delta1, batch_size=len(targets), on_epoch=True)
