"""JPEG files that are decoded when their pixels are needed, and no larger than they are needed.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, for a fraction of the time: the inverse cosine transform of each
block then gives fewer pixels (Independent JPEG Group's library; libjpeg-turbo, through Pillow's `draft`). How small the
network wants an image is known only after cropping, so a `LazyJpeg` waits until it is resized.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from cvpipe.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image
    from PIL.JpegImagePlugin import JpegImageFile

Window = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""

LEAST_PIXELS = 1_000_000
"""Smaller images are decoded whole: up to 1000x750 pixels that takes no longer than a decoding at half the size."""

_REDUCTIONS = (8, 4, 2)
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> what makes the stored image upright: (transpose, then turn upside down, then mirror)
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Frame:
    """What a JPEG's header says.

    Attributes:
        height, width: as stored, before the EXIF orientation.
        components: 1 grey, 3 colour, 4 CMYK.
        exif: whether there is an EXIF block.
    """

    def __init__(self, height: int, width: int, components: int, exif: bool) -> None:
        self.height, self.width, self.components, self.exif = height, width, components, exif


def read_frame(data: bytes) -> Frame | None:
    """From the frame header; None where there is none."""
    position, end, exif = 2, len(data), False
    while position + 9 < end:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return Frame(height, width, components, exif)
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            exif = exif or (marker == 0xE1 and data[position + 4 : position + 8] == b"Exif")
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def decode_whole(data: bytes, upright: bool = True) -> torch.Tensor:
    """(3, height, width) uint8 RGB of a grey or colour JPEG, by torchvision's decoder. Raises ImageError."""
    from torchvision.io import ImageReadMode, decode_jpeg

    # a bytearray, because torch warns about memory that it may not write to
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels: torch.Tensor = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=upright)
        return pixels
    except RuntimeError as error:
        raise ImageError(f"broken JPEG: {first_line(error)}") from None


class LazyJpeg(torch.Tensor):
    """(3, H, W) uint8 RGB, upright: a tensor whose pixels are decoded when something is computed from them.

    Cutting out a window (`image[:, top:bottom, left:right]`) decodes nothing. `resized` decodes at the smallest scale
    that has enough pixels. Everything else sees the pixels of the whole file, as `decode_whole` gives them.
    """

    source: _Source
    window: Window

    @staticmethod
    def of(data: bytes, frame: Frame) -> LazyJpeg:
        source = _Source(data, frame)
        return LazyJpeg(source, (0, 0, *source.size))

    @staticmethod
    def __new__(cls, source: _Source, window: Window) -> LazyJpeg:
        height, width = window[2:]
        made: LazyJpeg = torch.Tensor._make_wrapper_subclass(
            cls, (3, height, width), strides=(1, 3 * width, 3), dtype=torch.uint8
        )
        made.source, made.window = source, window
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        first = args[0] if args else None
        if isinstance(first, LazyJpeg) and func is torch.ops.aten.slice.Tensor:
            part = first._sliced(*args[1:])
            if part is not None:
                return part
        if isinstance(first, LazyJpeg) and func in (torch.ops.aten.alias.default, torch.ops.aten.detach.default):
            return LazyJpeg(first.source, first.window)  # what a slice of everything makes
        args, kwargs = tree_map(pixels_of, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _sliced(self, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> LazyJpeg | None:
        """The window of a slice; None where a slice is no window, or the pixels are there already."""
        if dim not in (1, 2) or step != 1 or self.source.whole is not None:
            return None
        first, last, _ = slice(start, end).indices(self.shape[dim])
        if last <= first:
            return None
        window = list(self.window)
        window[dim - 1] += first
        window[dim + 1] = last - first
        return LazyJpeg(self.source, (window[0], window[1], window[2], window[3]))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pixels()[key] = value

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"LazyJpeg(window={self.window})"

    def numpy(self, *, force: bool = False) -> Any:
        return self.pixels().numpy(force=force)

    def pixels(self) -> torch.Tensor:
        """All pixels of the window, as an ordinary tensor."""
        top, left, height, width = self.window
        return self.source.pixels()[:, top : top + height, left : left + width]

    def resized(self, size: tuple[int, int]) -> torch.Tensor | None:
        """The window at (height, width), bilinear with antialiasing, from a scaled decoding.

        None where the window is less than twice as high or wide as asked for: there `pixels` are needed. Raises
        ImageError where the file is broken.
        """
        source = self.source
        if source.whole is not None:
            return None
        swap, down, mirror = source.turn
        top, left, height, width = self.window
        top = source.size[0] - top - height if down else top
        left = source.size[1] - left - width if mirror else left
        if swap:
            top, left, height, width = left, top, width, height
            size = (size[1], size[0])
        reduction = next((r for r in _REDUCTIONS if height >= r * size[0] and width >= r * size[1]), None)
        if reduction is None:
            return None
        found = _resample(source.reduced(reduction), reduction, (top, left, height, width), size)
        return _turned(found, source.turn)


def pixels_of(value: Any) -> Any:
    """The pixels of a LazyJpeg; anything else as it is."""
    return value.pixels() if isinstance(value, LazyJpeg) else value


class _Source:
    """One file's bytes, and what was decoded of them so far: several windows of one image are often asked for.

    Attributes:
        size: (height, width), upright.
        turn: see _TURNS.
        whole: all pixels, once they were needed.
    """

    def __init__(self, data: bytes, frame: Frame) -> None:
        self.data = data
        self.turn = _TURNS.get(_stored_orientation(data) if frame.exif else 1, _TURNS[1])
        self.size = (frame.width, frame.height) if self.turn[0] else (frame.height, frame.width)
        self.whole: torch.Tensor | None = None
        self._reduced: dict[int, JpegImageFile] = {}

    def pixels(self) -> torch.Tensor:
        if self.whole is None:
            self.whole = _turned(decode_whole(self.data, upright=False), self.turn)
        return self.whole

    def reduced(self, reduction: int) -> JpegImageFile:
        """The image as stored, at 1/reduction. Pixel (i, j) stands for a block of reduction x reduction pixels."""
        from PIL.JpegImagePlugin import JpegImageFile

        if reduction not in self._reduced:
            try:
                # not Image.open, whose own limit of pixels would warn: ours was checked
                image = JpegImageFile(io.BytesIO(self.data))
                width, height = image.size
                image.draft("RGB" if image.mode == "RGB" else "L", (width // reduction, height // reduction))
                image.load()
            except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
                raise ImageError(f"broken JPEG: {first_line(error)}") from None
            if image.size != (-(-width // reduction), -(-height // reduction)):
                raise ImageError(f"1/{reduction} of {width}x{height} pixels was decoded to {image.size}: not expected")
            self._reduced[reduction] = image
        return self._reduced[reduction]


def _resample(image: JpegImageFile, reduction: int, window: Window, size: tuple[int, int]) -> torch.Tensor:
    """A window, in pixels of the unreduced image, at (height, width), to a part of a pixel: boxes must stay true."""
    from PIL import Image

    top, left, height, width = window
    if top % reduction == 0 and left % reduction == 0:
        y, x = top // reduction, left // reduction
        part = image.crop((x, y, x - (-width // reduction), y - (-height // reduction)))
        pixels = torch.from_numpy(np.array(part.convert("RGB"))).permute(2, 0, 1)[None]
        # a scale of its own, because the window may end within a pixel
        scale = (size[0] * reduction / height, size[1] * reduction / width)
        found: torch.Tensor = torch.ops.aten._upsample_bilinear2d_aa(pixels, size, False, *scale)
        return found[0]
    # torch can't begin within a pixel, Pillow can: four times slower, and as exact
    box = (left / reduction, top / reduction, (left + width) / reduction, (top + height) / reduction)
    part = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(part.convert("RGB"))).permute(2, 0, 1)


def _turned(pixels: torch.Tensor, turn: tuple[bool, bool, bool]) -> torch.Tensor:
    """(3, h, w) as stored -> upright; pixels lie together in memory, as they do without a turn."""
    swap, down, mirror = turn
    if not (swap or down or mirror):
        return pixels
    pixels = pixels.transpose(1, 2) if swap else pixels
    flips = [-2] * down + [-1] * mirror
    pixels = pixels.flip(flips) if flips else pixels
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation 1..8; 1 where the EXIF block can't be read: the pixels are as good as without one."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (OSError, ValueError, TypeError, SyntaxError, KeyError, struct.error):
        return 1


def _stored_orientation(data: bytes) -> int:
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        return orientation(JpegImageFile(io.BytesIO(data)))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # said when the pixels are decoded
        return 1


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
