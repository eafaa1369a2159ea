"""Looks at every file once before training, so that broken data is known before time is spent on it."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cvpipe.data.splits import BadFile, Problem, Split, Splits
from cvpipe.data.store import open_bytes, refresh
from cvpipe.errors import DataError, ImageError

_TAIL = 64
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


def check_file(path: str) -> str | None:
    """Why a file can't be an image, or None.

    Reads the first bytes and the end; decodes only what has no end mark where one belongs, and rare formats.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        refresh(path)
        with open_bytes(path) as file:
            kind = Image.open(file).format or ""
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except UnidentifiedImageError:
        return "not an image file (no known format)" if _has_bytes(path) else "the file is empty"
    except ImageError as error:
        return str(error)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        return f"can't be opened: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None if _END_MARKS.get(kind, b"\0no mark") in tail else _decode_fully(path)


def _has_bytes(path: str) -> bool:
    with open_bytes(path) as file:
        return bool(file.read(1))


def _decode_fully(path: str) -> str | None:
    from cvpipe.data.decode import read_image

    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return None


def find_bad_files(splits: Sequence[Split], progress: Callable[[int], None] | None = None) -> list[BadFile]:
    """Every file of the splits that `check_file` refuses, in order. `progress` is called with each count done."""
    jobs = [(split.name, path) for split in splits for path in split.paths]
    bad: list[BadFile] = []
    with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:
        for done, ((name, path), reason) in enumerate(
            zip(jobs, pool.map(check_file, [path for _, path in jobs], chunksize=64), strict=True), start=1
        ):
            if reason:
                bad.append(BadFile(name, path, reason))
            if progress and done % 256 == 0:
                progress(done)
    return bad


def drop_bad_files(splits: Splits, limit: float, report: Path) -> Splits:
    """Leaves out broken files, lists them in `report`, and stops where they are more than the share `limit`."""
    found = find_bad_files(splits.all())
    clean = splits.without(found)
    if clean.bad:
        write_bad_files(clean.bad, report)
    total = sum(len(split) for split in clean.all()) + len(clean.bad)
    if len(clean.bad) > limit * total:
        first = "; ".join(f"{file.path}: {file.reason}" for file in clean.bad[:3])
        raise DataError(
            f"{len(clean.bad)} of {total} files can't be read as images, more than data.max_bad_fraction = {limit:g} "
            f"allows. The first: {first}. All are listed in {report}. Repair or remove them, or raise the limit."
        )
    return clean


def write_bad_files(bad: Sequence[BadFile], report: Path) -> None:
    _write_table(report, ["split", "path", "reason"], ([item.split, item.path, item.reason] for item in bad))


def check_annotations(problems: Sequence[Problem], total: int, limit: float, report: Path | None = None) -> None:
    """Lists what is wrong with annotations, and stops where those left out are more than a share of all.

    Args:
        total: annotations that were read, those that can't be used included.
        limit: `data.max_bad_annotations`.
        report: where the list is written, if there is anything to list.

    Raises:
        DataError: too many can't be used.
    """
    if problems and report is not None:
        rows = ([p.split, p.file, p.annotation, p.reason, "left out" if p.dropped else "kept"] for p in problems)
        _write_table(report, ["split", "file", "annotation", "reason", "outcome"], rows)
    dropped = [problem for problem in problems if problem.dropped]
    if len(dropped) > limit * total:
        first = "; ".join(f"{p.file}: {p.annotation}: {p.reason}" for p in dropped[:3])
        listed = f" All are listed in {report}." if report is not None else ""
        raise DataError(
            f"{len(dropped)} of {total} annotations can't be used, more than data.max_bad_annotations = {limit:g} "
            f"allows. The first: {first}.{listed} Repair or remove them, or raise the limit."
        )


def _write_table(report: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from cvpipe.utils.filesystem import atomic_open

    with atomic_open(report, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
