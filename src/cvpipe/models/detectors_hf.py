"""Detectors from transformers under the interface of `models/detectors.py`: boxes, masks, points."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cvpipe.errors import DependencyError, ModelError, did_you_mean
from cvpipe.models.hf_boxes import HfBoxes
from cvpipe.models.hf_masks import HfMasks
from cvpipe.models.hf_network import HfNetwork, Made
from cvpipe.models.hf_points import HfPoints
from cvpipe.models.hf_presets import PRESETS, Preset, preset_config, set_options
from cvpipe.models.hub import offline_if_unreachable
from cvpipe.models.sources import IMAGENET_MEAN, IMAGENET_STD, Body, json_safe, with_download
from cvpipe.models.weights import fit_state, inside, read_source

if TYPE_CHECKING:
    from cvpipe.tasks.spatial import SpatialConfig
    from cvpipe.types import Labels

_NETWORKS: dict[str, type[HfNetwork]] = {"boxes": HfBoxes, "masks": HfMasks, "points": HfPoints}
_CLASSES = {"mask2former": "Mask2FormerForUniversalSegmentation", "vitpose": "VitPoseForPoseEstimation"}
_KINDS = {"mask2former": "masks", "vitpose": "points"}
_FIXED_STRIDES = ("rt_detr", "rt_detr_v2", "d_fine")
# of layers that give classes, boxes, masks; with the class weights of Mask2Former's loss
_HEADS = (
    "class_embed", "bbox_embed", "pre_bbox_head", "enc_score_head", "enc_bbox_head", "denoising_class_embed",
    "class_labels_classifier", "bbox_predictor", "class_predictor", "mask_embedder", "criterion",
)  # fmt: skip
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def build_hf_detector(
    kind: str,
    config: SpatialConfig,
    labels: Labels,
    pretrained: bool | str,
    architecture: Mapping[str, Any] | None = None,
) -> HfNetwork:
    """Builds the network that `config.model` names, for canvases of `config.data.image_size`.

    Args:
        kind: boxes, masks or points.
        config: `model.name` is one of rtdetr_v2, d_fine, detr, mask2former, vitpose, or hf/NAME-or-folder. Of
            `model.options`, those that start with `backbone_` go to the backbone's config, the others to the model's.
        labels: classes, and for points the names of the points.
        pretrained: see `ModelConfig.pretrained`. With a plain name, true stands for weights trained on COCO.
        architecture: the record of an earlier network, to build the same one again; with it nothing is looked up.

    Raises:
        ModelError: unknown names or options, a size that does not suit the network, weights that can't be had.
        DependencyError: transformers is not installed, or too old for that network.
    """
    import_transformers(config)
    name = config.model.name
    preset = None if name.startswith("hf/") else _preset(config)
    if config.model.dropout:
        raise ModelError(
            f"{config.where('model.dropout')}: {name} has no dropout before its last layer. Set "
            "model.options.dropout (of the transformer's layers) where the network has it."
        )
    outputs = len(labels.keypoints) if kind == "points" else len(labels.classes)
    if architecture is not None:
        record = dict(architecture["config"])
        settings = _config_class(config, record.pop("model_type"))(**record)
        mean, std = tuple(architecture["mean"]), tuple(architecture["std"])
        trained_norms = bool(architecture["trained_norms"])
    else:
        hub = _hub_name(config, preset, pretrained)
        settings = preset_config(config, preset) if preset is not None and hub is None else _hub_config(config, hub)
        mean, std = _normalisation(hub, settings.model_type)
        trained_norms = pretrained is False and not getattr(config.model, "options", {}).get(
            "freeze_backbone_batch_norms", False
        )
    model_class = _model_class(config, settings)
    _check_kind(kind, config, labels, settings.model_type)
    published_size = _fit_size(config, settings)
    settings.num_labels = outputs
    if getattr(settings, "initializer_bias_prior_prob", 0) is None:
        # as in the originals; transformers takes one over the number of classes, which a few classes make too likely
        settings.initializer_bias_prior_prob = 0.01
    note = Body.note
    if architecture is None and pretrained is True:
        assert hub is not None
        model, note = _download(config, hub, model_class, settings, published_size)
    else:
        model = with_download(name, False, lambda: model_class(settings))
        if trained_norms:
            _train_norms(model)
            if architecture is None:
                _wake(model)
    _drop_idle(model)
    head = _head(model)
    if architecture is None and isinstance(pretrained, str):
        note = _fill(model, head, pretrained, config)
    record = {"config": _record(settings), "mean": mean, "std": std, "trained_norms": trained_norms}
    made = Made(model, mean, std, head, len(labels.classes), len(labels.keypoints), json_safe(record), note)
    return _NETWORKS[kind](made)


def published_weights(config: SpatialConfig) -> str | None:
    """The id on the hub of the weights that `pretrained: true` loads for this config; None: it is no name of ours."""
    name = config.model.name
    if name.startswith("hf/"):
        return name.removeprefix("hf/")
    return PRESETS[name].published if name in PRESETS else None


def import_transformers(config: SpatialConfig) -> Any:
    """The module. Raises DependencyError."""
    try:
        import transformers
    except ImportError:
        raise DependencyError(
            f"{config.where('model.name')}: {config.model.name} needs transformers. Install it: "
            "pip install 'databricks-cv-pipeline[models]'"
        ) from None
    return transformers


def _preset(config: SpatialConfig) -> Preset:
    import transformers

    name = config.model.name
    if name not in PRESETS:
        raise ModelError(
            f"{config.where('model.name')}: unknown network {name!r}.{did_you_mean(name, PRESETS)} "
            f"Known: {', '.join(PRESETS)}, hf/NAME-or-folder."
        )
    preset = PRESETS[name]
    if not hasattr(transformers, preset.config):
        raise DependencyError(
            f"{config.where('model.name')}: {name} needs transformers {preset.since} or newer, found "
            f"{transformers.__version__}. Upgrade: pip install -U 'transformers>={preset.since},<6'"
        )
    return preset


def _hub_name(config: SpatialConfig, preset: Preset | None, pretrained: bool | str) -> str | None:
    """Where config and weights are read from; None where the config is one of ours."""
    if preset is None:
        return config.model.name.removeprefix("hf/")
    if pretrained is not True:
        return None
    default = type(config.model).model_fields["backbone"].default
    if preset.takes_backbone and config.model.backbone != default:
        raise ModelError(
            f"{config.where('model.pretrained')}: {config.model.name} has published weights on {default}, and "
            f"model.backbone is {config.model.backbone}. Set model.pretrained=false, or leave model.backbone out."
        )
    return preset.published


def _hub_config(config: SpatialConfig, name: str | None) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    assert name is not None
    preset = config.model.name in PRESETS
    shown = f"{config.model.name} ({name})" if preset else f"hf/{name}"
    found: Any = with_download(
        shown, True, lambda: PretrainedConfig.get_config_dict(name)[0], random_possible=preset, packages=False
    )
    _config_class(config, str(found.get("model_type")))
    settings = with_download(
        shown, True, lambda: AutoConfig.from_pretrained(name), random_possible=preset, packages=False
    )
    # the weights are in the checkpoint: transformers 4 would fetch the backbone's own first
    if getattr(settings, "use_pretrained_backbone", None):
        settings.use_pretrained_backbone = False
    set_options(config, settings)
    return settings


def _config_class(config: SpatialConfig, model_type: str) -> Any:
    import transformers
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise DependencyError(
            f"{config.where('model.name')}: {config.model.name} is a {model_type!r}, which transformers "
            f"{transformers.__version__} does not know. Upgrade: pip install -U 'transformers<6'"
        )
    return CONFIG_MAPPING[model_type]


def _model_class(config: SpatialConfig, settings: Any) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as DETECTORS

    name = _CLASSES.get(settings.model_type) or DETECTORS.get(settings.model_type)
    if name is None:
        raise ModelError(
            f"{config.where('model.name')}: {config.model.name} is a {settings.model_type!r}, expected a detector of "
            "boxes (such as detr, rt_detr_v2, d_fine, yolos), mask2former or vitpose."
        )
    return getattr(transformers, name)


def _check_kind(kind: str, config: SpatialConfig, labels: Labels, model_type: str) -> None:
    name, gives = config.model.name, _KINDS.get(model_type, "boxes")
    if gives != kind:
        raise ModelError(
            f"{config.where('model.name')}: {name} finds {gives}, and the task needs {kind}. "
            + {
                "boxes": "Take rtdetr_v2, d_fine, detr, fcos, retinanet, fasterrcnn or ssdlite.",
                "masks": "Take mask2former or maskrcnn.",
                "points": "Take vitpose or keypointrcnn.",
            }[kind]
        )
    if kind == "points" and len(labels.classes) > 1:
        raise ModelError(
            f"{config.where('model.name')}: {name} knows one class of objects, and the data has "
            f"{len(labels.classes)} ({', '.join(labels.classes)}). Take keypointrcnn."
        )
    if kind == "points" and not labels.keypoints:
        raise ModelError(f"{config.where('model.name')}: {name} needs the names of the points, and the data has none.")


def _fit_size(config: SpatialConfig, settings: Any) -> tuple[int, int] | None:
    """Checks `data.image_size`. Fits ViTPose to it, and returns the size that its checkpoint is for."""
    height, width = config.data.image_size
    where = f"{config.where('data.image_size')}: found [{height}, {width}], and {config.model.name}"
    if settings.model_type == "vitpose":
        backbone = settings.backbone_config
        before, patch = _pair(backbone.image_size), _pair(backbone.patch_size)
        if height % patch[0] or width % patch[1] or min(height // patch[0], width // patch[1]) < 2:
            raise ModelError(f"{where} takes sides that are multiples of {patch[0]} and at least twice that.")
        backbone.image_size = [height, width]
        return before
    if settings.model_type in _FIXED_STRIDES:
        strides = list(settings.feat_strides)
        if height % max(strides) or width % max(strides):
            raise ModelError(f"{where} takes sides that are multiples of {max(strides)}.")
        places = sum((height // stride) * (width // stride) for stride in strides)
        if places < settings.num_queries:
            raise ModelError(
                f"{where} picks its {settings.num_queries} queries from {places} places at that size. Set "
                f"model.options.num_queries to at most {places}, or a larger data.image_size."
            )
    return None


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def _normalisation(hub: str | None, model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) for pixels in 0..1: the checkpoint's, or those of the model's family."""
    family = _PLAIN if model_type in _FIXED_STRIDES else (IMAGENET_MEAN, IMAGENET_STD)
    if hub is None:
        return family
    from transformers import AutoImageProcessor

    try:
        with offline_if_unreachable():
            processor: Any = AutoImageProcessor.from_pretrained(hub)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError):  # no preprocessor_config.json, or of a class that can't be built here
        return family
    if not getattr(processor, "do_normalize", True):
        return _PLAIN
    return tuple(processor.image_mean), tuple(processor.image_std)


_NOT_USED = ("num_batches_tracked", "encoder.swin.layernorm.weight", "encoder.swin.layernorm.bias")
"""Parameters that published files may lack: as a backbone Swin has norms of its own for each stage."""


def _download(
    config: SpatialConfig, hub: str, kind: Any, settings: Any, published_size: tuple[int, int] | None
) -> tuple[nn.Module, str]:
    """(the published model with new layers where the classes differ, a line on that)."""
    loading = copy.deepcopy(settings)
    if published_size is not None:
        loading.backbone_config.image_size = list(published_size)
    preset = PRESETS.get(config.model.name)
    shown = f"{config.model.name} ({hub}, {preset.licence})" if preset else f"hf/{hub}"
    model, found = with_download(
        shown,
        True,
        lambda: kind.from_pretrained(
            hub, config=loading, ignore_mismatched_sizes=True, use_safetensors=True, output_loading_info=True
        ),
        packages=False,
    )
    model.float()  # some checkpoints come in 16 bit; precision is the trainer's choice
    missing = {key for key in found["missing_keys"] if not key.endswith(_NOT_USED)}
    new = {*missing, *(key for key, *_ in found["mismatched_keys"])}
    head = _head(model)
    strange = sorted(key for key in new if not inside(key, head))
    if strange:
        raise ModelError(
            f"{config.where('model.options')}: the published weights of {hub} do not fit: {', '.join(strange[:3])}"
            f"{'' if len(strange) <= 3 else f' and {len(strange) - 3} more'}. Leave out the options that change the "
            "network's size, or set model.pretrained=false."
        )
    if published_size is not None and published_size != config.data.image_size:
        model = _resized(model, kind(settings), published_size, config.data.image_size)
    return model, f"weights: transformers {hub}" + (f", {len(new)} new ones in the last layers" if new else "")


def _resized(model: nn.Module, larger: nn.Module, before: tuple[int, int], after: tuple[int, int]) -> nn.Module:
    """ViTPose's weights in a network for another image size: positions between the learnt ones are interpolated."""
    state = model.state_dict()
    name = "backbone.embeddings.position_embeddings"
    old: torch.Tensor = state[name]
    patch = _pair(model.config.backbone_config.patch_size)  # type: ignore[union-attr]
    rows, columns = before[0] // patch[0], before[1] // patch[1]
    grid = old[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(
        grid, size=(after[0] // patch[0], after[1] // patch[1]), mode="bicubic", align_corners=False
    )
    state[name] = torch.cat([old[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    larger.load_state_dict(state)
    return larger


def _fill(model: nn.Module, head: tuple[str, ...], source: str, config: SpatialConfig) -> str:
    """Loads a file, folder or MLflow URI; returns what was filled."""
    state, origin = read_source(source, (config.tracking.tracking_uri, config.tracking.registry_uri))
    state = dict(state)
    own = model.state_dict()
    # transformers keeps one name of tensors that have two
    for name, other in _twins(model):
        for key in [key for key in state if key.endswith(name)]:
            state.setdefault(key.removesuffix(name) + other, state[key])
    fresh = {
        name: value.clone()
        for name, value in own.items()
        if inside(name, head) and not any(k.endswith(name) and v.shape == value.shape for k, v in state.items())
    }
    try:
        note = fit_state(state, model, head, origin)
    except ModelError as error:
        raise ModelError(
            f"{error} If they were saved by transformers or come from its hub: it renames layers while it reads such a "
            "file, so put it into a folder as model.safetensors, with its config.json, and set model.name=hf/FOLDER."
        ) from None
    # what is new keeps transformers' start, whose biases make every class unlikely at first
    model.load_state_dict(fresh, strict=False)
    return note


def _twins(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names, both ways, of parameters that are one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(one, other) for group in names.values() for one in group for other in group if one != other]


def _head(model: nn.Module) -> tuple[str, ...]:
    wanted = ("head",) if getattr(model.config, "model_type", "") == "vitpose" else _HEADS
    named = dict(model.named_modules(remove_duplicate=False))
    found = [name for name in named if name.rpartition(".")[2] in wanted]
    return tuple(name for name in found if not any(inside(name, (other,)) for other in found if other != name))


def _train_norms(model: nn.Module) -> None:
    """Batch normalisation that learns, where the library's is frozen for a trained backbone."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(parent, name, nn.BatchNorm2d(len(child.weight)))  # type: ignore[arg-type]


def _wake(model: nn.Module) -> None:
    """Makes a network with random weights fit to be trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # DETR leaves the first layers as they came from ImageNet
    for name, module in model.named_modules():
        # transformers draws these scales around 0, which silences what follows; the originals start at 1
        if isinstance(module, nn.BatchNorm2d) and "backbone" not in name.split(".") and module.affine:
            nn.init.ones_(module.weight)


def _drop_idle(model: nn.Module) -> None:
    """Without Swin's last norm, whose output Mask2Former does not use: distributed training waits for its gradient."""
    for name in [name for name, _ in model.named_modules() if name.endswith("swin.layernorm")]:
        model.set_submodule(name, nn.Identity())


def _record(settings: Any) -> dict[str, Any]:
    """The config as JSON-safe values, complete: another transformers may have other defaults."""
    from transformers import PretrainedConfig

    usual = PretrainedConfig().to_dict()
    drop = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"}

    def reduced(values: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in values.items() if k not in drop and not (k in usual and usual[k] == v)}
        return {k: reduced(v) if isinstance(v, dict) and "model_type" in v else v for k, v in kept.items()}

    return reduced(settings.to_dict()) | {"model_type": settings.model_type}
