"""A JPEG decoded small shows what the whole one shows; a lazy tensor behaves like any other."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.config import AugmentConfig
from cvpipe.data.decode import decode, read_image
from cvpipe.data.geometry import fit_geometry
from cvpipe.data.jpeg import LEAST_PIXELS, LazyJpeg, pixels_of, read_frame
from cvpipe.data.transforms import Augment, fit, resize
from cvpipe.errors import ImageError


def photo() -> Image.Image:
    """640x427 pixels, a real one."""
    from sklearn.datasets import load_sample_images

    return Image.fromarray(load_sample_images().images[0])


def encode(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    target = io.BytesIO()
    image.save(target, "JPEG", exif=exif, **({"quality": 92} | options))
    return target.getvalue()


def lazily(data: bytes) -> LazyJpeg:
    frame = read_frame(data)
    assert frame is not None
    return LazyJpeg.of(data, frame)


PHOTO = photo()
TURNED = {orientation: encode(PHOTO, orientation) for orientation in range(1, 9)}


def ramp(width: int, height: int) -> bytes:
    """Brightness says how far right and down a pixel is: a picture that is moved changes its values."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([x, y, (x + y) / 2], axis=2) * 255
    return encode(Image.fromarray(pixels.round().astype(np.uint8)), quality=100, subsampling=0)


# a lazy image is an image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_its_pixels_are_those_of_the_whole_file(orientation: int) -> None:
    data = TURNED[orientation]
    expected = decode(data)
    image = lazily(data)
    assert image.shape == expected.shape
    assert torch.equal(image[:, 10:50, 7:].pixels(), expected[:, 10:50, 7:])
    assert torch.equal(image.pixels(), expected)
    assert torch.equal(image.float(), expected.float())
    assert np.array_equal(np.asarray(lazily(data)), expected.numpy())
    assert torch.equal(torch.stack([lazily(data), lazily(data)])[1], expected)
    assert torch.equal(lazily(data).flip([-1]), expected.flip([-1]))


def test_windows_of_windows_decode_nothing() -> None:
    image = lazily(TURNED[1])
    part = image[:, 20:400, 30:][:, 5:-5, :100]
    assert isinstance(part, LazyJpeg)
    assert part.window == (25, 30, 370, 100)
    assert part.source.whole is None
    assert torch.equal(part.pixels(), decode(TURNED[1])[:, 25:395, 30:130])


@pytest.mark.parametrize(
    "key", [(0,), (slice(None), 5), (slice(None), slice(None, None, 2)), (slice(None), slice(9, 3)), (slice(0, 2),)]
)
def test_other_keys_see_pixels(key: Any) -> None:
    assert torch.equal(pixels_of(lazily(TURNED[6])[key]), decode(TURNED[6])[key])


def test_what_is_written_stays() -> None:
    image = lazily(TURNED[1])
    image[:, :10, :10] = 7
    image.clamp_(max=100)
    expected = decode(TURNED[1])
    expected[:, :10, :10] = 7
    assert torch.equal(image + 0, expected.clamp(max=100))
    assert torch.equal(image[:, 5:20, 5:20].clone(), expected.clamp(max=100)[:, 5:20, 5:20])


# decoded small


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 8),
    st.sampled_from([2, 3, 4, 6, 8, 11]),
    st.tuples(*[st.floats(0, 0.4)] * 4),
    st.booleans(),
)
def test_it_shows_what_the_whole_one_shows(
    orientation: int, factor: int, cut: tuple[float, float, float, float], centre: bool
) -> None:
    whole = decode(TURNED[orientation])
    height, width = whole.shape[1:]
    top, bottom, left, right = (0.0,) * 4 if centre else cut
    rows = slice(int(top * height), height - int(bottom * height))
    columns = slice(int(left * width), width - int(right * width))
    size = ((rows.stop - rows.start) // factor, (columns.stop - columns.start) // factor)
    image = lazily(TURNED[orientation])
    found = resize(image[:, rows, columns], size)
    assert image.source.whole is None, "decoded whole"
    expected = resize(whole[:, rows, columns], size)
    assert found.shape == expected.shape
    assert found.dtype == torch.uint8
    assert float((found.float() - expected.float()).abs().mean()) < 7  # at exactly half of this sharp photo: up to 5


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(256, 192), (253, 187), (249, 190)]),
    st.sampled_from([2, 4, 8]),
    st.tuples(*[st.integers(0, 45)] * 2),
    st.tuples(*[st.integers(100, 140)] * 2),
)
def test_nothing_moves(whole: tuple[int, int], factor: int, corner: tuple[int, int], extent: tuple[int, int]) -> None:
    width, height = whole
    (top, left), (h, w) = corner, extent
    size = (h // factor, w // factor)
    found = resize(lazily(RAMPS[whole])[:, top : top + h, left : left + w], size).float()
    x = (left + (torch.arange(size[1]) + 0.5) * w / size[1]) / width * 255
    y = (top + (torch.arange(size[0]) + 0.5) * h / size[0]) / height * 255
    inside = (slice(2, -2), slice(2, -2))  # at the edges the filter sees one side only
    # a pixel of the file is one level at least, and rounding makes half a level
    assert abs(float((found[0] - x[None, :])[inside].mean())) < 0.75
    assert abs(float((found[1] - y[:, None])[inside].mean())) < 0.75


RAMPS = {(w, h): ramp(w, h) for w, h in [(256, 192), (253, 187), (249, 190)]}


def test_several_windows_share_one_decoding() -> None:
    image = lazily(TURNED[1])
    resize(image, (100, 150))
    resize(image[:, 100:, 100:], (50, 80))
    assert list(image.source._reduced) == [4]


def test_where_half_is_too_small_the_whole_is_decoded() -> None:
    image = lazily(TURNED[1])
    assert image.resized((214, 300)) is None
    assert torch.equal(resize(image, (214, 300)), resize(decode(TURNED[1]), (214, 300)))


def test_grey_and_broken_files() -> None:
    grey = resize(lazily(encode(PHOTO.convert("L"))), (60, 90))
    assert torch.equal(grey[0], grey[2])
    data = encode(PHOTO)
    with suppress(ImageError):  # or libjpeg fills up what is missing; any other exception fails the test
        found = lazily(data[: len(data) // 4] + b"\xff\xd9").resized((50, 50))
        assert found is not None
        assert found.shape == (3, 50, 50)
    with pytest.raises(ImageError, match="broken JPEG"):
        lazily(data[:700]).resized((50, 50))


@pytest.mark.parametrize("policy", ["crop", "stretch", "letterbox"])
def test_transforms_take_lazy_images(policy: str) -> None:
    data = TURNED[6]
    found = fit(lazily(data), (64, 48), policy, 0.875)
    assert type(found) is torch.Tensor
    expected = fit(decode(data), (64, 48), policy, 0.875)
    assert float((found.float() - expected.float()).abs().mean()) < 7
    if policy != "crop":
        placed = fit_geometry((640, 427), (64, 48), policy)
        assert float((placed.image(lazily(data)).float() - placed.image(decode(data)).float()).abs().mean()) < 7
    augment = Augment(AugmentConfig(color_jitter=0), (64, 48))
    for seed in range(3):
        difference = augment(lazily(data), seed).float() - augment(decode(data), seed).float()
        assert float(difference.abs().mean()) < 7


def test_only_large_jpegs_are_lazy(tmp_path: Path) -> None:
    large = Image.new("RGB", (1250, LEAST_PIXELS // 1250), "green")
    small = large.crop((0, 0, 1249, 800))
    large.save(tmp_path / "large.jpg")
    large.save(tmp_path / "large.png")
    small.save(tmp_path / "small.jpg")
    kinds = {path.name: type(read_image(path, lazy=True)) is LazyJpeg for path in tmp_path.iterdir()}
    assert kinds == {"large.jpg": True, "large.png": False, "small.jpg": False}
    assert type(read_image(tmp_path / "large.jpg")) is torch.Tensor
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(tmp_path / "large.jpg", max_pixels=10_000, lazy=True)
