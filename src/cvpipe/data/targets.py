"""What is known about one image beyond a class: objects, class maps, defect masks. Read from annotations, not pixels.

Coordinates are in pixels of the upright image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cvpipe.data.geometry import Floats, Geometry

IGNORE = 255
"""Value of pixels in a class map that count neither in a loss nor in a metric."""

Mask = "Mapping[str, Any] | tuple[Floats, ...]"
"""One object's mask: a COCO RLE {"size": [h, w], "counts": …}, or polygons, each (points, 2) float32 x y."""


class ObjectTensors(NamedTuple):
    """Objects on the canvas of the network, for its loss.

    Attributes:
        boxes: (n, 4) float32 x1 y1 x2 y2, inside the canvas.
        labels: (n,) int64, positions in the classes, from 0.
        crowd: (n,) bool: a region of many objects that no loss may count as one.
        masks: (n, h, w) uint8 of 0 and 1, or None where the task has no masks.
        points: (n, points, 3) float32 x, y, visibility 0, 1 (hidden) or 2, or None. Points outside have visibility 0.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    crowd: torch.Tensor
    masks: torch.Tensor | None = None
    points: torch.Tensor | None = None

    def select(self, keep: torch.Tensor) -> ObjectTensors:
        """Those objects that `keep` (bool or positions) names."""
        return ObjectTensors(
            self.boxes[keep],
            self.labels[keep],
            self.crowd[keep],
            None if self.masks is None else self.masks[keep],
            None if self.points is None else self.points[keep],
        )


@dataclass(frozen=True, eq=False)
class Objects:
    """The annotated objects of one image.

    Attributes:
        boxes: (n, 4) float32 x1 y1 x2 y2.
        labels: (n,) int64, positions in the classes, from 0.
        crowd: (n,) bool.
        areas: (n,) float32, square pixels as annotated (of the mask where there is one); decides small, medium, large.
        masks: for each object, or None.
        points: (n, points, 3) float32 x, y, visibility, or None.
        ids: of the annotations, for messages.
    """

    boxes: Floats
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: Floats
    masks: tuple[Any, ...] | None = None
    points: Floats | None = None
    ids: tuple[int | str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        # stands in the digest of a data set: all of what training sees, and nothing that changes from run to run
        points = None if self.points is None else self.points.tolist()
        masks = None if self.masks is None else _digest(self.masks)
        return f"Objects({self.boxes.tolist()}, {self.labels.tolist()}, {self.crowd.tolist()}, {points}, {masks})"

    def on_canvas(
        self, geometry: Geometry, flip_pairs: Sequence[tuple[int, int]] = (), least_visible: float = 0.1
    ) -> ObjectTensors:
        """The objects where the geometry puts them, clipped to what it shows of the image.

        The box of an object that has a mask and is cut shrinks to what is left of the mask.

        Args:
            flip_pairs: points that swap when the image is mirrored.
            least_visible: objects of whose box a smaller part is left inside are dropped, unless that much of the view
                is full of them; so are those of which no pixel is left.
        """
        whole = geometry.boxes(self.boxes)
        x1, y1, x2, y2 = geometry.visible()
        boxes = np.clip(whole, np.array([x1, y1] * 2, np.float32), np.array([x2, y2] * 2, np.float32))
        sides, areas = boxes[:, 2:] - boxes[:, :2], (whole[:, 2:] - whole[:, :2]).prod(axis=1)
        enough = least_visible * np.minimum(areas, (x2 - x1) * (y2 - y1))
        keep = np.flatnonzero((sides >= 1).all(axis=1) & (sides.prod(axis=1) >= enough))
        found = ObjectTensors(
            boxes=torch.from_numpy(boxes[keep]),
            labels=torch.from_numpy(self.labels[keep]),
            crowd=torch.from_numpy(self.crowd[keep]),
            points=None if self.points is None else torch.from_numpy(self._points(keep, geometry, flip_pairs)),
        )
        if self.masks is None:
            return found
        masks = torch.zeros((len(keep), *geometry.canvas), dtype=torch.uint8)
        for row, position in enumerate(keep):
            _draw_mask(self.masks[position], geometry, masks[row])
        cut = torch.from_numpy((boxes != whole).any(axis=1)[keep])
        found.boxes[cut] = boxes_of(masks[cut])
        left = masks.flatten(1).any(dim=1).bool()  # torch keeps uint8 here
        found = found._replace(masks=masks)
        return found if bool(left.all()) else found.select(left)

    def _points(self, keep: Any, geometry: Geometry, flip_pairs: Sequence[tuple[int, int]]) -> Floats:
        assert self.points is not None
        points: Floats = self.points[keep].copy()
        points[..., :2] = geometry.points(points[..., :2])
        # mirrored both ways is turned around: left stays left
        if geometry.hflip != geometry.vflip:
            points = points[:, swapped(points.shape[1], flip_pairs)]
        x1, y1, x2, y2 = geometry.visible()
        x, y = points[..., 0], points[..., 1]
        outside = (x < x1) | (x > x2) | (y < y1) | (y > y2)
        points[outside | (points[..., 2] == 0)] = 0
        return points


def swapped(count: int, flip_pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """(count,) the order of an object's points in a mirrored image."""
    order = np.arange(count)
    for left, right in flip_pairs:
        order[left], order[right] = right, left
    return order


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """(n, h, w) uint8 of 0 and 1 -> (n, 4) float32 x1 y1 x2 y2 of what is set; zeros where nothing is."""
    height, width = masks.shape[1:]
    if not len(masks):
        return torch.zeros((0, 4))
    rows, columns = masks.amax(dim=2), masks.amax(dim=1)
    ends = [
        columns.argmax(dim=1),
        rows.argmax(dim=1),
        width - columns.flip(1).argmax(dim=1),
        height - rows.flip(1).argmax(dim=1),
    ]
    return torch.stack(ends, dim=1) * rows.amax(dim=1)[:, None].float()


NO_OBJECTS = Objects(
    boxes=np.zeros((0, 4), np.float32),
    labels=np.zeros(0, np.int64),
    crowd=np.zeros(0, np.bool_),
    areas=np.zeros(0, np.float32),
)


def _digest(masks: Iterable[Any]) -> str:
    """A short text that changes with the masks."""
    found = hashlib.sha256()
    for mask in masks:
        if isinstance(mask, Mapping):
            found.update(f"{list(mask['size'])} {mask['counts']}".encode())
        else:
            for polygon in mask:
                found.update(str(len(polygon)).encode())
                found.update(np.ascontiguousarray(polygon, dtype=np.float32).tobytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Tiled:
    """A window of an image, with what is known about the whole image.

    Attributes:
        target: Objects or a ClassMap, in pixels of the whole image.
        window: (top, left, height, width) of the part that is shown, pixels.
    """

    target: Any
    window: tuple[int, int, int, int]

    def __repr__(self) -> str:
        return f"{self.target} in {self.window}"


def mask_on_canvas(mask: Any, geometry: Geometry) -> torch.Tensor:
    """One object's mask -> (h, w) uint8 of 0 and 1. Polygons are filled by COCO's rule."""
    canvas = torch.zeros(geometry.canvas, dtype=torch.uint8)
    _draw_mask(mask, geometry, canvas)
    return canvas


def _draw_mask(mask: Any, geometry: Geometry, canvas: torch.Tensor) -> None:
    """Writes one object's mask onto (h, w) zeros."""
    if isinstance(mask, Mapping):
        canvas.copy_(geometry.class_map(torch.from_numpy(decode_rle(mask)), 0))
        return
    from faster_coco_eval.core import mask as coco

    # two points would be taken for a box; a line covers nothing
    moved = [geometry.points(polygon).astype(np.float64) for polygon in mask if len(polygon) > 2]
    if not moved:
        return
    # drawing takes as long as the area is large: no more than what the polygons span
    corners = np.concatenate(moved)
    low, high = np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 1
    seen = geometry.visible()
    x1, y1 = (int(value) for value in np.maximum(low, seen[:2]))
    x2, y2 = (int(value) for value in np.minimum(high, seen[2:]))
    if x1 < x2 and y1 < y2:
        flat = [(points - [x1, y1]).reshape(-1).tolist() for points in moved]
        canvas[y1:y2, x1:x2] = torch.from_numpy(coco.decode(coco.merge(coco.frPyObjects(flat, y2 - y1, x2 - x1))))


def decode_rle(mask: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A COCO RLE, compressed or not -> (height, width) uint8 of 0 and 1."""
    from faster_coco_eval.core import mask as coco

    height, width = mask["size"]
    counts = mask["counts"]
    if isinstance(counts, (list, tuple)):
        mask = coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    elif isinstance(counts, str):
        mask = {"size": [height, width], "counts": counts.encode("ascii")}
    decoded: npt.NDArray[np.uint8] = coco.decode(mask)
    return decoded


def encode_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """(height, width) of 0 and not 0 -> a compressed COCO RLE with `counts` as text."""
    from faster_coco_eval.core import mask as coco

    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": found["counts"].decode("ascii")}


@dataclass(frozen=True)
class ClassMap:
    """A class for each pixel, in a file.

    Attributes:
        path: an image whose values name classes: 8- or 16-bit grey or palette; for `segments`, RGB with
            R + 256 G + 65536 B as the value (COCO panoptic).
        classes: value -> position in the classes, or IGNORE. A value that is missing here is ignored and reported.
        segments: whether values stand in the colour channels.
    """

    path: str
    classes: tuple[tuple[int, int], ...]
    segments: bool = False

    def __str__(self) -> str:
        return self.path

    def load(self) -> npt.NDArray[np.uint8]:
        """(height, width) uint8, positions in the classes, IGNORE where there is none. Raises ImageError."""
        values = self.values()
        table = np.full(max(int(values.max()), 255) + 1, IGNORE, np.uint8)
        for value, index in self.classes:
            if value < len(table):
                table[value] = index
        return table[values]

    def values(self) -> npt.NDArray[np.int64]:
        """(height, width) what the file holds. Raises ImageError."""
        from cvpipe.data.decode import read_values

        pixels = read_values(self.path).astype(np.int64)
        if self.segments:
            if pixels.ndim != 3:
                from cvpipe.errors import ImageError

                raise ImageError(f"{self.path}: expected an RGB image of segment ids")
            return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        return pixels if pixels.ndim == 2 else pixels[..., 0]


@dataclass(frozen=True)
class Inspection:
    """Good or not, and where not.

    Attributes:
        label: `good`, or the name of the defect.
        mask: file whose non-zero pixels are the defect; None where it is not known.
    """

    label: str
    mask: str | None = None

    def __str__(self) -> str:
        return self.label

    @property
    def is_good(self) -> bool:
        return self.label == "good"
