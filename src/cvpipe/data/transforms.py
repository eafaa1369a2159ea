"""Resizing and random augmentation on uint8 tensors (3, height, width)."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch.nn import functional as F

from cvpipe.config import AugmentConfig
from cvpipe.data.jpeg import LazyJpeg

PAD_GREY = 114


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8 -> (3, height, width) uint8, bilinear with antialiasing. A LazyJpeg is decoded to fit."""
    if isinstance(image, LazyJpeg):
        scaled = image.resized(size)
        if scaled is not None:
            return scaled
        image = image.pixels()
    if image.shape[1:] == size:
        return image
    # (1, 3, H, W) made from NHWC: only then torch sees that pixels lie together, and keeps it so. Faster here, and the
    # batch is put together without turning every image around
    pixels = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


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
        canvas = torch.full((size[0], size[1], 3), PAD_GREY, dtype=torch.uint8).permute(2, 0, 1)
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
                # not torch.manual_seed, which seeds all devices: that takes longer than the decoding
                torch.default_generator.manual_seed(seed)
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


class ColorJitter:
    """Brightness, contrast and saturation in random order, each changed by a factor in 1 ± strength.

    The draws and the pixels of torchvision's `v2.ColorJitter`, in half the time: three planes of floats are changed in
    place, where v2 goes to bytes and back for each of the three.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(3, h, w) uint8 -> (3, h, w) uint8"""
        order = torch.randperm(4).tolist()  # the fourth is v2's hue
        factors = [float(torch.empty(1).uniform_(1 - self.strength, 1 + self.strength)) for _ in range(3)]
        planes = image.to(torch.float32, memory_format=torch.contiguous_format)
        for step in order:
            if step == 3:
                continue
            factor = factors[step]
            if step == 0:
                planes.mul_(factor)
            else:
                red, green, blue = planes
                grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
                planes.mul_(factor).add_(grey.mean() if step == 1 else grey, alpha=1 - factor)
            planes.clamp_(0, 255).floor_()
        pixels = torch.empty((*image.shape[1:], 3), dtype=torch.uint8)
        for column, plane in zip(pixels.unbind(2), planes, strict=True):
            column.copy_(plane)  # plane by plane: three times as fast as one copy of all
        return pixels.permute(2, 0, 1)


def _torchvision_ops(config: AugmentConfig) -> Any:
    """What torchvision does for us, or None where nothing of it is asked for."""
    from torchvision.transforms import v2

    ops: list[Any] = []
    if config.rotate:
        ops.append(v2.RandomRotation(config.rotate, interpolation=v2.InterpolationMode.BILINEAR, fill=PAD_GREY))
    if config.trivial_augment:
        ops.append(v2.TrivialAugmentWide(fill=[PAD_GREY] * 3))
    if config.color_jitter:
        ops.append(ColorJitter(config.color_jitter))
    if config.erase:
        ops.append(v2.RandomErasing(config.erase, value=PAD_GREY))
    return v2.Compose(ops) if ops else None
