"""Masks of objects as COCO writes them: polygons and run lengths, checked before anything decodes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Shape(NamedTuple):
    """A mask that was checked.

    Attributes:
        mask: as `Objects.masks` has it; None where it can't be used.
        area: square pixels; that of polygons counts overlaps twice.
        problem: what is wrong with it, or "".
    """

    mask: Any
    area: float
    problem: str = ""


def read_shape(mask: Any, size: tuple[int, int]) -> Shape:
    """A COCO `segmentation` of an image of that (height, width)."""
    if mask is None or (isinstance(mask, list) and not mask):
        return Shape(None, 0.0, "no mask")
    if isinstance(mask, Mapping):
        return _read_rle(mask, size)
    if isinstance(mask, list):
        return _read_polygons(mask)
    return Shape(None, 0.0, f"a mask is a list of polygons or an RLE, found {type(mask).__name__}")


def _read_polygons(polygons: list[Any]) -> Shape:
    if not isinstance(polygons[0], (list, tuple)):
        return Shape(None, 0.0, "a mask is a list of polygons, found a list of numbers")
    good, broken, area = [], [], 0.0
    for number, polygon in enumerate(polygons, start=1):
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (ValueError, TypeError):
            broken.append(f"polygon {number} is not a list of numbers")
            continue
        if points.ndim != 1 or len(points) % 2:
            broken.append(f"polygon {number} is not a list of x, y")
        elif len(points) < 6:
            broken.append(f"polygon {number} has {len(points) // 2} points, expected 3 or more")
        elif not math.isfinite(covered := polygon_area(points)):
            broken.append(f"polygon {number} has a number that is not finite")
        elif covered == 0:
            broken.append(f"polygon {number} has no area")
        else:
            area += covered
            good.append(points.astype(np.float32).reshape(-1, 2))
    return Shape(tuple(good) if good else None, area, "; ".join(broken))


def polygon_area(points: npt.NDArray[np.float64]) -> float:
    """Area inside x, y, x, y, …; 0 where all points lie on a line, not finite where a number is not."""
    # from the first point: far from the origin the products would eat up the digits, and the last term is 0 this way
    x, y = points[0::2] - points[0], points[1::2] - points[1]
    return float(abs(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def _read_rle(mask: Mapping[str, Any], size: tuple[int, int]) -> Shape:
    found, counts = mask.get("size"), mask.get("counts")
    if not isinstance(found, Sequence) or list(found) != list(size):
        return Shape(None, 0.0, f"an RLE of the size {found}, and the image has {list(size)} (height, width)")
    try:
        lengths = rle_lengths(counts)
    except (ValueError, TypeError, OverflowError):
        return Shape(None, 0.0, "a broken RLE")
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        return Shape(None, 0.0, f"a broken RLE: its runs have {lengths.sum()} pixels, the image {size[0] * size[1]}")
    area = float(lengths[1::2].sum())
    if area == 0:
        return Shape(None, 0.0, "an RLE without a pixel")
    return Shape({"size": [int(size[0]), int(size[1])], "counts": counts}, area)


def rle_lengths(counts: Any) -> npt.NDArray[np.int64]:
    """Run lengths, the first of them outside the object. Raises ValueError, TypeError.

    Compressed text holds six bits a character, five of them digits, the lowest first; from the third number on the
    difference to the number two places before (cocoapi, maskApi.c).
    """
    if not isinstance(counts, (str, bytes)):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths):
            raise ValueError("expected a list of integers")
        return lengths.astype(np.int64)
    raw = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(raw) or (raw < 0).any() or (raw > 63).any() or raw[-1] & 0x20:
        raise ValueError("not an RLE text")
    starts = np.concatenate([[0], np.flatnonzero(raw[:-1] & 0x20 == 0) + 1])
    digits = np.diff(np.append(starts, len(raw)))
    if digits.max() > 7:
        raise ValueError("a number of more than 35 bits")
    place = np.arange(len(raw)) - np.repeat(starts, digits)
    values = np.add.reduceat((raw & 0x1F) << (5 * place), starts)
    negative = raw[starts + digits - 1] & 0x10 != 0
    values[negative] -= 1 << (5 * digits[negative])
    # numbers 1, 3, 5, … and 2, 4, 6, … are two chains of differences; the first number stands outside of them
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
