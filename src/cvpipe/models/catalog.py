"""Which networks there are, and on which terms their code and their published weights come.

What is written here was read on the pages named in `terms` and in the comments. It is a record of what publishers state
about their files, not legal advice; what a data set's owner thinks of weights trained on it is another question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cvpipe.config import Config
from cvpipe.errors import InputError, ModelError, TrackingError, did_you_mean
from cvpipe.task import Task, find_task
from cvpipe.types import ModelInfo

UNKNOWN = "unknown"
_APACHE, _MIT, _BSD, _NC = "apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0"
_NVIDIA = "nvidia-source-code-license"
_HUB_PAGE = "https://huggingface.co/"

# timm states a licence for each set of weights since 1.0.21 (huggingface/pytorch-image-models#2585)
_TIMM = ModelInfo("*", "timm", _APACHE, "timm")
_TORCHVISION = ModelInfo("torchvision/*", "torchvision", _BSD, "torchvision")
_HF = ModelInfo("hf/*", "transformers", _APACHE, "hub")


def _on_backbone(*names: str, library: str, code: str) -> tuple[ModelInfo, ...]:
    return tuple(ModelInfo(name, library, code, "backbone") for name in names)


def _published(name: str, weights: str, weights_license: str, terms: str = "") -> ModelInfo:
    """A network of transformers with one set of published weights."""
    return ModelInfo(name, "transformers", _APACHE, "fixed", weights, weights_license, terms or _HUB_PAGE + weights)


CLASSIFIERS = (_TORCHVISION, _HF, _TIMM)
DETECTORS = (
    *_on_backbone("fcos", "retinanet", "fasterrcnn", "ssdlite", library="torchvision", code=_BSD),
    _published("rtdetr_v2", "PekingU/rtdetr_v2_r18vd", _APACHE),
    _published("d_fine", "ustc-community/dfine-small-coco", _APACHE),
    _published("detr", "facebook/detr-resnet-50", _APACHE),
    _HF,
)
# the decoders; two of them come from torchvision, and stay under its licence (licenses/LICENSES.md there). The one
# file under NVIDIA's, encoders/mix_transformer.py, is not used: encoders are timm's
SEMANTIC = (
    *_on_backbone(
        *("unet", "unetplusplus", "fpn", "pspnet", "manet", "linknet", "pan", "upernet", "segformer_decoder"),
        library="segmentation-models-pytorch",
        code=_MIT,
    ),
    *_on_backbone("deeplabv3", "deeplabv3plus", library="segmentation-models-pytorch", code=_BSD),
    # "may be used or intended for use non-commercially", section 3.3; the Hub's card says `other`
    _published("segformer", "nvidia/mit-b0", _NVIDIA, "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"),
    _HF,
)
INSTANCE = (
    *_on_backbone("maskrcnn", library="torchvision", code=_BSD),
    # the card says `other`. The page they were first published on says CC BY-NC 4.0, as did the code before it went
    # to MIT; whether the weights went along was asked and never answered (facebookresearch/Mask2Former#204, #206)
    _published(
        "mask2former",
        "facebook/mask2former-swin-tiny-coco-instance",
        UNKNOWN,
        "https://github.com/facebookresearch/Mask2Former/blob/main/MODEL_ZOO.md#license",
    ),
    _HF,
)
KEYPOINTS = (
    *_on_backbone("keypointrcnn", library="torchvision", code=_BSD),
    _published("vitpose", "usyd-community/vitpose-base-simple", _APACHE),
    _HF,
)
ANOMALY = _on_backbone("patchcore", library="timm", code=_APACHE)
_ALL = (*DETECTORS, *SEMANTIC, *INSTANCE, *KEYPOINTS, *ANOMALY, *CLASSIFIERS)

# weights that a package of the package registry carries: the LICENSE file in it
_PACKAGES = {"efficientnet-lite0": _APACHE}

# repositories of the Hugging Face Hub whose cards were read; others are asked when they are needed
_HUB = {
    **{f"PekingU/rtdetr_v2_{size}": _APACHE for size in ("r18vd", "r34vd", "r50vd", "r101vd")},
    **{f"ustc-community/dfine-{size}-coco": _APACHE for size in ("nano", "small", "medium", "large", "xlarge")},
    **{f"ustc-community/dfine-{size}-obj2coco": _APACHE for size in ("small", "medium", "xlarge")},
    "facebook/detr-resnet-50": _APACHE,
    "google/vit-base-patch16-224": _APACHE,
    "usyd-community/vitpose-base": _APACHE,
    "usyd-community/vitpose-base-simple": _APACHE,
    "facebook/mask2former-*": UNKNOWN,
    "nvidia/mit-b?": _NVIDIA,
    "nvidia/segformer-*": _NVIDIA,
}


@dataclass(frozen=True)
class Licenses:
    """The terms of one model. What a bundle keeps of it is `to_dict`.

    Attributes:
        code: licence of the network's code; None where the catalogue does not have the network.
        weights: licence of the weights it starts from, `unknown` where none is stated; None for random ones and for
            the user's own.
        weights_source: where those come from.
        terms: address of the text, where it is known.
        note: what else helps when it is refused.
    """

    code: str | None
    weights: str | None
    weights_source: str
    terms: str = ""
    note: str = ""

    def __str__(self) -> str:
        """`code bsd-3-clause; weights apache-2.0 (package:efficientnet-lite0)`, for the start-up lines."""
        own = "random or your own"
        return (
            f"code {self.code or UNKNOWN}; weights {f'{self.weights} ({self.weights_source})' if self.weights else own}"
        )

    def to_dict(self) -> dict[str, str | None]:
        return {"code": self.code, "weights": self.weights, "weights_source": self.weights_source}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Licenses:
        return cls(values.get("code"), values.get("weights", UNKNOWN), str(values.get("weights_source", UNKNOWN)))


def check_license(config: Config) -> None:
    """Refuses a network or published weights whose licence `model.allow_licenses` does not name.

    Random weights and the user's own files pass. Weights that come from a model of cvpipe have the licence that this
    model's bundle records.

    Raises:
        ModelError: the licence is not accepted, or none is stated; with the ways out.
        TrackingError: the MLflow server of `model.pretrained` can't be asked.
    """
    _inherited.cache_clear()
    found = licenses_of(config)
    if found is not None:
        _refuse(found, config, "train")


def check_bundle(config: Config, info: Mapping[str, Any]) -> None:
    """The same for a finished model, before it is registered.

    Args:
        config: the one in the bundle.
        info: the bundle's bundle.json; where an older cvpipe wrote no licences into it, they follow from the config.
    """
    record = info.get("licenses")
    found = Licenses.from_dict(record) if record else licenses_of(config)
    if found is not None:
        _refuse(found, config, "register")


def record_of(config: Config) -> dict[str, str | None]:
    """What a bundle keeps. Never fails: a training that has ended must not be lost because a server is away."""
    try:
        found = licenses_of(config)
    except InputError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        found = Licenses(None, UNKNOWN, f"{config.model.pretrained} (could not be asked: {reason})")
    return (found or Licenses(None, UNKNOWN, UNKNOWN)).to_dict()


def licenses_of(config: Config) -> Licenses | None:
    """The terms of what a config starts from; None where its network or weights don't exist, which the one who builds
    them reports with the closest names.

    Raises TrackingError where `model.pretrained` names a model of a server that can't be asked.
    """
    name, pretrained = config.model.name, config.model.pretrained
    task = find_task(config.task)
    info = entry_of(task, name)
    code = info.code if info else None
    if pretrained is False:
        return Licenses(code, None, "random")
    if isinstance(pretrained, str):
        found = _named_weights(pretrained, config)
    elif info is None:
        hint = did_you_mean(name, [known.name for known in task.models])
        found = Licenses(None, UNKNOWN, name, note=f"cvpipe's list of networks has no {name!r}.{hint}")
    else:
        found = published_weights(info, _named(info, config))
    return replace(found, code=code) if found else None


def entry_of(task: Task, name: str) -> ModelInfo | None:
    """The first entry of the task's networks that the name fits; of all networks where the task lists none."""
    return next((info for info in task.models or _ALL if fnmatchcase(name, info.name)), None)


def published_weights(info: ModelInfo, name: str) -> Licenses | None:
    """The terms of what `pretrained: true` downloads.

    Args:
        name: what the config calls the network; for `backbone` the backbone's name.

    Returns:
        None where there is no such network, or nobody publishes weights for it.
    """
    if info.source == "fixed":
        return Licenses(info.code, info.weights_license or UNKNOWN, info.weights, info.terms)
    if info.source in ("timm", "backbone"):
        return _timm(name)
    if info.source == "torchvision":
        return _torchvision(name.removeprefix("torchvision/"))
    if info.source == "hub":
        return _hub(name.removeprefix("hf/"))
    return None


def is_allowed(licenses: Sequence[str | None], allowed: Sequence[str]) -> bool:
    accepted = {name.lower() for name in allowed}
    return all(name is None or name.lower() in accepted for name in licenses)


def listing(task: Task, pattern: str = "") -> list[dict[str, Any]]:
    """The networks of a task, one row each.

    Args:
        pattern: only names that it fits (`*` stands for anything; without one it may stand anywhere in the name).
            With a pattern, the names that timm and torchvision know are listed one by one.

    Returns:
        task, part (network or backbone), network, library, code, weights, weights_license (None: each its own, or none
        published), allowed (None: by that of the weights), terms.
    """
    allowed = task.config.model_fields["model"].get_default(call_default_factory=True).allow_licenses
    wanted = pattern if not pattern or any(c in pattern for c in "*?[") else f"*{pattern}*"
    rows: list[dict[str, Any]] = []

    def add(part: str, name: str, info: ModelInfo, weights: str, license_: str | None, terms: str = "") -> None:
        depends = license_ is None and info.source not in ("fixed", "none")
        rows.append(
            {
                "task": task.name,
                "part": part,
                "network": name,
                "library": info.library,
                "code": info.code,
                "weights": weights,
                "weights_license": license_,
                "allowed": None if depends else is_allowed([info.code, license_], allowed),
                "terms": terms,
            }
        )

    for info in task.models:
        if not wanted or fnmatchcase(info.name, wanted):
            if info.source == "fixed":
                add("network", info.name, info, info.weights, info.weights_license or UNKNOWN, info.terms)
            else:
                add("network", info.name, info, _SOURCES[info.source], None)
    if not wanted:
        return rows
    several = [("network", info) for info in task.models if "*" in info.name]
    if any(info.source == "backbone" for info in task.models):
        several.append(("backbone", _TIMM))
    for part, info in several:
        for name in _known_names(info):
            if fnmatchcase(name, wanted) and (found := published_weights(info, name)) is not None:
                add(part, name, info, found.weights_source, found.weights, found.terms)
    return rows


_SOURCES = {
    "timm": "timm, those of model.name",
    "backbone": "timm, those of model.backbone",
    "torchvision": "torchvision, its newest",
    "hub": "Hugging Face Hub",
    "none": "none",
}


def _known_names(info: ModelInfo) -> Iterator[str]:
    if info.source == "timm":
        import timm

        yield from timm.list_pretrained()
    elif info.source == "torchvision":
        import torchvision.models as tv

        yield from (f"torchvision/{name}" for name in tv.list_models(module=tv))
    elif info.source == "hub":
        yield from (f"hf/{name}" for name in _HUB if "*" not in name and "?" not in name)


def _named(info: ModelInfo, config: Config) -> str:
    if info.source != "backbone":
        return config.model.name
    return str(getattr(config.model, "backbone", config.model.name))


def _named_weights(pretrained: str, config: Config) -> Licenses | None:
    """The terms of weights that the config names itself."""
    if pretrained.startswith("package:"):
        stated = _PACKAGES.get(pretrained.removeprefix("package:"))
        return Licenses(None, stated, pretrained) if stated else None
    if pretrained.startswith(("models:/", "runs:/")):
        return _inherited(pretrained, config.tracking.tracking_uri, config.tracking.registry_uri)
    path = Path(pretrained)
    folders = (path, path / "bundle") if path.is_dir() else (path.parent,)
    bundle = next((folder for folder in folders if (folder / "bundle.json").is_file()), None)
    if bundle is None:
        return Licenses(None, None, f"own file {pretrained}")
    return _of_files(pretrained, bundle / "bundle.json", bundle / "config.yaml")


@lru_cache(maxsize=64)
def _inherited(uri: str, tracking: str | None, registry: str | None) -> Licenses:
    """Asked when a training starts, and again when its bundle is written: the server may be away by then."""
    files = import_module("cvpipe.tracking").bundle_files(uri, tracking, registry)
    return _of_files(uri, *files) if files else Licenses(None, UNKNOWN, f"{uri}, which is not a model of cvpipe")


def _of_files(source: str, bundle_json: Path, config_yaml: Path) -> Licenses:
    """What the record of another bundle says about a network that starts from it."""
    from cvpipe.config_file import load_config

    try:
        record = json.loads(bundle_json.read_text("utf-8")).get("licenses")
        found = Licenses.from_dict(record) if record else licenses_of(load_config(config_yaml))
    except TrackingError:
        raise
    except (InputError, OSError, ValueError, AttributeError):
        found = None
    if found is None:
        return Licenses(None, UNKNOWN, f"{source}, whose own origin is not known")
    made_of = found.weights_source.partition(", made from ")[2] or found.weights_source
    return replace(found, weights_source=f"{source}, made from {made_of}")


def _timm(name: str) -> Licenses | None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return None
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # no such tag
        return None
    if config is None or not config.has_weights:
        return None
    stated = (config.license or UNKNOWN).lower()
    note = ""
    if stated == UNKNOWN:
        note = f"timm {timm.__version__} states none; versions before 1.0.21 left many out."
    terms = f"{_HUB_PAGE}timm/{config.architecture}.{config.tag}"
    return Licenses(None, stated, f"timm {config.architecture}.{config.tag}", config.origin_url or terms, note)


def _torchvision(name: str) -> Licenses | None:
    """The library's own licence, except for SWAG's weights, which are under CC BY-NC 4.0.

    torchvision's README ("Pre-trained Model License") says that models may have terms of their own and names SWAG's
    alone. For all others nothing but the library's licence is stated; its maintainers take that to hold
    (pytorch/vision#160), and timm lists the same files under it.
    """
    import torchvision.models as tv

    if name not in tv.list_models(module=tv):
        return None
    weights: Any = tv.get_model_weights(name)
    chosen = weights.DEFAULT
    stated = str(chosen.meta.get("license", ""))
    terms = stated or "https://github.com/pytorch/vision#pre-trained-model-license"
    license_ = _BSD if not stated else _NC if "SWAG" in stated else UNKNOWN
    return Licenses(None, license_, f"torchvision {chosen}", terms)


def _hub(name: str) -> Licenses | None:
    if Path(name).is_dir():
        return Licenses(None, None, f"own folder {name}")
    stated = next((license_ for known, license_ in _HUB.items() if fnmatchcase(name, known)), None)
    note = ""
    if stated is None:
        stated, note = _ask_hub(name)
    return Licenses(None, stated, name, _HUB_PAGE + name, note)


@lru_cache(maxsize=64)
def _ask_hub(name: str) -> tuple[str, str]:
    """(licence on a repository's card, what to add where there is none)"""
    from huggingface_hub import HfApi, constants

    from cvpipe.models.hub import offline_if_unreachable

    with offline_if_unreachable():
        if constants.HF_HUB_OFFLINE:
            return UNKNOWN, "The Hugging Face Hub can't be asked from here."
        try:
            card: Any = HfApi().model_info(name, timeout=10).card_data
        except Exception as error:  # the client raises its own types and those of two HTTP libraries
            reason = (str(error).strip().splitlines() or [""])[0]
            return UNKNOWN, f"The Hugging Face Hub could not be asked ({type(error).__name__}: {reason[:120]})."
    stated = str((card or {}).get("license") or UNKNOWN).lower()
    if stated == "other":
        stated = str((card or {}).get("license_name") or UNKNOWN).lower()
    return stated, "" if stated != UNKNOWN else "Its card states none."


def _refuse(found: Licenses, config: Config, verb: str) -> None:
    allowed = config.model.allow_licenses
    if not is_allowed([found.code], allowed):
        refused, what = str(found.code), f"the code of {config.model.name} is"
    elif not is_allowed([found.weights], allowed):
        refused, what = str(found.weights), f"the weights {found.weights_source} are"
    else:
        return
    state = "without a stated licence" if refused == UNKNOWN else f"under {refused}"
    note = f" {found.note}" if found.note else ""
    read = f" ({found.terms})" if found.terms else ""
    accept = f"'model.allow_licenses=[{', '.join([*allowed, refused])}]'"
    again = "train again with " if verb == "register" else ""
    ways = [
        f"{again}another network: `cvpipe tasks models {config.task}` lists them with their licences",
        f"{'train again after' if again else 'after'} reading the terms{read}, with {accept}",
        f"{again}weights of your own, model.pretrained=FILE or models:/NAME@ALIAS, or random ones, "
        "model.pretrained=false",
    ]
    raise ModelError(
        f"{config.where('model.allow_licenses')}: {what} {state}; accepted: {', '.join(allowed) or 'none'}.{note} "
        "Ways out:\n" + "\n".join(f"  - {way}" for way in ways)
    )
