"""COCO panoptic: a JSON file and, for each image, a PNG whose colours are segment numbers; read as a class map.

A segment's category is its class; pixels of no segment (0) are ignored. https://cocodataset.org/#format-data
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cvpipe.data.formats.coco import choose_files, is_panoptic, read_categories, read_pictures
from cvpipe.data.formats.files import Existing, child, holds, read_json
from cvpipe.data.formats.rows import Map, MapRows, Picture, Place, Request
from cvpipe.data.splits import Problem
from cvpipe.errors import DataError, few

LAYOUT = "COCO panoptic: annotations/panoptic_train.json with annotations/panoptic_train/*.png"

_OTHER_KINDS = ("captions", "image_info", "instances", "person_keypoints", "keypoints")
_PNG = (".png",)


def look(root: Path, request: Request) -> dict[str, Place]:
    chosen = choose_files(root, request, is_panoptic, _OTHER_KINDS)
    return {split: Place((), str(path), str(root)) for split, path in chosen.items()}


def read(place: Place, split: str, request: Request) -> MapRows:
    content = read_json(place.annotations, request.where, request.parsed)
    request.parsed.pop(place.annotations, None)
    if not is_panoptic(content) or not isinstance(content.get("images"), list):
        raise DataError(
            f"{request.where}: {place.annotations} is no panoptic file: expected images, and annotations with "
            "segments_info."
        )
    folder = place.extra or _segments_folder(Path(place.annotations), Path(place.root), request)
    categories = read_categories(content, place, request)
    position = {category["id"]: i for i, category in enumerate(categories)}
    rows = MapRows(place.annotations, tuple(str(category["name"]) for category in categories), segments=True)
    pictures: list[Picture] = []
    images, gone = read_pictures(content, place, split, request, pictures, rows.problems)

    def report(identity: Any, reason: str) -> None:
        rows.problems.append(Problem(split, rows.file, f"segments of image {identity}", reason, dropped=True))

    existing = Existing()
    done: set[int] = set()
    for record in content["annotations"]:
        identity = record.get("image_id") if isinstance(record, dict) else None
        image = images.get(identity) if isinstance(identity, (int, str)) else None
        if image is None:
            report(identity, gone.get(identity) or "image_id is not among the images")
            continue
        path = os.path.join(folder, str(record.get("file_name")))
        values, unknown = _values(record, position)
        if image in done:
            report(identity, "stands there twice")
        elif path not in existing:
            report(identity, f"{path} does not exist")
        elif unknown:
            report(identity, unknown)
        else:
            rows.pictures.append(pictures[image])
            rows.maps.append(Map(path, values))
        done.add(image)
    for i, picture in enumerate(pictures):
        if i not in done:
            reason = f"{picture.path} has no annotation"
            rows.problems.append(Problem(split, rows.file, picture.name, reason, dropped=True))
    return rows


def _values(record: dict[str, Any], position: dict[Any, int]) -> tuple[tuple[tuple[int, int], ...], str]:
    """(segment number -> category, or -1 for pixels of none), and what is wrong."""
    values: list[tuple[int, int]] = [(0, -1)]
    for segment in record.get("segments_info") or []:
        number = segment.get("id") if isinstance(segment, dict) else None
        if not isinstance(number, int) or not 0 < number < 1 << 24:
            return (), f"segment id {number!r}, expected a number from 1 to 16777215"
        category = position.get(segment.get("category_id"))
        if category is None:
            return (), f"category_id {segment.get('category_id')!r} is not among the categories"
        values.append((number, category))
    return tuple(values), ""


def _segments_folder(file: Path, root: Path, request: Request) -> str:
    tried = []
    for top in dict.fromkeys([file.parent, root, root / "annotations"]):
        folder = child(top, file.stem.lower())
        if holds(folder, _PNG):
            return str(folder)
        tried.append(str(top / file.stem))
    raise DataError(
        f"{request.where}: no folder of PNG files for {file}. Looked for {few(tried)}. Name it: "
        f"data.train={{images: FOLDER, annotations: {file}, masks: FOLDER}}."
    )
