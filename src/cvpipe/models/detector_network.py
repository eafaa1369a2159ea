"""torchvision's detectors as networks from uint8 images to tensors of a fixed shape, and to losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from cvpipe.data.targets import ObjectTensors
from cvpipe.models.features import Backbone
from cvpipe.models.weights import inside

_FLOATS = (
    "head",
    "rpn.head",
    "roi_heads.box_predictor",
    "roi_heads.mask_predictor",
    "roi_heads.keypoint_predictor",
)
"""Modules whose outputs go into losses and boxes, which are computed in float32 under autocast too."""


class Detector(nn.Module):
    """Normalisation, backbone and torchvision's detector in one.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB. Output, best score first, slots that are not used with score 0:

        boxes   (N, M, 4) float32  x1 y1 x2 y2 on the canvas, pixels
        scores  (N, M) float32
        labels  (N, M) int64, positions in the classes
        masks   (N, M, 28, 28) float32 probabilities inside the box (Mask R-CNN)
        points  (N, M, K, 3) float32 x, y on the canvas and a confidence (Keypoint R-CNN)

    Args:
        model: torchvision's detector with a `Backbone`.
        slots: M.
        background: 1 where torchvision counts the background as class 0, else 0.
        last: name prefixes of the parameters that depend on the classes.

    Attributes:
        head: name prefixes of all that stands on the backbone's features.
        architecture: empty; the config says everything.
        note: a line on where the weights came from.
    """

    mean: torch.Tensor
    std: torch.Tensor
    model: Any

    def __init__(self, model: nn.Module, slots: int, background: int, last: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.model.transform = _PassThrough()
        for name, module in model.named_modules():
            if name in _FLOATS:
                module.register_forward_hook(_as_float)
        stages = self.backbone.stages
        self.register_buffer("mean", torch.tensor(stages.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(stages.std).view(1, 3, 1, 1) * 255)
        self.slots, self.background, self.last = slots, background, last
        parts = [name for name, _ in model.named_children() if name not in ("backbone", "transform")]
        self.head = ("model.backbone.neck", *(f"model.{name}" for name in parts))
        self.head = tuple(h for h in self.head if any(inside(name, (h,)) for name, _ in self.named_parameters()))
        self.architecture: dict[str, Any] = {}
        self.note: str = stages.note

    @property
    def backbone(self) -> Backbone:
        backbone = self.model.backbone
        assert isinstance(backbone, Backbone)
        return backbone

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.model(self._pixels(images))
        if self.training:
            raise RuntimeError("boxes are chosen in evaluation mode; in training mode there are losses")
        return _stacked([self._ours(one) for one in found], self.slots)

    def losses(self, images: torch.Tensor, targets: Sequence[ObjectTensors]) -> dict[str, torch.Tensor]:
        """The parts of the loss, in training mode. A crowd is neither an object nor a reason to look away from it.

        Args:
            images: (N, 3, h, w) uint8.
            targets: the objects of each image.
        """
        if not self.training:
            raise RuntimeError("losses need training mode")
        found: dict[str, torch.Tensor] = self.model(self._pixels(images), [self._theirs(target) for target in targets])
        return found

    def dense_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the heads say for every place, before boxes are chosen."""
        maps = list(self.backbone(self._pixels(images)).values())
        if not hasattr(self.model, "rpn"):
            found: dict[str, torch.Tensor] = self.model.head(maps)
            return found
        logits, deltas = self.model.rpn.head(maps)
        named = {"logits": logits, "deltas": deltas, "maps": maps}
        return {f"{name}_{level}": one for name, levels in named.items() for level, one in enumerate(levels)}

    def hold(self, stages: int, norms: bool) -> None:
        """Keeps parts of the backbone as they are; see `Stages.hold`."""
        self.backbone.stages.hold(stages, norms)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For `training.layer_decay`, as timm asks for it: parameter name -> layer, from the input on.

        The stages of the backbone are layers; all heads together are the top one.
        """
        stages, prefix = self.backbone.stages, "model.backbone.stages."

        def layer(name: str) -> int:
            return stages.depth(name.removeprefix(prefix)) if name.startswith(prefix) else stages.depths

        return layer

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)

    def _theirs(self, target: ObjectTensors) -> dict[str, torch.Tensor]:
        target = target.select(~target.crowd)
        found = {"boxes": target.boxes, "labels": target.labels + self.background}
        if target.masks is not None:
            found["masks"] = target.masks
        if target.points is not None:
            found["keypoints"] = target.points
        return found

    def _ours(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        one = {"boxes": found["boxes"], "scores": found["scores"], "labels": found["labels"] - self.background}
        if "masks" in found:
            one["masks"] = found["masks"][:, 0]
        if "keypoints" in found:
            # logarithms of probabilities, see _log_probabilities; bicubic interpolation can overshoot 0
            confidence = found["keypoints_scores"].exp().clamp(0, 1)
            one["points"] = torch.cat([found["keypoints"][..., :2], confidence[..., None]], dim=2)
        return one


def _stacked(found: Sequence[dict[str, torch.Tensor]], slots: int) -> dict[str, torch.Tensor]:
    """(n, …) tensors of each image -> (N, slots, …), filled up with zeros."""
    return {
        name: torch.stack(
            [torch.cat([one[name], one[name].new_zeros((slots, *one[name].shape[1:]))])[:slots] for one in found]
        )
        for name in found[0]
    }


class _PassThrough(nn.Module):
    """In place of torchvision's resizing: the canvas has its size already."""

    def forward(
        self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, torch.Tensor]] | None]:
        size = (int(images.shape[2]), int(images.shape[3]))
        return ImageList(images, [size] * len(images)), targets

    def postprocess(
        self, result: list[dict[str, torch.Tensor]], image_shapes: Any, original_sizes: Any
    ) -> list[dict[str, torch.Tensor]]:
        return result


def _as_float(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _as_float(module, inputs, one) for name, one in outputs.items()}
    return type(outputs)(_as_float(module, inputs, one) for one in outputs)
