"""Data sets that need no download: real images that come with packages we depend on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cvpipe.errors import DataError, did_you_mean

DEMOS = ("digits", "scenes", "defects")
PREFIX = "demo:"


def demo_folder(source: str, offered: Sequence[str] = ("digits",)) -> Path:
    """The folder of `demo:NAME`; written to the cache folder the first time.

    Args:
        offered: the names that the task can use: digits is an ImageFolder, scenes has objects and class maps, defects
            good and defective things.

    Raises:
        DataError: another name.
    """
    name = source.removeprefix(PREFIX)
    if name not in offered:
        known = ", ".join(PREFIX + each for each in offered)
        if name in DEMOS:
            raise DataError(f"data.train: the data set {source!r} has labels of another task's kind. Known: {known}.")
        raise DataError(f"data.train: unknown data set {source!r}.{did_you_mean(name, offered)} Known: {known}.")
    if name == "scenes":
        from cvpipe.data.demo_scenes import scenes_folder

        return scenes_folder()
    if name == "defects":
        from cvpipe.data.demo_defects import defects_folder

        return defects_folder()
    return written_once("digits-1", _write_digits)


def written_once(name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, filled by `write` the first time; there as a whole or not at all."""
    folder = cache_folder() / "demo" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
        try:
            write(staging)
            staging.rename(folder)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            # another process was faster
            if not (isinstance(error, OSError) and folder.is_dir()):
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
