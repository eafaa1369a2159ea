"""`demo:defects`: pieces of photographs, some with a scanned digit on them; for trying anomaly detection offline.

Made from data that scikit-learn carries:

- the digits: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0;
- `china.jpg`: photo by danielbuechele (flickr.com/photos/danielbuechele/6061409035), CC BY 2.0;
- `flower.jpg`: photo by vultilion (flickr.com/photos/vultilion/6056698931), CC BY 2.0.

Changed: the photographs are cut, enlarged and mirrored; the digits are enlarged, turned, coloured and put on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cvpipe.data.demo import written_once
from cvpipe.data.demo_scenes import digit_ink

FOLDER = "defects-1"
"""The number changes with the contents: an older copy in the cache is not taken for this one."""
SIDE = 128
COUNTS = {"train/good": 120, "test/good": 40, "test/dark": 20, "test/bright": 20, "test/faint": 20}

_CROP_PX = 64
_COLUMNS = {"train": (0, 400), "test": (400, 640)}
"""Columns of the two photographs."""
_SHARES = {"dark": (0.0, 0.9), "bright": (1.0, 0.9), "faint": (1.0, 0.35)}
"""Kind of defect -> (brightness of the ink, its opacity)."""
_DIGIT_PX = (16, 40)

Pixels = npt.NDArray[np.uint8]


def defects_folder() -> Path:
    """The root of demo:defects; written to the cache folder the first time, in seconds.

    220 images of 128x128 pixels in the layout of MVTec AD. Train and test share neither a scan nor a pixel of the
    photographs. A defect's mask holds the pixels of which the ink covers at least half.
    """
    return written_once(FOLDER, write_defects)


def write_defects(folder: Path) -> None:
    """Writes the data set below `folder`; the same pixels each time."""
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    scans = load_digits().images
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    for number, (place, count) in enumerate(COUNTS.items()):
        split, kind = place.split("/")
        rng = np.random.default_rng([2, number])
        (folder / place).mkdir(parents=True)
        masks = folder / "ground_truth" / kind
        if kind != "good":
            masks.mkdir(parents=True)
        for index in range(count):
            pixels = _piece(photos[index % 2], _COLUMNS[split], rng)
            if kind != "good":
                pixels, mask = _spoilt(pixels, scans[int(rng.integers(len(scans)))], kind, rng)
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{index:03d}_mask.png")
            Image.fromarray(pixels.round().astype(np.uint8)).save(folder / place / f"{index:03d}.png")


def _piece(photo: Pixels, columns: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(SIDE, SIDE, 3) 0..255: a random square of some columns of a photograph, enlarged, perhaps mirrored."""
    from PIL import Image

    top = int(rng.integers(0, photo.shape[0] - _CROP_PX, endpoint=True))
    left = int(rng.integers(columns[0], columns[1] - _CROP_PX, endpoint=True))
    crop = Image.fromarray(photo[top : top + _CROP_PX, left : left + _CROP_PX])
    pixels = np.array(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _spoilt(
    pixels: npt.NDArray[np.float32], scan: npt.NDArray[np.float64], kind: str, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """(the piece with a digit on it, (SIDE, SIDE) where its ink is)."""
    brightness, opacity = _SHARES[kind]
    ink = digit_ink(scan, int(rng.integers(*_DIGIT_PX, endpoint=True)), float(rng.uniform(-45, 45)))
    height, width = ink.shape
    top, left = int(rng.integers(0, SIDE - height)), int(rng.integers(0, SIDE - width))
    part = np.s_[top : top + height, left : left + width]
    color = (rng.uniform(0, 40, 3) if not brightness else rng.uniform(215, 255, 3)).astype(np.float32)
    pixels[part] += (color - pixels[part]) * ink[..., None] * np.float32(opacity)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[part] = ink >= 0.5
    return pixels, mask
