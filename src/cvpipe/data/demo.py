"""Data sets that need no download: real images that come with packages we depend on."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from cvpipe.errors import DataError, did_you_mean

DEMOS = ("digits",)
PREFIX = "demo:"


def demo_folder(source: str) -> Path:
    """The ImageFolder root of `demo:NAME`; written to the cache folder the first time."""
    name = source.removeprefix(PREFIX)
    if name not in DEMOS:
        raise DataError(f"data.train: unknown data set {source!r}.{did_you_mean(name, DEMOS)} Known: demo:digits.")
    folder = cache_folder() / "demo" / f"{name}-1"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
        _write_digits(staging)
        try:
            staging.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(staging)
            if not folder.is_dir():
                raise
    return folder


def cache_folder() -> Path:
    """CVPIPE_CACHE, else ~/.cache/cvpipe."""
    return Path(os.environ.get("CVPIPE_CACHE") or Path.home() / ".cache" / "cvpipe")


def _write_digits(folder: Path) -> None:
    """scikit-learn's 1,797 scanned handwritten digits (Alpaydin and Kaynak, UCI, CC BY 4.0) as 8x8 PNG files.

    70 % train, 10 % val, 20 % test, each digit in these shares.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        positions = np.flatnonzero(digits.target == digit)
        order = np.random.default_rng(digit).permutation(positions)
        cuts = (int(len(order) * 0.7), int(len(order) * 0.8))
        for split, members in zip(("train", "val", "test"), np.split(order, cuts), strict=True):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for position in members:
                pixels = np.clip(digits.images[position] * 17, 0, 255).astype(np.uint8)  # 0..16 in the source
                Image.fromarray(pixels).save(target / f"{position:04d}.png")
