"""Images with a map of values for each: where they lie, and how both become tensors."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvpipe.config import DataSource
from cvpipe.data.decode import read_values
from cvpipe.data.demo import PREFIX, written_once
from cvpipe.data.geometry import fit_geometry
from cvpipe.data.loader import Another, SampleTransform
from cvpipe.data.module import ImageDataModule
from cvpipe.data.sources import list_images
from cvpipe.data.splits import Split, Splits, hold_out
from cvpipe.errors import DataError, ImageError
from cvpipe.scaffold.dense_template.config import NAME, DenseTemplateConfig, DenseTemplateDataConfig
from cvpipe.scaffold.dense_template.prediction import Floats
from cvpipe.scaffold.dense_template.utils import DenseTemplateProcessor, write_demo
from cvpipe.types import Labels

# REPLACE: the names of what is predicted, in the order of the network's outputs
LABELS = Labels(classes=("value",))
DEMO = PREFIX + NAME
_VAL_SHARE = 0.2


@dataclass(frozen=True)
class ValueMap:
    """The target of one image: a 16-bit grey PNG of the image's size.

    Attributes:
        path: the file. Reading the data set takes names alone; pixels are read when they are needed.
        unit: what a 1 in it stands for; 0 is `not known`.
    """

    path: str
    unit: float

    def __str__(self) -> str:
        return self.path

    def load(self) -> Floats:
        """(height, width) float32, NaN where it is not known. Raises ImageError."""
        numbers = read_values(self.path)
        if numbers.ndim != 2:
            raise ImageError(f"{self.path}: expected a grey image of values, found colours")
        return np.where(numbers > 0, numbers * self.unit, np.nan).astype(np.float32)


def load_data(config: DenseTemplateConfig) -> Splits:
    """The splits of the data set. Raises DataError with the place and the way out."""
    data = config.data
    train = _read(data.train, config, "train")
    notes = ["format: maps"]
    if isinstance(data.val, (str, DataSource)):
        val = _read(data.val, config, "val")
    else:
        share = _VAL_SHARE if data.val is None else data.val
        if not 0 < share < 1 or len(train) < 2:
            raise DataError(
                f"{config.where('data.val')}: found {share} of {len(train)} images, expected a share between 0 and 1 "
                "of at least two, or a folder."
            )
        root = os.path.commonpath([os.path.dirname(path) for path in train.paths])
        # hashed names decide, so that the split is the same on every machine
        train, val = hold_out(train, share, [0] * len(train), [os.path.relpath(path, root) for path in train.paths])
        notes.append(f"val: {share:.0%} of train held out")
    test = None if data.test is None else _read(data.test, config, "test")
    return Splits(train, val, test, LABELS, "maps", tuple(notes))


def load_split(source: str | DataSource, config: DenseTemplateConfig, name: str) -> Split:
    """One data set to evaluate on. Raises DataError."""
    return _read(source, config, name)


def _read(source: str | DataSource, config: DenseTemplateConfig, name: str) -> Split:
    where = config.where(f"data.{name}")
    if source == DEMO:
        source = str(written_once(f"{NAME}-1", write_demo))
    if isinstance(source, DataSource):
        if source.masks is None or source.annotations is not None:
            raise DataError(f"{where}: found {source}, expected `images` and, as `masks`, the folder of the maps.")
        images, maps = Path(source.images), Path(source.masks)
    else:
        images, maps = Path(source) / "images", Path(source) / "maps"
    for folder in (images, maps):
        if not folder.is_dir():
            raise DataError(f"{where}: {folder} is not a folder. Expected images/ and maps/ in one folder, or {DEMO}.")
    paths = list_images(images)
    targets = [str((maps / Path(path).relative_to(images)).with_suffix(".png")) for path in paths]
    missing = [target for target in targets if not Path(target).is_file()]
    if missing or not paths:
        found = f"{len(missing)} of {len(paths)} images have no map, such as {missing[0]}" if missing else "no images"
        raise DataError(f"{where}: {found}. Expected a PNG in {maps} for each image in {images}, with the same name.")
    return Split(name, tuple(paths), tuple(ValueMap(target, config.data.unit) for target in targets))


class PairTransform:
    """Brings an image and its map to the network's size, together.

    Args:
        train: whether to change them at random first.
    """

    def __init__(self, data: DenseTemplateDataConfig, train: bool) -> None:
        self.data, self.train = data, train

    def __call__(
        self, image: torch.Tensor, target: ValueMap, seed: int, another: Another
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, H, W) uint8 and its map's file -> (3, h, w) uint8 and (h, w) float32, NaN where nothing is known."""
        values = torch.from_numpy(target.load())
        if values.shape != image.shape[1:]:
            raise ImageError(f"{target.path}: {tuple(values.shape)} pixels, its image has {tuple(image.shape[1:])}")
        geometry = fit_geometry((image.shape[1], image.shape[2]), self.data.image_size, self.data.resize)
        # REPLACE: all that is random comes from the seed, and moves image and target alike
        if self.train:
            rng, augment = random.Random(seed), self.data.augment
            if rng.random() < augment.hflip:
                geometry = geometry.flipped(hflip=True)
            if augment.brightness:
                factor = rng.uniform(1 - augment.brightness, 1 + augment.brightness)
                image = (image.float() * factor).clamp_(0, 255).to(torch.uint8)
        return geometry.image(image), geometry.class_map(values, float("nan"))  # type: ignore[arg-type]


def stack(targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (h, w) of a batch -> (N, h, w)."""
    return torch.stack(list(targets))


class DenseTemplateDataModule(ImageDataModule):
    """Batches of images with maps (N, h, w) float32, NaN where nothing is known."""

    config: DenseTemplateConfig

    def __init__(self, config: DenseTemplateConfig, splits: Splits) -> None:
        collate: Any = stack
        super().__init__(config, splits, DenseTemplateProcessor(config).preprocess, collate)

    def train_transform(self) -> SampleTransform:
        return PairTransform(self.config.data, train=True)

    def val_transform(self) -> SampleTransform:
        return PairTransform(self.config.data, train=False)
