"""Shard files: Arrow IPC files of image rows, written whole, read at random.

Images are read with `pread` at offsets that are worked out once for each file. So any number of threads and processes
read at the same time, pages of the file do not count as memory of a worker, and a file that is cut off gives an error
for an image, where a memory map would end the process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.errors import DataError, ImageError
from cvpipe.utils.filesystem import place, sha256_of, staging_path

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 8 << 20
"""Images of about so many bytes make a record batch."""
BATCH_ROWS = 256
BINARY = ("content", "mask")
"""Columns that hold encoded images."""
_OPEN_FILES = 256

Ints = npt.NDArray[np.int64]


class ShardInfo(NamedTuple):
    """A finished file, as the index lists it."""

    file: str
    rows: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes rows into one file, which appears whole when it is closed. A context: an error leaves no file.

    Args:
        path: the file to be.
        schema: of the rows.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self.path, self.schema = path, schema
        self.rows = 0
        self._staged = staging_path(path)
        self._writer: Any = pa.ipc.new_file(str(self._staged), schema)
        self._waiting: list[Mapping[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._writer.close()
            self._staged.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(row)
        self._bytes += sum(len(row[name]) for name in BINARY if row.get(name) is not None)
        if self._bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_ROWS:
            self._flush()

    def close(self) -> ShardInfo:
        """Puts the file in its place."""
        self._flush()
        self._writer.close()
        info = ShardInfo(self.path.name, self.rows, self._staged.stat().st_size, sha256_of(self._staged))
        place(self._staged, self.path)
        self._staged.unlink(missing_ok=True)
        return info

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self.schema))
            self.rows += len(self._waiting)
            self._waiting, self._bytes = [], 0


def read_cell(file: str, row: int, column: str) -> bytes:
    """One encoded image. Raises ImageError."""
    try:
        shard = _open(file, column)
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"{file}: can't read the shard: {getattr(error, 'strerror', None) or error}") from None
    return shard.read(row)


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of all rows, without touching the others. Raises DataError."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            names = pa.ipc.open_file(source).schema.names
            options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
            table = pa.ipc.open_file(source, options=options).read_all()
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable shard: {_first_line(error)}. Prepare the data again.") from None


class _Column:
    """Where each value of a binary column lies in a file.

    Attributes:
        starts, lengths: (rows,) bytes; a length of -1: there is none.
    """

    def __init__(self, file: str, column: str) -> None:
        import pyarrow as pa

        self.file, self.column = file, column
        starts: list[Ints] = []
        lengths: list[Ints] = []
        try:
            with pa.memory_map(file) as source:
                base = source.read_buffer(1).address  # of the first byte of the mapped file
                # all columns: buffers of a choice of columns are copies, and their addresses say nothing
                for chunk in pa.ipc.open_file(source).read_all().column(column).chunks:
                    _, offsets, data = chunk.buffers()
                    ends = np.frombuffer(offsets, np.int32, len(chunk) + 1, chunk.offset * 4).astype(np.int64)
                    start = data.address - base if data is not None and data.size else 0
                    starts.append(ends[:-1] + start)
                    lengths.append(np.where(np.asarray(chunk.is_valid()), np.diff(ends), -1))
        except pa.ArrowException as error:
            raise ValueError(f"it is cut off or no Arrow file ({_first_line(error)})") from None
        self.starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self._handle = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, row: int) -> bytes:
        if row >= len(self.lengths):
            raise ImageError(f"{self.file}: row {row} of {len(self.lengths)} does not exist")
        length = int(self.lengths[row])
        if length < 0:
            raise ImageError(f"{self.file}: row {row} has no {self.column}")
        try:
            data = os.pread(self._handle, length, int(self.starts[row]))
        except OSError as error:
            raise ImageError(f"{self.file}: can't read row {row}: {error.strerror or error}") from None
        if len(data) != length:
            raise ImageError(f"{self.file}: the file is cut off: row {row} has {len(data)} of {length} bytes")
        return data


@lru_cache(maxsize=_OPEN_FILES)
def _open(file: str, column: str) -> _Column:
    return _Column(file, column)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
