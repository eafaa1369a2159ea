"""A tiny data set with boxes, masks and points: coloured shapes, and settings that learn them in seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cvpipe.tasks.objects_task import Kind

CLASSES = ("block", "disc")
POINTS = ("left", "right", "top", "bottom")
_SIDE = 64
_IMAGES = 24
_COLORS = ((220, 60, 50), (40, 90, 220))

_FEW = {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 100}
_MODELS: dict[Kind, dict[str, Any]] = {
    "boxes": {"name": "fcos"},
    "masks": {"name": "maskrcnn", "options": _FEW, "head_channels": 32},
    "points": {"name": "keypointrcnn", "options": _FEW, "head_channels": 32},
}
_TASKS: dict[Kind, str] = {"boxes": "detection", "masks": "instance_segmentation", "points": "keypoints"}


def write_example(kind: Kind, folder: Path) -> dict[str, Any]:
    """Writes 24 images with one to three shapes and their COCO annotations; returns a config that trains on them."""
    from PIL import Image, ImageDraw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, _IMAGES + 1):
        noise = rng.integers(90, 140, (_SIDE, _SIDE, 3)).astype(np.uint8)
        picture = Image.fromarray(noise)
        draw = ImageDraw.Draw(picture)
        # one shape in each of some columns, so that none hides another
        for column in range(int(rng.integers(1, 4))):
            label = int(rng.integers(len(CLASSES)))
            width, height = int(rng.integers(14, 20)), int(rng.integers(14, 28))
            x, y = column * 21 + int(rng.integers(0, 21 - width + 1)), int(rng.integers(0, _SIDE - height))
            inner = (x, y, x + width - 1, y + height - 1)
            (draw.rectangle if label == 0 else draw.ellipse)(inner, fill=_COLORS[label])
            annotations.append(_annotation(len(annotations) + 1, number, label, (x, y, width, height)))
        name = f"{number:02d}.png"
        picture.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": _SIDE, "height": _SIDE})
    categories = [
        {"id": i + 1, "name": name, "keypoints": list(POINTS), "skeleton": [[1, 2], [3, 4]], "flip_pairs": [[1, 2]]}
        for i, name in enumerate(CLASSES)
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(document))
    return {
        "task": _TASKS[kind],
        "model": {
            "backbone": "test_resnet",
            "pretrained": False,
            "neck_channels": 32,
            "head_convs": 1,
            **_MODELS[kind],
        },
        "data": {
            "train": {"images": str(folder / "images"), "annotations": str(folder / "objects.json")},
            "image_size": _SIDE,
            "augment": {"hflip": 0.5, "scale": [1, 1], "color_jitter": 0},
        },
        "training": {"batch_size": 8, "num_workers": 0, "epochs": 2, "learning_rate": 0.003},
        "inference": {"max_detections": 20},
    }


def _annotation(number: int, image: int, label: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, width, height = box
    centre, half = (x + width / 2, y + height / 2), (width / 2, height / 2)
    corners: list[tuple[float, float]]
    if label == 0:
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    else:
        turns = [2 * math.pi * step / 24 for step in range(24)]
        corners = [(centre[0] + half[0] * math.cos(t), centre[1] + half[1] * math.sin(t)) for t in turns]
    dx, dy = half[0] / 2, half[1] / 2
    points = [(-dx, 0.0), (dx, 0.0), (0.0, -dy), (0.0, dy)]
    area = width * height if label == 0 else math.pi * half[0] * half[1]
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [x, y, width, height],
        "area": area,
        "iscrowd": 0,
        "segmentation": [[float(v) for corner in corners for v in corner]],
        "keypoints": [float(v) for px, py in points for v in (centre[0] + px, centre[1] + py, 2)],
        "num_keypoints": len(points),
    }
