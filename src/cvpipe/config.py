"""The settings that every task has. A task's config module subclasses these (see tasks/classification/config.py).

Configs are frozen and closed: an unknown key is an error. Every field's description is its documentation; the
reference in docs/configuration.md is generated from it. Reading YAML files is `config_file`'s work.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

SIZE_LIMIT = 8192


class Section(BaseModel):
    """A frozen, closed group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _parse_size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _parse_duration(value: Any) -> Any:
    """Accepts seconds, '90s', '15m', '1h30m', '2d' and 'HH:MM:SS'."""
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return timedelta(seconds=value)
    text = str(value).strip().lower()
    if text.startswith("p"):
        return value  # ISO 8601, read by pydantic
    if match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d{1,2})(?:\.\d+)?", text):
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return timedelta(hours=hours, minutes=minutes, seconds=seconds)
    parts = re.fullmatch(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)s)?", text)
    if parts and any(parts.groups()):
        days, hours, minutes = (int(part or 0) for part in parts.groups()[:3])
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=float(parts.group(4) or 0))
    raise ValueError("expected a duration such as 90s, 15m, 1h30m or 01:30:00")


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("expected a duration that is not negative")
    return value


def _duration_text(value: timedelta) -> str:
    seconds = value.total_seconds()
    return f"{int(seconds)}s" if seconds.is_integer() else f"{seconds:f}s"


Size = Annotated[
    tuple[Annotated[int, Field(ge=8, le=SIZE_LIMIT)], Annotated[int, Field(ge=8, le=SIZE_LIMIT)]],
    BeforeValidator(_parse_size),
]
"""(height, width) in pixels; one number means a square."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    AfterValidator(_not_negative),
    PlainSerializer(_duration_text, return_type=str, when_used="json"),
]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelConfig(Section):
    """Which network, and where its weights come from."""

    name: str = Field("resnet50", description="a timm name, `torchvision/NAME` or `hf/NAME-or-folder`")
    pretrained: bool | str = Field(
        True,
        description="true (the model's published weights), false (random), a weights file or Volume path, "
        "`models:/NAME@ALIAS`, or `package:efficientnet-lite0`",
    )
    num_classes: int | None = Field(None, ge=1, description="checked against the data; taken from the data if left out")
    dropout: Fraction = Field(0.0, description="dropout before the last layer")
    allow_licenses: tuple[str, ...] = Field(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0"),
        description="licences of code and published weights that training and registration accept (SPDX names in "
        "lower case; `unknown` accepts weights that state none)",
    )


class AugmentConfig(Section):
    """Random changes to training images, made on uint8 pixels before `preprocess`."""

    crop_scale: tuple[Fraction, Fraction] = Field((0.4, 1.0), description="area of the random crop, as a share")
    crop_ratio: tuple[float, float] = Field((0.75, 1.3333), description="aspect ratio of the random crop, width/height")
    hflip: Fraction = Field(0.5, description="probability of a left-right flip")
    vflip: Fraction = Field(0.0, description="probability of an upside-down flip")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    color_jitter: Fraction = Field(0.2, description="largest change of brightness, contrast and saturation")
    trivial_augment: bool = Field(False, description="one random TrivialAugmentWide operation an image")
    erase: Fraction = Field(0.0, description="probability of erasing a random rectangle")

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("expected [low, high] with 0 < low <= high")
        return value


class DataSource(Section):
    """Images in one place, what is known about them in another."""

    images: str = Field(description="folder of the images")
    annotations: str | None = Field(None, description="file or folder of annotations, or a manifest")
    masks: str | None = Field(None, description="folder of masks, named like the images")

    def __str__(self) -> str:
        return ", ".join(str(part) for part in (self.images, self.annotations, self.masks) if part)


class DataConfig(Section):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    train: str | DataSource = Field(
        description="a folder, a manifest (.csv, .parquet, .jsonl), `demo:NAME`, a mapping with `images` and "
        "`annotations` or `masks`; or what `cvpipe data prepare` made: a folder of shards, `delta:PATH`, "
        "`delta:PATH@7`, catalog.schema.table"
    )
    val: str | float | DataSource | None = Field(
        None,
        description="like train, or the share of train to hold out (stratified, by group); "
        "left out: the data set's own val split, else 0.2",
    )
    test: str | DataSource | None = Field(
        None, description="like train; left out: the data set's own test split, if any"
    )
    format: str = Field("auto", description="auto, or one of the task's formats")
    classes: tuple[str, ...] | None = Field(
        None, description="class names, in order; others in the data are left out and counted. Left out: all of train"
    )
    root: str | None = Field(None, description="folder that a manifest's relative paths start from; left out: its own")
    image_size: Size = Field(
        (224, 224), description="input size of the network: N or [height, width], pixels; 32 for demo:digits"
    )
    resize: Literal["crop", "stretch", "letterbox"] = Field(
        "crop", description="crop (short side, then centre), stretch, or letterbox (pad with grey)"
    )
    crop_pct: float = Field(0.875, gt=0, le=1, description="share of the short side that the centre crop keeps")
    max_bad_fraction: Fraction = Field(0.01, description="unreadable images that training accepts, as a share")
    scaled_decoding: bool = Field(
        True,
        description="decode JPEGs from a megapixel on at 1/2, 1/4 or 1/8 of their size where the network needs no more",
    )
    cache: str | None = Field(
        None,
        description="local folder for copies of files, shards and Delta tables; left out: files and shards are read "
        "where they lie, tables are copied to ~/.cache/cvpipe",
    )
    cache_gb: float = Field(100.0, gt=0, description="gigabytes of single files that the cache may hold")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes to training images")

    @model_validator(mode="before")
    @classmethod
    def _demo_size(cls, values: Any) -> Any:
        # the digits are 8x8 pixels: at 224 the same result would cost fifty times the time
        if isinstance(values, dict) and values.get("train") == "demo:digits":
            values = {"image_size": 32, **values}
        return values


class TrainingConfig(Section):
    """How the network is fitted."""

    batch_size: int = Field(32, ge=1, description="images a step and device; halved if memory runs out")
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes that load data; auto: by the CPUs, up to 8, or tried out where the run is long"
    )
    epochs: int = Field(10, ge=1, description="passes over the training images")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        1e-3, description="peak learning rate; auto: range test"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with Nesterov momentum 0.9")
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases and normalisation layers")
    schedule: Literal["cosine", "one_cycle", "constant"] = Field("cosine", description="course of the learning rate")
    warmup: Fraction = Field(0.05, description="share of the steps in which the learning rate rises")
    gradient_clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added up for one step")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights, such as 0.999; 0: off")
    freeze: Literal["none", "backbone"] = Field("none", description="backbone: train the last layer only")
    freeze_epochs: int | None = Field(None, ge=1, description="epochs that `freeze` lasts; left out: all")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate from a layer to the one below")
    validate_every: int = Field(
        1, ge=1, description="epochs from one validation to the next; the last is validated too"
    )
    early_stopping: int = Field(0, ge=0, description="epochs without improvement before training stops; 0: off")
    precision: Literal["auto", "32", "bf16", "16"] = Field("auto", description="auto: bf16 where the device has it")
    channels_last: bool = Field(True, description="memory layout that convolutions are fast in")
    compile: bool = Field(False, description="torch.compile the network")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    max_time: Duration | None = Field(None, description="time budget such as 2h; training ends in good order")
    checkpoint_every: Duration = Field(
        timedelta(minutes=10), description="time between checkpoints within an epoch (one comes after each epoch too)"
    )
    log_every: Duration = Field(timedelta(seconds=10), description="time between console lines and logged steps")
    output_dir: str | None = Field(None, description="folder of this run; left out: a new numbered one in runs/")

    @model_validator(mode="before")
    @classmethod
    def _precision_is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and type(values.get("precision")) is int:
            values = {**values, "precision": str(values["precision"])}
        return values


class EvaluationConfig(Section):
    """What `cvpipe evaluate`, and the end of training, report."""

    bootstrap: int = Field(1000, ge=0, description="resamples for the 95 % intervals; 0: none")
    gallery: int = Field(24, ge=0, description="most confident mistakes shown in the report")


Limit = Annotated[float, Field(ge=0)] | None
"""Findings that are accepted: a number, or below 1 a share of what was looked at. None: any number."""


class CheckLimits(Section):
    """Findings that `cvpipe data check` accepts: a number, or below 1 a share. More: exit code 1. null: any number."""

    unreadable: Limit = Field(0, description="files that can't be decoded; of the images")
    leakage: Limit = Field(0, description="images of val or test that are in an earlier split too; of the images")
    label_conflict: Limit = Field(0, description="images with the same content and another label; of the images")
    duplicate: Limit = Field(None, description="images with the same content in one split; of the images")
    near_duplicate: Limit = Field(None, description="images that are nearly the same; of the images")
    similar: Limit = Field(None, description="images whose features are nearly the same; of the images")
    label_error: Limit = Field(None, description="labels that the features contradict; of the images or boxes")
    outlier: Limit = Field(None, description="images far from all others; of the images")
    blank: Limit = Field(None, description="images of one colour; of the images")
    dark: Limit = Field(None, description="very dark images; of the images")
    bright: Limit = Field(None, description="very bright images; of the images")
    blurred: Limit = Field(None, description="images without any sharp edge; of the images")
    odd_size: Limit = Field(None, description="images far smaller or larger than most; of the images")
    odd_aspect: Limit = Field(None, description="images far wider or taller than most; of the images")
    odd_mode: Limit = Field(None, description="images of a rare colour mode; of the images")
    missing_class: Limit = Field(None, description="classes that a split has no example of; of the classes")
    rare_class: Limit = Field(None, description="classes with few examples in train; of the classes")
    annotation: Limit = Field(None, description="annotations that are wrong in another way; of the annotations")
    box_outside: Limit = Field(None, description="boxes outside the image or over its border; of the annotations")
    box_degenerate: Limit = Field(None, description="boxes without area; of the annotations")
    box_tiny: Limit = Field(None, description="boxes under 3 pixels at `data.image_size`; of the annotations")
    box_aspect: Limit = Field(None, description="boxes that are very long and thin; of the annotations")
    box_duplicate: Limit = Field(None, description="boxes that lie on another one; of the annotations")
    mask_values: Limit = Field(None, description="masks with values that no class has, or broken; of the images")
    empty_annotation: Limit = Field(None, description="images without any annotated object; of the images")


class CheckConfig(Section):
    """What `cvpipe data check` looks at, and what makes it fail."""

    features: Literal["auto", "network", "plain", "none"] = Field(
        "auto",
        description="what images are compared by: network (`package:efficientnet-lite0`), plain (thumbnail, colours, "
        "edges), none (no look-alikes, label errors, outliers); auto: network where its package is installed",
    )
    crops: bool = Field(False, description="look for label errors of boxes, too, by features of what is in them")
    near_bits: int = Field(10, ge=0, le=16, description="bits of 64 in which hashes of near duplicates may differ")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes that read images; auto: one a CPU; 0: none but this one"
    )
    gallery: int = Field(24, ge=0, description="pictures of each check in the report")
    limits: CheckLimits = Field(default_factory=CheckLimits, description="findings that are accepted")


class InferenceConfig(Section):
    """How the model is applied; travels with the model."""

    batch_size: int = Field(32, ge=1, description="images that go through the network together")
    top_k: int = Field(5, ge=1, description="classes in an answer")
    threshold: Fraction = Field(0.5, description="multi-label: score from which a class is in the answer")
    tta: bool = Field(False, description="test-time augmentation: average over the image and its mirror image")
    max_pixels: int = Field(178_956_970, ge=1, description="images with more pixels are refused")


class TrackingConfig(Section):
    """MLflow."""

    tracking_uri: str | None = Field(
        None, description="left out: MLFLOW_TRACKING_URI, `databricks` in a workspace, else sqlite:///mlflow.db"
    )
    registry_uri: str | None = Field(None, description="left out: `databricks-uc` in a workspace, else tracking_uri")
    experiment: str = Field("cvpipe", description="experiment name (on Databricks a workspace path)")
    run_name: str | None = Field(None, description="left out: the name of the run's folder")
    registered_model_name: str | None = Field(
        None, description="register the model under this name after training (Unity Catalog: catalog.schema.name)"
    )
    alias: str | None = Field("champion", description="alias set on the registered version")
    system_metrics: bool = Field(True, description="log CPU, memory, disk, network and GPU use")


class Config(Section):
    """Everything a run depends on."""

    task: str = Field("classification", description="what is learnt; `cvpipe tasks list` names them")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    check: CheckConfig = Field(default_factory=CheckConfig)

    # dotted key -> "file:line", so that later errors can say where a value was set
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _stem: str = PrivateAttr(default="config")

    @model_validator(mode="before")
    @classmethod
    def _data_shorthand(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("data"), str):
            values = {**values, "data": {"train": values["data"]}}
        return values

    def where(self, key: str) -> str:
        """`configs/x.yaml:7: model.num_classes`, or the key alone where it was not read from a file."""
        origin = self._origins.get(key)
        return f"{origin}: {key}" if origin else key

    @property
    def stem(self) -> str:
        """Name of the config file without folder and ending; names the run's folder."""
        return self._stem

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe nested values; `Config.model_validate` of it gives the same settings."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    def flat(self) -> dict[str, Any]:
        """`{"training.epochs": 10, …}`, for MLflow parameters and comparisons."""
        return flatten(self.to_dict())

    def replace(self, **overrides: Any) -> Any:
        """A copy with dotted keys changed: `config.replace(**{"training.epochs": 3})`. Validated again."""
        values = self.to_dict()
        for key, value in overrides.items():
            *parents, last = key.split(".")
            node = values
            for parent in parents:
                node = node[parent]
            node[last] = value
        copy = type(self).model_validate(values)
        copy._origins, copy._stem = dict(self._origins), self._stem
        return copy


AnyConfig = TypeVar("AnyConfig", bound=Config)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
