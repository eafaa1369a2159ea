"""A prediction of the dense template. No torch in here: records are read without it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_MOST = 65535


@dataclass(frozen=True)
class DenseTemplatePrediction:
    """A value for each pixel.

    Attributes:
        values: (height, width) float32, above 0, of the original image's size.
        unit: what a 1 stands for where the values are written as whole numbers.
    """

    values: Floats
    unit: float

    # REPLACE: the columns of the records that batch inference and the MLflow model give, and their kinds: string,
    # double, int, list<string>, list<double>, list<list<double>>. Pictures are base64 text in a column named …_png
    record_schema: ClassVar[tuple[tuple[str, str], ...]] = (
        ("mean", "double"),
        ("low", "double"),
        ("high", "double"),
        ("height", "int"),
        ("width", "int"),
        ("values_png", "string"),
    )

    def to_record(self) -> dict[str, Any]:
        height, width = self.values.shape
        return {
            "mean": float(self.values.mean()),
            "low": float(self.values.min()),
            "high": float(self.values.max()),
            "height": height,
            "width": width,
            "values_png": base64.b64encode(map_png(self.values, self.unit)).decode(),
        }

    def __str__(self) -> str:
        return f"{self.values.mean():.2f} on average, {self.values.min():.2f} to {self.values.max():.2f}"


def map_png(values: Floats, unit: float) -> bytes:
    """(height, width) -> a 16-bit grey PNG, in the form in which targets are read: value = number * unit, 0 unknown."""
    from PIL import Image

    known = np.isfinite(values)
    numbers = np.where(known, np.clip(np.round(np.where(known, values, 0) / unit), 1, _MOST), 0)
    buffer = io.BytesIO()
    Image.fromarray(numbers.astype(np.uint16)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
