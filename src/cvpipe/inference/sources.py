"""Which images a batch run is about: folders, globs, manifests, lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvpipe.errors import DataError, did_you_mean

LIST_SUFFIX = ".txt"
_EXPECTED = (
    "Expected a folder, a glob such as 'photos/**/*.jpg', an image, a manifest (.csv, .parquet, .jsonl) with a "
    "column of paths, or a .txt list with one path a line."
)


@dataclass(frozen=True)
class Inputs:
    """The images of a run.

    Attributes:
        paths: what stands in the column `path` of the output, each once, in order. For a folder or a glob the folder
            as it was given joined with the rest (`photos/a.jpg`), so that it opens from where the command ran; for a
            manifest, a list or a sequence what is written there, so that the output joins with it.
        root: folder that relative paths start from; empty for the working directory.
        notes: what a reader of the output should know, such as paths that stood there twice.
    """

    paths: tuple[str, ...]
    root: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, position: int) -> str:
        """What to open for the image at a position."""
        return os.path.join(self.root, self.paths[position])


def find_inputs(source: str | Path | Sequence[str | Path]) -> Inputs:
    """The images that `source` means.

    Args:
        source: a folder (with its subfolders), a glob, an image, a manifest, a .txt list, or a sequence of paths.

    Raises:
        DataError: there is no such thing, or no image in it.
    """
    from cvpipe.data.decode import IMAGE_SUFFIXES
    from cvpipe.data.sources import MANIFEST_SUFFIXES, list_images

    if not isinstance(source, (str, Path)):
        return _distinct([str(path) for path in source], "", "the list of images")
    text, path = str(source), Path(source)
    if not path.exists():
        return _from_glob(text) if glob.has_magic(text) else _missing(path)
    if path.is_dir():
        paths = list_images(path)
        if not paths:
            others = sum(len(files) for _, _, files in os.walk(path))
            raise DataError(
                f"{text}: no image in this folder or below it ({others} other files). Image files end in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        return Inputs(tuple(paths))
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Inputs((text,))
    if suffix == LIST_SUFFIX:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{text}: can't be read as a UTF-8 list of paths ({error}).") from None
        return _distinct([line.strip() for line in lines if line.strip()], str(path.parent), text)
    if suffix in MANIFEST_SUFFIXES:
        return _distinct(_manifest_paths(path), str(path.parent), text)
    raise DataError(f"{text}: a file of an unknown kind. {_EXPECTED}")


def _from_glob(pattern: str) -> Inputs:
    from cvpipe.data.decode import IMAGE_SUFFIXES

    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    images = [file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        found = f"matches {len(files)} files and none of them is an image" if files else "matches no file"
        raise DataError(f"{pattern}: {found}. `**` stands for any number of folders: 'photos/**/*.jpg'.")
    left_out = len(files) - len(images)
    return Inputs(tuple(images), notes=(f"{left_out} files that are not images left out",) if left_out else ())


def _missing(path: Path) -> Inputs:
    parent = next((p for p in path.parents if p.is_dir()), Path())
    hint = did_you_mean(path.name, [p.name for p in parent.iterdir()]) if parent == path.parent else ""
    raise DataError(f"{path} does not exist ({parent} does).{hint} {_EXPECTED}")


def _manifest_paths(path: Path) -> list[str]:
    from cvpipe.data.sources import _COLUMNS, read_table

    frame = read_table(path, "input")
    names = {str(column).lower(): column for column in frame.columns}
    column = next((names[name] for name in _COLUMNS["path"] if name in names), None)
    if column is None:
        raise DataError(
            f"{path} has the columns {', '.join(map(str, frame.columns))}, expected one of "
            f"{', '.join(_COLUMNS['path'])} for the path."
        )
    values = frame[column].tolist()
    empty = [row for row, value in enumerate(values, start=1) if not isinstance(value, str) or not value.strip()]
    if empty:
        raise DataError(f"{path}: {len(empty)} rows have no path in the column {column}; the first is row {empty[0]}.")
    return [value.strip() for value in values]


def _distinct(paths: list[str], root: str, name: str) -> Inputs:
    if not paths:
        raise DataError(f"{name} is empty. {_EXPECTED}")
    distinct = tuple(dict.fromkeys(paths))
    doubled = len(paths) - len(distinct)
    notes = (f"{doubled} repeated paths: one record for each path",) if doubled else ()
    return Inputs(distinct, "" if root == "." else root, notes)
