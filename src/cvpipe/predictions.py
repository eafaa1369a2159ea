"""What the tasks say about one image. A task of a package may define its own (see `cvpipe.types.Prediction`).

Boxes are (x1, y1, x2, y2) in pixels of the original, upright image. Masks are COCO RLE (instances) or an indexed PNG
(a whole image), never nested lists of pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class DetectionPrediction:
    """The objects found in one image, best score first.

    Attributes:
        classes: the model's class names.
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the original image, inside it.
        scores: (n,) float32 in 0..1.
        indices: (n,) int64, positions in `classes`.
    """

    classes: tuple[str, ...]
    boxes: Floats
    scores: Floats
    indices: Ints

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        ("labels", "list<string>"),
        ("scores", "list<double>"),
        ("boxes", "list<list<double>>"),
        ("count", "int"),
    )

    def __post_init__(self) -> None:
        _check("boxes", self.boxes, (len(self.scores), 4))
        _check("indices", self.indices, (len(self.scores),))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.classes[i] for i in self.indices)

    def to_record(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "scores": [float(score) for score in self.scores],
            "boxes": [[round(float(v), 3) for v in box] for box in self.boxes],
            "count": len(self),
        }

    def __str__(self) -> str:
        shown = [f"{label} {score:.2f}" for label, score in zip(self.labels[:5], self.scores[:5], strict=True)]
        more = f" and {len(self) - 5} more" if len(self) > 5 else ""
        return (", ".join(shown) + more) or "(no object)"


@dataclass(frozen=True)
class InstancePrediction(DetectionPrediction):
    """Objects with masks.

    Attributes:
        masks: one compressed COCO RLE for each object: {"size": [height, width], "counts": ascii text}, of the
            original image's size.
        size: (height, width) of the original image.
    """

    masks: tuple[dict[str, Any], ...] = ()
    size: tuple[int, int] = (0, 0)

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        *DetectionPrediction.record_schema,
        ("masks", "list<string>"),
        ("height", "int"),
        ("width", "int"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.masks) != len(self):
            raise ValueError(f"masks: expected {len(self)}, got {len(self.masks)}")

    def to_record(self) -> dict[str, Any]:
        height, width = self.size
        counts = [mask["counts"] for mask in self.masks]
        return {**super().to_record(), "masks": counts, "height": height, "width": width}


@dataclass(frozen=True)
class KeypointPrediction(DetectionPrediction):
    """Objects with named points.

    Attributes:
        points: (n, points, 3) float32: x, y in pixels of the original image, and a confidence.
    """

    points: Floats = None  # type: ignore[assignment]

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        *DetectionPrediction.record_schema,
        ("keypoints", "list<list<double>>"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points.ndim != 3 or len(self.points) != len(self) or self.points.shape[2] != 3:
            raise ValueError(f"points: expected shape ({len(self)}, points, 3), got {self.points.shape}")

    def to_record(self) -> dict[str, Any]:
        flat = [[round(float(v), 3) for v in row.reshape(-1)] for row in self.points]
        return {**super().to_record(), "keypoints": flat}


@dataclass(frozen=True)
class SegmentationPrediction:
    """A class for each pixel.

    Attributes:
        classes: the model's class names.
        png: an 8-bit grey PNG of the original image's size; a pixel's value is a position in `classes`.
        shares: (classes,) float32, the part of the pixels that each class takes.
        confidence: mean probability of the chosen class over the pixels.
    """

    classes: tuple[str, ...]
    png: bytes
    shares: Floats
    confidence: float

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        ("labels", "list<string>"),
        ("shares", "list<double>"),
        ("confidence", "double"),
        ("mask_png", "string"),
    )

    @classmethod
    def of(cls, classes: tuple[str, ...], indices: npt.NDArray[np.uint8], confidence: float) -> SegmentationPrediction:
        """Args:
        indices: (height, width) uint8, positions in `classes`.
        """
        counts = np.bincount(indices.reshape(-1), minlength=len(classes))
        return cls(classes, png_of(indices), (counts / indices.size).astype(np.float32), confidence)

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """(height, width) uint8, positions in `classes`."""
        return pixels_of(self.png)

    def _present(self) -> list[int]:
        return [int(i) for i in np.argsort(-self.shares, kind="stable") if self.shares[i] > 0]

    def to_record(self) -> dict[str, Any]:
        present = self._present()
        return {
            "labels": [self.classes[i] for i in present],
            "shares": [float(self.shares[i]) for i in present],
            "confidence": self.confidence,
            "mask_png": base64.b64encode(self.png).decode(),
        }

    def __str__(self) -> str:
        return ", ".join(f"{self.classes[i]} {self.shares[i]:.0%}" for i in self._present()[:5])


@dataclass(frozen=True)
class AnomalyPrediction:
    """How unusual an image is, and where.

    Attributes:
        score: image score; the higher, the more unusual. Without bounds: compare it with `threshold`.
        threshold: score from which the image counts as anomalous.
        heat: (h, w) float32 anomaly score of each place, of any resolution, covering the whole original image.
        size: (height, width) of the original image.
    """

    score: float
    threshold: float
    heat: Floats
    size: tuple[int, int]

    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        ("label", "string"),
        ("score", "double"),
        ("threshold", "double"),
        ("heat_png", "string"),
        ("height", "int"),
        ("width", "int"),
    )

    @property
    def is_anomalous(self) -> bool:
        return self.score >= self.threshold

    @property
    def label(self) -> str:
        return "anomalous" if self.is_anomalous else "good"

    def to_record(self) -> dict[str, Any]:
        # 128 is the threshold, so that pictures of different images can be compared
        scaled = np.clip(self.heat / max(self.threshold, 1e-12) * 128, 0, 255).astype(np.uint8)
        height, width = self.size
        return {
            "label": self.label,
            "score": self.score,
            "threshold": self.threshold,
            "heat_png": base64.b64encode(png_of(scaled)).decode(),
            "height": height,
            "width": width,
        }

    def __str__(self) -> str:
        return f"{self.label} {self.score:.3f} (threshold {self.threshold:.3f})"


def png_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(height, width) uint8 -> a grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    """A grey PNG -> (height, width) uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.array(image, dtype=np.uint8)


def _check(name: str, array: npt.NDArray[Any], shape: Sequence[int]) -> None:
    if array.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {array.shape}")
