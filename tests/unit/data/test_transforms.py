"""Resizing agrees with Pillow and torchvision; augmentation stays inside the image and depends on its seed only."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.config import AugmentConfig
from cvpipe.data.transforms import Augment, fit, random_crop, resize

sides = st.integers(1, 300)


def smooth(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return (torch.stack([x, y, (x - y).abs()]) * 255).round().to(torch.uint8)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    assert one.shape == other.shape
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize("shape", [(100, 150), (31, 17), (64, 64), (500, 40)])
def test_resize_equals_pillow(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 40), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    assert int(difference(resize(image, (40, 48)), expected).max()) <= 2


@pytest.mark.parametrize("shape", [(100, 150), (150, 100), (64, 64), (40, 30), (301, 299)])
def test_crop_is_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    image = smooth(*shape)
    expected = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])(image)
    found = fit(image, (56, 56), "crop", 0.875)
    assert float(difference(found, expected).float().mean()) < 3
    assert int(difference(found, expected)[:, 4:-4, 4:-4].max()) <= 6


def test_stretch_is_resize() -> None:
    image = noise(30, 70)
    assert torch.equal(fit(image, (32, 48), "stretch", 0.5), resize(image, (32, 48)))


@pytest.mark.parametrize(("shape", "inner"), [((50, 100), (32, 64)), ((100, 50), (64, 32)), ((80, 80), (64, 64))])
def test_letterbox_keeps_everything_and_pads_with_grey(shape: tuple[int, int], inner: tuple[int, int]) -> None:
    image = noise(*shape)
    found = fit(image, (64, 64), "letterbox", 0.875)
    top, left = (64 - inner[0]) // 2, (64 - inner[1]) // 2
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[top : top + inner[0], left : left + inner[1]] = True
    assert torch.equal(found[:, inside], resize(image, inner).flatten(1))
    assert (found[:, ~inside] == 114).all()


@settings(deadline=None, max_examples=150)
@given(sides, sides, st.integers(8, 96), st.integers(8, 96), st.sampled_from(["crop", "stretch", "letterbox"]),
       st.floats(0.05, 1))  # fmt: skip
def test_any_image_fits(height: int, width: int, h: int, w: int, policy: str, crop_pct: float) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    found = fit(image, (h, w), policy, crop_pct)
    assert found.shape == (3, h, w)
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) <= ({77, 114} if policy == "letterbox" else {77})


def test_a_long_thin_image_and_a_size_that_is_long_the_other_way() -> None:
    assert fit(noise(1000, 10), (8, 512), "crop", 0.875).shape == (3, 8, 512)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = noise(40, 40)
    assert resize(image, (40, 40)) is image
    assert torch.equal(fit(image, (40, 40), "crop", 1.0), image)
    assert torch.equal(fit(image, (40, 40), "letterbox", 1.0), image)


@given(sides, sides, st.integers(0, 2**62), st.floats(0.01, 1), st.floats(0.2, 1))
def test_the_random_crop_is_inside(height: int, width: int, seed: int, low: float, ratio: float) -> None:
    config = AugmentConfig(crop_scale=(low, 1.0), crop_ratio=(ratio, 1 / ratio))
    top, left, h, w = random_crop(height, width, config, random.Random(seed))
    assert h >= 1
    assert w >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w


def test_crops_have_the_area_and_ratio_asked_for() -> None:
    config = AugmentConfig(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0))
    rng = random.Random(0)
    crops = [random_crop(400, 400, config, rng) for _ in range(300)]
    areas = [h * w / 160_000 for _, _, h, w in crops]
    ratios = [w / h for _, _, h, w in crops]
    assert 0.29 < min(areas) < 0.35
    assert 0.55 < max(areas) < 0.61
    assert 0.48 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.05
    assert len({(top, left) for top, left, _, _ in crops}) > 200


@pytest.mark.parametrize(("shape", "expected"), [((10, 100), (10, 13)), ((100, 10), (13, 10))])
def test_where_no_crop_fits_the_centre_is_taken(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    config = AugmentConfig(crop_scale=(1.0, 1.0))
    top, left, h, w = random_crop(*shape, config, random.Random(0))
    assert (h, w) == expected
    assert (top, left) == ((shape[0] - h) // 2, (shape[1] - w) // 2)


EVERYTHING: dict[str, Any] = {
    "hflip": 0.5, "vflip": 0.5, "rotate": 20, "color_jitter": 0.4, "trivial_augment": True, "erase": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_augmentation_depends_on_its_seed_only(options: dict[str, Any]) -> None:
    augment = Augment(AugmentConfig(**options), (32, 32))
    image = noise(50, 60)
    before = torch.get_rng_state()
    first = [augment(image, seed) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    torch.manual_seed(123)
    random.seed(5)
    again = [augment(image, seed) for seed in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(found.shape == (3, 32, 32) and found.dtype == torch.uint8 for found in first)
    assert len({found.numpy().tobytes() for found in first}) == 8


def test_flips() -> None:
    still: dict[str, Any] = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "color_jitter": 0}
    image = noise(32, 32)
    for (h, v), expected in {
        (0, 0): image,
        (1, 0): image.flip(-1),
        (0, 1): image.flip(-2),
        (1, 1): image.flip(-1, -2),
    }.items():
        assert torch.equal(Augment(AugmentConfig(hflip=h, vflip=v, **still), (32, 32))(image, 7), expected)


@pytest.mark.parametrize("name", ["rotate", "color_jitter", "erase", "trivial_augment"])
def test_each_operation_does_something(name: str) -> None:
    value = {"rotate": 45, "color_jitter": 0.5, "erase": 1, "trivial_augment": True}[name]
    options: dict[str, Any] = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "hflip": 0, "color_jitter": 0} | {
        name: value
    }
    image = smooth(32, 32)
    augment = Augment(AugmentConfig(**options), (32, 32))
    changed = [not torch.equal(augment(image, seed), image) for seed in range(10)]
    assert sum(changed) >= 5


def test_augmentation_can_be_pickled() -> None:
    # spawned loader workers need it
    import pickle

    augment = Augment(AugmentConfig(**EVERYTHING), (32, 32))
    again = pickle.loads(pickle.dumps(augment))
    assert torch.equal(again(noise(40, 40), 3), augment(noise(40, 40), 3))
