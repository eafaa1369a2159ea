"""Files of a data set: which exist, what their headers say, JSON."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.splits import SPLIT_FOLDERS
from cvpipe.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ORIENTATION = 0x0112
_WORDS = {alias: split for split, aliases in SPLIT_FOLDERS.items() for alias in aliases}


class Header(NamedTuple):
    """What the first bytes of an image file say.

    Attributes:
        size: (height, width) of the upright image.
        orientation: of EXIF, 1 to 8; 1 is upright.
        format: Pillow's name, such as JPEG.
        mode: Pillow's name, such as P or RGB.
    """

    size: tuple[int, int]
    orientation: int
    format: str
    mode: str


def read_header(path: str) -> Header | None:
    """The header, or None where the file can't be an image (which `verify` reports)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            try:
                turn = int(image.getexif().get(_ORIENTATION, 1))
            except (OSError, ValueError, TypeError, SyntaxError, KeyError, struct.error):
                turn = 1
            size = (width, height) if 5 <= turn <= 8 else (height, width)
            return Header(size, turn, image.format or "", image.mode)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return None


def read_headers(paths: Sequence[str]) -> list[Header | None]:
    return list(in_threads(read_header, paths))


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` for work that waits for a disk, in order."""
    with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:
        yield from pool.map(work, items)


class Existing:
    """Whether files exist, by listing each folder once: on a Volume a question for each file takes minutes."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def split_of(name: str) -> str:
    """train, val or test where a file or folder name says so (`instances_val2017`, `valid`), else "".

    A name that holds several such words says nothing.
    """
    words = (re.sub(r"(20\d\d)?$", "", word) for word in re.split(r"[^a-z0-9]+", name.lower()))
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else ""


def folders(root: Path) -> list[Path]:
    """Subfolders by name, without hidden ones."""
    try:
        return sorted(path for path in root.iterdir() if path.name[0] != "." and path.is_dir())
    except OSError:
        return []


def split_folders(root: Path) -> dict[str, Path]:
    """The subfolders that are named after a split."""
    by_name = {path.name.lower(): path for path in reversed(folders(root))}
    return {split: by_name[alias] for split, aliases in SPLIT_FOLDERS.items() for alias in aliases if alias in by_name}


def child(root: Path, *names: str) -> Path | None:
    """The first subfolder with one of these names, in any case."""
    by_name = {path.name.lower(): path for path in reversed(folders(root))}
    return next((by_name[name] for name in names if name in by_name), None)


def holds(folder: Path | None, suffixes: Iterable[str], deep: bool = True) -> bool:
    """Whether a file with one of these endings lies in a folder, or with `deep` below it."""
    wanted = frozenset(suffixes)
    if folder is None:
        return False
    for _, inner, files in os.walk(folder, followlinks=True):
        if any(os.path.splitext(name)[1].lower() in wanted and name[0] != "." for name in files):
            return True
        inner[:] = [name for name in inner if deep and name[0] != "."]
    return False


def holds_images(folder: Path | None, deep: bool = True) -> bool:
    return holds(folder, IMAGE_SUFFIXES, deep)


def list_files(folder: str | Path, suffixes: Iterable[str]) -> list[str]:
    """All files below a folder with one of these endings, sorted; hidden ones are left out."""
    wanted = frozenset(suffixes)
    found = []
    for root, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if name[0] != ".")
        found += [os.path.join(root, f) for f in files if os.path.splitext(f)[1].lower() in wanted and f[0] != "."]
    return sorted(found)


def by_stem(folder: str, suffixes: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Files below a folder by their path from there without ending; and (file, the one with the same name before)."""
    found: dict[str, str] = {}
    doubled = []
    for path in list_files(folder, suffixes):
        stem = os.path.splitext(os.path.relpath(path, folder))[0]
        if stem in found:
            doubled.append((path, found[stem]))
        found.setdefault(stem, path)
    return found, doubled


def read_json(path: str | Path, where: str, parsed: dict[str, Any] | None = None) -> Any:
    """A JSON file's content. Raises DataError; remembers it in `parsed`."""
    key = str(path)
    if parsed is not None and key in parsed:
        return parsed[key]
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{where}: {path} can't be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {path} is no JSON file: {error}.") from None
    if parsed is not None:
        parsed[key] = content
    return content


def read_text(path: str | Path, where: str) -> str:
    """A text file's content, UTF-8 with or without a byte order mark. Raises DataError."""
    try:
        return Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{where}: {path} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {path} is no UTF-8 text: {error.reason} at byte {error.start}.") from None
