"""COCO instances and keypoints: one JSON file a split. https://cocodataset.org/#format-data

Boxes are x, y, width, height in pixels from the outer corner of the first pixel, keypoints are taken in the same
coordinates. Category ids may have gaps; classes are in their order. `skeleton` counts points from 1, and so does
`flip_pairs` (an extra key of a category). An image record may have an extra key `group`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvpipe.data.formats.files import Existing, child, folders, read_json, split_folders, split_of
from cvpipe.data.formats.points import flip_pairs_from_names, pairs
from cvpipe.data.formats.rows import Found, Kind, ObjectRows, Picture, Place, Request
from cvpipe.data.splits import SPLIT_FOLDERS, Problem
from cvpipe.errors import DataError, few

LAYOUT = "COCO: annotations/instances_train.json, train/_annotations.coco.json"

_ANNOTATION_FOLDERS = ("annotations", "annotation", "labels")
_OTHER_KINDS = ("captions", "image_info", "panoptic", "stuff")
_FIRST: dict[Kind, tuple[str, ...]] = {
    "boxes": ("instances",),
    "masks": ("instances",),
    "points": ("keypoints", "person_keypoints"),
    "class_map": ("panoptic",),
}
_TRIED = 20


def look(root: Path, request: Request) -> dict[str, Place]:
    chosen = choose_files(root, request, is_coco, _OTHER_KINDS)
    return {split: Place((), str(path), str(root)) for split, path in chosen.items()}


def choose_files(root: Path, request: Request, fits: Any, others: Sequence[str]) -> dict[str, Path]:
    """The JSON file of each split: those whose name says the kind first, then those whose content `fits`.

    Raises:
        DataError: several files say to be a split's annotations, or one that must be them is no JSON.
    """
    by_split: dict[str, list[tuple[int, Path]]] = {}
    inside = {folder: split for split, folder in split_folders(root).items()}
    annotations = [folder for name in _ANNOTATION_FOLDERS if (folder := child(root, name))]
    for folder in (root, *annotations, *inside):
        for path in sorted(folder.glob("*.json")):
            if path.stem.lower().startswith(tuple(others)) or path.name.startswith("."):
                continue
            # beside the images of a split a file need not name it
            split = split_of(path.stem) or inside.get(folder, "")
            by_split.setdefault(split, []).append((_rank(path.stem.lower(), request.kind), path))
    chosen: dict[str, Path] = {}
    for split, ranked in by_split.items():
        for rank in sorted({rank for rank, _ in ranked}):
            files = [path for found, path in ranked if found == rank and _accepted(path, rank, fits, request)]
            if len(files) > 1:
                raise DataError(
                    f"{request.where}: several annotation files for {split or 'the images'} in {root}: "
                    f"{few(str(path.relative_to(root)) for path in files)}. Name one: "
                    "data.train={images: FOLDER, annotations: FILE}."
                )
            if files:
                chosen[split] = files[0]
                break
    # a file that names no split beside files that do is a copy of all, or something else
    if len(chosen) > 1:
        chosen.pop("", None)
    return {split: chosen[split] for split in (*SPLIT_FOLDERS, "") if split in chosen}


def _rank(stem: str, kind: Kind) -> int:
    """0 for a name that says this kind of annotations, 1 for one that says annotations, 2 for any other."""
    if stem.startswith(_FIRST[kind]):
        return 0
    return 1 if split_of(stem) or "annotations" in stem or "coco" in stem or "instances" in stem else 2


def _accepted(path: Path, rank: int, fits: Any, request: Request) -> bool:
    try:
        return bool(fits(read_json(path, request.where, request.parsed)))
    except DataError:
        if rank == 0:
            raise
        return False


def is_coco(content: Any) -> bool:
    lists = isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))
    return lists and not is_panoptic(content)


def is_panoptic(content: Any) -> bool:
    first: Any = next(iter(content.get("annotations") or [{}]), {}) if isinstance(content, dict) else {}
    return isinstance(first, dict) and "segments_info" in first


def read(place: Place, split: str, request: Request) -> ObjectRows:
    content = read_json(place.annotations, request.where, request.parsed)
    request.parsed.pop(place.annotations, None)
    if not is_coco(content):
        keys = few(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        kind = "is a panoptic file (for semantic segmentation)" if is_panoptic(content) else f"holds {keys}"
        raise DataError(
            f"{request.where}: {place.annotations} {kind}, expected a COCO file: an object with the lists images, "
            "annotations and categories."
        )
    categories = read_categories(content, place, request)
    if request.kind == "points":
        categories = [category for category in categories if category.get("keypoints")]
        # the one that was chosen, so that others may have other points
        categories = [c for c in categories if request.classes and c["name"] in request.classes] or categories
        if not categories:
            raise DataError(
                f"{request.where}: no category in {place.annotations} has `keypoints`. Expected the names of an "
                "object's points, in order."
            )
    rows = ObjectRows(place.annotations, tuple(str(category["name"]) for category in categories))
    if request.kind == "points":
        _read_keypoints(rows, categories, request)
    pictures, gone = read_pictures(content, place, split, request, rows.pictures, rows.problems)
    _read_annotations(rows, content, categories, pictures, gone, split, request.kind)
    return rows


def read_categories(content: Any, place: Place, request: Request) -> list[dict[str, Any]]:
    """In the order of their ids. Raises DataError."""
    categories = content.get("categories")
    ok = isinstance(categories, list) and categories
    if not ok or not all(isinstance(c, dict) and "id" in c and "name" in c for c in categories):
        raise DataError(
            f"{request.where}: {place.annotations} has no list `categories` with an id and a name for each."
        )
    for key in ("id", "name"):
        doubled = [value for value, count in Counter(str(c[key]) for c in categories).items() if count > 1]
        if doubled:
            raise DataError(f"{request.where}: {place.annotations}: several categories have the {key} {few(doubled)}.")
    numbers = all(isinstance(c["id"], int) for c in categories)
    return sorted(categories, key=lambda c: c["id"] if numbers else str(c["id"]))


def read_pictures(
    content: Any, place: Place, split: str, request: Request, pictures: list[Picture], problems: list[Problem]
) -> tuple[dict[Any, int], dict[Any, str]]:
    """Fills `pictures` with the images that exist.

    Returns:
        (image id -> position in `pictures`, ids of images that can't be used -> why).
    """
    records: dict[Any, tuple[dict[str, Any], str]] = {}
    gone: dict[Any, str] = {}

    def report(what: str, reason: str, dropped: bool = True) -> None:
        problems.append(Problem(split, place.annotations, what, reason, dropped))

    for number, record in enumerate(content["images"]):
        identity = record.get("id") if isinstance(record, dict) else None
        if not isinstance(identity, (int, str)):
            report(f"image record {number}", "no id")
        elif not isinstance(record.get("file_name"), str) or not record["file_name"]:
            gone[identity] = "its image has no file_name"
            report(f"image {identity}", "no file_name")
        elif identity in records:
            report(f"image {identity}", f"the id stands for {records[identity][1]} already: {record['file_name']}")
        else:
            records[identity] = record, record["file_name"]
    if not records:
        raise DataError(f"{request.where}: {place.annotations} names no images.")
    existing = Existing()
    folder = _images_folder([name for _, name in records.values()], place, split, request, existing)
    by_path: dict[str, int] = {}
    positions: dict[Any, int] = {}
    for identity, (record, name) in records.items():
        path = os.path.normpath(os.path.join(folder, name))
        if path in by_path:
            other = pictures[by_path[path]].name
            report(f"image {identity}", f"{name} is {other} too: taken as one image", dropped=False)
            positions[identity] = by_path[path]
            continue
        if path not in existing:
            gone[identity] = "its image is missing"
            report(f"image {identity}", f"{path} does not exist")
            continue
        by_path[path] = positions[identity] = len(pictures)
        height, width = record.get("height"), record.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        pictures.append(Picture(path, f"image {identity}", size, str(record.get("group") or "")))
    return positions, gone


def _images_folder(names: Sequence[str], place: Place, split: str, request: Request, existing: Existing) -> str:
    """The folder that the file names start from: the first one in which most of some files are."""
    step = max(1, len(names) // _TRIED)
    sample = names[::step]
    best, most = "", 0
    tried: list[str] = []
    for folder in place.images or _candidates(Path(place.annotations), Path(place.root), split, request.root):
        tried.append(folder)
        hits = sum(os.path.normpath(os.path.join(folder, name)) in existing for name in sample)
        if hits > most:
            best, most = folder, hits
    if not most:
        empty = [folder for folder in place.images if not any(Path(folder).glob("*"))]
        what = (
            f"{few(empty)} is empty" if empty else f"the images of {place.annotations} ({few(sample, 2)}) are not there"
        )
        raise DataError(
            f"{request.where}: {what}. Looked in {few(tried)}. Name the folder: "
            f"data.{split or 'train'}={{images: FOLDER, annotations: {place.annotations}}}."
        )
    return best


def _candidates(file: Path, root: Path, split: str, base: str | None) -> Iterable[str]:
    """Folders that may hold the images, the most likely first."""
    split = split or split_of(file.stem)
    # train2017 and its like
    words = [word for word in file.stem.split("_") if split_of(word)]
    names = [*words, *SPLIT_FOLDERS.get(split, ())]
    roots = list(dict.fromkeys([*([Path(base)] if base else []), root, file.parent, file.parent.parent]))
    found: dict[Path, None] = {}
    for top in roots:
        images = child(top, "images", "imgs", "jpegimages")
        below = {folder.name.lower(): folder for folder in folders(top)}
        inner = {folder.name.lower(): folder for folder in folders(images)} if images else {}
        for name in names:
            for folder in (below.get(name.lower()), inner.get(name.lower())):
                if folder:
                    found |= {folder: None}
                    if deeper := child(folder, "images"):
                        found |= {deeper: None}
        found |= {folder: None for folder in (images, top) if folder}
    return [str(folder) for folder in found]


def _read_keypoints(rows: ObjectRows, categories: list[dict[str, Any]], request: Request) -> None:
    first = categories[0]
    names = [str(name) for name in first["keypoints"]]
    for category in categories[1:]:
        if [str(name) for name in category["keypoints"]] != names:
            raise DataError(
                f"{request.where}: the categories {first['name']!r} and {category['name']!r} in {rows.file} have "
                "different keypoints; a model learns one list of points. Choose: data.classes=[NAME]."
            )
    if len(set(names)) < len(names):
        raise DataError(f"{request.where}: {rows.file}: several keypoints of {first['name']!r} have the same name.")
    place = f"{request.where}: {rows.file}: category {first['name']!r}"
    rows.keypoints = tuple(names)
    rows.skeleton = pairs(first.get("skeleton") or [], len(names), f"{place}: skeleton", rows.notes)
    if "flip_pairs" in first:
        rows.flip_pairs = pairs(first["flip_pairs"] or [], len(names), f"{place}: flip_pairs", rows.notes)
    else:
        rows.flip_pairs = flip_pairs_from_names(names)
        rows.notes.append(f"{len(rows.flip_pairs)} flip pairs found by the names of the points")


def _read_annotations(
    rows: ObjectRows,
    content: Any,
    categories: list[dict[str, Any]],
    pictures: dict[Any, int],
    gone: dict[Any, str],
    split: str,
    kind: Kind,
) -> None:
    positions = {category["id"]: i for i, category in enumerate(categories)}
    known = {category["id"] for category in content["categories"]}
    without_points = 0
    seen: dict[Any, tuple[Any, ...]] = {}

    def report(identity: Any, reason: str, dropped: bool = True) -> None:
        rows.problems.append(Problem(split, rows.file, f"annotation {identity}", reason, dropped))

    for number, record in enumerate(content["annotations"]):
        if not isinstance(record, dict):
            report(f"at place {number}", "not an object")
            continue
        identity = record.get("id", f"at place {number}")
        image, category = record.get("image_id"), record.get("category_id")
        picture = pictures.get(image) if isinstance(image, (int, str)) else None
        if picture is None:
            report(identity, gone.get(image) or f"image_id {image!r} is not among the images")
            continue
        position = positions.get(category) if isinstance(category, (int, str)) else None
        if position is None:
            if isinstance(category, (int, str)) and category in known:
                without_points += 1
            else:
                report(identity, f"category_id {category!r} is not among the categories")
            continue
        try:
            x, y, width, height = map(float, record["bbox"])
        except (KeyError, TypeError, ValueError):
            report(identity, f"bbox {record.get('bbox')!r}, expected [x, y, width, height]")
            continue
        if "id" in record:
            content_of = (image, category, x, y, width, height)
            if identity in seen:
                again = seen[identity] == content_of
                report(identity, "stands there twice" if again else "another annotation has this id too", again)
                if again:
                    continue
            seen[identity] = content_of
        rows.found.append(
            Found(
                picture=picture,
                category=position,
                box=(x, y, x + width, y + height),
                id=identity,
                crowd=bool(record.get("iscrowd")),
                area=record.get("area"),
                mask=record.get("segmentation") if kind == "masks" else None,
                points=record.get("keypoints") if kind == "points" else None,
            )
        )
    if without_points:
        rows.notes.append(f"{without_points} objects of categories without these keypoints left out")
