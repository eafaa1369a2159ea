"""A local copy of files on slow mounts: each file is read from there once.

An entry is one file named after the path it copies, with a head that tells its length, checksum and the time of change
of its source. Many processes may read and write at the same time: entries appear whole, and the one that comes second
replaces an equal one. When the limit is reached, no more is stored: an epoch visits every file once, in a new order, so
that throwing out old entries for new ones would only make all of them useless.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import threading
import zlib
from functools import lru_cache
from pathlib import Path

from cvpipe.utils.console import warn

_HEAD = struct.Struct("<8sQIq")
_MAGIC = b"cvpcach1"
_COUNT_AGAIN = 64
"""What others write is counted when this process has written a 64th of the limit."""
FOLDER_VARIABLE, LIMIT_VARIABLE = "CVPIPE_DATA_CACHE", "CVPIPE_DATA_CACHE_GB"


def use_cache(folder: str | None, limit_gb: float) -> None:
    """Sends file reads of this process, and of those that it starts, through a cache; None: reads files themselves."""
    # the environment reaches loader processes however they are started
    if folder is None:
        os.environ.pop(FOLDER_VARIABLE, None)
    else:
        os.environ[FOLDER_VARIABLE] = os.path.abspath(folder)
        os.environ[LIMIT_VARIABLE] = str(limit_gb)


def cache_folder(named: str | None) -> Path:
    """Where local copies of tables go: the folder that `data.cache` names, else that of the user."""
    if named is not None:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "cvpipe"


def cache_in_use() -> FileCache | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    return _cache(folder, float(os.environ.get(LIMIT_VARIABLE, "100"))) if folder else None


class FileCache:
    """Copies of files, by path.

    Args:
        folder: on a fast local disk.
        limit: bytes that the copies may take together.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder) / "files", limit
        self._prefix = os.path.join(os.path.abspath(folder), "")
        self._lock = threading.Lock()
        self._used = -1
        self._written = 0
        self._full = False

    def read(self, path: str) -> bytes:
        """A file's bytes, from the copy where there is a whole one. Raises OSError, ValueError."""
        absolute = os.path.abspath(path)
        if absolute.startswith(self._prefix):
            return Path(path).read_bytes()
        entry = self._entry(absolute)
        found = _load(entry)
        if found is not None:
            return found[0]
        modified = os.stat(path).st_mtime_ns
        data = Path(path).read_bytes()
        self._store(entry, data, modified)
        return data

    def refresh(self, path: str) -> None:
        """Forgets the copy of a file that has changed since. Asks the mount once."""
        entry = self._entry(os.path.abspath(path))
        try:
            with entry.open("rb") as file:
                _, length, _, modified = _HEAD.unpack(file.read(_HEAD.size))
            now = os.stat(path)
            if (now.st_size, now.st_mtime_ns) != (length, modified):
                entry.unlink(missing_ok=True)
        except (OSError, ValueError, struct.error):
            return  # no copy, or no file: the next read tells

    def _entry(self, absolute: str) -> Path:
        name = hashlib.blake2b(os.fsencode(absolute), digest_size=16).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _store(self, entry: Path, data: bytes, modified: int) -> None:
        if self._full or not self._room(_HEAD.size + len(data)):
            return
        staged = entry.with_name(f"{entry.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(_HEAD.pack(_MAGIC, len(data), zlib.crc32(data), modified) + data)
            os.replace(staged, entry)
        except OSError as error:
            self._full = True
            staged.unlink(missing_ok=True)
            warn(f"data.cache: {self.folder} takes no more files ({error.strerror or error}): reading on without it")

    def _room(self, size: int) -> bool:
        with self._lock:
            if self._used < 0 or self._written > self.limit // _COUNT_AGAIN:
                self._used, self._written = _bytes_below(self.folder), 0
            if self._used + size > self.limit:
                self._full = True
                used = f"{self._used / 1e9:.1f} GB"
                warn(f"data.cache: {self.folder} is full ({used}): other files are read from their mount")
                return False
            self._used += size
            self._written += size
            return True


def _load(entry: Path) -> tuple[bytes, int] | None:
    """(bytes, time of change of the source) of a copy; None where there is none, or a broken one."""
    try:
        with entry.open("rb") as file:
            magic, length, checksum, modified = _HEAD.unpack(file.read(_HEAD.size))
            data = file.read()
    except (OSError, struct.error):
        return None
    whole = magic == _MAGIC and len(data) == length and zlib.crc32(data) == checksum
    return (data, modified) if whole else None


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # another process has just put it in its place
                total += os.stat(os.path.join(root, name)).st_size
    return total


@lru_cache(maxsize=8)
def _cache(folder: str, limit_gb: float) -> FileCache:
    return FileCache(folder, int(limit_gb * 1e9))
