"""Broken files are found before training, listed, and limited."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvpipe.data.decode import read_image
from cvpipe.data.splits import BadFile, Split, Splits
from cvpipe.data.verify import check_file, drop_bad_files, find_bad_files
from cvpipe.errors import DataError, ImageError
from cvpipe.types import Labels

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_whole_and_cut_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(kind))
    assert check_file(str(path)) is None
    path.write_bytes(encoded(kind)[:-2000])
    assert check_file(str(path)), "cut off in the middle"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_behind_the_end_do_no_harm(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(kind) + b"\0" * 300)
    assert check_file(str(path)) is None


@pytest.mark.parametrize("size", [2, 20, 40, 60, 64, 100, 200, 700])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_very_short_files(tmp_path: Path, kind: str, size: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(kind)[:size])
    assert check_file(str(path))


def test_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello " * 100)
    (tmp_path / "folder.jpg").mkdir()
    assert check_file(str(tmp_path / "empty.jpg")) == "the file is empty"
    assert check_file(str(tmp_path / "text.jpg")) == "not an image file (no known format)"
    assert "No such file" in str(check_file(str(tmp_path / "none.jpg")))
    assert "directory" in str(check_file(str(tmp_path / "folder.jpg")))


@pytest.mark.parametrize("cut", [10, 100, 1000, 5000])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_passes_can_be_decoded(tmp_path: Path, kind: str, cut: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(kind)[:-cut])
    if check_file(str(path)) is None:
        read_image(path)
    else:
        with pytest.raises(ImageError):
            read_image(path)


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    """20 training files of which 3 are broken, 5 validation files of which 1 is."""
    paths = [tmp_path / f"{i:02d}.png" for i in range(25)]
    for i, path in enumerate(paths):
        path.write_bytes(b"x" if i in (2, 7, 11, 22) else encoded("PNG"))
    names = tuple(map(str, paths))
    train, val = Split("train", names[:20], tuple(range(20))), Split("val", names[20:], tuple(range(5)))
    return Splits(train, val, None, Labels(("a",)), "x", bad=(BadFile("train", "notes.txt", "by name"),))


def test_found_in_order(splits: Splits) -> None:
    found = find_bad_files(splits.all())
    assert [(f.split, Path(f.path).name) for f in found] == [
        ("train", "02.png"), ("train", "07.png"), ("train", "11.png"), ("val", "22.png"),
    ]  # fmt: skip


def test_dropped_and_listed(splits: Splits, tmp_path: Path) -> None:
    report = tmp_path / "out" / "bad_files.csv"
    clean = drop_bad_files(splits, 0.5, report)
    assert (len(clean.train), len(clean.val), len(clean.bad)) == (17, 4, 5)
    assert clean.train.targets == tuple(i for i in range(20) if i not in (2, 7, 11))
    rows = list(csv.DictReader(report.open()))
    assert len(rows) == 5
    assert rows[0] == {"split": "train", "path": "notes.txt", "reason": "by name"}
    assert rows[-1]["split"] == "val"
    assert rows[-1]["reason"] == "not an image file (no known format)"


def test_the_limit(splits: Splits, tmp_path: Path) -> None:
    report = tmp_path / "bad_files.csv"
    with pytest.raises(DataError) as caught:
        drop_bad_files(splits, 0.1, report)
    text = str(caught.value)
    assert text.startswith("5 of 26 files can't be read as images, more than data.max_bad_fraction = 0.1 allows.")
    assert "notes.txt: by name" in text
    assert str(report) in text
    assert report.is_file(), "the list is there when training stops"
    assert len(drop_bad_files(splits, 5 / 26, report).bad) == 5, "the limit itself is allowed"


def test_good_data_writes_no_report(splits: Splits, tmp_path: Path) -> None:
    good = Splits(splits.train.select([0, 1]), splits.val.select([0]), None, splits.labels, "x")
    assert drop_bad_files(good, 0.0, tmp_path / "bad.csv") == good
    assert not (tmp_path / "bad.csv").exists()
