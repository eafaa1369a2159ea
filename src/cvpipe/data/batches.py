"""Which images make up which batch: drawn from (seed, epoch), the same on every machine, from any batch on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from cvpipe.errors import DataError

Key = tuple[int, int, int]
"""(epoch, place in the epoch's order, index in the split). The place makes each draw of an image that balanced
sampling draws several times look different."""


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers, well mixed."""
    digest = hashlib.blake2b(b"".join(int(p).to_bytes(8, "little", signed=True) for p in parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class EpochBatches(Sampler[list[Key]]):
    """Lists of (epoch, place in the order, index), shuffled by (seed, epoch), starting at any batch.

    Of several processes each gets its own part, together each image once and none twice. In training a step's images
    are the same however many processes share them: `batch_size * world_size` images in a row of the order, in parts
    that differ by one image at most, and every process takes the same number of steps. In evaluation whole batches go
    round, so that one process may get a batch more than another.

    Args:
        size: images in the split.
        batch_size: images of one process in a step.
        shuffle: training; else evaluation, in the split's own order.
        weights: probability weight of each image, drawn with replacement; None: each image once.
        rank, world_size: which of how many processes this is.

    Raises:
        DataError: fewer training images than processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.double)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0
        if shuffle and size < world_size:
            raise DataError(f"data.train: {size} images are too few for {world_size} processes.")

    @property
    def sampler(self) -> EpochBatches:
        """Lightning looks here for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        if not self.shuffle:
            return len(range(self.rank, -(-self.size // self.batch_size), self.world_size))
        step = self.batch_size * self.world_size
        steps, left = divmod(self.size, step)
        # batch normalisation can't train on one image, and no process may stand idle: what is too little for a step
        # of its own joins the one before it
        least = self.world_size * min(2, self.batch_size)
        return steps + 1 if left >= least or (left and not steps) else steps

    def _order(self) -> torch.Tensor:
        """(size,) int64 positions in the split."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        if self.weights is not None:
            return torch.multinomial(self.weights, self.size, True, generator=generator)
        return torch.randperm(self.size, generator=generator)

    def _places(self, batch: int, count: int) -> range:
        """The places in the order that make up one batch of this process."""
        if not self.shuffle:
            begin = (self.rank + batch * self.world_size) * self.batch_size
            return range(begin, min(self.size, begin + self.batch_size))
        step = self.batch_size * self.world_size
        begin, end = batch * step, self.size if batch == count - 1 else (batch + 1) * step
        parts = [begin + (end - begin) * part // self.world_size for part in (self.rank, self.rank + 1)]
        return range(*parts)

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch, count = self._order(), self.epoch, len(self)
        for batch in range(self.start, count):
            places = self._places(batch, count)
            indices = order[places.start : places.stop].tolist()
            yield [(epoch, place, index) for place, index in zip(places, indices, strict=True)]
