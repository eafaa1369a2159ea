"""Large images in parts: which parts, how what is found in them becomes one answer, and training on parts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cvpipe.data.geometry import Floats, Geometry, Size, fit_geometry
from cvpipe.data.splits import Split
from cvpipe.data.store import open_bytes
from cvpipe.data.targets import Objects, Tiled, swapped
from cvpipe.errors import ImageError
from cvpipe.types import View

Ints = npt.NDArray[np.int64]

_CUT_BY = 0.01
"""A box that ends this near to a tile's border, as a share of the tile's side, counts as cut by it; at least 2 px."""
_LEAST_VISIBLE = 0.1
_SAME = 0.8
"""Share of a cut box that lies in a fuller one when both are the same object."""
_CHUNK = 512


def windows(size: Size, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of square tiles that together cover an image of (height, width) exactly.

    Neighbours share `overlap` of a tile; the last one of a row or column is shifted inwards and shares more. Along a
    side that is shorter than a tile, tiles have that side's length.
    """
    step = max(1, math.floor(tile * (1 - overlap)))
    height, width = min(tile, size[0]), min(tile, size[1])
    tops, lefts = (
        [min(i * step, side - part) for i in range(1 + math.ceil((side - part) / step))]
        for side, part in zip(size, (height, width), strict=True)
    )
    return [(top, left, height, width) for top in tops for left in lefts]


def tile_views(size: Size, tile: int, overlap: float, tta: bool = False, whole: bool = True) -> list[View]:
    """What of an image goes through the network one by one (see `cvpipe.task.Processor.views`).

    Args:
        size: (height, width) of the image.
        tile: side of the tiles in pixels; 0: off.
        overlap: share of a tile that the next one repeats.
        tta: each part a second time, mirrored.
        whole: the whole image first, beside its tiles: what is larger than a tile is only found there. For class maps,
            whose coarse view of the whole would blur the fine one of the tiles, leave it out.

    Returns:
        Empty where the image is no larger than a tile and `tta` is off.
    """
    everything = (0, 0, *size)
    parts = [everything]
    if tile and max(size) > tile:
        parts = [everything] * whole + windows(size, tile, overlap)
    if tta:
        return [View(part, mirrored) for part in parts for mirrored in (False, True)]
    return [View(part) for part in parts] if len(parts) > 1 else []


def view_geometry(view: View, size: Size, canvas: Size, policy: str) -> Geometry:
    """From an image of (height, width) to the network's canvas, as cutting out the view and `fit_geometry` do.

    Its `back` and `boxes_back` lead from the canvas into the image, un-mirrored; its `uncanvas` onto the window.
    """
    top, left, height, width = view.window
    fitted = fit_geometry((height, width), canvas, policy)
    if view.hflip:
        # the part is mirrored before it is fitted: what is left over by an odd pixel lies on the other side
        y, x, h, w = fitted.window
        row, column, rows, columns = fitted.place
        mirrored = (row, canvas[1] - column - columns, rows, columns)
        fitted = replace(fitted, window=(y, width - x - w, h, w), place=mirrored, hflip=True)
    return fitted.within(size, top, left)


@dataclass(frozen=True, eq=False)
class Merged:
    """The detections of all views of one image that are left, best score first.

    Attributes:
        boxes: (n, 4) float32 x1 y1 x2 y2 in pixels of the image.
        scores: (n,) float32.
        labels: (n,) int64.
        views: (n,) int64, which view each was found in.
        rows: (n,) int64, which row of that view's output it was, so that its mask and points can be fetched.
    """

    boxes: Floats
    scores: Floats
    labels: Ints
    views: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, keep: Any) -> Merged:
        """Those detections that `keep` (bool or positions) names."""
        return Merged(self.boxes[keep], self.scores[keep], self.labels[keep], self.views[keep], self.rows[keep])


def merge_boxes(
    boxes: Sequence[Floats],
    scores: Sequence[Floats],
    labels: Sequence[Ints],
    views: Sequence[View],
    size: Size,
    canvas: Size,
    policy: str,
    iou: float = 0.5,
    least_score: float = 0.0,
    limit: int | None = None,
) -> Merged:
    """One list of detections from those of all views of an image.

    First a box that a tile's border cuts is dropped where another view has a fuller one of the same class: a box that
    holds 80 % of it, is not cut or is larger, and whose score is at least half as high. Then non-maximum suppression
    within each class. Pieces of an object that no view shows whole stay pieces.

    Args:
        boxes: (n, 4) for each view, x1 y1 x2 y2 on the network's canvas.
        scores: (n,) for each view; rows that don't exceed `least_score` are left out.
        labels: (n,) for each view.
        size: (height, width) of the image.
        canvas: (height, width) of the network's input.
        policy: how a view is fitted to the canvas (see `fit_geometry`).
        iou: boxes of one class that overlap by more are one object.
        limit: how many to return at most; the best ones.
    """
    from torchvision.ops import batched_nms

    parts, cuts = [], []
    for number, (view, box, score, label) in enumerate(zip(views, boxes, scores, labels, strict=True)):
        rows = np.flatnonzero(np.asarray(score) > least_score)
        moved = view_geometry(view, size, canvas, policy).boxes_back(np.asarray(box, np.float32)[rows])
        rest = np.asarray(score, np.float32)[rows], np.asarray(label, np.int64)[rows], np.full(len(rows), number), rows
        parts.append((moved, *rest))
        cuts.append(_is_cut(moved, view.window, size))
    if not parts:
        empty = np.zeros(0, np.int64)
        return Merged(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), empty, empty, empty)
    found = Merged(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    found = found.take(~_repeated(found, np.concatenate(cuts), _window_numbers(views)))
    order = batched_nms(
        torch.from_numpy(found.boxes), torch.from_numpy(found.scores), torch.from_numpy(found.labels), iou
    )
    return found.take(order[:limit].numpy())


def _is_cut(boxes: Floats, window: tuple[int, int, int, int], size: Size) -> npt.NDArray[np.bool_]:
    """(n,) which boxes end at a border of the window that is not the image's."""
    top, left, height, width = window
    borders = np.array([left, top, left + width, top + height])
    inner = borders != np.array([0, 0, size[1], size[0]])
    near = np.maximum(2, _CUT_BY * np.array([width, height] * 2))
    cut: npt.NDArray[np.bool_] = (inner & (np.abs(boxes - borders) <= near)).any(axis=1)
    return cut


def _repeated(found: Merged, cut: npt.NDArray[np.bool_], window_of: Ints) -> npt.NDArray[np.bool_]:
    """(n,) which cut boxes another window shows more of."""
    repeated = np.zeros(len(found), bool)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    windows_of = window_of[found.views]
    rows = np.flatnonzero(cut)
    for start in range(0, len(rows), _CHUNK):  # all pairs at once would fill the memory
        few = rows[start : start + _CHUNK]
        low = np.maximum(found.boxes[few, None, :2], found.boxes[None, :, :2])
        high = np.minimum(found.boxes[few, None, 2:], found.boxes[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=2)
        fuller = ~cut[None] & (areas[None] >= 0.99 * areas[few, None]) | (areas[None] > areas[few, None])
        repeated[few] = (
            fuller
            & (shared >= _SAME * areas[few, None])
            & (found.labels[few, None] == found.labels[None])
            & (windows_of[few, None] != windows_of[None])
            & (found.scores[None] >= 0.5 * found.scores[few, None])
        ).any(axis=1)
    return repeated


def _window_numbers(views: Sequence[View]) -> Ints:
    """(views,) the same number for views of the same window, mirrored or not."""
    numbers: dict[tuple[int, int, int, int], int] = {}
    return np.array([numbers.setdefault(view.window, len(numbers)) for view in views], np.int64)


def points_back(points: Floats, geometry: Geometry, flip_pairs: Sequence[tuple[int, int]] = ()) -> Floats:
    """(n, points, 3) x, y and a confidence on the canvas -> in the image; sides swap back where it was mirrored."""
    moved = points.astype(np.float32, copy=True)
    moved[..., :2] = geometry.back(points[..., :2])
    if geometry.hflip != geometry.vflip:
        moved = moved[:, swapped(points.shape[1], flip_pairs)]
    return moved


def merge_maps(
    maps: Iterable[torch.Tensor], views: Sequence[View], size: Size, canvas: Size, policy: str
) -> torch.Tensor:
    """One map of an image from those of its views: their mean, weighted less towards a view's borders.

    Args:
        maps: (C, h, w) floats for each view, over the network's canvas at any resolution: probabilities, or other
            values of which a mean makes sense. Taken one by one.
        views: must cover the image together, with a policy that shows all of a view (letterbox or stretch).
        size: (height, width) of the image.
        canvas, policy: how a view is fitted to the network's input (see `fit_geometry`).

    Returns:
        (C, height, width) float32.

    Raises:
        ValueError: some pixel is in no view.
    """
    total: torch.Tensor | None = None
    weights = torch.zeros(size)
    for view, map_ in zip(views, maps, strict=True):
        geometry = view_geometry(view, size, canvas, policy)
        part = geometry.uncanvas(map_.float())
        top, left, height, width = geometry.window
        area = slice(top, top + height), slice(left, left + width)
        weight = _pyramid(height)[:, None] * _pyramid(width)[None]
        if total is None:
            total = torch.zeros((len(part), *size))
        total[(slice(None), *area)].addcmul_(part, weight[None])
        weights[area] += weight
    if total is None or not bool((weights > 0).all()):
        raise ValueError("the views don't cover the image")
    return total.div_(weights)


def _pyramid(length: int) -> torch.Tensor:
    """(length,) from nearly 0 at both ends to 1 in the middle."""
    steps = torch.arange(length) + 0.5
    return torch.minimum(steps, length - steps) / (length / 2)


def tile_split(
    split: Split, sizes: Sequence[Size], tile: int, overlap: float, empty_share: float = 0.2
) -> tuple[Split, int]:
    """A split of large images as one of tiles: the same paths several times, targets `Tiled`.

    Images no larger than a tile stay as they are. An object belongs to each tile that shows a tenth of its box or
    more. Each tile costs the decoding of its whole image: cut very large images into files.

    Args:
        sizes: (height, width) of each image (see `image_size`).
        tile, overlap: as in `tile_views`.
        empty_share: tiles without objects are kept at random up to this share of all tiles; 1 keeps all. Those of class
            maps are all kept.

    Returns:
        The split, and how many tiles without objects were left out.
    """
    paths: list[str] = []
    targets: list[Any] = []
    groups: list[str] = []
    empty: list[int] = []
    for position, (path, target, size) in enumerate(zip(split.paths, split.targets, sizes, strict=True)):
        parts = windows(size, tile, overlap) if tile and max(size) > tile else []
        tiles = [Tiled(target, part) for part in parts] or [target]
        empty += [len(paths) + i for i, filled in enumerate(_filled(target, parts) if parts else ()) if not filled]
        paths += [path] * len(tiles)
        targets += tiles
        groups += [split.groups[position]] * len(tiles) if split.groups else []
    left_out = set(empty)
    if empty_share < 1:
        allowed = math.floor((len(paths) - len(empty)) * empty_share / (1 - empty_share))
        left_out -= set(random.Random(0).sample(empty, min(len(empty), allowed)))
    else:
        left_out = set()
    whole = Split(split.name, tuple(paths), tuple(targets), tuple(groups) if split.groups else None)
    return whole.select([i for i in range(len(whole)) if i not in left_out]), len(left_out)


def _filled(target: Any, parts: Sequence[tuple[int, int, int, int]]) -> list[bool]:
    """Which windows show an object, by the rule of `Objects.on_canvas`; all of them where the target has none."""
    if not isinstance(target, Objects):
        return [True] * len(parts)
    tops, lefts, heights, widths = np.array(parts).T
    starts, ends = np.stack([lefts, tops], axis=1), np.stack([lefts + widths, tops + heights], axis=1)
    low = np.maximum(target.boxes[None, :, :2], starts[:, None])
    sides = np.minimum(target.boxes[None, :, 2:], ends[:, None]) - low
    areas = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(axis=1)
    enough = _LEAST_VISIBLE * np.minimum(areas[None], (heights * widths)[:, None])
    shown = (sides >= 1).all(axis=2) & (sides.prod(axis=2) >= enough)
    return [bool(some) for some in shown.any(axis=1)]


def image_size(path: str | Path) -> Size:
    """(height, width) of the upright image, from the file's head. Raises ImageError."""
    from PIL import Image

    from cvpipe.data.jpeg import orientation

    try:
        with open_bytes(path) as file, Image.open(file) as image:
            width, height = image.size
            turned = orientation(image) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {error}") from None
    return (width, height) if turned else (height, width)
