"""What is seen of one file, compared with the decoder of training and with scipy's transform."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from planted import pieces

from cvpipe.checks.hashes import normalised, perceptual_hashes, signs
from cvpipe.checks.look import Look, look_at, plain_features
from cvpipe.data.decode import read_image
from cvpipe.errors import ImageError


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def grey(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32)).astype(np.uint8)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_hash_is_that_of_scipys_transform(seed: int) -> None:
    from scipy.fft import dctn

    images = grey(seed, 3)
    wanted = []
    for image in images:
        low = dctn(image.astype(np.float64), type=2)[:8, :8].reshape(-1)
        wanted.append(int("".join("1" if value > np.median(low) else "0" for value in low), 2))
    # a value that equals the median but for rounding may fall on either side
    for found, bits in zip(perceptual_hashes(images).tolist(), wanted, strict=True):
        assert bin(found ^ bits).count("1") <= 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_products_count_the_bits_that_differ(seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**63, 6).astype(np.uint64) * np.uint64(2)
    products = signs(hashes) @ signs(hashes).T
    for i, a in enumerate(hashes.tolist()):
        for j, b in enumerate(hashes.tolist()):
            assert products[i, j] == 64 - 2 * bin(a ^ b).count("1")


def test_correlation_is_numpys() -> None:
    flat = grey(0, 4).reshape(4, -1)
    found = normalised(flat) @ normalised(flat).T
    assert np.allclose(found, np.corrcoef(flat), atol=1e-5)
    assert not normalised(np.full((1, 1024), 7, np.uint8)).any()


@given(st.sampled_from(["JPEG", "PNG", "BMP", "GIF"]), st.floats(0, 1), st.booleans())
@settings(max_examples=60)
def test_the_verdict_is_that_of_training(form: str, share: float, cut: bool) -> None:
    """Whether a file can be decoded, wherever it is cut off or a byte is changed."""
    data = encoded(pieces()[3], form)
    place = int(share * (len(data) - 1))
    data = data[:place] if cut else data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    try:
        wanted = read_image(data)
        reason = ""
    except ImageError as error:
        wanted, reason = None, str(error)
    look = seen(data)
    assert look.reason == reason
    if wanted is not None:
        assert (look.height, look.width) == tuple(wanted.shape[1:])


def seen(data: bytes) -> Look:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(data)
        (look,) = look_at([str(file)], "none")
    return look


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_sizes_are_upright(mode: str, turn: int, tmp_path: Path) -> None:
    form = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    image = pieces()[0].crop((0, 0, 90, 60))
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{form.lower()}"
    image.save(path, form, exif=exif)
    (look,) = look_at([str(path)], "plain")
    pixels = read_image(path)
    assert (look.height, look.width) == tuple(pixels.shape[1:]) == ((90, 60) if turn == 6 else (60, 90))
    assert (look.mode, look.orientation, look.format) == (mode, turn, form)
    assert abs(look.mean - float(pixels.float().mean())) < 6
    assert len(look.thumbnail) == 1024
    assert len(look.features) == 384 * 2


def test_numbers_do_not_depend_on_the_camera(tmp_path: Path) -> None:
    """The same picture of 0.6 and of 10 megapixels."""
    photo = Image.fromarray(np.tile(np.asarray(pieces()[1]), (8, 8, 1)))
    small, large = str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")
    photo.save(small, quality=95)
    photo.resize((3360, 3360), Image.Resampling.LANCZOS).save(large, quality=95)
    one, other = look_at([small, large], "plain")
    assert (one.width, other.width) == (840, 3360)
    assert abs(one.mean - other.mean) < 2
    assert abs(one.contrast - other.contrast) < 3
    features = [np.frombuffer(look.features, np.float16).astype(float) for look in (one, other)]
    assert features[0] @ features[1] > 0.98


def test_plain_features_tell_colours_and_edges_apart() -> None:
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    bars = np.zeros((32, 32, 3), np.uint8)
    bars[::4] = 255
    found = plain_features(np.stack([red, blue, bars, bars.transpose(1, 0, 2)]))
    assert found.shape == (4, 384)
    assert np.isfinite(found).all()
    length = np.linalg.norm(found, axis=1, keepdims=True)
    cosine = (found / length) @ (found / length).T
    assert cosine[0, 1] < 0.7
    assert cosine[2, 3] < 0.9


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("missing.jpg", "empty.jpg", "text.jpg")]
    reasons = [look.reason for look in look_at(paths, "none")]
    assert "No such file" in reasons[0]
    assert reasons[1:] == ["the file is empty", "not an image file (no known format)"]
