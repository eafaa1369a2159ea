"""Little data sets of every kind, for tests of packed data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvpipe.config import Config
from cvpipe.config_file import parse_config
from cvpipe.data.packed.changes import Prepared
from cvpipe.data.packed.folder import prepare_shards
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.prepared import read_splits
from cvpipe.data.splits import Split, Splits
from cvpipe.task import find_task, tasks

TASKS = sorted(tasks())


def example(task: str, folder: Path) -> Config:
    """The tiny data set that every task brings along."""
    return parse_config(find_task(task).example(folder))


def photo(path: Path, seed: int, size: tuple[int, int] = (24, 20), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def photos(folder: Path, count: int = 12, split: str = "", first: int = 0) -> Config:
    """Noise in two classes, half JPEG, half PNG; a config that reads it."""
    for i in range(first, first + count):
        suffix = "jpg" if i % 2 else "png"
        photo(folder / split / "ab"[i // 2 % 2] / f"{i:03d}.{suffix}", i)
    return config_of(folder)


def config_of(train: object, **data: Any) -> Config:
    return parse_config({"task": "classification", "data": {"train": str(train), "image_size": 16, **data}})


def pack(config: Config, to: Path, shrink: Shrink | None = None, **options: Any) -> Prepared:
    return prepare_shards(config, read(config), to, shrink or Shrink(), **options)


def read(config: Config) -> Splits:
    return read_splits(find_task(config.task), config)


def named(split: Split) -> dict[str, Any]:
    """Target of each image by the last parts of its path."""
    return {"/".join(path.split("/")[-2:]): target for path, target in zip(split.paths, split.targets, strict=True)}
