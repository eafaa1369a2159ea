"""Images made smaller before training: pixels, boxes, points and masks together."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cvpipe.data.geometry import Geometry, Size
from cvpipe.data.targets import Objects, decode_rle, encode_rle

DEFAULT_QUALITY = 90


@dataclass(frozen=True)
class Shrink:
    """How images are packed. Without any of it they are copied byte for byte.

    Attributes:
        max_side: longest side of an image, pixels; larger ones are scaled down, none is scaled up.
        short_side: the same for the shorter side.
        quality: of JPEG, 1 to 100. Given, all JPEGs are encoded anew; left out, those that were scaled, at 90.
        jpeg: whether other formats become JPEG too; else PNG stays PNG.
    """

    max_side: int | None = None
    short_side: int | None = None
    quality: int | None = None
    jpeg: bool = False

    @property
    def active(self) -> bool:
        return self != Shrink()

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_side": self.max_side,
            "short_side": self.short_side,
            "quality": self.quality,
            "jpeg": self.jpeg,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shrink:
        return cls(**values)

    def __str__(self) -> str:
        parts = []
        if self.max_side:
            parts.append(f"long side at most {self.max_side} px")
        if self.short_side:
            parts.append(f"short side at most {self.short_side} px")
        if self.jpeg or self.quality or parts:
            what = f"{'all as ' if self.jpeg else ''}JPEG of quality {self.quality or DEFAULT_QUALITY}"
            parts.append(what if self.quality else f"{what} where scaled")
        return ", ".join(parts) or "files as they are"

    def size(self, size: Size) -> Size:
        """(height, width) of an image -> that of the packed one."""
        scale = 1.0
        if self.max_side:
            scale = min(scale, self.max_side / max(size))
        if self.short_side:
            scale = min(scale, self.short_side / min(size))
        return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))

    def encode(self, pixels: torch.Tensor, data: bytes, form: str) -> tuple[bytes, str]:
        """(3, H, W) uint8 RGB, the file it was decoded from and its format -> (packed file, its format)."""
        from PIL import Image

        from cvpipe.data.transforms import resize

        size = (int(pixels.shape[1]), int(pixels.shape[2]))
        target = self.size(size)
        is_jpeg = form in ("JPEG", "MPO")
        if target == size and not (self.jpeg and not is_jpeg) and not (is_jpeg and self.quality):
            return data, form
        image = Image.fromarray(resize(pixels, target).permute(1, 2, 0).contiguous().numpy())
        buffer = io.BytesIO()
        if is_jpeg or self.jpeg:
            image.save(buffer, "JPEG", quality=self.quality or DEFAULT_QUALITY)
            # encoding a small file anew at a high quality only adds bytes and loses detail
            keep = is_jpeg and target == size and buffer.tell() >= len(data)
            return (data, form) if keep else (buffer.getvalue(), "JPEG")
        image.save(buffer, "PNG")
        return buffer.getvalue(), "PNG"


def whole(size: Size, target: Size) -> Geometry:
    """The geometry that scales an image of (height, width) to another size."""
    return Geometry(size, (0, 0, *size), (0, 0, *target), target)


def scaled_target(target: Any, geometry: Geometry) -> Any:
    """Objects moved with the pixels; other targets as they are."""
    if not isinstance(target, Objects):
        return target
    sy, sx = geometry.scale
    points = target.points
    if points is not None:
        points = points.copy()
        seen = points[..., 2] != 0
        points[..., :2][seen] = geometry.points(points[..., :2])[seen]
    return replace(
        target,
        boxes=geometry.boxes(target.boxes) if len(target) else target.boxes,
        areas=(target.areas * np.float32(sx * sy)).astype(np.float32),
        masks=None if target.masks is None else tuple(_scaled_mask(mask, geometry) for mask in target.masks),
        points=points,
    )


def _scaled_mask(mask: Any, geometry: Geometry) -> Any:
    if isinstance(mask, Mapping):
        return encode_rle(geometry.class_map(torch.from_numpy(decode_rle(mask)), 0).numpy())
    return tuple(geometry.points(polygon) for polygon in mask)


def scaled_map(values: npt.NDArray[Any], geometry: Geometry) -> bytes:
    """(height, width) or (height, width, 3) values of a mask -> PNG of the packed size, nearest neighbour."""
    from PIL import Image

    moved = values.astype(np.int32)
    channels = [moved] if moved.ndim == 2 else [moved[..., i] for i in range(3)]
    parts = [geometry.class_map(torch.from_numpy(np.ascontiguousarray(part)), 0).numpy() for part in channels]
    buffer = io.BytesIO()
    if len(parts) == 3:
        image = Image.fromarray(np.stack(parts, axis=-1).astype(np.uint8))
    else:
        deep = int(moved.max(initial=0)) > 255
        image = Image.fromarray(parts[0].astype(np.uint16 if deep else np.uint8))
    image.save(buffer, "PNG")
    return buffer.getvalue()
