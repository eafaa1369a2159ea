"""The index of a folder of shards: what lies in it, and which part of it each of many readers takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cvpipe.data.packed.codec import TARGET_COLUMNS, Layout, decode_target
from cvpipe.data.packed.shards import ShardInfo, read_rows
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.splits import BadFile, Split, Splits
from cvpipe.data.store import Cell
from cvpipe.errors import DataError, few
from cvpipe.types import Labels
from cvpipe.utils.filesystem import sha256_of, write_text

INDEX = "index.json"
_FORMAT, _VERSION = "cvpipe-shards", 1
_LOADED = ("path", "group", "error", *TARGET_COLUMNS)


class Rows(NamedTuple):
    """Rows `start` to `stop` (not included) of a file."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Attributes:
        order: rows (counted over all files) in the order of the source; None: as they are.
    """

    files: tuple[ShardInfo, ...]
    order: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        return sum(info.rows for info in self.files)


@dataclass(frozen=True)
class Index:
    """What a folder of shards says of itself.

    Attributes:
        task: name of the task that the data were prepared for.
        source, source_format: where the images came from.
        val: `data.val` of the config they were prepared with: a share, or None.
        held_out: whether val was held out of train, not named by the source.
        shrink: how images were packed.
        notes: on what was read.
    """

    task: str
    labels: Labels
    layout: Layout
    source: str
    source_format: str
    val: float | None
    held_out: bool
    shrink: Shrink
    splits: Mapping[str, SplitFiles]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "task": self.task,
            "labels": self.labels.to_dict(),
            "targets": self.layout.to_dict(),
            "source": self.source,
            "source_format": self.source_format,
            "val": self.val,
            "held_out": self.held_out,
            "images": self.shrink.to_dict(),
            "notes": list(self.notes),
            "splits": {
                name: {"files": [info._asdict() for info in split.files], "order": split.order}
                for name, split in self.splits.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], splits: Mapping[str, SplitFiles]) -> Index:
        """Raises KeyError, TypeError."""
        return cls(
            task=values["task"],
            labels=Labels.from_dict(values["labels"]),
            layout=Layout.from_dict(values["targets"]),
            source=values["source"],
            source_format=values["source_format"],
            val=values["val"],
            held_out=values["held_out"],
            shrink=Shrink.from_dict(values["images"]),
            splits=splits,
            notes=tuple(values["notes"]),
        )

    def write(self, folder: Path) -> None:
        write_text(folder / INDEX, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def share(self, split: str, rank: int, world_size: int, worker: int = 0, workers: int = 1) -> list[Rows]:
        """The rows of one of many readers: together the split, without overlap, of sizes that differ by one.

        For readers that stream whole ranges (Spark, Ray, other frameworks). cvpipe's own training shuffles over all
        rows, which random access makes as fast.

        Args:
            rank, world_size: of the node or process.
            worker, workers: within the rank.
        """
        part, parts = rank * workers + worker, world_size * workers
        if not (0 <= worker < workers and 0 <= rank < world_size):
            raise ValueError(f"rank {rank} of {world_size}, worker {worker} of {workers}")
        files = self.splits[split].files
        total = sum(info.rows for info in files)
        first, last = part * total // parts, (part + 1) * total // parts
        found, start = [], 0
        for info in files:
            low, high = max(first, start), min(last, start + info.rows)
            if low < high:
                found.append(Rows(info.file, low - start, high - start))
            start += info.rows
        return found


def is_shards(source: object) -> bool:
    """Whether a path is a folder of shards."""
    path = Path(str(source)) / INDEX
    try:
        with path.open("rb") as file:
            return f'"{_FORMAT}"'.encode() in file.read(200)
    except OSError:
        return False


def load_index(folder: str | Path) -> Index:
    """Reads index.json. Raises DataError."""
    path = Path(folder) / INDEX
    again = "Prepare the data again: cvpipe data prepare."
    try:
        values = json.loads(path.read_bytes())
        if values["format"] != _FORMAT or values["version"] != _VERSION:
            raise DataError(
                f"{path}: found {values['format']} version {values['version']}, expected {_FORMAT} version {_VERSION}. "
                f"{again}"
            )
        splits = {name: _split_files(split) for name, split in values["splits"].items()}
        return Index.from_dict(values, splits)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}. Expected a folder of shards. {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an index of shards: {error!r}. {again}") from None


def _split_files(values: Mapping[str, Any]) -> SplitFiles:
    order = values["order"]
    return SplitFiles(tuple(ShardInfo(**info) for info in values["files"]), None if order is None else tuple(order))


def check_files(folder: str | Path, index: Index, checksums: bool = False, progress: Any = None) -> None:
    """Compares the files with the index. Raises DataError that names each file that differs.

    Args:
        checksums: read every file and compare its SHA-256; else sizes alone.
        progress: called with the bytes of each file that was read.
    """
    wrong = []
    for split in index.splits.values():
        for info in split.files:
            path = Path(folder) / info.file
            try:
                size = path.stat().st_size
            except OSError as error:
                wrong.append(f"{path}: {error.strerror or error}")
                continue
            if size != info.bytes:
                wrong.append(f"{path}: {size} bytes, expected {info.bytes}")
            elif checksums:
                if sha256_of(path) != info.sha256:
                    wrong.append(f"{path}: its content is not what was written (SHA-256)")
                if progress:
                    progress(size)
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DataError(
            f"{folder}: {len(wrong)} shard files are not those of its index: {shown}. Copy the folder "
            "again, or remove it and prepare the data again."
        )


def load_shards(folder: str | Path, labels: Labels | None = None, only: Sequence[str] | None = None) -> Splits:
    """The splits of a folder of shards. Reads names and targets, no pixels.

    Args:
        labels: of a trained model, whose positions the targets take; left out: those of the index.
        only: splits to read; left out: all.

    Raises:
        DataError: no index, files that are missing or cut off, a class that the labels lack.
    """
    index = load_index(folder)
    check_files(folder, index)
    labels = labels or index.labels
    position = {name: i for i, name in enumerate(labels.classes)}
    splits: dict[str, Split] = {}
    bad: list[BadFile] = []
    for name, files in index.splits.items():
        if only is None or name in only:
            splits[name], broken = _load_split(Path(folder), name, files, index.layout, position)
            bad += broken
    made = f"shards: made from {index.source} ({index.source_format}), {index.shrink}"
    return Splits(
        splits.get("train", Split("train", (), ())),
        splits.get("val", Split("val", (), ())),
        splits.get("test"),
        labels,
        "shards",
        (made, *index.notes),
        tuple(bad),
        held_out=index.held_out,
    )


def _load_split(
    folder: Path, name: str, files: SplitFiles, layout: Layout, position: Mapping[str, int]
) -> tuple[Split, list[BadFile]]:
    rows: list[tuple[str, Any, str | None]] = []
    bad: dict[int, BadFile] = {}
    for info in files.files:
        path = str(folder / info.file)
        for number, row in enumerate(read_rows(path, _LOADED)):
            address = Cell(path, number, name=row["path"]).address
            if row["error"] is not None:
                bad[len(rows)] = BadFile(name, row["path"], row["error"])
                rows.append(("", None, None))
                continue
            try:
                mask = Cell(path, number, "mask", row["mask_path"] or "").address
                target = decode_target(row, layout, position, mask)
            except KeyError as error:
                raise DataError(
                    f"{folder}: {row['path']} has the class {error}, expected one of {few(position)}."
                ) from None
            rows.append((address, target, row["group"]))
    order = [i for i in files.order or range(len(rows)) if i not in bad]
    paths = tuple(rows[i][0] for i in order)
    groups = tuple(rows[i][2] or rows[i][0] for i in order) if any(rows[i][2] for i in order) else None
    return Split(name, paths, tuple(rows[i][1] for i in order), groups), list(bad.values())
