"""Images with class maps: a mask of the same name for each image, whose values (grey or palette) name classes.

Names of the values stand in a file near the masks (classes.json, classes.txt), or `data.classes` gives them from 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.formats.files import by_stem, child, folders, holds, read_json, read_text, split_folders, split_of
from cvpipe.data.formats.rows import Map, MapRows, Picture, Place, Request
from cvpipe.data.splits import Problem
from cvpipe.errors import DataError, few

LAYOUT = "masks: train/images with train/masks, images/train with masks/train, train with semantic_train"

_IMAGES = ("images", "imgs", "image", "jpegimages")
_MASKS = (
    "masks", "mask", "semantic", "segmentation", "segmentationclass", "labels", "label", "annotations", "gt",
    "labelids",
)  # fmt: skip
# a JPEG can't hold a mask; read anyway, so that it is refused by name
_LOSSLESS = frozenset(IMAGE_SUFFIXES) - {".jpg", ".jpeg", ".jfif", ".webp"}
_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_labelids", "_semantic", "_seg", "_gt", "_l")
_CLASS_FILES = (
    "classes.json", "semantic_classes.json", "class_names.json", "labels.json", "id2label.json", "classes.txt",
    "class_names.txt", "labels.txt",
)  # fmt: skip
_IGNORED_NAMES = frozenset({"unlabeled", "unlabelled", "void", "ignore", "ignored", "ignore region"})


class _Classes(NamedTuple):
    """What values mean.

    Attributes:
        names: value -> name, values that are to be ignored left out.
        ignored: those values.
        notes: what was decided here.
    """

    names: dict[int, str]
    ignored: frozenset[int]
    notes: list[str]


def look(root: Path, request: Request) -> dict[str, Place]:
    images = child(root, *_IMAGES)
    found = _by_split(root, images) or _whole(root, images)
    return {split: Place((str(pictures),), str(masks), str(root)) for split, (pictures, masks) in found.items()}


def _by_split(root: Path, images: Path | None) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for split, folder in split_folders(root).items():
        pictures, masks = child(folder, *_IMAGES), _mask_folder(folder)
        if pictures and masks:
            found[split] = pictures, masks
    for split, pictures in {} if found else (split_folders(images) if images else {}).items():
        for name in _MASKS:
            masks = child(root, name)
            masks = split_folders(masks).get(split) if masks else None
            if masks and holds(masks, _LOSSLESS):
                found[split] = pictures, masks
                break
    if found:
        return found
    # train with semantic_train, masks_train, train_masks, trainannot
    for split, pictures in split_folders(root).items():
        named = [
            folder
            for folder in folders(root)
            if folder != pictures and _says_masks(folder.name) == split and holds(folder, _LOSSLESS)
        ]
        if len(named) == 1:
            found[split] = pictures, named[0]
    return found


def _says_masks(name: str) -> str:
    """The split whose masks a folder of that name holds, or ""."""
    name = name.lower().replace("annot", "_masks")
    words = {word for word in name.replace("-", "_").split("_") if word}
    return split_of(name) if words & set(_MASKS) else ""


def _whole(root: Path, images: Path | None) -> dict[str, tuple[Path, Path]]:
    masks = _mask_folder(root)
    return {"": (images, masks)} if images and masks else {}


def _mask_folder(root: Path) -> Path | None:
    return next((folder for name in _MASKS if (folder := child(root, name)) and holds(folder, _LOSSLESS)), None)


def read(place: Place, split: str, request: Request) -> MapRows:
    images, more_images = by_stem(place.images[0], IMAGE_SUFFIXES)
    masks, more_masks = by_stem(place.annotations, IMAGE_SUFFIXES)
    for folder, files in ((place.images[0], images), (place.annotations, masks)):
        if not files:
            raise DataError(f"{request.where}: no images in {folder}.")
    classes = _read_classes(place, request)
    order = sorted(classes.names)
    rows = MapRows(place.annotations, tuple(classes.names[value] for value in order), notes=classes.notes)
    values = (*((value, i) for i, value in enumerate(order)), *((value, -1) for value in sorted(classes.ignored)))
    for path, other in (*more_images, *more_masks):
        rows.problems.append(Problem(split, path, "the file", f"it has the name of {other}", dropped=True))
    by_name = {name.lower(): name for name in masks}
    for name, path in images.items():
        found = next((by_name.pop(key) for e in _ENDINGS if (key := f"{name.lower()}{e}") in by_name), None)
        if found is None:
            reason = f"no mask of this name in {place.annotations}"
            rows.problems.append(Problem(split, path, "the image", reason, dropped=True))
        else:
            rows.pictures.append(Picture(path, os.path.basename(path), source=masks[found]))
            rows.maps.append(Map(masks[found], values))
    for name in by_name.values():
        reason = f"no image of this name in {place.images[0]}"
        rows.problems.append(Problem(split, masks[name], "the mask", reason, dropped=True))
    if not rows.pictures:
        raise DataError(
            f"{request.where}: no mask in {place.annotations} is named like an image in {place.images[0]}: "
            f"{few(list(masks), 3)} and {few(list(images), 3)}. Expected the same names, or with _mask behind."
        )
    return rows


def _read_classes(place: Place, request: Request) -> _Classes:
    file = _class_file(Path(place.annotations), Path(place.root))
    notes = []
    ignored = {request.ignore_index} if request.ignore_index is not None else set()
    if file is not None:
        names, stated = parse_classes(file, request)
        notes.append(f"classes: from {file}")
        if not ignored and stated is not None:
            ignored = {stated}
        elif not ignored:
            ignored = {value for value, name in names.items() if name.strip().lower() in _IGNORED_NAMES}
            notes += [f"value {value} ({names[value]!r}) is ignored, by its name" for value in sorted(ignored)]
    elif request.classes:
        names = dict(enumerate(request.classes))
        clash = next((names[value] for value in ignored if value in names), None)
        if clash:
            raise DataError(
                f"{request.where}: the masks' values are places in data.classes, from 0, and data.ignore_index "
                f"{request.ignore_index} is the place of {clash!r}. Take it out, or name the values in classes.json."
            )
    else:
        raise DataError(
            f"{request.where}: no names for the values in {place.annotations}. Expected classes.json near the masks "
            '({"classes": [NAME, …]} from 0, or {"VALUE": "NAME", …}), classes.txt with a name a line, or '
            "data.classes=[NAME, …] in the config."
        )
    if 255 not in names and 255 not in ignored:
        # what Pascal VOC, Cityscapes, ADE20K and others write for pixels of no class
        ignored.add(255)
    return _Classes({v: name for v, name in names.items() if v not in ignored}, frozenset(ignored), notes)


def _class_file(masks: Path, root: Path) -> Path | None:
    """The nearest file with names of classes: by the masks, above them up to the root, or in its annotations."""
    above = [masks, masks.parent, masks.parent.parent]
    tops = above[: above.index(root) + 1] if root in above else above
    for folder in tops:
        for place in (folder, folder / "annotations"):
            for name in _CLASS_FILES:
                if (place / name).is_file():
                    return place / name
    return None


def parse_classes(file: Path, request: Request) -> tuple[dict[int, str], int | None]:
    """(value -> name, the value to ignore where the file says one).

    JSON: {"classes": …, "ignore_index": VALUE} or the classes alone, which are a list of names from 0, a list of
    {"id": VALUE, "name": NAME}, {"VALUE": NAME} or {NAME: VALUE}. Text: a name a line, from 0, or `VALUE NAME`.

    Raises:
        DataError: anything else.
    """
    place = f"{request.where}: {file}"
    stated: Any = None
    if file.suffix.lower() == ".txt":
        lines = read_text(file, request.where).strip().splitlines()
        content: Any = [line.strip() for line in lines]
        parts = [line.replace(":", " ").replace(",", " ").split(maxsplit=1) for line in content]
        if all(len(part) == 2 and part[0].isdecimal() for part in parts):
            content = dict(parts)
    else:
        content = read_json(file, request.where)
        if isinstance(content, dict) and "classes" in content:
            stated, content = content.get("ignore_index"), content["classes"]
    if stated is not None and not isinstance(stated, int):
        raise DataError(f"{place}: ignore_index: expected a value or null, found {stated!r}.")
    names = _names(content)
    if not names:
        raise DataError(
            f'{place}: expected names of classes: a list, {{"VALUE": "NAME"}}, or one of them behind "classes".'
        )
    doubled = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if doubled:
        raise DataError(f"{place}: several values have the name {few(doubled)}.")
    if not all(0 <= value <= 65535 for value in names):
        raise DataError(f"{place}: values are 0 to 65535, found {few(v for v in names if not 0 <= v <= 65535)}.")
    return names, stated


def _names(content: Any) -> dict[int, str]:
    """Value -> name; empty where the content is none of the known forms."""
    try:
        if isinstance(content, list) and all(isinstance(item, str) for item in content):
            return dict(enumerate(content))
        if isinstance(content, list):
            return {int(item["id"]): str(item["name"]) for item in content}
        if isinstance(content, dict) and all(isinstance(value, int) for value in content.values()):
            return {value: str(name) for name, value in content.items()}
        if isinstance(content, dict) and all(isinstance(name, str) for name in content.values()):
            return {int(value): name for value, name in content.items()}
    except (KeyError, TypeError, ValueError):
        pass
    return {}
