"""Files that are complete or absent. Works on Databricks Volumes, which refuse appends, random writes and links.

A file is written on a local disk, copied as a whole next to its place, flushed, and renamed last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_VOLUMES = "/Volumes/"


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A path to write to; becomes `target` when the block ends well, and vanishes otherwise."""
    target = Path(target)
    staged = staging_path(target)
    try:
        yield staged
        place(staged, target)
    finally:
        staged.unlink(missing_ok=True)


def staging_path(target: Path) -> Path:
    """Where to write what `place` will put at `target`: beside it, or on the local disk if that is a Volume."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) if _on_volume(target) else target.parent
    # unique beside other processes and threads that write the same file
    return folder / f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp"


def place(staged: Path, target: Path) -> None:
    """Makes a finished file appear at `target` at once and whole."""
    _flush(staged)
    if _on_volume(target):
        beside = target.with_name(staged.name)
        shutil.copyfile(staged, beside)
        if beside.stat().st_size != staged.stat().st_size:
            raise OSError(f"{beside}: the copy is not complete")
        os.replace(beside, target)
    else:
        os.replace(staged, target)
        _flush_folder(target.parent)


def _on_volume(path: Path) -> bool:
    return str(path.absolute()).startswith(_VOLUMES)


@contextmanager
def atomic_open(target: str | Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """`open` for writing a whole file that is complete or absent."""
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    with atomic_path(target) as staged, staged.open(mode, **options) as file:
        yield file


def write_text(target: str | Path, text: str) -> None:
    with atomic_open(target) as file:
        file.write(text)


def write_json(target: str | Path, value: Any) -> None:
    """JSON with NaN refused: it is not JSON, and readers in other languages stop at it."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: str | Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a rename last through a power cut; not every file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
