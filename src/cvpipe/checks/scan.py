"""One pass over the files of a data set, in processes. What was seen is kept, and read again when it has not changed.

Results are appended to parts, Parquet files in the output folder: after an interruption, or a correction of some
files, only what is missing or has changed is looked at again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from cvpipe.checks.hashes import SIDE
from cvpipe.checks.look import INPUT, Look, look_at
from cvpipe.errors import CvpipeError
from cvpipe.utils.console import Progress, warn
from cvpipe.utils.filesystem import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 32
"""Images that a worker gets at once."""
_FEW = 256
"""Items that are not worth starting processes for: each takes seconds to load what it needs."""
_PART_IMAGES = 4096
_PART_SECONDS = 30.0
_VERSION = "1"
_METADATA = "cvpipe.check"
_LIGHT = ("low", "mean", "high", "contrast", "sharpness")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stamp(NamedTuple):
    """What tells that a file is still the same."""

    size: int
    modified: int


@dataclass(frozen=True)
class Scan:
    """What is known about all files, in columns.

    Attributes:
        paths: as in the splits, each once.
        reasons: why a file can't be decoded; empty where it can.
        digests: (n, 2) uint64 of the content.
        sizes: (n, 2) int64 width and height, upright; 0 where unknown.
        formats, modes: Pillow's names.
        orientations: (n,) uint8 of EXIF.
        light: (n, 5) float32: low, mean, high, contrast, sharpness. See `Look`.
        thumbnails: (n, 1024) uint8.
        features: (n, length) float16 of length 1, zeros where the file can't be decoded; length 0 where none were made.
        fresh: how many files were looked at now; the others were known.
    """

    paths: list[str]
    reasons: list[str]
    digests: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    formats: list[str]
    modes: list[str]
    orientations: npt.NDArray[np.uint8]
    light: npt.NDArray[np.float32]
    thumbnails: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float16]
    fresh: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        return np.array([not reason for reason in self.reasons], dtype=np.bool_)


def scan(paths: Sequence[str], kind: str, folder: Path, workers: int, max_pixels: int) -> Scan:
    """Looks at every file that is not known from an earlier scan.

    Args:
        paths: different addresses of images, at least one.
        kind: of the features: network, plain or none.
        folder: where parts are kept.
        workers: processes; 0: this one.

    Raises:
        CvpipeError: a worker process died.
    """
    stamps = dict(zip(paths, _stamps(paths), strict=True))
    name = _name(kind, max_pixels)
    places, unused = _known(folder, stamps, name)
    wanted = [path for path in paths if path not in places]
    part: list[tuple[str, Look]] = []

    def keep() -> None:
        file = _write_part(part, stamps, folder, name)
        places.update((path, (file, row)) for row, (path, _) in enumerate(part))
        part.clear()

    written = time.monotonic()
    work = partial(look_at, kind=kind, max_pixels=max_pixels)
    try:
        with Progress("looking at", len(paths), done=len(paths) - len(wanted)) as progress:
            for chunk, looks in in_processes(work, wanted, workers, CHUNK):
                part += zip(chunk, looks, strict=True)
                progress.advance(len(chunk))
                if len(part) >= _PART_IMAGES or time.monotonic() - written > _PART_SECONDS:
                    keep()
                    written = time.monotonic()
    finally:
        # also when it was interrupted: the next scan goes on here
        if part:
            keep()
    for file in unused:
        file.unlink(missing_ok=True)
    return _columns(paths, places, len(wanted))


def in_processes(
    work: Callable[[list[Item]], list[Result]], items: Sequence[Item], workers: int, chunk: int
) -> Iterator[tuple[list[Item], list[Result]]]:
    """`work` on chunks of items, in spawned processes with one thread each; (chunk, results) in order.

    Few chunks are held at a time, so memory does not grow with the number of items.

    Raises:
        CvpipeError: a process died, which most often means that memory ran out.
    """
    source = iter(items)
    chunks = iter(lambda: list(islice(source, chunk)), [])
    if workers == 0 or len(items) <= _FEW:
        for one in chunks:
            yield one, work(one)
        return
    pool = ProcessPoolExecutor(min(workers, -(-len(items) // chunk)), get_context("spawn"), initializer=_start_worker)
    waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    try:
        for one in chunks:
            waiting.append((one, pool.submit(work, one)))
            if len(waiting) >= 4 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise CvpipeError(
            f"a process that read images died, most likely for want of memory, at one of {len(waiting) + 1} x {chunk} "
            "images. What was seen is kept. Run the same command again with fewer processes: check.workers=1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to answer; and as many processes as CPUs need one thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)


def _stamps(paths: Sequence[str]) -> list[Stamp | None]:
    from cvpipe.data.formats.files import in_threads

    return list(in_threads(_stamp, paths))


def _stamp(path: str) -> Stamp | None:
    """None for what is no file, or missing: that is looked at each time."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return Stamp(found.st_size, found.st_mtime_ns)


def _name(kind: str, max_pixels: int) -> str:
    """What must be the same for results to be used again."""
    from cvpipe.data.decode import MAX_PIXELS

    limit = "" if max_pixels == MAX_PIXELS else f" up to {max_pixels} pixels"
    return f"{_VERSION} {kind}{f' {INPUT}' if kind == 'network' else ''}{limit}"


def _schema() -> pa.Schema:
    import pyarrow as pa

    names = [("path", pa.binary()), ("size", pa.int64()), ("modified", pa.int64())]
    kinds = {str: pa.string(), bytes: pa.binary(), int: pa.int32(), float: pa.float32()}
    return pa.schema([*names, *((name, kinds[kind]) for name, kind in get_type_hints(Look).items())])


def _write_part(part: Sequence[tuple[str, Look]], stamps: dict[str, Stamp | None], folder: Path, name: str) -> Path:
    """Writes what was seen as one file that is complete or absent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [
        {
            "path": os.fsencode(path),
            "size": stamp.size if stamp else -1,
            "modified": stamp.modified if stamp else -1,
            **look._asdict(),
        }
        for path, look in part
        for stamp in [stamps[path]]
    ]
    file = folder / f"part-{uuid.uuid4().hex}.parquet"
    with atomic_path(file) as staged:
        found = pa.Table.from_pylist(records, schema=_schema().with_metadata({_METADATA: name}))
        pq.write_table(found, staged, compression="zstd")
    return file


def _known(folder: Path, stamps: dict[str, Stamp | None], name: str) -> tuple[dict[str, tuple[Path, int]], list[Path]]:
    """(file and row of each path that has not changed since it was looked at, files that hold nothing of use)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    places: dict[str, tuple[Path, int]] = {}
    files = []
    for file in sorted(folder.glob("part-*.parquet"), key=lambda path: path.stat().st_mtime_ns):
        try:
            if (pq.read_schema(file).metadata or {}).get(_METADATA.encode(), b"").decode() != name:
                continue
            table = pq.read_table(file, columns=["path", "size", "modified"])
        except (pa.ArrowException, OSError) as error:
            warn(f"{file} can't be read ({(str(error).splitlines() or [''])[0]}): its images are looked at again")
            continue
        files.append(file)
        for row, (path, size, modified) in enumerate(
            zip(*(column.to_pylist() for column in table.columns), strict=True)
        ):
            text = os.fsdecode(path)
            if size >= 0 and stamps.get(text) == (size, modified):
                places[text] = (file, row)
    used = {file for file, _ in places.values()}
    return places, [file for file in files if file not in used]


def _columns(paths: Sequence[str], places: dict[str, tuple[Path, int]], fresh: int) -> Scan:
    """One row for each path, in their order; one part in memory at a time."""
    import pyarrow.parquet as pq

    n = len(paths)
    by_file: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for position, path in enumerate(paths):
        file, row = places[path]
        by_file[file].append((position, row))
    reasons, formats, modes = [""] * n, [""] * n, [""] * n
    digests, thumbnails = np.zeros((n, 16), np.uint8), np.zeros((n, SIDE * SIDE), np.uint8)
    sizes, light = np.zeros((n, 2), np.int64), np.zeros((n, len(_LIGHT)), np.float32)
    orientations = np.ones(n, np.uint8)
    features = np.zeros((n, 0), np.uint8)
    for file, pairs in by_file.items():
        table = pq.read_table(file)
        into = np.array([position for position, _ in pairs])
        rows = np.array([row for _, row in pairs])
        texts = [(reasons, "reason"), (formats, "format"), (modes, "mode")]
        for column, name in texts:
            # few different values: one text for all that have it
            values = [sys.intern(value) for value in table[name].to_pylist()]
            for position, row in pairs:
                column[position] = values[row]
        sizes[into] = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)[rows]
        light[into] = np.stack([table[name].to_numpy() for name in _LIGHT], axis=1)[rows]
        orientations[into] = table["orientation"].to_numpy()[rows]
        digests[into] = _bytes(table["digest"], digests.shape[1])[rows]
        thumbnails[into] = _bytes(table["thumbnail"], thumbnails.shape[1])[rows]
        described = table["features"].to_pylist()
        length = max(map(len, described))
        if length and not features.shape[1]:
            features = np.zeros((n, length), np.uint8)
        if length:
            features[into] = _bytes(table["features"], length)[rows]
    return Scan(
        paths=list(paths),
        reasons=reasons,
        digests=digests.view(np.uint64),
        sizes=sizes,
        formats=formats,
        modes=modes,
        orientations=orientations,
        light=light,
        thumbnails=thumbnails,
        features=features.view(np.float16),
        fresh=fresh,
    )


def _bytes(column: Any, length: int) -> npt.NDArray[np.uint8]:
    """(n, length) uint8 of a column of byte strings of that length; zeros for empty ones."""
    blank = bytes(length)
    joined = b"".join(value or blank for value in column.to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(len(column), length)
