"""Batches in a fixed order: what is in a batch depends on seed, epoch and position only.

Neither the number of workers nor an interruption changes the stream of training images: the order is drawn from
(seed, epoch), each image's augmentation from (seed, epoch, place in the order), and a loader that goes on from a
checkpoint skips the batches that were already used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cvpipe.data.batches import EpochBatches, Key, seed_of
from cvpipe.data.decode import read_image
from cvpipe.data.jpeg import pixels_of
from cvpipe.data.splits import BadFile, Split
from cvpipe.data.workers import PREFETCH
from cvpipe.errors import ImageError

Transform = Callable[[torch.Tensor], torch.Tensor]
Another = Callable[[int], "tuple[torch.Tensor, Any] | None"]
"""Any number -> (image, target) of some other training image as it is read; None where that one is broken."""


class Batch(NamedTuple):
    """What the network gets.

    Attributes:
        images: (N, 3, h, w) uint8 RGB, channels_last in memory.
        targets: what the task's collate function makes of the targets of these images.
        indices: (N,) positions in the split.
        bad: files that could not be decoded. In training another image of the split took their place, in evaluation
            they are left out.
    """

    images: torch.Tensor
    targets: Any
    indices: torch.Tensor
    bad: list[BadFile]


class SampleTransform(Protocol):
    """Brings an image and what is known about it to the network's size, together."""

    def __call__(self, image: torch.Tensor, target: Any, seed: int, another: Another) -> tuple[torch.Tensor, Any]:
        """(3, H, W) uint8 RGB and the split's target -> (3, h, w) uint8 and what `collate_targets` takes.

        Args:
            seed: decides all that is random; a transform for validation ignores it.
            another: further images, for augmentation that mixes several.

        Raises:
            ImageError: what the target names can't be read.
        """
        ...


class ImageOnly:
    """A transform for targets that do not move with the pixels, such as classes."""

    def __init__(self, preprocess: Transform, augment: Callable[[torch.Tensor, int], torch.Tensor] | None) -> None:
        self.preprocess, self.augment = preprocess, augment

    def __call__(self, image: torch.Tensor, target: Any, seed: int, another: Another) -> tuple[torch.Tensor, Any]:
        if self.augment:
            image = self.augment(image, seed)
        return self.preprocess(image), target


class ImageDataset(Dataset[Any]):
    """Decodes and transforms single images of a split; a broken one comes back as a BadFile.

    Args:
        replace: whether another image takes the place of a broken one (training), or it is left out (validation).
        scaled: whether large JPEGs are decoded no larger than the transform needs them (`data.scaled_decoding`).
    """

    def __init__(
        self,
        split: Split,
        transform: SampleTransform,
        seed: int,
        max_pixels: int,
        replace: bool,
        scaled: bool = True,
    ) -> None:
        # numpy strings: a list of a million Python strings is copied page by page into every worker
        self.paths = np.array(split.paths)
        self.split_name = split.name
        self.targets = split.targets
        self.transform, self.replace = transform, replace
        self.seed, self.max_pixels, self.scaled = seed, max_pixels, scaled

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor | None, Any, int, list[BadFile]]:
        """The image for (epoch, place, index). In training a broken image is replaced by the next good one."""
        epoch, place, index = key
        bad: list[BadFile] = []
        for offset in range(min(len(self), 100) if self.replace else 1):
            position = (index + offset) % len(self)
            path = str(self.paths[position])
            try:
                image = read_image(path, self.max_pixels, lazy=self.scaled)
                target = self.targets[position]
                image, target = self.transform(image, target, seed_of(self.seed, epoch, place), self._another)
                image = pixels_of(image)
            except ImageError as error:
                bad.append(BadFile(self.split_name, path, str(error)))
                continue
            return image, target, position, bad
        return None, None, index, bad

    def _another(self, number: int) -> tuple[torch.Tensor, Any] | None:
        position = number % len(self)
        try:
            return read_image(str(self.paths[position]), self.max_pixels, lazy=self.scaled), self.targets[position]
        except ImageError:  # reported when its own turn comes
            return None


class Loader(DataLoader[Batch]):
    """A DataLoader whose position can be saved and taken up again in mid-epoch (Lightning's stateful protocol)."""

    def __init__(
        self,
        dataset: ImageDataset,
        batches: EpochBatches,
        collate_targets: Callable[[list[Any]], Any],
        workers: int,
        prefetch: int = PREFETCH,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=Collate(collate_targets),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            worker_init_fn=_one_thread,
            # its own generator: the global random state must not depend on how often a loader was started
            generator=torch.Generator().manual_seed(0),
        )
        self.batches = batches
        self._used = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._used = self.batches.start
        for batch in super().__iter__():
            self._used += 1
            yield batch
        self.batches.start = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batches.epoch, "batch": self._used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, batch = state["epoch"], state["batch"]
        self.batches.epoch, self.batches.start = (epoch + 1, 0) if batch >= len(self.batches) else (epoch, batch)


class Collate:
    """Puts single images together; picklable for spawned workers."""

    def __init__(self, collate_targets: Callable[[list[Any]], Any]) -> None:
        self.collate_targets = collate_targets

    def __call__(self, items: list[tuple[torch.Tensor | None, Any, int, list[BadFile]]]) -> Batch:
        good = [item for item in items if item[0] is not None]
        # rows of pixels stay as the decoder wrote them: stacked as NHWC, seen as NCHW
        images = [item[0].permute(1, 2, 0) for item in good if item[0] is not None]
        stacked = torch.stack(images) if images else torch.empty((0, 0, 0, 3), dtype=torch.uint8)
        return Batch(
            images=stacked.permute(0, 3, 1, 2),
            targets=self.collate_targets([item[1] for item in good]),
            indices=torch.tensor([item[2] for item in good], dtype=torch.long),
            bad=[file for item in items for file in item[3]],
        )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
