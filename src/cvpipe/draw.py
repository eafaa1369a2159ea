"""Draws what was found, or annotated, into an image: boxes, masks, points, class maps, heat, a line of text."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFont

Color = tuple[int, int, int]
_GOLDEN = 0.618034


@cache
def color_of(index: int) -> Color:
    """The colour of a class or point: the same one everywhere, far from those of its neighbours in number."""
    hue = (0.02 + index * _GOLDEN) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.65, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def banner(image: PIL.Image.Image, text: str) -> PIL.Image.Image:
    """A copy with one line of text on a dark strip at the top."""
    from PIL import ImageDraw

    canvas = image.convert("RGB")
    font = _font(canvas.size)
    draw = ImageDraw.Draw(canvas, "RGBA")
    _, _, _, bottom = draw.textbbox((4, 2), text, font=font)
    draw.rectangle((0, 0, canvas.width, bottom + 3), fill=(0, 0, 0, 170))
    draw.text((4, 2), text, font=font, fill="white")
    return canvas


def boxes(
    image: PIL.Image.Image, xyxy: npt.NDArray[Any], indices: Sequence[int], captions: Sequence[str]
) -> PIL.Image.Image:
    """A copy with boxes (n, 4) x1 y1 x2 y2 and a caption at each; the colour follows the class index."""
    from PIL import ImageDraw

    canvas = image.convert("RGB")
    font, line = _font(canvas.size), _line(canvas.size)
    draw = ImageDraw.Draw(canvas)
    for box, index, caption in zip(xyxy.tolist(), indices, captions, strict=True):
        x1, y1, x2, y2 = box
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color_of(int(index)), width=line)
        if caption:
            left, top, right, bottom = draw.textbbox((x1, 0), caption, font=font)
            y = max(0.0, y1 - (bottom - top) - 4)
            draw.rectangle((left, y, right + 4, y + bottom - top + 4), fill=color_of(int(index)))
            draw.text((left + 2, y + 2 - top), caption, font=font, fill=ink(color_of(int(index))))
    return canvas


def masks(
    image: PIL.Image.Image, pixels: Sequence[npt.NDArray[np.uint8]], indices: Sequence[int], opacity: float = 0.45
) -> PIL.Image.Image:
    """A copy with masks (height, width) of 0 and 1 laid over it."""
    from PIL import Image

    canvas = np.array(image.convert("RGB"))
    for mask, index in zip(pixels, indices, strict=True):
        where = mask.astype(bool)
        canvas[where] = (canvas[where] * (1 - opacity) + np.array(color_of(int(index))) * opacity).astype(np.uint8)
    return Image.fromarray(canvas)


def class_map(
    image: PIL.Image.Image, indices: npt.NDArray[np.uint8], ignore: int = 255, opacity: float = 0.55
) -> PIL.Image.Image:
    """A copy with each pixel tinted in the colour of its class; `ignore` stays as it is."""
    from PIL import Image

    table = np.zeros((256, 3), np.float32)
    for index in np.unique(indices):
        table[index] = color_of(int(index))
    canvas = np.array(image.convert("RGB")).astype(np.float32)
    share = np.where(indices == ignore, 0.0, opacity)[..., None]
    return Image.fromarray((canvas * (1 - share) + table[indices] * share).astype(np.uint8))


def points(
    image: PIL.Image.Image, found: npt.NDArray[Any], skeleton: Sequence[tuple[int, int]], least: float = 0.0
) -> PIL.Image.Image:
    """A copy with points (n, points, 3) x y value and lines between them; points of value <= `least` are left out."""
    from PIL import ImageDraw

    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    line = _line(canvas.size)
    for instance in found.tolist():
        for a, b in skeleton:
            if instance[a][2] > least and instance[b][2] > least:
                draw.line((*instance[a][:2], *instance[b][:2]), fill=color_of(a), width=line)
        for position, (x, y, value) in enumerate(instance):
            if value > least:
                draw.ellipse((x - line - 1, y - line - 1, x + line + 1, y + line + 1), fill=color_of(position))
    return canvas


def heat(image: PIL.Image.Image, values: npt.NDArray[np.float32], threshold: float) -> PIL.Image.Image:
    """A copy under a heat map: clear below half of the threshold, yellow at it, red at twice it.

    Args:
        values: (h, w) of any resolution, covering the whole image.
    """
    from PIL import Image

    level = np.asarray(
        Image.fromarray(values.astype(np.float32) / max(threshold, 1e-12)).resize(image.size, Image.Resampling.BILINEAR)
    )
    tint = np.stack([np.full_like(level, 255.0), np.clip(2.0 - level, 0, 1) * 220, np.zeros_like(level)], axis=-1)
    share = np.clip((level - 0.5) / 0.5, 0, 1)[..., None] * 0.55
    canvas = np.array(image.convert("RGB")).astype(np.float32)
    return Image.fromarray((canvas * (1 - share) + tint * share).astype(np.uint8))


def beside(left: PIL.Image.Image, right: PIL.Image.Image) -> PIL.Image.Image:
    """Two pictures next to each other: what is true, and what was found."""
    from PIL import Image

    canvas = Image.new("RGB", (left.width + right.width + 4, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + 4, 0))
    return canvas


def open_image(path: str) -> PIL.Image.Image:
    """A file as the network sees it: upright, RGB. Raises ImageError."""
    from PIL import Image

    from cvpipe.data.decode import read_image

    return Image.fromarray(read_image(path).permute(1, 2, 0).contiguous().numpy())


def _font(size: tuple[int, int]) -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=max(10, round(min(size) / 28)))


def _line(size: tuple[int, int]) -> int:
    return max(1, round(min(size) / 240))


def ink(color: Color) -> str:
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
