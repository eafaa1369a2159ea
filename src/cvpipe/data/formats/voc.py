"""Pascal VOC: an XML file for each image. http://host.robots.ox.ac.uk/pascal/VOC/

VOC counts pixels from 1 and includes the last one: xmin and ymin become x1 = xmin - 1 and y1 = ymin - 1, xmax and ymax
stay. Files of tools that count from 0 end up one pixel too far out at the left and the top; a box that starts at 0
is reported as cut there. An image belongs to the XML file of its name. Objects that are `difficult` are objects.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.formats.files import by_stem, child, holds, holds_images, in_threads, read_text, split_folders
from cvpipe.data.formats.rows import Found, ObjectRows, Picture, Place, Request
from cvpipe.data.splits import Problem
from cvpipe.errors import DataError

LAYOUT = "VOC: JPEGImages, Annotations and ImageSets/Main, or images with XML files"

_XML = (".xml",)
_IMAGES = ("jpegimages", "images", "imgs")
_ANNOTATIONS = ("annotations", "annotation", "xml", "xmls", "labels")


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _File(NamedTuple):
    """An XML file's content; `problem` where it is none."""

    objects: list[_Object]
    size: tuple[int, int] | None
    image: str
    problem: str


def look(root: Path, request: Request) -> dict[str, Place]:
    inner = child(root, "vocdevkit") or root
    root = next((folder for folder in (root, inner, *sorted(inner.glob("VOC20*"))) if child(folder, "imagesets")), root)
    images, annotations = child(root, *_IMAGES), child(root, *_ANNOTATIONS)
    if images and annotations and holds(annotations, _XML):
        lists = _image_sets(root)
        if lists:
            return {split: Place((str(images),), str(annotations), str(root), str(f)) for split, f in lists.items()}
        by_split = {
            split: Place((str(folder),), str(annotations / folder.name), str(root))
            for split, folder in split_folders(images).items()
            if (annotations / folder.name).is_dir()
        }
        return by_split or {"": Place((str(images),), str(annotations), str(root))}
    by_split = {}
    for split, folder in split_folders(root).items():
        images, annotations = child(folder, *_IMAGES), child(folder, *_ANNOTATIONS)
        if images and annotations and holds(annotations, _XML):
            by_split[split] = Place((str(images),), str(annotations), str(root))
        elif holds(folder, _XML) and holds_images(folder):
            by_split[split] = Place((str(folder),), str(folder), str(root))
    if by_split:
        return by_split
    beside = holds(root, _XML, deep=False) and holds_images(root, deep=False)
    return {"": Place((str(root),), str(root), str(root))} if beside else {}


def _image_sets(root: Path) -> dict[str, Path]:
    """The lists of image names of each split; trainval where there is no train."""
    folder = child(root, "imagesets")
    folder = child(folder, "main") if folder else None
    if folder is None:
        return {}
    lists = {split: folder / f"{split}.txt" for split in ("train", "val", "test")}
    if not lists["train"].is_file():
        lists["train"] = folder / "trainval.txt"
        lists.pop("val")
    return {split: file for split, file in lists.items() if file.is_file()}


def read(place: Place, split: str, request: Request) -> ObjectRows:
    problems: list[Problem] = []
    images, doubled = by_stem(place.images[0], IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{request.where}: no images in {place.images[0]}.")
    for path, other in doubled:
        problems.append(Problem(split, path, "the image", f"it has the name of {other}", dropped=True))
    files, _ = by_stem(place.annotations, _XML)
    if place.extra:
        listed = [line.split()[0] for line in read_text(place.extra, request.where).splitlines() if line.split()]
        for number, name in enumerate(listed, start=1):
            if name not in files and name not in images:
                missing = "there is neither an image nor an XML file of this name"
                problems.append(Problem(split, place.extra, f"line {number}, {name}", missing, dropped=True))
        wanted = dict.fromkeys(listed)
        files = {name: path for name, path in files.items() if name in wanted}
        images_of_split = {name: path for name, path in images.items() if name in wanted}
    else:
        images_of_split = images
    rows = ObjectRows(place.annotations, (), problems=problems, called="object")
    contents = dict(zip(files, in_threads(_parse, files.values()), strict=True))
    used = set()
    found: list[tuple[int, int, _Object]] = []
    for name, content in contents.items():
        file = files[name]
        if content.problem:
            problems.append(Problem(split, file, "the file", content.problem, dropped=True))
            used.add(images.get(name, ""))
            continue
        # the name in the file is often that of a copy: it counts where no image has the file's own name
        path = images.get(name) or images.get(os.path.splitext(content.image)[0], "")
        if not path:
            reason = f"there is no image {name}.* in {place.images[0]}"
            problems.append(Problem(split, file, f"the file, {len(content.objects)} objects", reason, dropped=True))
            continue
        if path in used:
            reason = f"another file describes {path} already"
            problems.append(Problem(split, file, f"the file, {len(content.objects)} objects", reason, dropped=True))
            continue
        used.add(path)
        rows.pictures.append(Picture(path, "size", content.size, source=file))
        found += [(len(rows.pictures) - 1, n, item) for n, item in enumerate(content.objects, start=1)]
    for name, path in images_of_split.items():
        if path not in used:
            reason = f"the image has no XML file {name}.xml in {place.annotations}"
            problems.append(Problem(split, path, "the image", reason, dropped=True))
    classes = sorted({item.name for _, _, item in found})
    position = {name: i for i, name in enumerate(classes)}
    rows.categories = tuple(classes)
    rows.found = [Found(picture, position[item.name], _box(item), number) for picture, number, item in found]
    difficult = sum(item.difficult for _, _, item in found)
    if difficult:
        rows.notes.append(f"{difficult} {split or 'train'} objects are `difficult` and count like the others")
    return rows


def _box(item: _Object) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = item.corners
    return x1 - 1, y1 - 1, x2, y2


def _parse(path: str) -> _File:
    try:
        root = ElementTree.fromstring(Path(path).read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return _File([], None, "", f"no XML: {error}")
    if root.tag != "annotation":
        return _File([], None, "", f"expected <annotation>, found <{root.tag}>")
    objects = []
    for item in root.iter("object"):
        box = item.find("bndbox")
        ends = [_number(box.findtext(end)) if box is not None else math.nan for end in ("xmin", "ymin", "xmax", "ymax")]
        name = (item.findtext("name") or "").strip()
        if not name:
            return _File([], None, "", "an object without a name")
        x1, y1, x2, y2 = ends
        objects.append(_Object(name, (x1, y1, x2, y2), (item.findtext("difficult") or "0").strip() == "1"))
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (int(height), int(width)) if math.isfinite(height) and math.isfinite(width) else None
    return _File(objects, size, os.path.basename((root.findtext("filename") or "").strip()), "")


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
