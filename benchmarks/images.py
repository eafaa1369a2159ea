"""Photos to measure with: JPEG files of their native size in an ImageFolder tree."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

CLASSES = 10
_SPLITS = ("train", "val", "test")


def photo_tree(source: Path, folder: Path, count: int) -> Path:
    """An ImageFolder root below `folder` with `count` training images, and a few for val and test.

    Where the source has fewer photos they stand there several times under different names, as links.

    Args:
        source: an ImageFolder root with train/; where it is missing, crops of scikit-learn's two sample photos.
    """
    if not (source / "train").is_dir():
        source = folder / "crops"
        if not source.is_dir():
            _write_crops(source)
    photos = _by_turns(source / "train")
    root = folder / f"photos-{count}"
    for split, wanted in zip(_SPLITS, (count, 4 * CLASSES, 4 * CLASSES), strict=True):
        for number, photo in zip(range(wanted), itertools.cycle(photos), strict=False):
            link = root / split / photo.parent.name / f"{number:06d}-{photo.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(link, photo.resolve())
    for photo in photos:
        photo.read_bytes()  # into the page cache: what is measured is not the disk
    return root


def _by_turns(folder: Path) -> list[Path]:
    """One photo of each class, then the next of each: however few are taken, all classes are there."""
    suffixes = (".jpg", ".jpeg")
    classes = [sorted(p for p in one.iterdir() if p.suffix.lower() in suffixes) for one in folder.iterdir()]
    rows = itertools.zip_longest(*sorted(classes))
    return [photo for row in rows for photo in row if photo is not None]


def _link(link: Path, photo: Path) -> None:
    try:
        link.symlink_to(photo)
    except OSError:  # a file system without links
        shutil.copyfile(photo, link)


def _write_crops(folder: Path) -> None:
    """Real pixels where no data set is at hand: 360 crops of about 400x530 pixels, in 10 folders."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640x427 pixels
    for number, box in zip(range(36 * CLASSES), _boxes(), strict=False):
        target = folder / "train" / f"class{number % CLASSES}" / f"{number:04d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        photos[number % 2].resize((400, 533) if number % 3 else (533, 400), box=box).save(target, quality=90)


def _boxes() -> Iterator[tuple[int, int, int, int]]:
    for step in itertools.count():
        left, top = (step * 37) % 240, (step * 23) % 120
        yield (left, top, left + 400, top + 300)
