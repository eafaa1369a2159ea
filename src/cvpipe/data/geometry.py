"""Where the pixels of an image go: one record that moves pixels, boxes, points and class maps alike, and back again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cvpipe.data.transforms import PAD_GREY, resize

Floats = npt.NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A window of an image, scaled into a place on a canvas, and mirrored.

    All coordinates are in pixels; (0, 0) is the outer corner of the first pixel.

    Attributes:
        source: (height, width) of the image.
        window: (top, left, height, width) of what is taken, integers; inside the image.
        place: (top, left, height, width) on the canvas where it is put.
        canvas: (height, width) of the result.
        hflip, vflip: whether the canvas is mirrored at the end.
    """

    source: Size
    window: tuple[int, int, int, int]
    place: tuple[int, int, int, int]
    canvas: Size
    hflip: bool = False
    vflip: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """(y, x): canvas pixels for a pixel of the image."""
        return self.place[2] / self.window[2], self.place[3] / self.window[3]

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 -> (3, height, width) uint8; what the image does not cover is grey."""
        if (self.place[2], self.place[3]) == self.canvas:
            return self.mirror(self._scaled(image))
        canvas = grey_canvas(self.canvas)
        self.draw(image, canvas)
        return self.mirror(canvas)

    def draw(self, image: torch.Tensor, canvas: torch.Tensor) -> None:
        """Writes (3, H, W) uint8 into its place on (3, height, width) uint8, not mirrored. For several in one."""
        canvas[:, self._rows, self._columns] = self._scaled(image)

    def class_map(self, classes: torch.Tensor, fill: int) -> torch.Tensor:
        """(H, W) -> (height, width) of the same dtype, nearest neighbour; `fill` where the image does not reach."""
        canvas = torch.full(self.canvas, fill, dtype=classes.dtype)
        self.draw_classes(classes, canvas)
        return self.mirror(canvas)

    def draw_classes(self, classes: torch.Tensor, canvas: torch.Tensor) -> None:
        """Writes (H, W) into its place on (height, width), nearest neighbour, not mirrored."""
        top, left, height, width = self.window
        rows, columns = _nearest(height, self.place[2]) + top, _nearest(width, self.place[3]) + left
        canvas[self._rows, self._columns] = classes.index_select(0, rows).index_select(1, columns)

    def mirror(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., height, width) as drawn -> mirrored as this geometry asks for."""
        dims = [-1] * self.hflip + [-2] * self.vflip
        return pixels.flip(dims) if dims else pixels

    def points(self, points: Floats) -> Floats:
        """(..., 2) x y in the image -> x y on the canvas. Not clipped."""
        sy, sx = self.scale
        x = (points[..., 0] - self.window[1]) * sx + self.place[1]
        y = (points[..., 1] - self.window[0]) * sy + self.place[0]
        x = self.canvas[1] - x if self.hflip else x
        y = self.canvas[0] - y if self.vflip else y
        return np.stack([x, y], axis=-1).astype(np.float32)

    def back(self, points: Floats) -> Floats:
        """The inverse of `points`."""
        sy, sx = self.scale
        x = self.canvas[1] - points[..., 0] if self.hflip else points[..., 0]
        y = self.canvas[0] - points[..., 1] if self.vflip else points[..., 1]
        x = (x - self.place[1]) / sx + self.window[1]
        y = (y - self.place[0]) / sy + self.window[0]
        return np.stack([x, y], axis=-1).astype(np.float32)

    def boxes(self, boxes: Floats) -> Floats:
        """(n, 4) x1 y1 x2 y2 in the image -> on the canvas. Not clipped."""
        return _ordered(self.points(boxes.reshape(-1, 2, 2)))

    def boxes_back(self, boxes: Floats) -> Floats:
        """(n, 4) x1 y1 x2 y2 on the canvas -> in the image, clipped to the window."""
        found = _ordered(self.back(boxes.reshape(-1, 2, 2)))
        top, left, height, width = self.window
        return np.clip(found, [left, top] * 2, [left + width, top + height] * 2).astype(np.float32)

    def visible(self) -> tuple[int, int, int, int]:
        """x1 y1 x2 y2 of the part of the canvas that the image covers."""
        top, left, height, width = self.place
        left = self.canvas[1] - left - width if self.hflip else left
        top = self.canvas[0] - top - height if self.vflip else top
        return left, top, left + width, top + height

    def uncanvas(self, maps: torch.Tensor) -> torch.Tensor:
        """(C, h, w) floats over the canvas, at any resolution -> (C, height, width) over the window, bilinear.

        First to the canvas, as the loss sees them, then from there: cutting the place out of coarse cells would shift
        everything by up to half a cell.
        """
        if tuple(maps.shape[1:]) != self.canvas:
            maps = F.interpolate(maps[None], size=self.canvas, mode="bilinear", align_corners=False)[0]
        part = self.mirror(maps)[:, self._rows, self._columns]
        if part.shape[1:] == self.window[2:]:
            return part
        return F.interpolate(part[None], size=self.window[2:], mode="bilinear", align_corners=False)[0]

    def flipped(self, hflip: bool, vflip: bool = False) -> Geometry:
        """The same, mirrored once more."""
        return replace(self, hflip=self.hflip != hflip, vflip=self.vflip != vflip)

    def within(self, source: Size, top: int, left: int) -> Geometry:
        """The same for the whole image of (height, width) that this geometry's image was cut out of at top, left."""
        return replace(self, source=source, window=(self.window[0] + top, self.window[1] + left, *self.window[2:]))

    def _scaled(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.window
        part = resize(image[:, top : top + height, left : left + width], (self.place[2], self.place[3]))
        # a window that is not resized is still a part of its image: rows that lie together, as resizing makes them
        return part.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    @property
    def _rows(self) -> slice:
        return slice(self.place[0], self.place[0] + self.place[2])

    @property
    def _columns(self) -> slice:
        return slice(self.place[1], self.place[1] + self.place[3])


def fit_geometry(source: Size, size: Size, policy: str) -> Geometry:
    """How evaluation and serving bring an image to the network's size.

    Args:
        source: (height, width) of the image.
        size: (height, width) of the network's input.
        policy: stretch; letterbox (all of the image, grey bars where it does not reach); short_side (the short side
            fits, the rest of the long side is cut off equally on both ends).
    """
    height, width = source
    if policy == "stretch":
        return Geometry(source, (0, 0, height, width), (0, 0, *size), size)
    if policy == "letterbox":
        scale = min(size[0] / height, size[1] / width)
        inner = (max(1, min(size[0], round(height * scale))), max(1, min(size[1], round(width * scale))))
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        return Geometry(source, (0, 0, height, width), (top, left, *inner), size)
    if policy == "short_side":
        scale = max(size[0] / height, size[1] / width)
        h, w = max(1, min(height, round(size[0] / scale))), max(1, min(width, round(size[1] / scale)))
        return Geometry(source, ((height - h) // 2, (width - w) // 2, h, w), (0, 0, *size), size)
    raise ValueError(f"unknown resize policy {policy!r}")


def grey_canvas(size: Size) -> torch.Tensor:
    """(3, height, width) uint8, grey; pixels lie together in memory, as the decoder leaves them."""
    return torch.full((*size, 3), PAD_GREY, dtype=torch.uint8).permute(2, 0, 1)


def _nearest(length: int, steps: int) -> torch.Tensor:
    """(steps,) int64: the pixels of `length` in which the centres of `steps` equal cells lie."""
    return (torch.arange(steps) * 2 + 1) * length // (2 * steps)


def _ordered(corners: Floats) -> Floats:
    """(n, 2, 2) any two opposite corners -> (n, 4) x1 y1 x2 y2"""
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
