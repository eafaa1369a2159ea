"""Detectors by name: torchvision's on any timm backbone, and those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from cvpipe.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from cvpipe.tasks.objects_config import ObjectsConfig
    from cvpipe.types import Labels

Kind = Literal["boxes", "masks", "points"]

TORCHVISION: dict[Kind, tuple[str, ...]] = {
    "boxes": ("fcos", "retinanet", "fasterrcnn", "ssdlite"),
    "masks": ("maskrcnn",),
    "points": ("keypointrcnn",),
}
TRANSFORMERS: dict[Kind, tuple[str, ...]] = {
    "boxes": ("rtdetr_v2", "d_fine", "detr"),
    "masks": ("mask2former",),
    "points": ("vitpose",),
}

_USED = {
    "fcos": ("neck_channels", "head_convs"),
    "retinanet": ("neck_channels", "head_convs", "anchor_scale"),
    "ssdlite": ("anchor_scale",),
    "fasterrcnn": ("neck_channels", "head_channels", "anchor_scale"),
    "maskrcnn": ("neck_channels", "head_convs", "head_channels", "anchor_scale"),
    "keypointrcnn": ("neck_channels", "head_convs", "head_channels", "anchor_scale"),
}
"""The settings of each network that others have no use for."""
_ON_BACKBONE = ("frozen_stages", "freeze_norm")
_SOMETIMES = ("neck_channels", "head_convs", "head_channels", "anchor_scale", *_ON_BACKBONE, "dropout")


def build_detector(
    kind: Kind,
    config: ObjectsConfig,
    labels: Labels,
    pretrained: bool | str,
    architecture: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network that `config.model.name` names, for canvases of `config.data.image_size`.

    Args:
        kind: what it must say about each object: boxes alone, or masks or points too.
        pretrained: see `ModelConfig.pretrained`. A file, folder or MLflow URI may hold a detector of the same kind
            (everything is filled but what depends on the classes) or the weights of the backbone.
        architecture: the record of an earlier network, to build the same one again without a network connection.

    Raises:
        ModelError: unknown names or options, or weights that can't be had (with the ways out).
    """
    name = config.model.name
    if name in TRANSFORMERS[kind] or name.startswith("hf/"):
        from cvpipe.models.detectors_hf import build_hf_detector

        _check_used(config)
        network: nn.Module = build_hf_detector(kind, config, labels, pretrained, architecture)
        return network
    known = [*TORCHVISION[kind], *TRANSFORMERS[kind]]
    if name not in TORCHVISION[kind]:
        others = [n for table in (TORCHVISION, TRANSFORMERS) for k, names in table.items() if k != kind for n in names]
        reason = f"does not give {kind}" if name in others else "is unknown"
        raise ModelError(
            f"{config.where('model.name')}: {name!r} {reason}.{did_you_mean(name, known)} Expected one of "
            f"{', '.join(known)}, or hf/NAME-or-folder."
        )
    _check_used(config)
    from cvpipe.models.detectors_torchvision import build_torchvision_detector

    return build_torchvision_detector(config, labels, pretrained)


def _check_used(config: ObjectsConfig) -> None:
    """Raises ModelError for settings that this network has no use for."""
    used = (*_USED[config.model.name], *_ON_BACKBONE) if config.model.name in _USED else ()
    for key in _SOMETIMES:
        default = type(config.model).model_fields[key].default
        if key not in used and getattr(config.model, key) != default:
            raise ModelError(
                f"{config.where(f'model.{key}')}: {config.model.name} has no use for it. Leave it out, or set it to "
                f"{default}."
            )
