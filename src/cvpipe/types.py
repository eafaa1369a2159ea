"""What passes between the stages: images in, predictions or failures out. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

ImageInput = "str | Path | bytes | np.ndarray | PIL.Image.Image"
"""One image: a path, encoded bytes, an array (height, width, 3) uint8 RGB, or a Pillow image."""


class Prediction(Protocol):
    """What a task says about one image."""

    record_schema: ClassVar[tuple[tuple[str, str], ...]]

    def to_record(self) -> dict[str, Any]:
        """JSON-safe values, one for each column of `record_schema`."""
        ...


@dataclass(frozen=True)
class Failure:
    """An image that gave no prediction, and why."""

    reason: str

    def to_record(self) -> dict[str, Any]:
        return {"error": self.reason}


def arrow_schema(prediction: type[Prediction]) -> pa.Schema:
    """The Arrow schema of a task's batch output: path, the task's columns, error, model URI and version."""
    import pyarrow as pa

    names = {
        "string": pa.string(),
        "double": pa.float64(),
        "int": pa.int64(),
        "list<string>": pa.list_(pa.string()),
        "list<double>": pa.list_(pa.float64()),
        "list<list<double>>": pa.list_(pa.list_(pa.float64())),
    }
    fields = [pa.field(name, names[kind]) for name, kind in prediction.record_schema]
    tail = [pa.field(name, pa.string()) for name in ("error", "model_uri", "model_version")]
    return pa.schema([pa.field("path", pa.string()), *fields, *tail])


@dataclass(frozen=True)
class View:
    """A part of an image that goes through the network by itself: a tile, a mirrored copy, or both.

    Attributes:
        window: (top, left, height, width) in pixels of the image.
        hflip: whether it is mirrored, after cutting it out.
    """

    window: tuple[int, int, int, int]
    hflip: bool = False


def is_path(image: object) -> bool:
    return isinstance(image, (str, Path))


@dataclass(frozen=True)
class ModelInfo:
    """A network that `model.name` can name, and on which terms it and its published weights come.

    Licences are SPDX names in lower case, or `unknown` where none is stated.

    Attributes:
        name: what stands behind `model.name`; a `*` stands for every name that the library knows.
        library: distribution that the code comes from.
        code: licence of that code.
        source: where `pretrained: true` takes weights from: `fixed` (always the same ones), or from what the config
            names: `timm` (model.name), `backbone` (a timm network in model.backbone), `torchvision` or `hub`
            (model.name after the prefix); `none` where nobody publishes any.
        weights: what the fixed weights are called where they are published.
        weights_license: licence of the fixed weights.
        terms: address where the licence of the weights is stated.
    """

    name: str
    library: str
    code: str
    source: Literal["none", "fixed", "timm", "backbone", "torchvision", "hub"]
    weights: str = ""
    weights_license: str = ""
    terms: str = ""


@dataclass(frozen=True)
class Labels:
    """What the network's outputs mean. Travels in the bundle as classes.json.

    Attributes:
        classes: class names in output order.
        multi_label: True where an image can have any number of the classes.
        keypoints: names of an object's points, in order; empty where the task has none.
        skeleton: pairs of positions in `keypoints` to draw lines between.
        flip_pairs: pairs of positions that swap when the image is mirrored (left and right eye).
    """

    classes: tuple[str, ...]
    multi_label: bool = False
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What is set, and always the two that every task has."""
        values: dict[str, Any] = {"classes": list(self.classes), "multi_label": self.multi_label}
        if self.keypoints:
            pairs = {"skeleton": self.skeleton, "flip_pairs": self.flip_pairs}
            values["keypoints"] = list(self.keypoints)
            values |= {name: [list(pair) for pair in found] for name, found in pairs.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Labels:
        return cls(
            classes=tuple(values["classes"]),
            multi_label=bool(values["multi_label"]),
            keypoints=tuple(values.get("keypoints", ())),
            skeleton=tuple((int(a), int(b)) for a, b in values.get("skeleton", ())),
            flip_pairs=tuple((int(a), int(b)) for a, b in values.get("flip_pairs", ())),
        )


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval; low and high are None where no resampling was asked for."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = f"{self.value:.4f}"
        return text if self.low is None or self.high is None else f"{text} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Assessment:
    """How good predictions are, compared with the targets of a split.

    Attributes:
        metrics: name -> value with interval, such as `accuracy`; no split prefix.
        tables: title -> rows (a list of equal-keyed dicts), such as per-class precision and recall.
        figures: title -> SVG text.
        gallery: the worst images, worst first: (path, array or Pillow image with what was found drawn in, caption).
        headline: names of the metrics to show first, most important first.
    """

    metrics: dict[str, Interval]
    tables: dict[str, list[dict[str, Any]]]
    figures: dict[str, str]
    gallery: list[tuple[Any, str]]
    headline: tuple[str, ...]
