"""The detectors from transformers that have a plain name: their sizes, where their weights are, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cvpipe.errors import ModelError, did_you_mean
from cvpipe.models.sources import first_line

if TYPE_CHECKING:
    from cvpipe.tasks.spatial import SpatialConfig

_BACKBONE = "backbone_"
_OURS = (
    "num_labels", "id2label", "label2id", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype",
    "backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A network of the size that its published weights have.

    Attributes:
        config: class of its config in transformers.
        since: the first transformers that has it.
        published: id of its weights on the Hugging Face Hub.
        licence: of these weights, SPDX in lower case.
        settings: what differs from the config's defaults.
        backbone: the same for the backbone's config, with its model_type.
        takes_backbone: whether the features come from the timm network `model.backbone`.
    """

    config: str
    since: str
    published: str
    licence: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    takes_backbone: bool = False


PRESETS = {
    # arXiv:2407.17140
    "rtdetr_v2": Preset(
        config="RTDetrV2Config",
        since="4.49",
        published="PekingU/rtdetr_v2_r18vd",
        licence="apache-2.0",
        settings={"hidden_expansion": 0.5, "decoder_layers": 3},
        backbone={
            "model_type": "rt_detr_resnet",
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
            "out_indices": [2, 3, 4],
        },
    ),
    # arXiv:2410.13842
    "d_fine": Preset(
        config="DFineConfig",
        since="4.52",
        published="ustc-community/dfine-small-coco",
        licence="apache-2.0",
        settings={"hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3, "decoder_n_points": [3, 6, 3]},
        backbone={
            "model_type": "hgnet_v2",
            "stem_channels": [3, 16, 16],
            "stage_in_channels": [16, 64, 256, 512],
            "stage_mid_channels": [16, 32, 64, 128],
            "stage_out_channels": [64, 256, 512, 1024],
            "stage_num_blocks": [1, 1, 2, 1],
            "stage_numb_of_layers": [3, 3, 3, 3],
            "use_learnable_affine_block": True,
            "out_indices": [2, 3, 4],
        },
    ),
    # arXiv:2005.12872
    "detr": Preset(
        config="DetrConfig",
        since="4.49",
        published="facebook/detr-resnet-50",
        licence="apache-2.0",
        takes_backbone=True,
    ),
    # The code is MIT. The weights' licence is not clear: the model zoo says CC BY-NC 4.0, which the code had before,
    # and the questions about it (facebookresearch/Mask2Former issues 204, 206) have no answer.
    "mask2former": Preset(
        config="Mask2FormerConfig",
        since="4.49",
        published="facebook/mask2former-swin-tiny-coco-instance",
        licence="unknown",
        backbone={"model_type": "swin", "depths": [2, 2, 6, 2], "drop_path_rate": 0.3},
    ),
    # The encoder was pretrained as a masked autoencoder, by weights of Meta that are CC BY-NC 4.0.
    "vitpose": Preset(
        config="VitPoseConfig",
        since="4.48",
        published="usyd-community/vitpose-base-simple",
        licence="apache-2.0",
        backbone={"model_type": "vitpose_backbone"},
    ),
}


def preset_config(config: SpatialConfig, preset: Preset) -> Any:
    """The transformers config of a plain name, with `model.options`. Raises ModelError."""
    import transformers
    from transformers import CONFIG_MAPPING

    kind = getattr(transformers, preset.config)
    own, backbone = _split(config)
    if preset.takes_backbone:
        _check(config, own, kind().to_dict(), kind.attribute_map)
        _refuse(config, backbone, "the backbone is a timm network: set model.backbone")
        return _make(config, lambda: kind(**own, **_timm(config)))
    default = type(config.model).model_fields["backbone"].default
    if config.model.backbone != default:
        raise ModelError(
            f"{config.where('model.backbone')}: {config.model.name} has a backbone of its own, and takes no timm "
            "network. Leave it out, or change the backbone's size with options that start with backbone_."
        )
    base = dict(preset.backbone)
    model_type = base.pop("model_type")
    features = CONFIG_MAPPING[model_type]
    own = _check(config, own, kind().to_dict(), kind.attribute_map)
    backbone = _check(config, backbone, features().to_dict(), features.attribute_map, _BACKBONE)
    inner = _make(config, lambda: features(**_complete(model_type, base | backbone)))
    outer = dict(preset.settings) | own
    if model_type in ("rt_detr_resnet", "hgnet_v2"):
        widths = list(inner.hidden_sizes if model_type == "rt_detr_resnet" else inner.stage_out_channels)
        outer = {"encoder_in_channels": widths[1:]} | outer
        outer = {"decoder_in_channels": [outer.get("encoder_hidden_dim", 256)] * 3} | outer
    return _make(config, lambda: kind(**outer, backbone_config=inner))


def set_options(config: SpatialConfig, settings: Any) -> None:
    """`model.options` onto a config that was read from a checkpoint. Raises ModelError."""
    own, backbone = _split(config)
    inner = getattr(settings, "backbone_config", None)
    if backbone and inner is None:
        _refuse(config, backbone, "the checkpoint's backbone has no settings of its own")
    places: tuple[tuple[Any, Any, str], ...] = ((own, settings, ""), (backbone, inner, _BACKBONE))
    for values, target, prefix in places:
        if not values:
            continue
        checked = _check(config, values, target.to_dict(), target.attribute_map, prefix)
        for key, value in checked.items():
            _make(config, lambda target=target, key=key, value=value: setattr(target, key, value))


def _split(config: SpatialConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the model, options of its backbone without their prefix)"""
    options = dict(config.model.options)
    own = {key: value for key, value in options.items() if not key.startswith(_BACKBONE)}
    return own, {key.removeprefix(_BACKBONE): value for key, value in options.items() if key.startswith(_BACKBONE)}


def _check(
    config: SpatialConfig,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    aliases: Mapping[str, str],
    prefix: str = "",
) -> dict[str, Any]:
    """The options, with whole numbers as floats where the default is one: transformers is strict about it."""
    known = {*defaults, *aliases} - {*_OURS}
    checked = {}
    for key, value in options.items():
        if key not in known or isinstance(defaults.get(key), Mapping):
            shown = [f"{prefix}{name}" for name in sorted(known)]
            raise ModelError(
                f"{config.where('model.options')}: {config.model.name} has no option {prefix + key!r}."
                f"{did_you_mean(prefix + key, shown)} Options are the fields of the model's config in transformers; "
                "those of its backbone start with backbone_."
            )
        whole = type(value) is int and type(defaults.get(key)) is float
        checked[key] = float(value) if whole else value
    return checked


def _refuse(config: SpatialConfig, options: Mapping[str, Any], reason: str) -> None:
    if options:
        names = ", ".join(f"{_BACKBONE}{key}" for key in options)
        raise ModelError(f"{config.where('model.options')}: {config.model.name} can't take {names}: {reason}.")


def _complete(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """With what follows from the other values."""
    if model_type == "vitpose_backbone":
        return {"out_indices": [values.get("num_hidden_layers", 12)], **values}
    if model_type == "swin":
        return {"out_features": [f"stage{i + 1}" for i in range(len(values["depths"]))], **values}
    if model_type == "hgnet_v2":
        return {"hidden_sizes": list(values["stage_out_channels"]), **values}
    return values


def _timm(config: SpatialConfig) -> dict[str, Any]:
    """DETR's settings for features from timm, from its last stage; random weights."""
    from cvpipe.models.sources import timm_config

    timm_config(config.model.backbone)
    return {
        "use_timm_backbone": True,
        "backbone": config.model.backbone,
        "use_pretrained_backbone": False,
    }


def _make(config: SpatialConfig, build: Any) -> Any:
    try:
        return build()
    except Exception as error:  # transformers raises many types; the reason goes on
        raise ModelError(
            f"{config.where('model.options')}: {config.model.name} can't be built with these: {first_line(error)}"
        ) from error
