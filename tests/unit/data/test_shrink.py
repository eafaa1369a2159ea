"""Smaller images: boxes, points and masks stay on what they show; nothing grows; untouched files are copied."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_sets import config_of, example, pack, photo, read
from PIL import Image

from cvpipe.data.decode import read_image
from cvpipe.data.packed.shrink import Shrink, scaled_map, scaled_target, whole
from cvpipe.data.store import read_bytes
from cvpipe.data.targets import Objects, decode_rle, encode_rle

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(SIZES, st.none() | st.integers(8, 4000), st.none() | st.integers(8, 4000))
def test_sizes_keep_their_shape_and_never_grow(
    size: tuple[int, int], longest: int | None, shortest: int | None
) -> None:
    found = Shrink(longest, shortest).size(size)
    assert found[0] <= size[0]
    assert found[1] <= size[1]
    if longest:
        assert max(found) <= longest
    if shortest:
        assert min(found) <= shortest
    scale = max(found) / max(size)
    assert min(found) == pytest.approx(max(1, min(size) * scale), abs=1)
    if not (longest and max(size) > longest) and not (shortest and min(size) > shortest):
        assert found == size


def test_files_are_copied_byte_for_byte_where_nothing_changes(tmp_path: Path) -> None:
    for i, name in enumerate(["a/1.jpg", "b/2.jpg", "a/3.png", "b/4.webp", "a/5.jpg", "b/6.jpg"]):
        photo(tmp_path / "in" / name, i)
    config = config_of(tmp_path / "in")
    files = {path.name: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}
    for number, shrink in enumerate([Shrink(), Shrink(max_side=24), Shrink(short_side=100)]):
        pack(config, tmp_path / str(number), shrink)
        splits = read(config_of(tmp_path / str(number)))
        assert {Path(path).name: read_bytes(path) for split in splits.all() for path in split.paths} == files


@pytest.mark.parametrize(
    ("shrink", "formats"),
    [
        (Shrink(max_side=12), {"jpg": "JPEG", "png": "PNG"}),
        (Shrink(max_side=12, jpeg=True), {"jpg": "JPEG", "png": "JPEG"}),
        (Shrink(quality=20), {"jpg": "JPEG", "png": "PNG"}),
        (Shrink(quality=20, jpeg=True), {"jpg": "JPEG", "png": "JPEG"}),
    ],
)
def test_formats(shrink: Shrink, formats: dict[str, str], tmp_path: Path) -> None:
    for i in range(8):
        photo(tmp_path / "in" / "ab"[i % 2] / f"{i}.{'jpg' if i < 4 else 'png'}", i)
    pack(config_of(tmp_path / "in"), tmp_path / "out", shrink)
    for split in read(config_of(tmp_path / "out")).all():
        for path in split.paths:
            with Image.open(io.BytesIO(read_bytes(path))) as image:
                assert image.format == formats[path[-3:]]
                assert max(image.size) == (12 if shrink.max_side else 24)
            if shrink.quality and image.format == "JPEG":
                name = f"{path.split('/')[-2]}/{path.split('/')[-1]}"
                assert len(read_bytes(path)) < (tmp_path / "in" / name).stat().st_size


def test_pixels_are_those_of_the_decoded_image_scaled(tmp_path: Path) -> None:
    """A photo that lies on its side by EXIF stands upright when packed, and PNG holds it exactly."""
    from cvpipe.data.transforms import resize

    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(6):
        photo(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", i, (40, 20), exif=exif)
    pack(config_of(tmp_path / "in"), tmp_path / "out", Shrink(max_side=20))
    for path in read(config_of(tmp_path / "out")).train.paths:
        original = read_image(tmp_path / "in" / "/".join(path.split("/")[-2:]))
        assert original.shape == (3, 40, 20)
        np.testing.assert_array_equal(read_image(path).numpy(), resize(original, (20, 10)).numpy())


def test_objects_move_with_the_pixels() -> None:
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 1
    polygon = np.array([[20, 10], [60, 10], [60, 30], [20, 30]], np.float32)
    target = Objects(
        boxes=np.array([[20, 10, 60, 30]] * 2, np.float32),
        labels=np.zeros(2, np.int64),
        crowd=np.zeros(2, np.bool_),
        areas=np.array([800, 800], np.float32),
        masks=(encode_rle(mask), (polygon,)),
        points=np.array([[[20, 10, 2], [0, 0, 0]]] * 2, np.float32),
    )
    found = scaled_target(target, whole((40, 80), (20, 40)))
    np.testing.assert_array_equal(found.boxes, target.boxes / 2)
    np.testing.assert_array_equal(found.areas, [200, 200])
    np.testing.assert_array_equal(found.points, [[[10, 5, 2], [0, 0, 0]]] * 2)
    assert found.masks is not None
    np.testing.assert_array_equal(decode_rle(found.masks[0]), mask[::2, ::2])
    np.testing.assert_array_equal(found.masks[1][0], polygon / 2)


@pytest.mark.parametrize(("shape", "top"), [((8, 12), 250), ((8, 12), 60_000), ((8, 12, 3), 250)])
def test_maps_keep_their_values(shape: tuple[int, ...], top: int) -> None:
    values = np.random.default_rng(0).integers(0, top, shape).astype(np.uint16)
    with Image.open(io.BytesIO(scaled_map(values, whole((8, 12), (4, 6))))) as image:
        found = np.asarray(image)
    assert found.shape[:2] == (4, 6)
    assert set(found.reshape(-1).tolist()) <= set(values.reshape(-1).tolist())


@pytest.mark.parametrize("task", ["semantic_segmentation", "anomaly", "detection"])
def test_every_target_fits_its_smaller_image(task: str, tmp_path: Path) -> None:
    config = example(task, tmp_path / "data")
    pack(config, tmp_path / "out", Shrink(max_side=40))
    packed = config.replace(**{"data.train": str(tmp_path / "out"), "data.val": None, "data.test": None})
    for split in read(packed).all():
        for path, target in zip(split.paths, split.targets, strict=True):
            height, width = read_image(path).shape[1:]
            assert max(height, width) <= 40
            if task == "semantic_segmentation":
                assert target.load().shape == (height, width)
            elif task == "detection":
                assert (target.boxes <= np.array([width, height] * 2) + 1e-3).all()
            elif target.mask is not None:
                with Image.open(io.BytesIO(read_bytes(target.mask))) as mask:
                    assert mask.size == (width, height)
