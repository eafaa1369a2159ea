"""Photos to plant faults among: pieces of scikit-learn's two sample photos, as JPEG files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvpipe.checks.places import Places
from cvpipe.checks.scan import Scan, scan
from cvpipe.data.decode import MAX_PIXELS
from cvpipe.data.splits import Split
from cvpipe.types import Labels

SIDE = 105


@cache
def pieces() -> list[Image.Image]:
    """About 40 different RGB images of 105x105 pixels; no two overlap, and none is plain sky."""
    from sklearn.datasets import load_sample_images

    found = [
        photo[top : top + SIDE, left : left + SIDE]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - SIDE + 1, SIDE)
        for left in range(0, photo.shape[1] - SIDE + 1, SIDE)
    ]
    return [Image.fromarray(np.ascontiguousarray(piece)) for piece in found if piece.mean(axis=2).std() > 12]


def write(image: Image.Image, path: Path, quality: int = 90) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
    return str(path)


def places_of(splits: dict[str, Sequence[tuple[str, Any]]], folder: Path, labels: Labels | None, kind: str) -> Places:
    """The rows of some files: split -> (path, target) each."""
    found = [
        Split(name, tuple(path for path, _ in rows), tuple(target for _, target in rows))
        for name, rows in splits.items()
    ]
    paths = list(dict.fromkeys(path for split in found for path in split.paths))
    return Places.of(found, scanned(paths, folder, kind), labels)


def scanned(paths: Sequence[str], folder: Path, kind: str = "none") -> Scan:
    folder.mkdir(parents=True, exist_ok=True)
    return scan(paths, kind, folder, 0, MAX_PIXELS)
