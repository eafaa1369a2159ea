"""Parameter groups, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cvpipe.config import TrainingConfig


def build_optimizer(network: nn.Module, config: TrainingConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum. Biases and normalisation weights get no weight decay.

    With `layer_decay` below 1 each layer's learning rate is that factor times the one of the layer above it
    (Clark et al., 2020, arXiv:2003.10555). timm networks know their layers; in others a layer is what stands under one
    numbered name, such as `layer1.0`, in the order of definition.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]

    # frozen parameters belong to the groups too: they may be thawed later
    frozen = [p for p in network.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    groups: Any
    if config.layer_decay == 1:
        groups = param_groups_weight_decay(network, config.weight_decay)
    elif hasattr(network, "group_matcher"):
        groups = param_groups_layer_decay(network, config.weight_decay, layer_decay=config.layer_decay)
    else:
        groups = _layer_groups(network, config.weight_decay, config.layer_decay)
    for parameter in frozen:
        parameter.requires_grad_(False)
    for group in groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        group.pop("param_names", None)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=learning_rate)


def _layer_groups(network: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts = name.split(".")
        # up to the last number of the name: `model.vit.encoder.layer.3`, `features.2.1`; else the parent's name
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=len(parts) - 2)
        layers.setdefault(".".join(parts[: last + 1]), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for depth, parameters in enumerate(reversed(layers.values())):
        for decays in (True, False):
            members = [p for p in parameters if (p.ndim > 1) == decays]
            if members:
                decay = weight_decay if decays else 0.0
                groups.append({"params": members, "weight_decay": decay, "lr_scale": layer_decay**depth})
    return groups


class Schedule:
    """Factor on the learning rate at a step. Picklable and free of state."""

    def __init__(self, kind: str, steps: int, warmup: float) -> None:
        self.kind, self.steps, self.warmup = kind, max(1, steps), warmup

    def __call__(self, step: int) -> float:
        rise = 0.3 if self.kind == "one_cycle" else self.warmup
        warm = max(1, round(self.steps * rise)) if rise else 0
        floor = 0.04 if self.kind == "one_cycle" else 0.0
        if step < warm:
            # one_cycle rises along a cosine (Smith, 2018, arXiv:1708.07120), the others along a line
            share = (step + 1) / warm
            return floor + (1 - floor) * (1 - math.cos(math.pi * share)) / 2 if self.kind == "one_cycle" else share
        if self.kind == "constant":
            return 1.0
        share = min(1.0, (step - warm) / max(1, self.steps - warm))
        return 0.5 * (1 + math.cos(math.pi * share))


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int) -> LambdaLR:
    """Warm-up + cosine, one-cycle or constant over `steps` optimizer steps."""
    return LambdaLR(optimizer, Schedule(config.schedule, steps, config.warmup))
