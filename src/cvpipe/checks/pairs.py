"""Which of many images are alike: blocked matrix products instead of loops over pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.checks.hashes import BITS, normalised, perceptual_hashes, signs

ROWS, COLUMNS = 1024, 16384
"""Size of a block of the matrix of all pairs: 64 MB."""
PARTNERS = 32
"""Earlier images that one image is paired with at most. With more, a set of n equal images has n * n / 2 pairs."""
SAME_PICTURE = 0.97
"""Correlation of grey thumbnails from which images with like hashes are the same picture."""
NEIGHBOURS = 5
_REFERENCE = 20_000
_DIMENSIONS = 128


class Pairs(NamedTuple):
    """Pairs of images, the later one first.

    Attributes:
        late, early: (k,) positions; early < late.
        values: (k,) float32 how alike they are, at most 1.
    """

    late: npt.NDArray[np.int64]
    early: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


def near_pairs(thumbnails: npt.NDArray[np.uint8], bits: int) -> Pairs:
    """Pairs of images that are the same picture, re-encoded, scaled, a little brighter or darker.

    Candidates are those whose perceptual hashes differ in at most `bits` bits; a candidate counts where the grey
    thumbnails correlate by SAME_PICTURE. Values are these correlations.

    Args:
        thumbnails: (n, 1024) uint8 grey, 32x32 pixels each, of images that are not blank.
    """
    codes = signs(perceptual_hashes(thumbnails.reshape(-1, 32, 32)))

    def verify(late: Any, early: Any, _: Any) -> Any:
        same = np.einsum("np,np->n", normalised(thumbnails[late]), normalised(thumbnails[early]))
        return np.where(same >= SAME_PICTURE, np.minimum(same, 1), 0)

    return _above(codes, float(BITS - 2 * bits), verify)


def alike_pairs(vectors: npt.NDArray[np.float32], least: float) -> Pairs:
    """Pairs whose rows of length 1 have a product of at least `least`; values are the products."""
    return _above(vectors, least, lambda late, early, products: np.minimum(products, 1))


def _above(vectors: npt.NDArray[np.float32], least: float, verify: Callable[[Any, Any, Any], Any]) -> Pairs:
    """Pairs whose product is at least `least` and whose value by `verify` is above 0."""
    import torch

    table = torch.from_numpy(np.ascontiguousarray(vectors))
    taken = np.zeros(len(table), np.int64)
    found: list[tuple[Any, Any, Any]] = []
    for top, left, block in _blocks(table):
        hits = block >= least
        if left + hits.shape[1] > top:
            hits = hits.tril(top - left - 1)
        rows, columns = (part.numpy() for part in torch.nonzero(hits, as_tuple=True))
        for start in range(0, len(rows), 65536):
            r, c = rows[start : start + 65536], columns[start : start + 65536]
            values = verify(top + r, left + c, block.numpy()[r, c])
            kept = values > 0
            r, c, values = r[kept] + top, c[kept] + left, values[kept]
            # the first partners of each row are enough: they are of the earliest split
            position = taken[r] + _occurrence(r)
            few = position < PARTNERS
            np.add.at(taken, r[few], 1)
            found.append((r[few], c[few], values[few]))
    if not found:
        nothing = np.zeros(0, np.int64)
        return Pairs(nothing, nothing, np.zeros(0, np.float32))
    late, early, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Pairs(late, early, values.astype(np.float32))


def _occurrence(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each value of an ascending list stood before: 5 5 7 -> 0 1 0."""
    if not len(rows):
        return rows
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    return np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))


def _blocks(table: Any) -> Iterator[tuple[int, int, Any]]:
    """(first row, first column, products) of the lower triangle of table @ table.T, in the order of the rows."""
    for top in range(0, len(table), ROWS):
        rows = table[top : top + ROWS]
        for left in range(0, top + len(rows), COLUMNS):
            yield top, left, rows @ table[left : min(left + COLUMNS, top + len(rows))].T


def directions(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """(n, length) features -> (n, at most 128) float32 of length 1: what sets an image apart from the mean of all.

    Principal components, from the covariance of at most 20,000 images.
    """
    sample = features[_evenly(len(features), _REFERENCE)].astype(np.float32)
    mean = sample.mean(axis=0)
    covariance = (sample - mean).T @ (sample - mean)
    values, axes = np.linalg.eigh(covariance)
    useful = int((values > values[-1] * 1e-6).sum())
    axes = axes[:, ::-1][:, : max(1, min(_DIMENSIONS, useful))].astype(np.float32)
    found = np.empty((len(features), axes.shape[1]), np.float32)
    for start in range(0, len(features), 8192):
        found[start : start + 8192] = (features[start : start + 8192].astype(np.float32) - mean) @ axes
    length = np.linalg.norm(found, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = found / np.maximum(length, 1e-6)
    return scaled


def loneliness(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, length) rows of length 1 -> (n,) mean cosine distance to the 5 nearest others.

    Above 20,000 images the others are 20,000 of them at even distances.
    """
    import torch

    others = _evenly(len(vectors), _REFERENCE)
    table, reference = torch.from_numpy(vectors), torch.from_numpy(vectors[others])
    own = np.full(len(vectors), -1, np.int64)
    own[others] = np.arange(len(others))
    count = min(NEIGHBOURS, len(others) - 1)
    found = np.zeros(len(vectors), np.float32)
    for top in range(0, len(vectors), ROWS):
        block = table[top : top + ROWS] @ reference.T
        itself = own[top : top + ROWS]
        inside = np.flatnonzero(itself >= 0)
        block[torch.from_numpy(inside), torch.from_numpy(itself[inside])] = -2.0
        nearest = block.topk(count, dim=1).values if count > 0 else block[:, :0]
        found[top : top + ROWS] = 1 - nearest.mean(dim=1).numpy() if count > 0 else 0
    return found


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many positions, at even distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
