"""Perceptual hashes of small grey images: alike for images that look alike."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

SIDE = 32
"""Side of the grey thumbnail that a hash is made from, pixels."""
BITS = 64
_LOW = 8


def _cosines() -> npt.NDArray[np.float32]:
    """(8, 32) the lowest frequencies of the DCT-II; their scale does not matter: only what exceeds a median does."""
    k, x = np.arange(_LOW)[:, None], np.arange(SIDE)[None, :]
    return np.cos(math.pi * k * (2 * x + 1) / (2 * SIDE)).astype(np.float32)


def perceptual_hashes(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """(n, 32, 32) uint8 grey thumbnails -> (n,) uint64.

    pHash: a bit for each of the 8x8 lowest frequencies of the discrete cosine transform, set where it exceeds their
    median (C. Zauner, Implementation and benchmarking of perceptual image hash functions, 2010). Brightness and
    contrast hardly change it, nor do re-encoding and scaling.
    """
    basis = _cosines()
    low = np.einsum("kx,nxy,ly->nkl", basis, grey.astype(np.float32), basis, optimize=True).reshape(-1, BITS)
    bits = low > np.median(low, axis=1, keepdims=True)
    packed = np.packbits(bits, axis=1)
    return np.ascontiguousarray(packed).view(">u8").astype(np.uint64).reshape(-1)


def signs(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """(n,) uint64 -> (n, 64) float32 of 1 and -1: the product of two rows is 64 - 2 * (bits that differ)."""
    packed = hashes.astype(">u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1


def normalised(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, pixels) uint8 -> (n, pixels) float32 of mean 0 and length 1: the product of two rows is their correlation.

    Rows of one value become zeros.
    """
    centred = grey.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > 0))
