"""YOLO text files, one for each image: `class x y width height` or `class x y x y x y …` (a polygon), as shares of the
image's sides. https://docs.ultralytics.com/datasets/

With `kpt_shape` in data.yaml a line goes on, after the box, with x, y[, visibility] of each point. An image without a
file has no objects. Which splits there are is said by data.yaml, else by the folders.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.formats.files import (
    Existing,
    Header,
    child,
    holds,
    in_threads,
    list_files,
    read_header,
    read_text,
    split_folders,
)
from cvpipe.data.formats.points import flip_pairs_from_names
from cvpipe.data.formats.rows import Found, ObjectRows, Picture, Place, Request
from cvpipe.data.splits import SPLIT_FOLDERS, Problem
from cvpipe.errors import DataError, few

LAYOUT = "YOLO: data.yaml, images/train with labels/train, train/images with train/labels"

_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "data.names", "names.txt")
_NO_LABELS = frozenset({*_NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt", "requirements.txt"})
_TXT = (".txt",)


class _Names(NamedTuple):
    """What a data set says about its classes and points."""

    classes: dict[int, str]
    file: str
    shape: tuple[int, int] | None = None
    flip: Sequence[int] | None = None
    points: Sequence[str] | None = None


def look(root: Path, request: Request) -> dict[str, Place]:
    described = [path for path in sorted(root.glob("*.y*ml")) if _described(path, request) is not None]
    if len(described) > 1:
        raise DataError(
            f"{request.where}: {root} has several data set files: {few(path.name for path in described)}. Name one: "
            f"data.train={described[0]}."
        )
    if described:
        return look_file(described[0], request)
    return _by_folders(root, str(root))


def look_file(file: Path, request: Request) -> dict[str, Place]:
    """The splits of a data.yaml. Raises DataError where its folders are not there."""
    content = _described(file, request)
    if content is None:
        raise DataError(f"{request.where}: {file} is no YOLO data set file: it has no `names`.")
    base = str(content.get("path") or "")
    tops = [file.parent / base, file.parent, *([Path(base)] if base else [])]
    found: dict[str, Place] = {}
    tried: list[str] = []
    for split, aliases in SPLIT_FOLDERS.items():
        entry = next((content[alias] for alias in aliases if content.get(alias)), None)
        entries = [str(item) for item in (entry if isinstance(entry, list) else [entry] if entry else [])]
        places = []
        for item in entries:
            # Roboflow writes ../train/images, and means train/images
            options = [top / part for top in tops for part in (item, item.removeprefix("../"))]
            place = next((option for option in options if option.exists()), None)
            if place is not None:
                places.append(str(place))
            else:
                tried.append(item)
        if places and len(places) == len(entries):
            found[split] = Place(tuple(places), "", str(file))
    if "train" in found:
        return found
    found = _by_folders(file.parent, str(file))
    if not found:
        raise DataError(
            f"{request.where}: {file} names {few(tried) or 'no folder for train'}, which is not there, and beside it "
            "is no images folder with a labels folder."
        )
    return found


def _by_folders(root: Path, described: str) -> dict[str, Place]:
    images, labels = child(root, "images"), child(root, "labels")
    if images and labels and holds(labels, _TXT):
        by_split = {
            split: Place((str(folder),), str(labels / folder.name), described)
            for split, folder in split_folders(images).items()
            if (labels / folder.name).is_dir()
        }
        return by_split or {"": Place((str(images),), str(labels), described)}
    by_split = {}
    for split, folder in split_folders(root).items():
        images, labels = child(folder, "images"), child(folder, "labels")
        if images and labels and holds(labels, _TXT):
            by_split[split] = Place((str(images),), str(labels), described)
        elif _beside(folder):
            by_split[split] = Place((str(folder),), str(folder), described)
    if by_split:
        return by_split
    lists = {split: root / f"{alias}.txt" for split, aliases in SPLIT_FOLDERS.items() for alias in reversed(aliases)}
    if lists["train"].is_file() and any((root / name).is_file() for name in ("obj.data", "obj.names")):
        return {split: Place((str(file),), "", described) for split, file in lists.items() if file.is_file()}
    return {"": Place((str(root),), str(root), described)} if _beside(root) else {}


def _beside(folder: Path) -> bool:
    """Whether an image has its labels beside it."""
    stems = {path.stem for path in folder.glob("*.txt") if path.name.lower() not in _NO_LABELS}
    return bool(stems) and any(p.stem in stems and p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def _described(path: Path, request: Request) -> dict[str, Any] | None:
    """A data set file's content; None where the YAML file is something else."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path, request.where))
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) and isinstance(content.get("names"), (list, dict)) else None


def read(place: Place, split: str, request: Request) -> ObjectRows:
    names = _read_names(place, request)
    classes = sorted(names.classes)
    rows = ObjectRows(place.annotations or place.images[0], tuple(names.classes[c] for c in classes), called="line")
    if request.kind == "points":
        _name_points(rows, names, request)
    files = list(_images(place, split, request, rows.problems))
    if not files:
        raise DataError(f"{request.where}: no images in {few(place.images)}.")
    sources = [_label_file(image, folder, place.annotations) for image, folder in files]
    jobs = [(image, source) for (image, _), source in zip(files, sources, strict=True)]
    rows.headers = []
    unlabelled = 0
    position = {c: i for i, c in enumerate(classes)}
    for (image, source), (header, text) in zip(jobs, in_threads(_load, jobs), strict=True):
        rows.pictures.append(Picture(image, os.path.basename(image), source=source))
        rows.headers.append(header)
        unlabelled += text is None
        if text and header:
            _read_lines(rows, text, header.size, position, names, split, request.kind)
    if unlabelled:
        rows.notes.append(
            f"{unlabelled} {split or 'train'} images without a label file: taken as images without objects"
        )
    _unused_labels(rows, set(sources), place, split)
    return rows


def _load(job: tuple[str, str]) -> tuple[Header | None, str | None]:
    image, source = job
    try:
        text = Path(source).read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        text = None
    return read_header(image), text


def _images(place: Place, split: str, request: Request, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """(image, folder that it was found through)"""
    for source in place.images:
        if not source.lower().endswith(".txt"):
            yield from ((image, source) for image in list_files(source, IMAGE_SUFFIXES))
            continue
        lines = [line.strip() for line in read_text(source, request.where).splitlines()]
        names = [line for line in lines if line]
        existing = Existing()
        top = Path(place.root) if Path(place.root).is_dir() else Path(place.root).parent
        # CVAT writes data/obj_train_data/1.jpg for obj_train_data/1.jpg
        bases = [(str(base), cut) for cut in (0, 1) for base in (Path(source).parent, top)]
        paths = [[os.path.normpath(os.path.join(base, _cut(name, cut))) for name in names] for base, cut in bases]
        best = max(paths, key=lambda found: sum(path in existing for path in found[:20]))
        for number, path in enumerate(best, start=1):
            if path in existing:
                yield path, os.path.dirname(path)
            else:
                problems.append(Problem(split, source, f"line {number}", f"{path} does not exist", dropped=True))


def _cut(name: str, parts: int) -> str:
    return name.split("/", parts)[-1] if parts else name


def _label_file(image: str, folder: str, labels: str) -> str:
    if labels:
        return os.path.splitext(os.path.join(labels, os.path.relpath(image, folder)))[0] + ".txt"
    stem = os.path.splitext(image)[0] + ".txt"
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{before}{os.sep}labels{os.sep}{after}"
    return moved if found and os.path.isdir(f"{before}{os.sep}labels") else stem


def _unused_labels(rows: ObjectRows, used: set[str], place: Place, split: str) -> None:
    for folder in [place.annotations] if place.annotations else []:
        for path in list_files(folder, _TXT):
            name = os.path.basename(path).lower()
            if path not in used and name not in _NO_LABELS and not name.startswith(("readme", "license")):
                rows.problems.append(Problem(split, path, "the file", "there is no image of this name", dropped=True))


def _read_lines(
    rows: ObjectRows,
    text: str,
    size: tuple[int, int],
    position: dict[int, int],
    names: _Names,
    split: str,
    kind: str,
) -> None:
    picture = len(rows.pictures) - 1
    seen: dict[tuple[float, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            values = [float(part) for part in parts]
            problem = _what_is_wrong(values, position, names.shape, kind)
        except ValueError:
            problem = "expected numbers"
        key = tuple(values) if not problem else ()
        if not problem and key in seen:
            problem = f"says the same as line {seen[key]}"
        if problem:
            file = rows.pictures[picture].source
            rows.problems.append(Problem(split, file, f"line {number}", problem, dropped=True))
            continue
        seen[key] = number
        rows.found.append(_object(values, size, picture, position[int(values[0])], number, names.shape, kind))


def _what_is_wrong(values: list[float], position: dict[int, int], shape: tuple[int, int] | None, kind: str) -> str:
    if not math.isfinite(values[0]) or values[0] != int(values[0]) or int(values[0]) not in position:
        return f"{values[0]:g} is no class: there are {len(position)}, from 0"
    count = len(values) - 1
    if shape:
        if count != 4 + shape[0] * shape[1]:
            return f"{count + 1} numbers, expected {5 + shape[0] * shape[1]}: class, box, {shape[0]} points"
        if kind == "masks":
            return "a box and keypoints where a polygon is needed"
    elif count != 4 and (count < 6 or count % 2):
        return f"{count + 1} numbers, expected 5 (class and box) or a class and 3 or more points of a polygon"
    elif count == 4 and kind == "masks":
        return "a box where a polygon is needed"
    far = next((value for value in values[1:5] if value > 2 or value < -1), None)
    if far is not None:
        return f"coordinates are shares of the image's sides, found {far:g}"
    return ""


def _object(
    values: list[float],
    size: tuple[int, int],
    picture: int,
    category: int,
    number: int,
    shape: tuple[int, int] | None,
    kind: str,
) -> Found:
    height, width = size
    if shape or len(values) == 5:
        x, y, w, h = values[1] * width, values[2] * height, values[3] * width, values[4] * height
        points = _points(values[5:], size, shape[1]) if shape and kind == "points" else None
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return Found(picture, category, box, number, points=points)
    xs, ys = [value * width for value in values[1::2]], [value * height for value in values[2::2]]
    polygon = [value for pair in zip(xs, ys, strict=True) for value in pair] if kind == "masks" else None
    # not min and max of a list with NaN, which depend on its order
    bad = not all(map(math.isfinite, values))
    box = (math.nan,) * 4 if bad else (min(xs), min(ys), max(xs), max(ys))
    return Found(picture, category, box, number, mask=[polygon] if polygon else None)


def _points(values: list[float], size: tuple[int, int], numbers: int) -> list[float]:
    """x, y[, visibility] as shares -> x, y, visibility in pixels. Without it, 0 0 and negative are not there."""
    points: list[float] = []
    for start in range(0, len(values), numbers):
        x, y = values[start] * size[1], values[start + 1] * size[0]
        there = 2.0 if min(x, y) >= 0 and (x, y) != (0, 0) else 0.0
        points += [x, y, values[start + 2] if numbers == 3 else there]
    return points


def _read_names(place: Place, request: Request) -> _Names:
    root = Path(place.root)
    if root.is_file():
        return _from_yaml(root, request)
    inside = Path(place.annotations or place.images[0])
    for folder in dict.fromkeys([root, inside, inside.parent, inside.parent.parent]):
        for path in sorted(folder.glob("*.y*ml")):
            if _described(path, request) is not None:
                return _from_yaml(path, request)
        for file in (folder / name for name in _NAME_FILES):
            if file.is_file():
                lines = read_text(file, request.where).strip().splitlines()
                return _Names(dict(enumerate(line.strip() for line in lines)), str(file))
    if request.classes:
        return _Names(dict(enumerate(request.classes)), "data.classes")
    raise DataError(
        f"{request.where}: no names for the classes of {inside}. Expected data.yaml with `names`, or classes.txt with "
        "a name a line, or data.classes=[NAME, …] in the config."
    )


def _from_yaml(path: Path, request: Request) -> _Names:
    content = _described(path, request) or {}
    names = content["names"]
    try:
        classes = {
            int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
    except (TypeError, ValueError):
        raise DataError(
            f"{request.where}: {path}: names: expected a list, or numbers with names, found {names}."
        ) from None
    if len(set(classes.values())) < len(classes):
        raise DataError(f"{request.where}: {path}: names: several classes have the same name: {few(classes.values())}.")
    shape = content.get("kpt_shape")
    if shape is None:
        return _Names(classes, str(path))
    if not (isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int) and shape[1] in (2, 3)):
        raise DataError(f"{request.where}: {path}: kpt_shape: expected [points, 2 or 3], found {shape}.")
    flip, points = content.get("flip_idx"), content.get("kpt_names")
    if isinstance(points, dict):
        points = next(iter(points.values()), None)
    for key, value in (("flip_idx", flip), ("kpt_names", points)):
        if value is not None and (not isinstance(value, list) or len(value) != shape[0]):
            raise DataError(f"{request.where}: {path}: {key}: expected a list of {shape[0]}, found {value}.")
    return _Names(classes, str(path), (shape[0], shape[1]), flip, points)


def _name_points(rows: ObjectRows, names: _Names, request: Request) -> None:
    if names.shape is None:
        raise DataError(f"{request.where}: {names.file} has no kpt_shape. Expected kpt_shape: [points, 2 or 3].")
    rows.keypoints = tuple(map(str, names.points or [f"point_{i}" for i in range(names.shape[0])]))
    if names.flip is None:
        rows.flip_pairs = flip_pairs_from_names(rows.keypoints)
        rows.notes.append(f"{len(rows.flip_pairs)} flip pairs found by the names of the points")
        return
    if sorted(map(str, names.flip)) != sorted(map(str, range(names.shape[0]))) or any(
        names.flip[int(other)] != i for i, other in enumerate(names.flip)
    ):
        raise DataError(
            f"{request.where}: {names.file}: flip_idx: expected the place that each point goes to and back."
        )
    rows.flip_pairs = tuple((i, int(other)) for i, other in enumerate(names.flip) if i < int(other))
