"""What differs between a data set and what was stored of it before, and what a run of `cvpipe data prepare` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cvpipe.config import Config
from cvpipe.data.packed.codec import Layout, labels_of
from cvpipe.data.packed.index import Index, SplitFiles
from cvpipe.data.packed.rows import THREADS, Item, items_of, root_of, sha256_at, unchanged
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.splits import BadFile, Splits
from cvpipe.data.verify import write_bad_files
from cvpipe.errors import DataError, ImageError

KNOWN_COLUMNS = (
    "path",
    "split",
    "group",
    "error",
    "sha256",
    "source_bytes",
    "source_modified",
    "annotation",
    "labels",
    "objects",
)
"""What must be known of stored rows to tell what has changed."""


@dataclass
class Changes:
    """What differs from what was stored before."""

    new: int = 0
    unchanged: int = 0
    changed: int = 0
    gone: int = 0

    def __str__(self) -> str:
        return f"{self.new} new, {self.unchanged} unchanged, {self.changed} changed, {self.gone} gone"


@dataclass(frozen=True)
class Prepared:
    """What was made.

    Attributes:
        target: the folder of shards, or the table.
        images: usable images of each split.
        classes: class -> split -> images that show it.
        bytes: of all files.
        version: of the Delta table, else None.
        bad_report: the list of bad images, where there are any.
    """

    target: str
    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    changes: Changes
    bad: int = 0
    files: int = 0
    bytes: int = 0
    version: int | None = None
    bad_report: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        changes = self.changes
        return {
            "target": self.target,
            "images": dict(self.images),
            "classes": {name: dict(counts) for name, counts in self.classes.items()},
            "new": changes.new,
            "unchanged": changes.unchanged,
            "changed": changes.changed,
            "gone": changes.gone,
            "bad": self.bad,
            "bad_files": str(self.bad_report) if self.bad_report else None,
            "files": self.files,
            "bytes": self.bytes,
            "version": self.version,
        }


@dataclass
class Known:
    """What a former run has stored.

    Attributes:
        rows: path -> its `KNOWN_COLUMNS`.
        by_group, by_content: split of a group, of a file's content.
        sizes: of the files in `by_content`: others need not be read to know that they are new.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_group: dict[str, str] = field(default_factory=dict)
    by_content: dict[str, str] = field(default_factory=dict)
    sizes: set[int] = field(default_factory=set)

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["path"]] = row
        if row["group"] is not None:
            self.by_group.setdefault(row["group"], row["split"])
        if row["sha256"] is not None:
            self.by_content.setdefault(row["sha256"], row["split"])
            self.sizes.add(row["source_bytes"])


@dataclass(frozen=True)
class Wanted:
    """A data set to be stored, compared with what is there.

    Attributes:
        items: images of each split.
        states: path -> new, unchanged or changed.
    """

    items: dict[str, list[Item]]
    states: dict[str, str]
    changes: Changes

    def all(self) -> list[Item]:
        return [item for part in self.items.values() for item in part]


def compare(config: Config, splits: Splits, known: Known, only: Collection[str] | None = None) -> Wanted:
    """What of a data set is new, unchanged or changed.

    Splits that the source names are kept. Where val is held out of train, images (and groups, and contents) that
    were stored before stay in their split, whatever has been added since.

    Args:
        only: addresses of the files that may be read now; of the others, those that are stored stay as they are, and
            the rest waits. None: all.

    Raises:
        DataError: no image, or one that stands in the data set twice.
    """
    where = config.where("data.train")
    root = root_of(config.data.train, splits)
    items = {split.name: items_of(split, root, splits.labels.classes) for split in splits.all() if len(split)}
    _check_unique([item for part in items.values() for item in part], where)
    gone = len(known.rows.keys() - {item.path for part in items.values() for item in part})
    if only is not None:
        items = {
            name: [item for item in part if item.source in only or item.path in known.rows]
            for name, part in items.items()
        }
    if not any(items.values()):
        raise DataError(f"{where}: no images to store.")
    if splits.held_out:
        items = _stable(items, known)
    wanted = [item for part in items.values() for item in part]

    def state(item: Item) -> str:
        row = known.rows.get(item.path)
        return "unchanged" if only is not None and item.source not in only else _state(item, row)

    with ThreadPoolExecutor(THREADS) as pool:  # files that were touched are read
        states = {item.path: found for item, found in zip(wanted, pool.map(state, wanted), strict=True)}
    return Wanted(
        {name: part for name, part in items.items() if part}, states, Changes(**Counter(states.values()), gone=gone)
    )


def check_bad(bad: Sequence[BadFile], total: int, config: Config, report: Path) -> Path | None:
    """Lists bad images. Raises DataError where they are more than `data.max_bad_fraction`."""
    if not bad:
        report.unlink(missing_ok=True)
        return None
    write_bad_files(bad, report)
    limit = config.data.max_bad_fraction
    if len(bad) > limit * total:
        first = "; ".join(f"{file.path}: {file.reason}" for file in bad[:3])
        raise DataError(
            f"{len(bad)} of {total} files can't be used as images, more than data.max_bad_fraction = {limit:g} allows. "
            f"The first: {first}. All are listed in {report}. Repair or remove them, or raise the limit; the same "
            "command then goes on with what is packed already."
        )
    return report


def class_table(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """class -> split -> images that show it, from (split, row). Empty for class maps, whose classes stand in pixels."""
    table: dict[str, Counter[str]] = {}
    for split, row in rows:
        for label in labels_of(row):
            table.setdefault(label, Counter())[split] += 1
    return {label: dict(table[label]) for label in sorted(table)}


def _check_unique(items: Sequence[Item], where: str) -> None:
    doubled = [path for path, count in Counter(item.path for item in items).items() if count > 1]
    if doubled:
        raise DataError(
            f"{where}: {len(doubled)} images stand in the data set more than once: {doubled[0]}. Remove the "
            "repetitions."
        )


def _stable(items: Mapping[str, list[Item]], known: Known) -> dict[str, list[Item]]:
    """Images that were stored before stay in their split, and take their group and their copies along."""
    moved: dict[str, list[Item]] = {name: [] for name in items}
    for name, part in items.items():
        for item in part:
            split = _former_split(item, known) if name != "test" else name
            moved.setdefault(split or name, []).append(replace(item, split=split or name))
    return {name: part for name, part in moved.items() if part}


def _former_split(item: Item, known: Known) -> str | None:
    row = known.rows.get(item.path)
    if row is not None:
        return str(row["split"])
    if item.group is not None:
        return known.by_group.get(item.group)
    if item.bytes not in known.sizes:
        return None
    try:
        return known.by_content.get(sha256_at(item.source))
    except ImageError:
        return None


def _state(item: Item, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "new"
    same = row["split"] == item.split and row["group"] == item.group and unchanged(item, row)
    return "unchanged" if same else "changed"


def index_of(config: Config, splits: Splits, layout: Layout, shrink: Shrink, files: Mapping[str, SplitFiles]) -> Index:
    """What says how the rows of a data set are to be read.

    Args:
        files: the shards of each split; none for a table.
    """
    return Index(
        task=config.task,
        labels=splits.labels,
        layout=layout,
        source=str(config.data.train),
        source_format=splits.format,
        val=config.data.val if isinstance(config.data.val, float) else None,
        held_out=splits.held_out,
        shrink=shrink,
        splits=dict(files),
        notes=notes_of(splits),
    )


def notes_of(splits: Splits) -> tuple[str, ...]:
    left_out = sum(problem.dropped for problem in splits.problems)
    more = [f"{left_out} of {splits.annotations} annotations were left out"] if left_out else []
    return (*splits.notes[1:], *more)
