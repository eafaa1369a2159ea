"""Anomalies as pictures: the heat over an image, and the defect as it was annotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cvpipe.data.formats.mvtec import read_mask
from cvpipe.data.targets import Inspection
from cvpipe.draw import banner, beside, heat, masks
from cvpipe.predictions import AnomalyPrediction

if TYPE_CHECKING:
    import PIL.Image

_MOST_PIXELS = 480  # of a picture's side in a report


def with_heat(image: PIL.Image.Image, found: AnomalyPrediction) -> PIL.Image.Image:
    """The image under its heat, with label and score."""
    return banner(heat(image, found.heat, found.threshold), str(found))


def annotated(image: PIL.Image.Image, target: Inspection) -> PIL.Image.Image:
    """The image with its defect tinted, and what it is called. Raises ImageError where the mask can't be read."""
    if target.mask is not None:
        pixels = read_mask(target.mask)
        if pixels.shape == (image.height, image.width):
            image = masks(image, [pixels.astype(np.uint8)], [0])
    return banner(image, str(target))


def compared(image: PIL.Image.Image, target: Inspection, found: AnomalyPrediction) -> PIL.Image.Image:
    """What is true on the left, what was found on the right, small enough for a report."""
    from PIL import Image

    share = min(1.0, _MOST_PIXELS / max(image.size))
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    left = annotated(image, target).resize(size, Image.Resampling.BILINEAR)
    return beside(left, with_heat(image.resize(size, Image.Resampling.BILINEAR), found))
