"""Every kind of file becomes upright RGB, or an ImageError that says why not."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from cvpipe.data.decode import decode, read_image
from cvpipe.errors import ImageError


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, and different in each corner and channel, so that no flip or swap goes unseen."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=2)
    return Image.fromarray(pixels.round().astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    assert tensor.dtype == torch.uint8
    assert tensor.ndim == 3
    assert tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy()


def distance(tensor: torch.Tensor, image: Image.Image) -> float:
    """Mean difference in grey levels."""
    expected = np.asarray(image.convert("RGB")).astype(float)
    found = as_array(tensor).astype(float)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 1.0), ("PNG", 0.0)])
def test_exif_orientation_is_applied(kind: str, tolerance: float, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert distance(decode(data), upright) <= tolerance


def test_broken_exif_leaves_the_pixels_usable() -> None:
    data = encode(picture(), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f\x01\x02")
    assert distance(decode(data), picture()) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_jpeg_is_within_a_few_grey_levels_of_pillow(options: dict[str, Any]) -> None:
    data = encode(picture(67, 45), "JPEG", quality=90, **options)
    found = as_array(decode(data)).astype(int)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(found - expected).max() <= 4


def test_grey_jpeg_has_three_equal_channels() -> None:
    found = decode(encode(picture().convert("L"), "JPEG", quality=95))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert distance(found, picture().convert("L")) < 2


def test_cmyk_jpeg_has_the_colours_of_pillow() -> None:
    data = encode(picture().convert("CMYK"), "JPEG", quality=95)
    assert distance(decode(data), Image.open(io.BytesIO(data))) == 0
    assert distance(decode(data), picture()) < 6


@pytest.mark.parametrize(("mode", "tolerance"), [("L", 0), ("P", 0), ("1", 0), ("RGB", 0)])
def test_png_modes_equal_pillow(mode: str, tolerance: float) -> None:
    image = picture().convert(mode)
    assert distance(decode(encode(image, "PNG")), image) == tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = picture().convert(mode)
    alpha = np.full((24, 40), 255, np.uint8)
    alpha[:, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    found = as_array(decode(encode(image, "PNG")))
    assert (found[:, :20] == 255).all()
    assert np.array_equal(found[:, 20:], np.asarray(picture().convert(mode[:-1]).convert("RGB"))[:, 20:])


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    found = as_array(decode(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")))
    assert np.abs(found.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(kind: str) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    found = as_array(decode(encode(image, kind, transparency=0)))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == (0, 0, 255)).all()


def test_transparent_colour_of_an_rgb_png() -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.putpixel((0, 0), (1, 2, 3))
    found = as_array(decode(encode(image, "PNG", transparency=(10, 20, 30))))
    assert tuple(found[0, 0]) == (1, 2, 3)
    assert (found[1:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    found = as_array(decode(encode(Image.fromarray(ramp), kind)))
    assert np.array_equal(found[:, :, 0], (ramp // 257).astype(np.uint8))
    assert found.min() == 0
    assert found.max() == 255


def test_16_bit_grey_with_a_transparent_colour() -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    data = encode(Image.fromarray(ramp), "PNG")
    # a tRNS chunk (here: grey level 0) before IDAT
    chunk = b"tRNS" + struct.pack(">H", 0)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    where = data.index(b"IDAT") - 4
    found = as_array(decode(data[:where] + chunk + data[where:]))
    assert np.array_equal(found[:, :, 0], (ramp // 257).astype(np.uint8))


def test_float_tiff_in_0_to_1_is_scaled_and_others_are_refused() -> None:
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(
        as_array(decode(encode(Image.fromarray(grey), "TIFF")))[:, :, 0], (grey * 255 + 0.5).astype(np.uint8)
    )
    with pytest.raises(ImageError, match=r"not in 0\.\.1"):
        decode(encode(Image.fromarray(grey * 300), "TIFF"))


def test_32_bit_integers_are_refused() -> None:
    with pytest.raises(ImageError, match="32-bit"):
        read_image(Image.fromarray(np.full((4, 4), 1_000_000, np.int32)))


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_other_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = picture().quantize(64).convert("RGB") if kind == "GIF" else picture()
    assert distance(decode(encode(image, kind, **options)), image) < (2 if kind == "GIF" else 1e-9)


def test_lab_and_ycbcr_become_rgb() -> None:
    assert distance(read_image(picture().convert("YCbCr")), picture()) < 2
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(picture(), to_lab)
    assert lab is not None
    assert as_array(read_image(lab)).shape == (24, 40, 3)


# what can't be an image


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


def test_a_truncated_jpeg_whose_thumbnail_is_whole_is_refused() -> None:
    thumbnail = encode(picture(8, 8), "JPEG")
    exif = Image.Exif()
    exif[0x010E] = "x"
    whole = encode(picture(64, 64), "JPEG", exif=exif, comment=thumbnail)
    assert thumbnail in whole
    with pytest.raises(ImageError):
        decode(whole[: whole.index(thumbnail) + len(thumbnail) + 700][:-100])


def test_a_jpeg_without_its_end_marker_is_refused_or_whole() -> None:
    data = encode(picture(64, 64), "JPEG", quality=95)
    try:
        found = decode(data[:-2])
    except ImageError:
        return
    assert distance(found, Image.open(io.BytesIO(data))) < 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n", "not an image"),
        (b"hello, world" * 20, "not an image"),
        (b"%PDF-1.7 " * 50, "not an image"),
        (b"\xff\xd8", "not an image|broken"),
        (b"\xff\xd8\xff\xd9" * 20, "not an image|broken"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an image|broken"),
    ],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_more_pixels_than_allowed(kind: str) -> None:
    data = encode(Image.new("RGB", (100, 50)), kind)
    assert decode(data, max_pixels=5000).shape == (3, 50, 100)
    with pytest.raises(ImageError, match="100x50 pixels are more than the limit of 4999"):
        decode(data, max_pixels=4999)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(ImageError, match=r"pixels|bomb"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e")


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
)
def test_any_bytes_give_pixels_or_an_image_error(tail: bytes, head: bytes) -> None:
    with suppress(ImageError):  # any other exception fails the test
        as_array(decode(head + tail))


_JPEG = encode(picture(), "JPEG")


@settings(max_examples=150, deadline=None)
@given(st.integers(2, len(_JPEG) - 1), st.integers(0, 255))
def test_a_flipped_byte_gives_pixels_or_an_image_error(position: int, value: int) -> None:
    data = bytearray(_JPEG)
    data[position] = value
    with suppress(ImageError):  # any other exception fails the test
        as_array(decode(bytes(data), max_pixels=10_000_000))


# the forms an image comes in


def test_all_forms_of_one_image_are_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    expected = as_array(read_image(path))
    pixels = np.asarray(picture())
    forms: list[Any] = [
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        picture(),
    ]
    for form in forms:
        assert np.array_equal(as_array(read_image(form)), expected)


def test_a_grey_array_becomes_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(as_array(read_image(grey))[:, :, 2], grey)


def test_an_array_is_copied() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    found = read_image(pixels)
    pixels[:] = 9
    assert int(found.max()) == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((3, 4, 4), np.uint8), "height, width, 3"),
        (np.zeros((0, 4, 3), np.uint8), "the image is empty"),
        (np.zeros((4, 4, 4), np.uint8), "height, width, 3"),
        (torch.zeros(3, 4, 4), "float32"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), "the image is empty"),
        (42, "found int"),
        (None, "found NoneType"),
        ("/no/such/file.jpg", "No such file"),
        ("a\0b.jpg", "can't read the file"),
        ("/", "can't read the file"),
    ],
)
def test_what_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(image)


def test_memory_is_laid_out_as_channels_last() -> None:
    for data in (encode(picture(), "JPEG"), encode(picture(), "PNG")):
        assert decode(data).permute(1, 2, 0).is_contiguous()
