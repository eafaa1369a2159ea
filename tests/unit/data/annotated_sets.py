"""Writes little annotated data sets, the same one in every format and layout, for tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from cvpipe.data.annotated import load_annotated
from cvpipe.data.splits import Split, Splits
from cvpipe.errors import DataError
from cvpipe.tasks.spatial import SpatialConfig

CLASSES = ("cat", "dog", "bird")
IDS = {"cat": 3, "dog": 7, "bird": 90}
"""With gaps, as COCO's."""


@dataclass
class Thing:
    """An object: its class, box x1 y1 x2 y2, and in some sets a polygon or points."""

    label: str
    box: tuple[float, float, float, float]
    polygon: list[tuple[float, float]] | None = None
    points: list[tuple[float, float, int]] | None = None


@dataclass
class Scene:
    """An image of a size (width, height), and what is on it."""

    name: str
    size: tuple[int, int] = (64, 48)
    things: list[Thing] = field(default_factory=list)


Scenes = Mapping[str, Sequence[Scene]]

LITTLE: Scenes = {
    "train": [
        Scene("a.jpg", (64, 48), [Thing("cat", (1, 2, 30, 40)), Thing("dog", (0, 0, 64, 48))]),
        Scene("b.jpg", (40, 50), [Thing("bird", (10, 11, 12, 13)), Thing("cat", (5, 5, 39, 49))]),
        Scene("c.jpg", (64, 48), [Thing("dog", (3, 4, 20, 30))]),
    ],
    "val": [Scene("d.jpg", (32, 32), [Thing("bird", (1, 1, 31, 31)), Thing("dog", (2, 3, 4, 5))])],
    "test": [Scene("e.jpg", (32, 40), [Thing("cat", (3, 3, 9, 9)), Thing("cat", (30, 30, 32, 40))])],
}


def config(train: Any, **data: Any) -> SpatialConfig:
    """A config; `num_classes` goes to the model, everything else to the data."""
    model = {"num_classes": data.pop("num_classes")} if "num_classes" in data else {}
    train = train if isinstance(train, dict) else str(train)
    return SpatialConfig.model_validate({"task": "detection", "data": {"train": train, **data}, "model": model})


def load(train: Any, kind: Any = "boxes", **data: Any) -> Splits:
    return load_annotated(config(train, **data), kind)


def problem(train: Any, kind: Any = "boxes", **data: Any) -> str:
    """The message that loading ends with."""
    try:
        load(train, kind, **data)
    except DataError as error:
        return str(error)
    raise AssertionError("it was loaded")


def objects(split: Split | None, classes: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """File name -> (class, x1, y1, x2, y2) of its objects."""
    assert split is not None
    return {
        Path(path).name: [
            (classes[label], *box) for label, box in zip(target.labels, target.boxes.tolist(), strict=True)
        ]
        for path, target in zip(split.paths, split.targets, strict=True)
    }


def write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_content(
    scenes: Sequence[Scene], classes: Mapping[str, int] = IDS, points: Sequence[str] = ()
) -> dict[str, Any]:
    """Categories stand in the reverse order of their ids, images and annotations in that of the scenes."""
    categories: list[dict[str, Any]] = [{"id": number, "name": name} for name, number in reversed(classes.items())]
    if points:
        categories = [{**category, "keypoints": list(points)} for category in categories]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for number, scene in enumerate(scenes, start=100):
        width, height = scene.size
        content["images"].append({"id": number, "file_name": scene.name, "width": width, "height": height})
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            record: dict[str, Any] = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": classes[thing.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            if thing.polygon is not None:
                record["segmentation"] = [[value for point in thing.polygon for value in point]]
            if thing.points is not None:
                record["keypoints"] = [value for point in thing.points for value in point]
            content["annotations"].append(record)
    return content


def _images(scenes: Sequence[Scene], folder: Path) -> None:
    for scene in scenes:
        write_image(folder / scene.name, scene.size)


def _coco(annotations: str, images: str) -> Callable[[Path, Scenes], None]:
    def write(root: Path, scenes: Scenes) -> None:
        for split, members in scenes.items():
            _images(members, root / images.format(split))
            write_json(root / annotations.format(split), coco_content(members))

    return write


def yolo_line(thing: Thing, size: tuple[int, int]) -> str:
    width, height = size
    if thing.polygon is not None:
        numbers = [value for x, y in thing.polygon for value in (x / width, y / height)]
    else:
        x1, y1, x2, y2 = thing.box
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        numbers += [value for x, y, v in thing.points or () for value in (x / width, y / height, v)]
    return " ".join([str(CLASSES.index(thing.label)), *(f"{number:.8f}" for number in numbers)])


def _yolo(images: str, labels: str, described: Callable[[Path, Scenes], None]) -> Callable[[Path, Scenes], None]:
    def write(root: Path, scenes: Scenes) -> None:
        for split, members in scenes.items():
            _images(members, root / images.format(split))
            (root / labels.format(split)).mkdir(parents=True, exist_ok=True)
            for scene in members:
                lines = [yolo_line(thing, scene.size) for thing in scene.things]
                # an image without objects has an empty file, or none
                if lines or scene.name[0] != "n":
                    target = (root / labels.format(split) / scene.name).with_suffix(".txt")
                    target.write_text("\n".join(lines) + "\n")
        described(root, scenes)

    return write


def _data_yaml(entry: str, **more: Any) -> Callable[[Path, Scenes], None]:
    def write(root: Path, scenes: Scenes) -> None:
        content = {"names": dict(enumerate(CLASSES)), **{split: entry.format(split) for split in scenes}, **more}
        (root / "data.yaml").write_text(yaml.safe_dump(content))

    return write


def _classes_txt(root: Path, scenes: Scenes) -> None:
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def _lists(root: Path, scenes: Scenes) -> None:
    (root / "obj.names").write_text("\n".join(CLASSES) + "\n")
    for split, members in scenes.items():
        lines = [f"data/obj_{split}_data/{scene.name}" for scene in members]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")


def voc_text(scene: Scene) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = scene.name
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*scene.size, 3), strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    for thing in scene.things:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = thing.label
        box = ElementTree.SubElement(item, "bndbox")
        x1, y1, x2, y2 = thing.box
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
            ElementTree.SubElement(box, name).text = str(value)
    return ElementTree.tostring(root, encoding="unicode")


def _voc(images: str, annotations: str, sets: bool = False) -> Callable[[Path, Scenes], None]:
    def write(root: Path, scenes: Scenes) -> None:
        for split, members in scenes.items():
            _images(members, root / images.format(split))
            (root / annotations.format(split)).mkdir(parents=True, exist_ok=True)
            for scene in members:
                (root / annotations.format(split) / scene.name).with_suffix(".xml").write_text(voc_text(scene))
            if sets:
                main = root / "ImageSets" / "Main"
                main.mkdir(parents=True, exist_ok=True)
                (main / f"{split}.txt").write_text("".join(f"{Path(scene.name).stem}\n" for scene in members))
                (main / f"cat_{split}.txt").write_text("".join(f"{Path(scene.name).stem} -1\n" for scene in members))

    return write


LAYOUTS: dict[str, Callable[[Path, Scenes], None]] = {
    "coco annotations": _coco("annotations/instances_{}.json", "{}"),
    "coco images": _coco("annotations/{}.json", "images/{}"),
    "coco 2017": _coco("annotations/instances_{}2017.json", "{}2017"),
    "coco roboflow": _coco("{}/_annotations.coco.json", "{}"),
    "coco flat": _coco("{}.json", "images"),
    "yolo ultralytics": _yolo("images/{}", "labels/{}", _data_yaml("images/{}", path="/somewhere/else")),
    "yolo roboflow": _yolo("{}/images", "{}/labels", _data_yaml("../{}/images")),
    "yolo folders": _yolo("images/{}", "labels/{}", _classes_txt),
    "yolo beside": _yolo("{}", "{}", _classes_txt),
    "yolo lists": _yolo("obj_{}_data", "obj_{}_data", _lists),
    "voc sets": _voc("JPEGImages", "Annotations", sets=True),
    "voc devkit": lambda root, scenes: LAYOUTS["voc sets"](root / "VOCdevkit" / "VOC2012", scenes),
    "voc beside": _voc("{}", "{}"),
    "voc folders": _voc("images/{}", "annotations/{}"),
}
"""Name -> writes the scenes below a folder. The name begins with the format."""


def write_mask(path: Path, values: Any, palette: bool = True) -> None:
    """(height, width) uint8 as an indexed PNG, or a grey one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette:
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)
