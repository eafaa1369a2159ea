"""Encoded bytes -> (3, height, width) uint8 RGB. The only place where pixels come into being.

JPEG takes torchvision's decoder, or a scaled one where the caller asks for it (see `jpeg`); everything that these do
not handle (CMYK, missing end marker, other formats) takes Pillow. All apply the EXIF orientation.
"""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cvpipe.data.jpeg import LEAST_PIXELS, LazyJpeg, decode_whole, first_line, orientation, read_frame
from cvpipe.data.store import read_bytes
from cvpipe.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif"})
MAX_PIXELS = 178_956_970
"""Pillow's limit, at which it takes an image for a decompression bomb."""


def read_image(image: Any, max_pixels: int = MAX_PIXELS, *, lazy: bool = False) -> torch.Tensor:
    """Any accepted form of an image -> (3, height, width) uint8 RGB.

    Args:
        image: a path, encoded bytes, an array (height, width, 3) or (height, width) uint8 RGB or grey, a tensor
            (3, height, width) uint8 RGB, or a Pillow image.
        lazy: a large JPEG may come as a `LazyJpeg`, which `transforms.resize` decodes no larger than it has to. An
            ImageError may then come from the first use of the pixels.

    Raises:
        ImageError: the image is missing, broken, larger than `max_pixels`, or of a kind without a meaning in RGB.
    """
    if isinstance(image, (str, Path)):
        return decode(read_bytes(image), max_pixels, lazy=lazy)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(bytes(image), max_pixels, lazy=lazy)
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ImageError(f"expected a tensor (3, height, width) uint8, found {tuple(image.shape)} {image.dtype}")
        _check_pixels(int(image.shape[1]), int(image.shape[2]), max_pixels)
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    if hasattr(image, "convert"):
        return _from_pillow(image, max_pixels)
    raise ImageError(f"expected a path, bytes, array, tensor or Pillow image, found {type(image).__name__}")


def read_values(path: str | Path) -> np.ndarray[Any, Any]:
    """A mask as it stands in its file: palette indices or grey values (height, width), or RGB (height, width, 3).

    Raises:
        ImageError: missing, broken, or lossy (JPEG changes values).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = read_bytes(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    try:
        with Image.open(io.BytesIO(data)) as file:
            image: PIL.Image.Image = file
            if file.format == "JPEG":
                raise ImageError(f"{path}: a JPEG can't hold a mask: its compression changes the values. Use PNG.")
            image.load()
            if orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode == "1":
                return np.asarray(image, dtype=np.uint8)
            if image.mode in ("P", "L", "I", "I;16"):
                return np.asarray(image)
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image file (no known format)") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {first_line(error)}") from None


def decode(data: bytes, max_pixels: int = MAX_PIXELS, *, lazy: bool = False) -> torch.Tensor:
    """Encoded bytes -> (3, height, width) uint8 RGB, upright; `lazy` as in `read_image`. Raises ImageError."""
    if not data:
        raise ImageError("the file is empty")
    if data[:2] == b"\xff\xd8":
        frame = read_frame(data)
        if frame is not None:
            _check_pixels(frame.height, frame.width, max_pixels)
            if frame.components in (1, 3) and data.rfind(b"\xff\xd9", len(data) - 4096) >= 0:
                if lazy and frame.height * frame.width >= LEAST_PIXELS:
                    return LazyJpeg.of(data, frame)
                return decode_whole(data)
    return _decode_pillow(data, max_pixels)


def _decode_pillow(data: bytes, max_pixels: int) -> torch.Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError("not an image file (no known format)") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"broken image: {first_line(error)}") from None
    return _from_pillow(image, max_pixels)


def _from_pillow(image: PIL.Image.Image, max_pixels: int) -> torch.Tensor:
    from PIL import Image, ImageOps

    _check_pixels(image.height, image.width, max_pixels)
    try:
        image.load()
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_deep(np.asarray(image), image.mode)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, "white")
            image = Image.alpha_composite(canvas, rgba)
        return _from_array(np.asarray(image.convert("RGB")))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise ImageError(f"broken image: {first_line(error)}") from None


def _from_deep(grey: np.ndarray[Any, Any], mode: str) -> torch.Tensor:
    """16-bit grey (as uint16 or as Pillow's int32), or float in 0..1, -> RGB."""
    if mode == "F":
        if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > 1:
            raise ImageError("a float image whose values are not in 0..1: its brightness range is unknown")
        return _from_array((grey * 255.0 + 0.5).astype(np.uint8))
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("a 32-bit integer image: its brightness range is unknown")
    return _from_array((grey.astype(np.uint32) // 257).astype(np.uint8))


def _from_array(array: np.ndarray[Any, Any], max_pixels: int = sys.maxsize) -> torch.Tensor:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ImageError(f"expected an array (height, width, 3) uint8 RGB, found {array.shape} {array.dtype}")
    _check_pixels(array.shape[0], array.shape[1], max_pixels)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than the limit of {max_pixels}")
    if height * width == 0:
        raise ImageError(f"{width}x{height} pixels: the image is empty")
