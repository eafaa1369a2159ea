"""Training images with objects or class maps: zoom, crop, mirror, mosaic, paste, all moved together.

What happens to an image is decided by its seed alone; `SpatialEval` has nothing to decide. Both take `Objects` and
`ClassMap` targets, and `Tiled` ones, which show a window of a large image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from cvpipe.data.geometry import Floats, Geometry, Size, fit_geometry, grey_canvas
from cvpipe.data.loader import Another
from cvpipe.data.targets import IGNORE, ClassMap, Objects, ObjectTensors, Tiled, boxes_of
from cvpipe.data.transforms import ColorJitter
from cvpipe.errors import ConfigError, DataError, ImageError

Kind = Literal["boxes", "masks", "points", "classes"]
Pairs = Sequence[tuple[int, int]]

_LEAST_VISIBLE = 0.1
_TRIES = 3
"""Other images that are asked for before a mosaic leaves a quarter empty."""


class AugmentFields(Protocol):
    """The settings of `data.augment` (see `cvpipe.tasks.spatial.SpatialAugmentConfig`)."""

    @property
    def hflip(self) -> float: ...
    @property
    def vflip(self) -> float: ...
    @property
    def scale(self) -> tuple[float, float]: ...
    @property
    def color_jitter(self) -> float: ...
    @property
    def mosaic(self) -> float: ...
    @property
    def copy_paste(self) -> float: ...


@dataclass(frozen=True, eq=False)
class _Source:
    """An image before it moves.

    Attributes:
        image: (3, H, W) uint8.
        content: Objects, or (H, W) uint8 positions in the classes.
        window: (top, left, height, width) of what may be shown of it.
    """

    image: torch.Tensor
    content: Any
    window: tuple[int, int, int, int]

    @property
    def size(self) -> Size:
        return int(self.image.shape[1]), int(self.image.shape[2])


class SpatialEval:
    """Brings an image and its target to the network's size as evaluation and serving do, without randomness.

    Args:
        size: (height, width) of the network's input.
        policy: letterbox, stretch or short_side (see `fit_geometry`).
        flip_pairs: positions of points that swap in a mirrored image.
        kind: what the task learns. boxes, masks and points give an ObjectTensors, with masks (n, h, w) for masks and
            points for points, both left out otherwise; classes gives a class map (h, w) int64, IGNORE where there is
            no class.
        points: how many points an object has, for images without any object; kind `points` only.
    """

    def __init__(self, size: Size, policy: str, flip_pairs: Pairs = (), kind: Kind = "boxes", points: int = 0) -> None:
        self.size, self.policy, self.kind, self.points = (size[0], size[1]), policy, kind, points
        self.flip_pairs = tuple(flip_pairs)

    def __call__(self, image: torch.Tensor, target: Any, seed: int, another: Another) -> tuple[torch.Tensor, Any]:
        """See `cvpipe.data.loader.SampleTransform`. Raises ImageError where a class map can't be read."""
        source = _read(image, target)
        top, left, height, width = source.window
        geometry = fit_geometry((height, width), self.size, self.policy).within(source.size, top, left)
        pixels, found = self._draw([(source, geometry)], self.kind == "masks")
        return pixels, self._finished(found)

    def _draw(self, shown: Sequence[tuple[_Source, Geometry]], masks: bool) -> tuple[torch.Tensor, Any]:
        """Several images on one canvas, with objects or a class map (h, w) uint8. All geometries mirror alike."""
        first, geometry = shown[0]
        if len(shown) == 1:
            pixels = geometry.image(first.image)
        else:
            pixels = grey_canvas(self.size)
            for source, placed in shown:
                placed.draw(source.image, pixels)
            pixels = geometry.mirror(pixels)
        if self.kind == "classes":
            classes = torch.full(self.size, IGNORE, dtype=torch.uint8)
            for source, placed in shown:
                placed.draw_classes(source.content, classes)
            return pixels, geometry.mirror(classes)
        return pixels, _together([self._objects(source.content, placed, masks) for source, placed in shown])

    def _objects(self, objects: Objects, geometry: Geometry, masks: bool) -> ObjectTensors:
        """With masks where asked for and points where the task has them, also for no object at all."""
        if masks and objects.masks is None and len(objects):
            raise DataError(
                f"data.train: an image has {len(objects)} objects without masks. Instance segmentation and "
                "data.augment.copy_paste need a mask for each object; use boxes only (task: detection, copy_paste: 0)."
            )
        with_points = self.kind == "points"
        wanted = replace(
            objects, masks=(objects.masks or ()) if masks else None, points=objects.points if with_points else None
        )
        found = wanted.on_canvas(geometry, self.flip_pairs, _LEAST_VISIBLE)
        if with_points and found.points is None:
            if len(objects):
                raise DataError(f"data.train: an image has {len(objects)} objects without keypoints.")
            found = found._replace(points=torch.zeros((0, self.points, 3)))
        return found

    def _finished(self, found: Any) -> Any:
        if self.kind == "classes":
            return found.long()
        return found if self.kind == "masks" else found._replace(masks=None)


class SpatialTrain(SpatialEval):
    """The same with random changes.

    - zoom: drawn log-uniformly from `scale`, on top of what fits the image to the canvas. What is larger than the
      canvas is cropped at random, so that at least half of some object stays in sight (or half of what is seen is
      that object); what is smaller is put anywhere, with a grey border.
    - mirroring left-right and upside down; points swap sides.
    - mosaic (Bochkovskiy et al., 2020, arXiv:2004.10934): four images around a random centre, each half to fully as
      large as it would be alone.
    - copy-paste (Ghiasi et al., 2021, arXiv:2012.07177): a random half of another image's objects, pixels and masks, is
      put on top. What they cover is taken from the masks and boxes below; points they cover become hidden.
    - brightness, contrast and saturation last, on the whole canvas.

    Args:
        augment: the settings.
        kind: see SpatialEval; copy-paste needs the masks in the data with any kind, and can't work with classes.

    Raises:
        ConfigError: settings that can't work together.
    """

    def __init__(
        self,
        augment: AugmentFields,
        size: Size,
        policy: str,
        flip_pairs: Pairs = (),
        kind: Kind = "boxes",
        points: int = 0,
    ) -> None:
        super().__init__(size, policy, flip_pairs, kind, points)
        low, high = augment.scale
        if not 0 < low <= high:
            raise ConfigError(
                [f"data.augment.scale: found [{low}, {high}], expected two numbers above 0, the smaller one first."]
            )
        if augment.copy_paste and kind == "classes":
            raise ConfigError(["data.augment.copy_paste: pastes objects; a class map has none. Set it to 0."])
        self.augment = augment
        self._jitter = ColorJitter(augment.color_jitter) if augment.color_jitter else None

    def __call__(self, image: torch.Tensor, target: Any, seed: int, another: Another) -> tuple[torch.Tensor, Any]:
        """See `cvpipe.data.loader.SampleTransform`. Raises ImageError where a class map can't be read."""
        config, rng = self.augment, random.Random(seed)
        pasting = rng.random() < config.copy_paste
        masks = pasting or self.kind == "masks"
        pixels, found = self._draw(self._arranged(_read(image, target), rng, another), masks)
        if pasting:
            other = _read_another(rng, another)
            if other is not None:
                above, pasted = self._draw(
                    [(other, self._placed(other, self._whole, 1.0, self._mirrored(rng), rng))], True
                )
                pixels, found = paste(pixels, found, above, _some(pasted, rng))
        if self._jitter is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # as in transforms.Augment
                pixels = self._jitter(pixels)
        return pixels, self._finished(found)

    @property
    def _whole(self) -> tuple[int, int, int, int]:
        return 0, 0, *self.size

    def _mirrored(self, rng: random.Random) -> tuple[bool, bool]:
        return rng.random() < self.augment.hflip, rng.random() < self.augment.vflip

    def _arranged(self, first: _Source, rng: random.Random, another: Another) -> list[tuple[_Source, Geometry]]:
        """The image alone, or with three others around a centre."""
        mirrored = self._mirrored(rng)
        if rng.random() >= self.augment.mosaic:
            return [(first, self._placed(first, self._whole, 1.0, mirrored, rng))]
        height, width = self.size
        y, x = (round(side * rng.uniform(0.3, 0.7)) for side in self.size)
        quarters = [(0, 0, y, x), (0, x, y, width - x), (y, 0, height - y, x), (y, x, height - y, width - x)]
        shown = []
        for number, quarter in enumerate(quarters):
            source = first if number == 0 else _read_another(rng, another)
            if source is not None:
                shown.append((source, self._placed(source, quarter, rng.uniform(0.5, 1.0), mirrored, rng)))
        return shown

    def _placed(
        self,
        source: _Source,
        area: tuple[int, int, int, int],
        shrink: float,
        mirrored: tuple[bool, bool],
        rng: random.Random,
    ) -> Geometry:
        """Where the image goes within `area` (top, left, height, width) of the canvas."""
        top, left, height, width = source.window
        zoom = shrink * math.exp(rng.uniform(*(math.log(factor) for factor in self.augment.scale)))
        ratios = self.size[0] / height, self.size[1] / width
        if self.policy != "stretch":
            ratios = (min(ratios),) * 2 if self.policy == "letterbox" else (max(ratios),) * 2
        seen, shown = zip(
            *(
                _extent(side, room, ratio * zoom)
                for side, room, ratio in zip((height, width), area[2:], ratios, strict=True)
            ),
            strict=True,
        )
        boxes = np.zeros((0, 4), np.float32)
        if isinstance(source.content, Objects) and tuple(seen) != (height, width):
            boxes = source.content.boxes[~source.content.crowd] - np.array([left, top] * 2, np.float32)
        y, x = _crop(boxes, (height, width), seen, rng)
        place = [
            start + rng.randint(0, room - side) for start, room, side in zip(area[:2], area[2:], shown, strict=True)
        ]
        return Geometry(source.size, (top + y, left + x, *seen), (*place, *shown), self.size, *mirrored)


def paste(
    image: torch.Tensor, objects: ObjectTensors, above: torch.Tensor, pasted: ObjectTensors
) -> tuple[torch.Tensor, ObjectTensors]:
    """Puts the pixels of some objects of another canvas onto this one.

    Args:
        image, above: (3, h, w) uint8.
        objects: what is on `image`, with masks. Loses what is covered; objects of which less than a tenth is left
            are dropped.
        pasted: what is taken from `above`, with masks.

    Returns:
        The new pixels; the objects that are left, then the pasted ones.
    """
    assert objects.masks is not None
    assert pasted.masks is not None
    if not len(pasted.labels):
        return image, objects
    covered = pasted.masks.amax(dim=0)
    image = torch.where(covered.bool(), above, image)
    masks = objects.masks * (1 - covered)
    before, after = _pixels(objects.masks), _pixels(masks)
    boxes = torch.where((after < before)[:, None], boxes_of(masks), objects.boxes)
    points = objects.points
    if points is not None and points.numel():
        points = points.clone()
        x = points[..., 0].long().clamp(0, covered.shape[1] - 1)
        y = points[..., 1].long().clamp(0, covered.shape[0] - 1)
        points[..., 2][(points[..., 2] == 2) & covered.bool()[y, x]] = 1
    left = objects._replace(boxes=boxes, masks=masks, points=points)
    keep = (after > 0) & (after >= _LEAST_VISIBLE * before)
    return image, _together([left if bool(keep.all()) else left.select(keep), pasted])


def _pixels(masks: torch.Tensor) -> torch.Tensor:
    """(n, h, w) uint8 -> (n,) int64, how many are set. Row by row in numpy: twenty times as fast as torch's sum."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)


def _some(objects: ObjectTensors, rng: random.Random) -> ObjectTensors:
    """About half of the objects, at least one where there is one; never a crowd, whose mask is many objects'."""
    positions = [i for i, crowd in enumerate(objects.crowd.tolist()) if not crowd]
    chosen = [i for i in positions if rng.random() < 0.5] or positions[:1]
    return objects.select(torch.tensor(chosen, dtype=torch.long))


def _extent(side: int, room: int, scale: float) -> tuple[int, int]:
    """(pixels of the image that are seen, pixels of the canvas that show them), along one side."""
    if side * scale <= room:
        return side, min(room, max(1, round(side * scale)))
    return min(side, max(1, round(room / scale))), room


def _crop(boxes: Floats, size: Size, seen: Sequence[int], rng: random.Random) -> tuple[int, int]:
    """(top, left) of a random window of `seen` (height, width), with at least half of some box in it if possible.

    Only where the first draw misses all objects, one of them is drawn and the window put around it: crops stay as
    random as they can be.
    """
    y, x = (rng.randint(0, side - part) for side, part in zip(size, seen, strict=True))
    if not len(boxes):
        return y, x
    sides = np.minimum(boxes[:, 2:], [x + seen[1], y + seen[0]]) - np.maximum(boxes[:, :2], [x, y])
    inside = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    if (inside >= 0.5 * np.minimum(areas, seen[0] * seen[1])).any():
        return y, x
    x1, y1, x2, y2 = boxes[rng.randrange(len(boxes))].tolist()
    return _around(y1, y2, size[0], seen[0], rng), _around(x1, x2, size[1], seen[1], rng)


def _around(low: float, high: float, side: int, seen: int, rng: random.Random) -> int:
    """Where a window of `seen` of `side` pixels starts that holds low..high, or lies in it where that is longer."""
    first, last = sorted((math.floor(low), math.ceil(high) - seen))
    return rng.randint(*(min(max(start, 0), side - seen) for start in (first, last)))


def _together(parts: Sequence[ObjectTensors]) -> ObjectTensors:
    if len(parts) == 1:
        return parts[0]
    return ObjectTensors(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _read(image: torch.Tensor, target: Any) -> _Source:
    """The image with its target's content. Raises ImageError: a class map is missing, broken, or of another size."""
    size = int(image.shape[1]), int(image.shape[2])
    window = (0, 0, *size)
    if isinstance(target, Tiled):
        target, window = target.target, target.window
        if window[0] + window[2] > size[0] or window[1] + window[3] > size[1]:
            raise ImageError(f"the image has {size[1]}x{size[0]} pixels, its annotation was written for a larger one")
    if not isinstance(target, ClassMap):
        return _Source(image, target, window)
    classes = torch.from_numpy(target.load())
    if classes.shape != size:
        height, width = classes.shape
        raise ImageError(
            f"{target.path}: the class map has {width}x{height} pixels, its image {size[1]}x{size[0]}. They must agree."
        )
    return _Source(image, classes, window)


def _read_another(rng: random.Random, another: Another) -> _Source | None:
    """Some other image; None where several in a row are broken. What is broken is reported in its own turn."""
    for _ in range(_TRIES):
        drawn = another(rng.getrandbits(62))
        if drawn is not None:
            try:
                return _read(*drawn)
            except ImageError:
                continue
    return None
