"""Which images make up which batch: drawn from (seed, epoch), the same on every machine, from any batch on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

Key = tuple[int, int, int]
"""(epoch, place in the epoch's order, index in the split). The place makes each draw of an image that balanced
sampling draws several times look different."""


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers, well mixed."""
    digest = hashlib.blake2b(b"".join(int(p).to_bytes(8, "little", signed=True) for p in parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class EpochBatches(Sampler[list[Key]]):
    """Lists of (epoch, place in the order, index), shuffled by (seed, epoch), starting at any batch."""

    def __init__(
        self, size: int, batch_size: int, *, shuffle: bool, seed: int, weights: Sequence[float] | None = None
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.double)
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> EpochBatches:
        """Lightning looks here for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        batches = -(-self.size // self.batch_size)
        return batches - 1 if self._merge_last else batches

    @property
    def _merge_last(self) -> bool:
        # batch normalisation can't train on one image: a single one left over joins the batch before it
        return self.shuffle and self.size > self.batch_size > 1 and self.size % self.batch_size == 1

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        if self.weights is not None:
            drawn = torch.multinomial(self.weights, self.size, True, generator=generator)
        else:
            drawn = torch.randperm(self.size, generator=generator)
        order: list[int] = drawn.tolist()
        return order

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch, count = self._order(), self.epoch, len(self)
        for batch in range(self.start, count):
            end = self.size if batch == count - 1 else (batch + 1) * self.batch_size
            yield [(epoch, place, order[place]) for place in range(batch * self.batch_size, end)]
