"""Addresses: paths of files, and cells of shards that read like paths."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.data.packed.shards import ShardWriter
from cvpipe.data.store import Cell, open_bytes, parse_cell, read_bytes
from cvpipe.errors import ImageError

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(NAMES, st.integers(0, 10**9), st.sampled_from(["content", "mask"]), NAMES)
def test_what_an_address_says_is_what_was_put_in(folder: str, row: int, column: str, name: str) -> None:
    if ".arrow::" in f"{folder}/x.arrow::":
        folder = folder.replace(".arrow::", "")
    cell = Cell(f"{folder}/x.arrow", row, column, name)
    assert parse_cell(cell.address) == cell
    assert parse_cell(Path(cell.address).as_posix()) is not None


@given(NAMES)
def test_other_texts_are_paths(path: str) -> None:
    if ".arrow::" not in path:
        assert parse_cell(path) is None


@pytest.mark.parametrize("path", ["a.arrow", "a.arrow::x", "a.arrow::", "a.arrow::1:", "a::3/b.jpg", "a.arrow::-1/b"])
def test_near_misses_are_paths(path: str) -> None:
    assert parse_cell(path) is None


def test_an_address_ends_as_the_path_did() -> None:
    assert Path(Cell("d/x.arrow", 3, name="train/cat/a.jpg").address).name == "a.jpg"
    assert Path(Cell("d/x.arrow", 3, "mask", "a.png").address).name == "a.png"


def test_files_and_cells_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    schema = pa.schema([("content", pa.binary()), ("mask", pa.binary())])
    with ShardWriter(tmp_path / "x.arrow", schema) as writer:
        writer.add({"content": b"image", "mask": b"mask"})
        writer.close()
    for address in (str(tmp_path / "a.jpg"), tmp_path / "a.jpg", Cell(str(tmp_path / "x.arrow"), 0).address):
        assert read_bytes(address) == b"image"
        with open_bytes(address) as file:
            file.seek(2)
            assert file.read() == b"age"
    assert read_bytes(Cell(str(tmp_path / "x.arrow"), 0, "mask").address) == b"mask"


@pytest.mark.parametrize("address", ["no/such.jpg", "a\0b.jpg", "no/such.arrow::0/a.jpg", "."])
def test_what_is_not_there_is_an_error_of_one_image(address: str) -> None:
    with pytest.raises(ImageError, match="can't read"):
        read_bytes(address)
