"""What passes between the stages: images in, predictions or failures out. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class ClassificationPrediction:
    """Scores of all the classes for one image.

    Attributes:
        classes: the model's class names.
        scores: (classes,) float32. Single label: probabilities that add up to 1. Multi-label: one independent
            probability for each class.
        labels: the answer. Single label: the `top_k` best classes, best first. Multi-label: the classes whose
            score reaches the threshold, best first (may be none).
    """

    classes: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    labels: tuple[str, ...]

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        ("label", "string"),
        ("score", "double"),
        ("labels", "list<string>"),
        ("scores", "list<double>"),
    )

    @property
    def label(self) -> str:
        """The best class, or an empty string where no class reached the threshold."""
        return self.labels[0] if self.labels else ""

    @property
    def score(self) -> float:
        """The score of the best class (also where it is below the threshold)."""
        return float(self.scores.max())

    def score_of(self, label: str) -> float:
        return float(self.scores[self.classes.index(label)])

    def to_record(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "score": self.score,
            "labels": list(self.labels),
            "scores": [self.score_of(label) for label in self.labels],
        }

    def __str__(self) -> str:
        return ", ".join(f"{label} {self.score_of(label):.3f}" for label in self.labels) or "(no label)"


def arrow_schema(prediction: type[Prediction]) -> pa.Schema:
    """The Arrow schema of a task's batch output: path, the task's columns, error, model URI and version."""
    import pyarrow as pa

    names = {
        "string": pa.string(),
        "double": pa.float64(),
        "int": pa.int64(),
        "list<string>": pa.list_(pa.string()),
        "list<double>": pa.list_(pa.float64()),
    }
    fields = [pa.field(name, names[kind]) for name, kind in prediction.record_schema]
    tail = [pa.field(name, pa.string()) for name in ("error", "model_uri", "model_version")]
    return pa.schema([pa.field("path", pa.string()), *fields, *tail])


def is_path(image: object) -> bool:
    return isinstance(image, (str, Path))


@dataclass(frozen=True)
class Labels:
    """What the network's outputs mean. Travels in the bundle as classes.json.

    Attributes:
        classes: class names in output order.
        multi_label: True where an image can have any number of the classes.
    """

    classes: tuple[str, ...]
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "multi_label": self.multi_label}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Labels:
        return cls(classes=tuple(values["classes"]), multi_label=bool(values["multi_label"]))


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
        gallery: the worst images: path, caption. Most confident mistakes first.
        headline: names of the metrics to show first, most important first.
    """

    metrics: dict[str, Interval]
    tables: dict[str, list[dict[str, Any]]]
    figures: dict[str, str]
    gallery: list[tuple[str, str]]
    headline: tuple[str, ...]
