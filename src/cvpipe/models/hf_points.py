"""ViTPose (Xu et al., 2022, arXiv:2204.12484): the points of the one object that fills the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cvpipe.data.targets import ObjectTensors
from cvpipe.errors import DataError
from cvpipe.models.hf_network import HfNetwork, Made, countable

SIGMA = 2.0
"""Width of the Gaussian around a point in the heat map, in its cells."""
CONFIDENT = 0.3
"""Confidence from which a point counts for the box around the object."""
_BLUR_RADIUS, _BLUR_SIGMA = 5, 0.8  # transformers' defaults


class HfPoints(HfNetwork):
    """ViTPose. It is made for the second of two stages: the whole canvas is the crop around one object.

    In evaluation: {"boxes": (N, 1, 4) float32 x1 y1 x2 y2 in pixels of the canvas, "scores": (N, 1) float32,
    "labels": (N, 1) int64 zeros, "points": (N, 1, points, 3) float32 x, y, confidence}. The box is around the
    points of confidence 0.3 and more, or the canvas where those are fewer than two or on a line; the score is the mean
    confidence.
    """

    one_object = True

    def __init__(self, made: Made) -> None:
        super().__init__(made)
        self.points = made.points

    def heat_maps(self, images: torch.Tensor) -> torch.Tensor:
        """(N, points, h', w') float32"""
        options = {}
        if getattr(self.body.config.backbone_config, "num_experts", 1) > 1:
            # mixture of experts: the first was trained on COCO's points
            options["dataset_index"] = torch.zeros(len(images), dtype=torch.long, device=images.device)
        maps: torch.Tensor = self.body(pixel_values=self.pixels(images), **options).heatmaps
        return maps.float()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[-2:]
        points = decode_points(self.heat_maps(images), (height, width))
        return {
            "boxes": _around(points, (height, width))[:, None],
            "scores": points[..., 2].mean(dim=1, keepdim=True),
            "labels": torch.zeros(len(images), 1, dtype=torch.long, device=images.device),
            "points": points[:, None],
        }

    def dense_outputs(self, images: torch.Tensor) -> torch.Tensor:
        """The heat maps."""
        return self.heat_maps(images)

    def losses(self, images: torch.Tensor, targets: Sequence[ObjectTensors]) -> dict[str, torch.Tensor]:
        """Mean squared difference from a Gaussian around each point that is in the image (visible or hidden).

        Raises:
            DataError: an image with several objects, or without points.
        """
        maps = self.heat_maps(images)
        points = maps.new_zeros(len(images), self.points, 3)
        for row, target in enumerate(countable(targets)):
            if target.points is None:
                raise DataError("vitpose learns from keypoints, and the annotations have none.")
            if len(target.points) > 1:
                raise DataError(
                    f"vitpose takes the whole image for the crop around one object, and an image has "
                    f"{len(target.points)}. Cut the objects out into images of their own (without data.augment.mosaic "
                    "and copy_paste), or take model.name=keypointrcnn, which finds them."
                )
            if len(target.points):
                points[row] = target.points[0]
        height, width = images.shape[-2:]
        with torch.autocast(images.device.type, enabled=False):
            wanted, weight = gaussian_maps(points, (height, width), (maps.shape[2], maps.shape[3]))
            return {"heat_maps": ((maps - wanted) ** 2 * weight[..., None, None]).mean()}


def gaussian_maps(
    points: torch.Tensor, size: tuple[int, int], cells: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the heat maps should be.

    Args:
        points: (N, points, 3) x, y in pixels of the canvas, visibility.
        size: (height, width) of the canvas.
        cells: (height, width) of the heat maps.

    Returns:
        (N, points, *cells) Gaussians of height 1, and (N, points) 1 where a point is known, else 0.
    """
    x = _to_cells(points[..., 0], size[1], cells[1])
    y = _to_cells(points[..., 1], size[0], cells[0])
    columns = torch.arange(cells[1], device=points.device) - x[..., None]
    rows = torch.arange(cells[0], device=points.device) - y[..., None]
    across, down = (torch.exp(-(distance**2) / (2 * SIGMA**2)) for distance in (columns, rows))
    return down[..., :, None] * across[..., None, :], (points[..., 2] > 0).to(points.dtype)


def decode_points(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The peaks of heat maps, between cells (DARK; Zhang et al., 2020, arXiv:1910.06278), inside the canvas.

    The logarithm of a Gaussian is a parabola: one Newton step from the highest cell leads to its top. As transformers'
    image processor does it, but for maps that are nowhere positive: it gives -1, here it is confidence 0.

    Args:
        maps: (N, points, h', w').
        size: (height, width) of the canvas.

    Returns:
        (N, points, 3) x, y in pixels of the canvas, and the map's highest value, in 0..1.
    """
    with torch.autocast(maps.device.type, enabled=False):
        return _peaks(maps.float(), size)


def _peaks(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    height, width = maps.shape[2:]
    confidence, cell = maps.flatten(2).max(dim=2)
    x, y = cell % width, cell // width
    smooth = _blur(maps).clamp(0.001, 50).log()
    edged = F.pad(smooth, (1, 1, 1, 1), mode="replicate").flatten(2)
    centre = (y + 1) * (width + 2) + x + 1

    def at(down: int, right: int) -> torch.Tensor:
        return edged.gather(2, (centre + down * (width + 2) + right)[..., None])[..., 0]

    here = at(0, 0)
    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    tiny = torch.finfo(torch.float32).eps
    dxx, dyy = at(0, 1) - 2 * here + at(0, -1) + tiny, at(1, 0) - 2 * here + at(-1, 0) + tiny
    dxy = (at(1, 1) - at(0, 1) - at(1, 0) + 2 * here - at(0, -1) - at(-1, 0) + at(-1, -1)) / 2
    determinant = dxx * dyy - dxy * dxy
    x = x - (dyy * dx - dxy * dy) / determinant
    y = y - (dxx * dy - dxy * dx) / determinant
    x = _to_pixels(x, size[1], width).nan_to_num(0, size[1], 0).clamp(0, size[1])
    y = _to_pixels(y, size[0], height).nan_to_num(0, size[0], 0).clamp(0, size[0])
    return torch.stack([x, y, confidence.clamp(0, 1)], dim=-1)


def _to_cells(pixels: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    # first and last pixel's centres fall on first and last cell (Huang et al., 2020, arXiv:1911.07524)
    return (pixels - 0.5) * ((cells - 1) / (length - 1))


def _to_pixels(positions: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    return positions * ((length - 1) / (cells - 1)) + 0.5


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """A Gaussian blur; beyond the edge the map is mirrored, edge cell included (scipy's `reflect`)."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * _BLUR_SIGMA**2))
    kernel = kernel / kernel.sum()
    count = maps.shape[0] * maps.shape[1]
    flat = maps.reshape(count, 1, *maps.shape[2:])
    for dim in (2, 3):
        length = flat.shape[dim]
        index = torch.arange(-_BLUR_RADIUS, length + _BLUR_RADIUS, device=maps.device) % (2 * length)
        wide = flat.index_select(dim, torch.where(index < length, index, 2 * length - 1 - index))
        flat = F.conv2d(wide, kernel.view(1, 1, -1, 1) if dim == 2 else kernel.view(1, 1, 1, -1))
    return flat.reshape(maps.shape)


def _around(points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, points, 3) -> (N, 4) x1 y1 x2 y2 around the confident points, or the canvas."""
    sure = (points[..., 2] >= CONFIDENT)[..., None]
    position = points[..., :2]
    low = position.masked_fill(~sure, float("inf")).amin(dim=1)
    high = position.masked_fill(~sure, float("-inf")).amax(dim=1)
    flat = ((high - low) <= 0).any(dim=1, keepdim=True)
    canvas = points.new_tensor([0, 0, size[1], size[0]]).expand(len(points), 4)
    return torch.where(flat, canvas, torch.cat([low, high], dim=1))
