"""A folder of shards: packed from any data set, brought up to date, compared with its checksums.

Files are planned from names and sizes before anything is read, so that a run that was stopped goes on with the first
file that is missing, and ends with the same files as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cvpipe.config import Config
from cvpipe.data.packed.changes import KNOWN_COLUMNS, Known, Prepared, Wanted, check_bad, class_table, compare, index_of
from cvpipe.data.packed.codec import Layout, schema
from cvpipe.data.packed.index import Index, SplitFiles, check_files, is_shards, load_index
from cvpipe.data.packed.rows import Item, load_decoders, make_rows
from cvpipe.data.packed.shards import ShardInfo, ShardWriter, read_rows
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.splits import BadFile, Splits
from cvpipe.errors import DataError
from cvpipe.utils.console import Progress, say
from cvpipe.utils.filesystem import write_json

SHARD_BYTES = 256 << 20
"""Images of so many bytes make a file."""
_SHRUNK_ROWS = 4096
"""Images that are made smaller: so many make a file, their packed size is not known before."""


class Chunk(NamedTuple):
    """The images of one shard file to be."""

    file: str
    items: tuple[Item, ...]


def prepare_shards(
    config: Config,
    splits: Splits,
    folder: Path,
    shrink: Shrink,
    only: Collection[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Prepared:
    """Packs a data set into a folder of shards, or brings such a folder up to date.

    Args:
        only: addresses of the files that may be read now (see `compare`).

    Raises:
        DataError: the folder holds something else; more bad images than `data.max_bad_fraction`.
    """
    labels = splits.labels
    stored = _stored(folder, config, shrink)
    wanted = compare(config, splits, stored.known, only)
    layout = Layout.of([item.target for item in wanted.all()], labels.multi_label, config.where("data.train"))
    kept = _kept_files(stored, wanted)
    done = {name: list(kept.get(name, ())) for name in wanted.items}
    chunks = {name: _plan(name, part, done[name], stored, shrink, shard_bytes) for name, part in wanted.items.items()}
    total = len(wanted.states)
    count = sum(len(chunk.items) for part in chunks.values() for chunk in part)
    load_decoders()
    with Progress("prepare", total, done=total - count) as progress:
        for name, part in chunks.items():
            for chunk in part:
                info = _finished(folder, chunk)
                if info is not None:
                    progress.advance(len(chunk.items))
                else:
                    info = _write(folder, chunk, labels.classes, shrink, config.inference.max_pixels, progress)
                done[name].append(info)
    rows = {name: _rows(folder, files) for name, files in done.items()}
    parts = {name: SplitFiles(tuple(files), _order(wanted.items[name], rows[name])) for name, files in done.items()}
    index = index_of(config, splits, layout, shrink, parts)
    bad = [BadFile(name, row["path"], row["error"]) for name, part in rows.items() for row in part if row["error"]]
    report = check_bad([*splits.bad, *bad], total + len(splits.bad), config, folder / "bad_files.csv")
    index.write(folder)
    remove_unused(folder, index)
    return Prepared(
        str(folder),
        {name: sum(not row["error"] for row in part) for name, part in rows.items()},
        class_table((name, row) for name, part in rows.items() for row in part if not row["error"]),
        wanted.changes,
        len(splits.bad) + len(bad),
        sum(len(files) for files in done.values()),
        sum(info.bytes for files in done.values() for info in files),
        bad_report=report,
    )


def verify_shards(folder: Path) -> dict[str, Any]:
    """Reads every byte of the shards and compares with the index. Raises DataError."""
    index = load_index(folder)
    files = [info for split in index.splits.values() for info in split.files]
    with Progress("verify", sum(info.bytes for info in files) >> 20, unit="MB") as progress:
        check_files(folder, index, checksums=True, progress=lambda size: progress.advance(size >> 20))
    return {"target": str(folder), "files": len(files), "bytes": sum(info.bytes for info in files)}


@dataclass
class _Stored:
    """What a folder holds.

    Attributes:
        index: None where nothing of it can be kept.
        file_of: path of an image -> the shard it lies in.
    """

    known: Known = field(default_factory=Known)
    index: Index | None = None
    file_of: dict[str, str] = field(default_factory=dict)


def _stored(folder: Path, config: Config, shrink: Shrink) -> _Stored:
    """Raises DataError where the folder holds no data set of ours."""
    if not is_shards(folder):
        others = [path.name for path in folder.iterdir() if not _ours(path)] if folder.is_dir() else []
        if others:
            raise DataError(f"{folder} holds other files ({others[0]}). Name a new or empty folder, or one of shards.")
        return _Stored()
    index = load_index(folder)
    if index.task != config.task:
        raise DataError(
            f"{folder} was prepared for the task {index.task}, and the config's is {config.task}. Name another folder."
        )
    check_files(folder, index)
    if index.shrink != shrink:
        say(f"packed before: {index.shrink}; now: {shrink}. All images are packed anew.")
    stored = _Stored(index=index if index.shrink == shrink else None)
    for split in index.splits.values():
        for info in split.files:
            for row in read_rows(folder / info.file, KNOWN_COLUMNS):
                stored.known.add(row)
                stored.file_of[row["path"]] = info.file
    return stored


def _ours(path: Path) -> bool:
    lists = ("bad_files.csv", "bad_annotations.csv")
    return path.name.endswith((".arrow", ".arrow.json", ".tmp")) or path.name in lists


def _kept_files(stored: _Stored, wanted: Wanted) -> dict[str, tuple[ShardInfo, ...]]:
    """The files of a former run of which every row is still wanted as it is."""
    if stored.index is None:
        return {}
    spoilt = {file for path, file in stored.file_of.items() if wanted.states.get(path) != "unchanged"}
    return {
        name: tuple(info for info in split.files if info.file not in spoilt)
        for name, split in stored.index.splits.items()
    }


def _plan(
    name: str, items: Sequence[Item], kept: Sequence[ShardInfo], stored: _Stored, shrink: Shrink, shard_bytes: int
) -> list[Chunk]:
    """Which images go into which new file."""
    files = {info.file for info in kept}
    todo = [item for item in items if stored.file_of.get(item.path) not in files]
    chunks: list[list[Item]] = []
    size = 0
    for item in todo:
        full = len(chunks[-1]) >= _SHRUNK_ROWS if chunks and shrink.active else size + item.bytes > shard_bytes
        if not chunks or full:
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += item.bytes
    first = 1 + max((int(info.file.split("-")[1]) for info in kept), default=-1)
    return [Chunk(_file_name(name, first + i, part, shrink), tuple(part)) for i, part in enumerate(chunks)]


def _file_name(split: str, number: int, items: Sequence[Item], shrink: Shrink) -> str:
    """Holds what the file is made from: a finished file of that name is the one that is wanted."""
    digest = hashlib.sha256(json.dumps(shrink.to_dict()).encode())
    for item in items:
        parts = [item.path, item.split, item.group, item.bytes, item.modified, item.annotation]
        digest.update(json.dumps(parts).encode())
    return f"{split}-{number:05d}-{digest.hexdigest()[:10]}.arrow"


def _finished(folder: Path, chunk: Chunk) -> ShardInfo | None:
    """A file that an interrupted run has finished. Its note is written after it."""
    path = folder / chunk.file
    try:
        info = ShardInfo(**json.loads(_note(path).read_text("utf-8")))
        return info if path.stat().st_size == info.bytes and info.rows == len(chunk.items) else None
    except (OSError, ValueError, TypeError):
        return None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write(
    folder: Path, chunk: Chunk, classes: Sequence[str], shrink: Shrink, max_pixels: int, progress: Progress
) -> ShardInfo:
    path = folder / chunk.file
    with ShardWriter(path, schema()) as writer:
        for row in make_rows(chunk.items, classes, shrink, max_pixels):
            writer.add(row)
            progress.advance()
        info = writer.close()
    write_json(_note(path), info._asdict())
    return info


def _rows(folder: Path, files: Iterable[ShardInfo]) -> list[dict[str, Any]]:
    return [row for info in files for row in read_rows(folder / info.file, ("path", "error", "labels", "objects"))]


def _order(items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | None:
    """Where the images of the source's order stand in the files; None where both are the same."""
    position = {row["path"]: i for i, row in enumerate(rows)}
    order = tuple(position[item.path] for item in items)
    return None if order == tuple(range(len(rows))) else order


def remove_unused(folder: Path, index: Index) -> None:
    """Files of former runs, and the notes of this one."""
    used = {info.file for split in index.splits.values() for info in split.files}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".arrow", ".arrow.json")) and path.name not in used:
            path.unlink(missing_ok=True)
