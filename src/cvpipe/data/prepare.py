"""`cvpipe data prepare`: any data set -> packed shards or a Delta table. Again: only what is new."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cvpipe.config import Config, DataSource, Duration
from cvpipe.config_file import load_config
from cvpipe.data.packed.changes import Prepared
from cvpipe.data.packed.delta import is_table, open_table
from cvpipe.data.packed.folder import prepare_shards, verify_shards
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.packed.tables import prepare_table
from cvpipe.data.splits import Splits
from cvpipe.data.verify import check_annotations
from cvpipe.data.watch import StableFiles, matching
from cvpipe.errors import DataError, InputError
from cvpipe.task import Task, find_task
from cvpipe.utils.console import duration, facts, say, table

_MOST_CLASSES = 30
"""Rows of the printed table of classes."""


def run_prepare(
    config: Path | None,
    overrides: Iterable[str],
    to: str | None,
    settings: Mapping[str, Any],
    every: str | None = None,
    check: str | None = None,
) -> dict[str, Any]:
    """The command: stores, watches (with `every`) or verifies (`check`). Raises InputError."""
    if check is not None:
        return verify(check)
    if config is None or to is None:
        missing = "--config FILE" if config is None else "--to DIR or --to delta:PATH"
        raise InputError(f"{missing} is missing. Expected: cvpipe data prepare --config FILE --to DIR.")
    changed = list(overrides)
    loaded, shrink = load_config(config, changed), Shrink.from_dict(settings)
    if every is None:
        kept = [text for text in changed if not text.startswith(("data.train", "data.val=", "data.test="))]
        return prepare(loaded, to, shrink, " ".join([str(config), *kept])).to_dict()
    try:
        seconds = TypeAdapter(Duration).validate_python(every).total_seconds()
    except ValueError:
        raise InputError(f"--every: found {every!r}, expected a duration such as 30s or 5m.") from None
    return {"target": to, "images": watch(loaded, to, max(0.1, seconds), shrink)}


def prepare(config: Config, to: str, shrink: Shrink | None = None, file: str = "FILE") -> Prepared:
    """Stores the data set that a config names; again: what is new, changed or gone.

    Args:
        to: a folder for shards; `delta:PATH` or catalog.schema.table for a Delta table.
        shrink: how images are made smaller; left out: files as they are.
        file: of the config, and overrides, for the command that is shown at the end.

    Raises:
        DataError: the data or the target can't be used; more bad images than `data.max_bad_fraction`.
        KeyboardInterrupt: what is stored stays; the same call goes on.
    """
    started = time.monotonic()
    splits = _read(find_task(config.task), config, to)
    try:
        prepared = _store(config, splits, to, shrink or Shrink(), None)
    except KeyboardInterrupt:
        say("\nstopped; what is written stays. The same command goes on from there.")
        raise
    except OSError as error:
        raise InputError(
            f"--to {to} can't be written: {error.strerror or error}. What is written stays; the same command goes on."
        ) from None
    _show(config, splits, prepared, time.monotonic() - started, to, file)
    return prepared


def ingest(config: Config, to: str, paths: Collection[str], shrink: Shrink | None = None) -> Prepared | None:
    """Takes files that have arrived into a prepared data set. What is stored already stays as it is.

    Args:
        paths: files that are whole; others of the data set wait.

    Returns:
        None where none of them belongs to the data set.
    """
    splits = _read(find_task(config.task), config, to)
    chosen = matching(splits, paths)
    return _store(config, splits, to, shrink or Shrink(), chosen) if chosen else None


def watch(config: Config, to: str, every: float, shrink: Shrink | None = None, looks: int | None = None) -> int:
    """Takes files in as they arrive, until Ctrl-C. A file counts as whole when it looks the same two times in a row.

    Args:
        every: seconds from look to look.
        looks: end after so many; None: never.

    Returns:
        Images that were taken in.
    """
    task, stable, total = find_task(config.task), StableFiles(), 0
    say(f"watching {config.data.train}, a look every {every:g}s; Ctrl-C ends it")
    try:
        for look in count() if looks is None else range(looks):
            if look:
                time.sleep(every)
            total += _look(config, task, to, stable, shrink or Shrink())
    except KeyboardInterrupt:
        say(f"\nstopped: {total} images were taken in")
    return total


def _look(config: Config, task: Task, to: str, stable: StableFiles, shrink: Shrink) -> int:
    """One look: how many images were taken in."""
    now = time.strftime("%H:%M:%S")
    try:
        splits = _read(task, config, to)
        whole = stable.look(splits)
        if not whole:
            return 0
        prepared = _store(config, splits, to, shrink, whole)
    except DataError as error:
        # a class folder that is still empty, a file of annotations that is half written
        say(f"{now} waiting: {error}")
        return 0
    changes = prepared.changes
    if changes.new or changes.changed or changes.gone:
        say(f"{now} {changes}; {_counts(prepared)}")
    return changes.new + changes.changed


def verify(target: str) -> dict[str, Any]:
    """Compares shards with their checksums. Raises DataError that names the files that differ."""
    if is_table(target):
        raise InputError(f"--verify {target}: Delta checks its own files; expected a folder of shards.")
    found = verify_shards(Path(target))
    say(f"{target}: {found['files']} files, {_size(found['bytes'])}, all as they were written")
    return found


def _read(task: Task, config: Config, to: str) -> Splits:
    from cvpipe.data.prepared import read_splits

    splits = read_splits(task, config)
    limit = getattr(config.data, "max_bad_annotations", 0.0)
    check_annotations(splits.problems, splits.annotations, limit, _report(to).with_name("bad_annotations.csv"))
    return splits


def _store(config: Config, splits: Splits, to: str, shrink: Shrink, only: Collection[str] | None) -> Prepared:
    if is_table(to):
        return prepare_table(config, splits, open_table(to), shrink, _report(to), only)
    return prepare_shards(config, splits, Path(to), shrink, only)


def _report(to: str) -> Path:
    """Lists of bad files: in the folder of shards; for a table in the working folder."""
    return Path("bad_files.csv") if is_table(to) else Path(to) / "bad_files.csv"


def _show(config: Config, splits: Splits, prepared: Prepared, seconds: float, to: str, file: str) -> None:
    version = "" if prepared.version is None else f", version {prepared.version}"
    packed = f", {prepared.files} files, {_size(prepared.bytes)}" if prepared.files else ""
    facts(
        {
            "data": f"{config.data.train} ({splits.format})",
            "images": _counts(prepared),
            "changes": prepared.changes,
            **({"bad": f"{prepared.bad}, left out, listed in {prepared.bad_report}"} if prepared.bad_report else {}),
            "written": f"{prepared.target}{version}{packed}, {duration(seconds)}",
        }
    )
    if 0 < len(prepared.classes) <= _MOST_CLASSES:
        names = list(prepared.images)
        table([{"class": label, **{n: found.get(n, 0) for n in names}} for label, found in prepared.classes.items()])
    elif prepared.classes:
        say(f"  {len(prepared.classes)} classes")
    own = [f"data.{name}=null" for name in ("val", "test") if isinstance(getattr(config.data, name), (str, DataSource))]
    say(f"next: {' '.join([f'cvpipe train --config {file}', f'data.train={to}', *own])}")


def _counts(prepared: Prepared) -> str:
    return ", ".join(f"{images} {name}" for name, images in prepared.images.items())


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
