"""Resizing and random augmentation on uint8 tensors (3, height, width)."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch.nn import functional as F

from cvpipe.config import AugmentConfig

_PAD_GREY = 114


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8 -> (3, height, width) uint8, bilinear with antialiasing."""
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def fit(image: torch.Tensor, size: tuple[int, int], policy: str, crop_pct: float) -> torch.Tensor:
    """Brings an image to the network's size without randomness.

    Args:
        image: (3, H, W) uint8.
        size: (height, width) to reach.
        policy: crop (the short side fits size / crop_pct, then the centre), stretch, or letterbox.
        crop_pct: share of the resized image that the centre crop keeps.
    """
    height, width = image.shape[1:]
    if policy == "stretch":
        return resize(image, size)
    if policy == "letterbox":
        scale = min(size[0] / height, size[1] / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        canvas = torch.full((size[0], size[1], 3), _PAD_GREY, dtype=torch.uint8).permute(2, 0, 1)
        canvas[:, top : top + inner[0], left : left + inner[1]] = resize(image, inner)
        return canvas
    # cropping first and resizing the crop alone gives the same view and touches fewer pixels
    scale = max(size[0] / height, size[1] / width) / crop_pct
    crop = (max(1, min(height, round(size[0] / scale))), max(1, min(width, round(size[1] / scale))))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return resize(image[:, top : top + crop[0], left : left + crop[1]], size)


class Augment:
    """Random crop, flips, rotation, colour and erasing, decided by one seed an image."""

    def __init__(self, config: AugmentConfig, size: tuple[int, int]) -> None:
        self.config = config
        self.size = size
        self._extra = _torchvision_ops(config)

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """(3, H, W) uint8 -> (3, h, w) uint8 of the network's size."""
        config, rng = self.config, random.Random(seed)
        top, left, height, width = random_crop(image.shape[1], image.shape[2], config, rng)
        image = resize(image[:, top : top + height, left : left + width], self.size)
        flips = [-1] * (rng.random() < config.hflip) + [-2] * (rng.random() < config.vflip)
        if flips:
            image = image.flip(flips)
        if self._extra is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image = self._extra(image)
        return image


def random_crop(height: int, width: int, config: AugmentConfig, rng: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random area and aspect ratio (Szegedy et al., 2015, arXiv:1409.4842)."""
    log_low, log_high = math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(log_low, log_high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    # no such crop fits: the largest centred one whose aspect ratio is allowed
    h, w = height, width
    if width / height > config.crop_ratio[1]:
        w = max(1, round(height * config.crop_ratio[1]))
    elif width / height < config.crop_ratio[0]:
        h = max(1, round(width / config.crop_ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _torchvision_ops(config: AugmentConfig) -> Any:
    """What torchvision does for us, or None where nothing of it is asked for."""
    from torchvision.transforms import v2

    ops: list[Any] = []
    if config.rotate:
        ops.append(v2.RandomRotation(config.rotate, interpolation=v2.InterpolationMode.BILINEAR, fill=_PAD_GREY))
    if config.trivial_augment:
        ops.append(v2.TrivialAugmentWide(fill=[_PAD_GREY] * 3))
    if config.color_jitter:
        ops.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    if config.erase:
        ops.append(v2.RandomErasing(config.erase, value=_PAD_GREY))
    return v2.Compose(ops) if ops else None
