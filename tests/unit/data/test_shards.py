"""Shard files give back what was put in, at random; the shares of readers are the whole, once."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.data.packed import shards
from cvpipe.data.packed.codec import Layout
from cvpipe.data.packed.index import Index, SplitFiles
from cvpipe.data.packed.shards import ShardInfo, ShardWriter, read_cell, read_rows
from cvpipe.data.packed.shrink import Shrink
from cvpipe.errors import DataError, ImageError
from cvpipe.types import Labels
from cvpipe.utils.filesystem import sha256_of

SCHEMA = pa.schema([("path", pa.string()), ("content", pa.binary()), ("mask", pa.binary())])


def write(path: Path, rows: list[dict[str, Any]]) -> ShardInfo:
    with ShardWriter(path, SCHEMA) as writer:
        for row in rows:
            writer.add(row)
        return writer.close()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=40)), max_size=30),
    st.integers(1, 9),
)
def test_any_rows_come_back(values: list[tuple[bytes | None, bytes | None]], batch: int) -> None:
    rows = [{"path": str(i), "content": content, "mask": mask} for i, (content, mask) in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_ROWS", batch)
        path = Path(folder) / "x.arrow"
        info = write(path, rows)
        assert info == ShardInfo("x.arrow", len(rows), path.stat().st_size, sha256_of(path))
        assert read_rows(path, ["path"]) == [{"path": row["path"]} for row in rows]
        for i, row in reversed(list(enumerate(rows))):
            for column in ("content", "mask"):
                if row[column] is None:
                    with pytest.raises(ImageError, match=f"row {i} has no {column}"):
                        read_cell(str(path), i, column)
                else:
                    assert read_cell(str(path), i, column) == row[column]
        with pytest.raises(ImageError, match="does not exist"):
            read_cell(str(path), len(rows), "content")


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [{"path": str(i), "content": noise.bytes(5000 + i)} for i in range(200)]
    write(tmp_path / "x.arrow", rows)
    wanted = [int(i) for i in noise.integers(0, 200, 2000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read_cell(str(tmp_path / "x.arrow"), i, "content"), wanted))
    assert found == [rows[i]["content"] for i in wanted]


@pytest.mark.parametrize("keep", [0, 7, 1000, 30_000])
def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.arrow"
    write(path, [{"path": "a", "content": b"x" * 20_000}] * 3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImageError, match=r"x\.arrow: can't read the shard"):
        read_cell(str(path), 0, "content")
    with pytest.raises(DataError, match=r"x\.arrow: not a readable shard"):
        read_rows(path, ["path"])


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write(path, [{"path": "a", "content": b"x" * 20_000}] * 3)
    assert len(read_cell(str(path), 0, "content")) == 20_000
    with path.open("r+b") as file:
        file.truncate(30_000)
    with pytest.raises(ImageError, match="is cut off: row 2"):
        read_cell(str(path), 2, "content")


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowTypeError):
        write(tmp_path / "x.arrow", [{"path": "a", "content": b"x", "mask": ["no bytes"]}])
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 5), st.integers(1, 4))
def test_shares_are_the_whole_once(counts: list[int], ranks: int, workers: int) -> None:
    files = tuple(ShardInfo(f"{i}.arrow", rows, 0, "") for i, rows in enumerate(counts))
    index = Index(
        "classification", Labels(("a",)), Layout("class"), "x", "x", None, False, Shrink(), {"train": SplitFiles(files)}
    )
    shares = [index.share("train", r, ranks, w, workers) for r in range(ranks) for w in range(workers)]
    rows = [(part.file, row) for share in shares for part in share for row in range(part.start, part.stop)]
    assert rows == [(info.file, row) for info in files for row in range(info.rows)]
    sizes = [sum(part.stop - part.start for part in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="rank"):
        index.share("train", ranks, ranks)
