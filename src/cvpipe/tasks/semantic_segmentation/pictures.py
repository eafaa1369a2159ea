"""Class maps as pictures: over an image, with the names of the colours, and next to what is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from cvpipe.data.targets import IGNORE
from cvpipe.draw import beside, class_map, color_of
from cvpipe.metrics.segmentation import ClassIndices

if TYPE_CHECKING:
    import PIL.Image

_MOST_PIXELS = 480  # of a picture's side in a report


def with_legend(image: PIL.Image.Image, indices: ClassIndices, classes: Sequence[str]) -> PIL.Image.Image:
    """The image tinted by class, and below it the colours of the classes that occur.

    Args:
        indices: (height, width) of the image, positions in the classes or IGNORE.
    """
    from PIL import Image, ImageDraw, ImageFont

    tinted = class_map(image, indices)
    size = max(10, round(min(tinted.size) / 28))
    font = ImageFont.load_default(size=size)
    swatch, line = size, round(size * 1.6)
    measure = ImageDraw.Draw(tinted)
    spots: list[tuple[int, int, int]] = []
    x, y = 4, 0
    for index in np.unique(indices[indices != IGNORE]).tolist():
        width = swatch + 4 + round(measure.textlength(classes[index], font=font)) + 12
        if x > 4 and x + width > tinted.width:
            x, y = 4, y + line
        spots.append((index, x, y))
        x += width
    canvas = Image.new("RGB", (tinted.width, tinted.height + y + line + 4), "white")
    canvas.paste(tinted, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, left, row in spots:
        top = tinted.height + 4 + row
        draw.rectangle((left, top, left + swatch, top + swatch), fill=color_of(index))
        draw.text((left + swatch + 4, top - 1), classes[index], font=font, fill="black")
    return canvas


def compared(image: PIL.Image.Image, truth: ClassIndices, found: ClassIndices) -> PIL.Image.Image:
    """What is true on the left, what was found on the right, small enough for a report."""
    from PIL import Image

    share = min(1.0, _MOST_PIXELS / max(image.size))
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    small = image.resize(size, Image.Resampling.BILINEAR)

    def fitted(indices: ClassIndices) -> ClassIndices:
        return np.array(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))

    return beside(class_map(small, fitted(truth)), class_map(small, fitted(found)))


def colours(classes: Sequence[str]) -> str:
    """SVG: the colour of each class, in the text colour of the page."""
    columns = min(len(classes), 6)
    rows = -(-len(classes) // columns)
    cells = []
    for index, name in enumerate(classes):
        red, green, blue = color_of(index)
        x, y = index % columns * 150, index // columns * 24
        shown = "".join(character if character.isprintable() else "?" for character in name)[:18]
        cells.append(
            f'<rect x="{x}" y="{y + 3}" width="16" height="16" fill="rgb({red},{green},{blue})"/>'
            f'<text x="{x + 22}" y="{y + 16}" font-size="13" fill="currentColor">{escape(shown)}</text>'
        )
    style = (
        "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
        "text{font-family:system-ui,sans-serif}</style>"
    )
    width, height = columns * 150, rows * 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"{style}{''.join(cells)}</svg>"
    )
