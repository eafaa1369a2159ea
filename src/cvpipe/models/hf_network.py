"""What the detectors from transformers share: normalisation, the loss in 32 bits, which objects a loss may count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cvpipe.data.targets import ObjectTensors
from cvpipe.models.sources import Body

_DENOISING_SPLIT = (5, 18)
"""The first transformers that keeps denoising queries out of the last layer's loss (its pull request 48528)."""


@dataclass(frozen=True)
class Made:
    """A transformers model and what stands around it.

    Attributes:
        model: takes `pixel_values` (N, 3, h, w).
        mean, std: normalisation per RGB channel, for pixels in 0..1.
        head: name prefixes, inside `model`, of the layers that give classes, boxes, masks or points.
        classes: number of classes.
        points: number of points an object has.
        architecture: what is needed beyond config and labels to build it again without a network connection.
        note: a line on where the weights came from.
    """

    model: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    classes: int
    points: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)
    note: str = Body.note


class HfNetwork(nn.Module):
    """A transformers model that takes raw pixels.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB.

    Attributes:
        head, architecture, note: as in `Made`; `head` with the names inside this module.
        one_object: whether an image may hold one object at most.
    """

    mean: torch.Tensor
    std: torch.Tensor
    one_object = False

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.body = made.model
        self.register_buffer("mean", torch.tensor(made.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(made.std).view(1, 3, 1, 1) * 255)
        self.head = tuple(f"body.{prefix}" for prefix in made.head)
        self.architecture, self.note = made.architecture, made.note
        self.classes = made.classes

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float pixels."""
        return images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)

    def losses(self, images: torch.Tensor, targets: Sequence[ObjectTensors]) -> dict[str, torch.Tensor]:
        """The terms whose sum is the loss.

        Args:
            images: (N, 3, h, w).
            targets: for each image, on the canvas; crowd objects are left out.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")


def countable(targets: Sequence[ObjectTensors]) -> list[ObjectTensors]:
    """Without the crowd objects."""
    return [target.select(~target.crowd) for target in targets]


class ExactLoss:
    """A transformers loss function for box detectors, in float32 whatever the autocast, on the right queries.

    In 16 bits the assignment of queries to objects fails or is coarse. And until 5.18 transformers counted the
    denoising queries of RT-DETR and D-FINE in the last layer's loss, where they take the objects away from the queries
    that answer at inference.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(
        self, logits: torch.Tensor, labels: Any, device: Any, pred_boxes: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        denoising = kwargs.get("denoising_meta_values")
        if denoising is not None and transformers_version() < _DENOISING_SPLIT:
            parts = denoising["dn_num_split"]
            logits, pred_boxes = (torch.split(part, parts, dim=1)[1] for part in (logits, pred_boxes))
        with torch.autocast(logits.device.type, enabled=False):
            return self.function(*_float32((logits, labels, device, pred_boxes, *args)), **_float32(kwargs))


def transformers_version() -> tuple[int, int]:
    from importlib.metadata import version

    major, minor = version("transformers").split(".")[:2]
    return int(major), int(minor)


def _float32(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values.float() if values.is_floating_point() else values
    if isinstance(values, dict):
        return {key: _float32(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_float32(value) for value in values)
    return values
