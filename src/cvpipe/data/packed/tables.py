"""A Delta table of images: filled from any data set, brought up to date, and copied into local shards for training."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.config import Config
from cvpipe.data.packed.changes import KNOWN_COLUMNS, Known, Prepared, check_bad, class_table, compare, index_of
from cvpipe.data.packed.codec import Layout, schema
from cvpipe.data.packed.delta import Part, Table, cache_name
from cvpipe.data.packed.folder import remove_unused
from cvpipe.data.packed.index import Index, SplitFiles, check_files, is_shards, load_index
from cvpipe.data.packed.rows import load_decoders, make_rows
from cvpipe.data.packed.shards import ShardInfo, ShardWriter, read_rows
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.splits import BadFile, Splits
from cvpipe.errors import DataError
from cvpipe.utils.console import Progress, say
from cvpipe.utils.filesystem import atomic_path, sha256_of, write_json

if TYPE_CHECKING:
    import pyarrow as pa

COMMIT_BYTES = 256 << 20
"""Images of so many bytes make one version of the table, and one of its files."""
_COMMIT_ROWS = 10_000


def prepare_table(
    config: Config,
    splits: Splits,
    table: Table,
    shrink: Shrink,
    report: Path,
    only: Collection[str] | None = None,
    commit_bytes: int = COMMIT_BYTES,
) -> Prepared:
    """Stores a data set in a table, or brings the table up to date: new rows, changed rows, rows that are gone.

    What was committed stays when a run is stopped; the same command goes on behind it.

    Args:
        report: where bad images are listed.
        only: addresses of the files that may be read now (see `compare`).

    Raises:
        DataError: the table holds something else; more bad images than `data.max_bad_fraction`.
    """
    known = Known()
    if table.exists():
        _check_same(table, config, shrink)
        for row in table.rows(KNOWN_COLUMNS):
            known.add(row)
    wanted = compare(config, splits, known, only)
    labels = splits.labels
    layout = Layout.of([item.target for item in wanted.all()], labels.multi_label, config.where("data.train"))
    index = index_of(config, splits, layout, shrink, {})
    table.set_index(index.to_dict() | {"complete": bool(known.rows)})
    groups = {
        state: [item for item in wanted.all() if wanted.states[item.path] == state] for state in ("new", "changed")
    }
    todo = sum(map(len, groups.values()))
    load_decoders()
    with Progress("prepare", len(wanted.states), done=len(wanted.states) - todo) as progress:
        for state, items in groups.items():
            rows = make_rows(items, labels.classes, shrink, config.inference.max_pixels)
            for batch in _batches(rows, commit_bytes):
                table.append(batch) if state == "new" else table.merge(batch)
                progress.advance(len(batch))
    stored = {row["path"]: row for row in table.rows(("path", "split", "error", "labels", "objects"))}
    gone = sorted(stored.keys() & (known.rows.keys() - wanted.states.keys()))
    if gone:
        table.delete(gone)
    left = [row for path, row in sorted(stored.items()) if path not in set(gone)]
    bad = [BadFile(row["split"], row["path"], row["error"]) for row in left if row["error"]]
    listed = check_bad([*splits.bad, *bad], len(left) + len(splits.bad), config, report)
    table.set_index(index.to_dict() | {"complete": True})
    good = [row for row in left if not row["error"]]
    images = {name: sum(row["split"] == name for row in good) for name in ("train", "val", "test")}
    return Prepared(
        table.name,
        {name: count for name, count in images.items() if count},
        class_table((row["split"], row) for row in good),
        wanted.changes,
        len(splits.bad) + len(bad),
        version=table.version(),
        bad_report=listed,
    )


def copy_to_shards(table: Table, cache: Path) -> Path:
    """The folder of local shards that hold a version of a table; copied once, file by file, then taken as it is.

    A copy that was stopped goes on with the first file of the table that is missing.

    Raises:
        DataError: the table was not made by `cvpipe data prepare`, or not to its end.
    """
    values = table.index()
    if values is None:
        raise DataError(
            f"{table.name}: the table has no property cvpipe.index, which says what its rows mean. Expected a table "
            "that `cvpipe data prepare --to delta:PATH` has made."
        )
    if not values["complete"]:
        raise DataError(
            f"{table.name}: not all images are in the table: `cvpipe data prepare` was stopped. Run the same command "
            "again."
        )
    folder = cache / "tables" / cache_name(table)
    if is_shards(folder):
        check_files(folder, load_index(folder))
        return folder
    say(f"copying {table.name} (version {table.version()}) to {folder}")
    done: dict[str, list[ShardInfo]] = {}
    with Progress("copy", None) as progress:
        for part in table.parts():
            for split, info in _copy_part(folder, part, progress):
                done.setdefault(split, []).append(info)
    files = {name: SplitFiles(tuple(infos), _by_path(folder, infos)) for name, infos in done.items()}
    index = Index.from_dict({**values, "splits": {}}, files)
    index.write(folder)
    remove_unused(folder, index)
    return folder


def copy_shards(folder: Path, cache: Path) -> Path:
    """A local copy of a folder of shards; files that are there already are not copied again. Raises DataError."""
    index = load_index(folder)
    check_files(folder, index)
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
    local = cache / "shards" / f"{folder.name}-{name}"
    files = [info for split in index.splits.values() for info in split.files]
    missing = [info for info in files if not _is_copy(local / info.file, info)]
    if missing:
        say(f"copying {len(missing)} shard files of {folder} to {local}")
    with Progress("copy", sum(info.bytes for info in missing) >> 20, unit="MB") as progress:
        for info in missing:
            with atomic_path(local / info.file) as staged:
                shutil.copyfile(folder / info.file, staged)
                if sha256_of(staged) != info.sha256:
                    raise DataError(f"{folder / info.file}: its content is not what was written (SHA-256).")
            progress.advance(info.bytes >> 20)
    index.write(local)
    remove_unused(local, index)
    return local


def _is_copy(path: Path, info: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == info.bytes


def _check_same(table: Table, config: Config, shrink: Shrink) -> None:
    values = table.index()
    if values is None:
        raise DataError(f"{table.name}: a table of other data (no property cvpipe.index). Name another one.")
    if values["task"] != config.task:
        raise DataError(
            f"{table.name} was prepared for the task {values['task']}, and the config's is {config.task}. Name another "
            "table."
        )
    stored = Shrink.from_dict(values["images"])
    if stored != shrink:
        raise DataError(
            f"{table.name} holds its images otherwise: {stored}; asked for now: {shrink}. Name another table, or the "
            "same settings."
        )


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[pa.Table]:
    """Rows in the parts that are committed together."""
    import pyarrow as pa

    waiting: list[dict[str, Any]] = []
    total = 0
    for row in rows:
        waiting.append(row)
        total += len(row.get("content") or b"") + len(row.get("mask") or b"")
        if total >= size or len(waiting) >= _COMMIT_ROWS:
            yield pa.Table.from_pylist(waiting, schema=schema())
            waiting, total = [], 0
    if waiting:
        yield pa.Table.from_pylist(waiting, schema=schema())


def _copy_part(folder: Path, part: Part, progress: Progress) -> list[tuple[str, ShardInfo]]:
    """The shards, one for each split, that hold one file of a table."""
    digest = hashlib.sha256(part.name.encode()).hexdigest()[:10]
    # its name ends as those of other notes do, so that it goes with them
    note = folder / f"part-{digest}.arrow.json"
    try:
        found = [(split, ShardInfo(**info)) for split, info in json.loads(note.read_text("utf-8"))]
        if all((folder / info.file).stat().st_size == info.bytes for _, info in found):
            progress.advance(sum(info.rows for _, info in found))
            return found
    except (OSError, ValueError, TypeError):
        pass  # not copied yet
    writers: dict[str, ShardWriter] = {}
    with ExitStack() as stack:
        for row in part.rows:
            split = row["split"]
            if split not in writers:
                path = folder / f"{split}-{digest}.arrow"
                writers[split] = stack.enter_context(ShardWriter(path, schema()))
            writers[split].add(row)
            progress.advance()
        found = [(split, writer.close()) for split, writer in writers.items()]
    write_json(note, [[split, info._asdict()] for split, info in found])
    return found


def _by_path(folder: Path, files: Sequence[ShardInfo]) -> tuple[int, ...] | None:
    """The order of the images' paths: rows of a table have none of their own."""
    paths = [row["path"] for info in files for row in read_rows(folder / info.file, ("path",))]
    order = tuple(sorted(range(len(paths)), key=lambda i: paths[i]))
    return None if order == tuple(range(len(paths))) else order
