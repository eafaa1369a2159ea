"""Networks that give a class for each pixel: segmentation-models-pytorch on timm encoders, and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from cvpipe.errors import DependencyError, ModelError, did_you_mean
from cvpipe.models.features import as_backbone, copy_backbone
from cvpipe.models.hub import offline_if_unreachable
from cvpipe.models.sources import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Body,
    classifier,
    first_line,
    json_safe,
    timm_config,
    timm_size,
    with_download,
)
from cvpipe.models.weights import fit_state, inside, load_pretrained, read_source

if TYPE_CHECKING:
    from cvpipe.tasks.spatial import SpatialConfig
    from cvpipe.types import Labels

DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "pan": "PAN",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "upernet": "UPerNet",
    "segformer_decoder": "Segformer",
}
"""`model.name` -> the class of segmentation-models-pytorch that decodes the features of `model.backbone`."""

SEGFORMER_WEIGHTS = "nvidia/mit-b0"
"""What `model.name: segformer` with `pretrained: true` loads: an encoder trained on ImageNet, smallest size."""

_OURS = (
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
    "upsampling",
    "kwargs",
)
# dropout of the library's own where ours acts too
_SAME_DROPOUT = {"fpn": "decoder_dropout", "pspnet": "psp_dropout"}
_CLASSES = 1000  # of most published weights: what is loaded only to take the features out
_NEW_LAYER = ", 2 new ones in the last layer"


class Segmenter(nn.Module):
    """Normalisation and network in one.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB. Output (N, classes, h', w') float32 logits over the whole input,
    at the resolution that the network works at (often a quarter).

    Attributes:
        head: name prefixes of all that stands on the features: decoder and last layer.
        last: name prefixes of the parameters that depend on the classes.
        architecture: what is needed beyond config and labels to build it again without a network connection.
        note: a line on where the weights came from.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: Body, last: tuple[str, ...]) -> None:
        super().__init__()
        self.model = body.module
        self.register_buffer("mean", torch.tensor(body.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(body.std).view(1, 3, 1, 1) * 255)
        self.head = tuple(f"model.{prefix}" for prefix in body.head)
        self.last = tuple(f"model.{prefix}" for prefix in last)
        self.architecture, self.note = body.architecture, body.note

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.to(self.mean.dtype, copy=True).sub_(self.mean).div_(self.std)
        found = self.model(pixels)
        logits: torch.Tensor = found if isinstance(found, torch.Tensor) else found.logits
        return logits.float()

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For `training.layer_decay`, as timm asks for it: parameter name -> layer, from the input on.

        Decoder and last layer are one layer, the top one: they are new, and learn at the full rate together.
        """
        depth: dict[str, int] = {}
        for name, _ in self.named_parameters():
            if not inside(name, self.head):
                depth.setdefault(_layer(name), len(depth))
        return lambda name: len(depth) if inside(name, self.head) else depth[_layer(name)]


def build_segmenter(
    config: SpatialConfig, labels: Labels, pretrained: bool | str, architecture: Mapping[str, Any] | None = None
) -> Segmenter:
    """Builds the network that `config.model` names, for canvases of `config.data.image_size`.

    Args:
        pretrained: see `ModelConfig.pretrained`. Files, folders and MLflow URIs may hold a whole segmentation network
            or only its backbone, such as a classifier.
        architecture: the record of an earlier network, to build the same one again; with it nothing is looked up.

    Raises:
        ModelError: unknown names or options, a size that does not suit the network, weights that can't be had.
        DependencyError: the library of that network is not installed.
    """
    if len(labels.classes) < 2:
        raise ModelError(
            f"a class map needs at least two classes, found {', '.join(labels.classes) or 'none'}. "
            "Give the rest of the image a class of its own, such as background."
        )
    name = config.model.name
    if name in DECODERS:
        network = _smp(config, labels, pretrained, architecture)
    elif name == "segformer" or name.startswith("hf/"):
        network = _transformers(config, labels, pretrained, architecture)
    else:
        known = [*DECODERS, "segformer"]
        raise ModelError(
            f"{config.where('model.name')}: unknown segmentation network {name!r}.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}, hf/NAME-or-folder."
        )
    if architecture is None:
        for key, size in input_sizes(config).items():
            _try(network, config, key, size)
    return network


def input_sizes(config: SpatialConfig) -> dict[str, tuple[int, int]]:
    """Config key -> (height, width) of what the network sees: in use, and while it is trained."""
    sizes = {"data.image_size": config.data.image_size}
    crop = getattr(config.data, "crop_size", None)
    return sizes if crop is None else {**sizes, "data.crop_size": crop}


def _smp(
    config: SpatialConfig, labels: Labels, pretrained: bool | str, architecture: Mapping[str, Any] | None
) -> Segmenter:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise DependencyError(
            f"{config.where('model.name')}: {config.model.name} needs segmentation-models-pytorch. "
            "Install it: pip install 'databricks-cv-pipeline[models]'"
        ) from None
    name, backbone = config.model.name, config.model.backbone
    with as_backbone():
        published = timm_config(backbone)
    kind = getattr(smp, DECODERS[name])
    arguments = _decoder_options(config, kind) | timm_size(published, config.data.image_size)
    try:
        module = kind(encoder_name=f"tu-{backbone}", encoder_weights=None, classes=len(labels.classes), **arguments)
    except Exception as error:  # smp and timm raise many types; the reason goes on
        raise ModelError(
            f"{config.where('model.name')}: {name} on the backbone {backbone} can't be built "
            f"({first_line(error)}). Take a backbone with feature maps of several resolutions, such as resnet50."
        ) from error
    if config.model.dropout:
        module.segmentation_head.register_forward_pre_hook(_Dropout(config.model.dropout))
    if getattr(kind, "requires_divisible_input_shape", True):
        _check_divisible(config, int(module.encoder.output_stride))
    mean, std = (published.mean, published.std) if published is not None else (IMAGENET_MEAN, IMAGENET_STD)
    body = Body(module, tuple(mean), tuple(std), ("decoder", "segmentation_head"))
    network = Segmenter(body, last=("segmentation_head",))
    if architecture is None and pretrained:
        network.note = _fill(network, config, pretrained)
    return network


def _decoder_options(config: SpatialConfig, kind: Any) -> dict[str, Any]:
    """What the decoder's class is called with: `model.options`, checked, and what our settings stand for."""
    known = inspect.signature(kind.__init__).parameters
    allowed = [key for key in known if key not in ("self", "kwargs", *_OURS)]
    _check_options(config, allowed)
    # logits at the network's own resolution: the loss and the answer enlarge them to where they need them
    arguments: dict[str, Any] = {"upsampling": 1} if "upsampling" in known else {}
    if config.model.name in _SAME_DROPOUT:
        arguments[_SAME_DROPOUT[config.model.name]] = 0.0
    return arguments | config.model.options


def _check_options(config: SpatialConfig, allowed: Iterable[str]) -> None:
    allowed = sorted(allowed)
    for key in config.model.options:
        if key not in allowed:
            raise ModelError(
                f"{config.where(f'model.options.{key}')}: {config.model.name} has no such option."
                f"{did_you_mean(key, allowed)} It has: {', '.join(allowed)}."
            )


def _check_divisible(config: SpatialConfig, stride: int) -> None:
    for key, size in input_sizes(config).items():
        if all(side % stride == 0 for side in size):
            continue
        low, high = ([max(1, side // stride) * stride for side in size], [-(-side // stride) * stride for side in size])
        suits = f"{low} or {high}" if low != high else str(low)
        raise ModelError(
            f"{config.where(key)}: found {list(size)}; {config.model.name} on {config.model.backbone} takes height and "
            f"width that are multiples of {stride}. The nearest such size: {suits}."
        )


class _Dropout:
    """Before the last layer, without a module of its own: weights keep their names whatever the share is."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (F.dropout2d(inputs[0], self.share, module.training), *inputs[1:])


def _fill(network: Segmenter, config: SpatialConfig, pretrained: bool | str) -> str:
    """Fills a network of segmentation-models-pytorch, whole or its backbone; returns the note."""
    servers = (config.tracking.tracking_uri, config.tracking.registry_uri)
    backbone, size = config.model.backbone, config.data.image_size
    if isinstance(pretrained, str) and not pretrained.startswith("package:"):
        state, origin = read_source(pretrained, servers)
        try:
            return fit_state(state, network, network.last, origin)
        except ModelError as error:  # perhaps they are the backbone's alone
            refused = error
        full = classifier(backbone, num_classes=_CLASSES, image_size=size)
        try:
            note = fit_state(state, full.module, full.head, origin)
        except ModelError as error:
            raise ModelError(
                f"model.pretrained: {origin} holds neither a whole {config.model.name} on {backbone} nor a {backbone} "
                f"alone. As the first: {refused} As the second: {error}"
            ) from None
    else:
        with as_backbone():
            full = classifier(backbone, num_classes=_CLASSES, image_size=size, pretrained=pretrained, servers=servers)
        note = full.note
    copy_backbone(full.module, network.get_submodule("model.encoder.model"), backbone)
    return f"{note.partition(_NEW_LAYER)[0]} for the backbone; decoder: random"


def _transformers(
    config: SpatialConfig, labels: Labels, pretrained: bool | str, architecture: Mapping[str, Any] | None
) -> Segmenter:
    try:
        from transformers import AutoConfig, AutoModelForSemanticSegmentation
    except ImportError:
        raise DependencyError(
            f"{config.where('model.name')}: {config.model.name} needs transformers. "
            "Install it: pip install 'databricks-cv-pipeline[models]'"
        ) from None
    own = config.model.name == "segformer"
    name = SEGFORMER_WEIGHTS if own else config.model.name.removeprefix("hf/")
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    settings: Any
    if architecture is not None:
        record = dict(architecture["config"])
        settings = AutoConfig.for_model(record.pop("model_type"), **record)
        mean, std = tuple(architecture["mean"]), tuple(architecture["std"])
    elif own:
        settings = _segformer(config, pretrained)
    else:
        settings = with_download(f"hf/{name}", True, lambda: AutoConfig.from_pretrained(name), random_possible=False)
        _check_options(config, settings.to_dict())
        for key, value in config.model.options.items():
            setattr(settings, key, value)
        mean, std = _normalisation(name)
    settings.num_labels = len(labels.classes)
    if hasattr(settings, "classifier_dropout_prob"):
        settings.classifier_dropout_prob = config.model.dropout
    if architecture is None and pretrained is True:
        module = with_download(
            f"hf/{name}",
            True,
            lambda: AutoModelForSemanticSegmentation.from_pretrained(
                name, config=settings, ignore_mismatched_sizes=True, use_safetensors=True
            ),
        )
    else:
        build: Any = AutoModelForSemanticSegmentation.from_config
        module = with_download(f"hf/{name}", False, lambda: build(settings))
    module.float()  # some checkpoints come in 16 bit; precision is the trainer's choice
    children = [child for child, _ in module.named_children()]
    head = tuple(child for child in children if child not in (module.base_model_prefix, "backbone")) or (children[-1],)
    last = tuple(path for path, _ in module.named_modules() if path.rpartition(".")[2] == "classifier") or head
    saved = {"config": settings.to_diff_dict() | {"model_type": settings.model_type}, "mean": mean, "std": std}
    note = f"weights: transformers {name}" if pretrained is True else Body.note
    network = Segmenter(Body(module, mean, std, head, json_safe(saved), note), last)
    if architecture is None and isinstance(pretrained, str):
        if pretrained.startswith("package:"):
            raise ModelError(
                f"{config.where('model.pretrained')}: {pretrained} holds weights of a timm network, and model.name is "
                f"{config.model.name}. Set model.name to one of {', '.join(DECODERS)} and model.backbone to that "
                "network."
            )
        servers = (config.tracking.tracking_uri, config.tracking.registry_uri)
        network.note = load_pretrained(pretrained, network, config.model.name, network.last, servers)
    return network


def _segformer(config: SpatialConfig, pretrained: bool | str) -> Any:
    """SegFormer's configuration as `model.options` has it."""
    from transformers import SegformerConfig

    _check_options(config, SegformerConfig().to_dict())
    if config.model.options and pretrained is True:
        raise ModelError(
            f"{config.where('model.options')}: model.pretrained=true takes the weights of {SEGFORMER_WEIGHTS}, which "
            "are of one size. Leave the options out, name another network as model.name=hf/NAME, or set "
            "model.pretrained=false."
        )
    options: dict[str, Any] = dict(config.model.options)
    return SegformerConfig(**options)


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) that the published image processor uses, ImageNet's where there is none."""
    from transformers import AutoImageProcessor

    try:
        with offline_if_unreachable():
            processor: Any = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
        return tuple(processor.image_mean), tuple(processor.image_std)
    except (OSError, AttributeError, TypeError, ValueError):
        return IMAGENET_MEAN, IMAGENET_STD


def _try(network: Segmenter, config: SpatialConfig, key: str, size: tuple[int, int]) -> None:
    """One forward pass: what does not fit together is said before training, not by its first batch."""
    example = torch.zeros(1, 3, *size, dtype=torch.uint8)
    network.eval()
    try:
        with torch.no_grad():
            found = network(example)
    except Exception as error:  # whatever the network raises; the reason goes on
        raise ModelError(
            f"{config.where(key)}: {config.model.name}"
            + (f" on {config.model.backbone}" if config.model.name in DECODERS else "")
            + f" can't take images of {list(size)}: {first_line(error)}"
        ) from error
    network.train()
    if found.ndim != 4:
        raise ModelError(f"{config.where('model.name')}: {config.model.name} gives no map of classes.")


def _layer(name: str) -> str:
    """The layer of a parameter: its name up to the last number, such as `blocks.2.0`, or its module's name."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=len(parts) - 2)
    return ".".join(parts[: last + 1])
