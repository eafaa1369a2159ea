"""`demo:scenes`: scanned digits on photographs, with boxes, masks, points and class maps; for trying the tasks offline.

Made from data that scikit-learn carries:

- the digits: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0;
- `china.jpg`: photo by danielbuechele (flickr.com/photos/danielbuechele/6061409035), CC BY 2.0;
- `flower.jpg`: photo by vultilion (flickr.com/photos/vultilion/6056698931), CC BY 2.0.

Changed: both are cut, enlarged and put together; digits are turned and coloured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.data.demo import written_once
from cvpipe.data.targets import encode_rle

FOLDER = "scenes-1"
"""The number changes with the contents: an older copy in the cache is not taken for this one."""
CLASSES = {0: "zero", 1: "one", 4: "four", 7: "seven"}
POINTS = ("top", "right", "bottom", "left")
SIDE = 160
COUNTS = {"train": 400, "val": 60, "test": 100}

_SCANS = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
"""Shares of each digit's scans."""
_COLUMNS = {"train": (0, 352), "val": (352, 480), "test": (480, 640)}
"""Columns of the two photographs."""
_DIGIT_PX = (24, 64)
_CROP_PX = (96, 128)
_LEAST_VISIBLE = 0.7
"""Share of a digit's ink that those above it leave in sight."""
_COLORS = ((0, 0, 0), (230, 60, 60), (60, 180, 75), (60, 110, 240), (245, 200, 40))

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass
class Scene:
    """One image and what is on it, in the order of drawing.

    Attributes:
        image: (SIDE, SIDE, 3) float32 RGB, 0..255.
        masks: (SIDE, SIDE) each, the ink of a digit that is in sight.
        whole: pixels of ink of each digit before others came on top.
        scans: position of each digit in scikit-learn's data.
        labels: position of each in CLASSES.
    """

    image: Floats
    masks: list[Bools] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def scenes_folder() -> Path:
    """The root of demo:scenes; written to the cache folder the first time, in a few seconds.

    560 images of 160x160 pixels with 0 to 6 digits of four classes. Train, val and test share neither a scan nor a
    pixel of the photographs::

        images/{train,val,test}/NNNN.jpg
        annotations/{train,val,test}.json    COCO: boxes, masks (RLE of what is in sight) and four keypoints an object
        masks/{train,val,test}/NNNN.png      indexed: 0 background, 1.. the classes
        masks/classes.json                   {"0": "background", "1": "zero", …}
    """
    return written_once(FOLDER, write_scenes)


def write_scenes(folder: Path) -> None:
    """Writes the data set below `folder`; the same pixels each time."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    for number, split in enumerate(COUNTS):
        rng = np.random.default_rng([1, number])
        low, high = _SCANS[split]
        scans = []
        for digit in CLASSES:
            positions = np.random.default_rng(digit).permutation(np.flatnonzero(digits.target == digit))
            scans.append(positions[round(low * len(positions)) : round(high * len(positions))])
        scenes = []
        for index in range(COUNTS[split]):
            scene = Scene(_background(photos[index % 2], _COLUMNS[split], rng))
            wanted = 0 if index % 20 == 7 else int(rng.integers(1, 7))
            for _ in range(wanted):
                label = int(rng.integers(len(CLASSES)))
                scan = int(rng.choice(scans[label]))
                _add(scene, digits.images[scan], scan, label, rng)
            scenes.append(scene)
        _write(folder, split, scenes)
    names = {"0": "background"} | {str(i + 1): name for i, name in enumerate(CLASSES.values())}
    (folder / "masks" / "classes.json").write_text(json.dumps(names, indent=1))


def _background(photo: Pixels, columns: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(SIDE, SIDE, 3) a random square of some columns of a photograph, enlarged; perhaps mirrored, brighter, darker."""
    from PIL import Image

    side = int(rng.integers(*_CROP_PX, endpoint=True))
    top = int(rng.integers(0, photo.shape[0] - side, endpoint=True))
    left = int(rng.integers(columns[0], columns[1] - side, endpoint=True))
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    pixels = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    bright: Floats = np.clip(pixels * np.float32(rng.uniform(0.7, 1.2)), 0, 255)
    return bright


def _add(scene: Scene, image: npt.NDArray[Any], scan: int, label: int, rng: np.random.Generator) -> None:
    """Draws a digit where it leaves enough of the others in sight; leaves it out where no such place is found."""
    for _ in range(20):
        ink = digit_ink(image, int(rng.integers(*_DIGIT_PX, endpoint=True)), float(rng.uniform(-15, 15)))
        height, width = ink.shape
        top, left = int(rng.integers(0, SIDE - height)), int(rng.integers(0, SIDE - width))
        part = np.s_[top : top + height, left : left + width]
        covers = ink >= 0.5
        left_over = [int(below.sum() - (below[part] & covers).sum()) for below in scene.masks]
        if all(rest >= _LEAST_VISIBLE * whole for rest, whole in zip(left_over, scene.whole, strict=True)):
            break
    else:
        return
    behind = scene.image[part]
    behind += (_color(behind, rng) - behind) * ink[..., None]
    for below in scene.masks:
        below[part] &= ~covers
    mask = np.zeros((SIDE, SIDE), bool)
    mask[part] = covers
    scene.masks.append(mask)
    scene.whole.append(int(covers.sum()))
    scene.scans.append(scan)
    scene.labels.append(label)


def digit_ink(scan: npt.NDArray[Any], height: int, angle: float) -> Floats:
    """(8, 8) 0..16 -> (h, w) 0..1 opacity, smoothly enlarged to `height` pixels, turned, empty borders cut off."""
    from PIL import Image

    small = Image.fromarray(np.pad(scan * 15.9, 1).astype(np.uint8))
    side = round(height * 10 / 8)
    large = small.resize((side, side), Image.Resampling.BICUBIC)
    grey = np.asarray(large.rotate(angle, Image.Resampling.BICUBIC, expand=True), dtype=np.float32) / 255
    opacity: Floats = np.clip((grey - 0.3) / 0.2, 0, 1).astype(np.float32)
    rows, columns = (np.flatnonzero(opacity.any(axis=axis)) for axis in (1, 0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _color(behind: Floats, rng: np.random.Generator) -> Floats:
    """(3,) RGB, clearly brighter or darker than what is behind."""
    luma = np.array([0.299, 0.587, 0.114])
    brightness = float((behind @ luma).mean())
    for _ in range(50):
        color = rng.integers(0, 256, 3)
        if abs(float(color @ luma) - brightness) >= 90:
            return color.astype(np.float32)
    return np.full(3, 0 if brightness > 127 else 255, np.float32)


def _write(folder: Path, split: str, scenes: list[Scene]) -> None:
    from PIL import Image

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True)
    for number, scene in enumerate(scenes):
        name = f"{number:04d}"
        Image.fromarray(scene.image.round().astype(np.uint8)).save(
            folder / "images" / split / f"{name}.jpg", quality=90
        )
        classes = np.zeros((SIDE, SIDE), np.uint8)
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            classes[mask] = label + 1
        indexed = Image.fromarray(classes)
        indexed.putpalette([channel for color in _COLORS for channel in color])
        indexed.save(folder / "masks" / split / f"{name}.png")
        images.append({"id": number + 1, "file_name": f"{name}.jpg", "width": SIDE, "height": SIDE})
        for mask, label, scan in zip(scene.masks, scene.labels, scene.scans, strict=True):
            annotations.append(_annotation(mask, label, scan, number + 1, len(annotations) + 1))
    info = {"description": "cvpipe demo:scenes", "version": FOLDER}
    licenses = [{"id": 1, "name": "CC BY 4.0 (digits)"}, {"id": 2, "name": "CC BY 2.0 (photographs)"}]
    document = {"info": info, "licenses": licenses, "images": images, "annotations": annotations}
    document["categories"] = [
        {
            "id": number,
            "name": name,
            "supercategory": "digit",
            "keypoints": list(POINTS),
            "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]],
            "flip_pairs": [[2, 4]],
        }
        for number, name in enumerate(CLASSES.values(), 1)
    ]
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(document))


def _annotation(mask: Bools, label: int, scan: int, image: int, number: int) -> dict[str, Any]:
    """COCO's record of one object; `scan` says which of the scans it is."""
    y, x = np.nonzero(mask)
    left, top, right, bottom = int(x.min()), int(y.min()), int(x.max()), int(y.max())
    # the middle of the outermost ink, in coordinates where a pixel's centre is at .5
    points = [
        (float(x[y == top].mean()) + 0.5, top + 0.5),
        (right + 0.5, float(y[x == right].mean()) + 0.5),
        (float(x[y == bottom].mean()) + 0.5, bottom + 0.5),
        (left + 0.5, float(y[x == left].mean()) + 0.5),
    ]
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [left, top, right + 1 - left, bottom + 1 - top],
        "area": len(x),
        "iscrowd": 0,
        "segmentation": encode_rle(mask),
        "keypoints": [value for px, py in points for value in (round(px, 2), round(py, 2), 2)],
        "num_keypoints": len(points),
        "scan": scan,
    }
