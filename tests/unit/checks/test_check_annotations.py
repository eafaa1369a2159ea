"""Boxes and masks with planted faults, in real COCO and mask files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from planted import pieces, scanned, write

from cvpipe.checks.findings import Finding
from cvpipe.checks.objects import (
    find_odd_boxes,
    find_odd_masks,
    find_problems,
    look_at_masks,
    overlaps,
    pixel_counts,
)
from cvpipe.checks.places import Places
from cvpipe.config_file import parse_config
from cvpipe.data.splits import Splits
from cvpipe.data.targets import IGNORE, ClassMap
from cvpipe.task import find_task

BOXES: dict[str, list[float]] = {
    "good": [10, 10, 40, 40],
    "again": [10, 10, 40, 41],
    "tiny": [60, 60, 1, 30],
    "thin": [0, 90, 100, 4],
    "outside": [300, 10, 20, 20],
    "over the border": [80, 80, 60, 20],
    "no area": [20, 20, 0, 10],
}


def coco(folder: Path, images: int = 3) -> Path:
    """Two images with all faults in the first, and one without objects, in train; the same in val, without faults."""
    for split in ("train", "val"):
        files = []
        for i in range(images):
            write(pieces()[i + (10 if split == "val" else 0)], folder / split / f"{i}.jpg")
            files.append({"id": i, "file_name": f"{i}.jpg", "width": 105, "height": 105})
        chosen = BOXES if split == "train" else {"good": BOXES["good"]}
        annotations = [
            {"id": n, "image_id": 0, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
            for n, box in enumerate(chosen.values())
        ]
        annotations.append({"id": 90, "image_id": 1, "category_id": 2, "bbox": [5, 5, 30, 30], "area": 900})
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}]
        path.write_text(json.dumps({"images": files, "annotations": annotations, "categories": categories}))
    return folder


def load(folder: Path, task: str, **data: Any) -> tuple[Splits, Places]:
    config = parse_config({"task": task, "data": {"train": str(folder), **data}})
    splits = find_task(task).load_data(config)
    paths = [path for split in splits.all() for path in split.paths]
    return splits, Places.of(splits.all(), scanned(paths, folder.parent / "scan"), splits.labels)


def names(found: list[Finding]) -> dict[str, list[str]]:
    order = list(BOXES)
    texts: dict[str, list[str]] = {}
    for item in found:
        number = item.annotation.split()[-1]
        texts.setdefault(item.check, []).append(order[int(number)] if number and int(number) < len(order) else "")
    return texts


def test_every_planted_box_is_found_and_no_other(tmp_path: Path) -> None:
    splits, places = load(coco(tmp_path / "set"), "detection")
    problems = find_problems(splits.problems)
    assert names(problems) == {"box_outside": ["outside", "over the border"], "box_degenerate": ["no area"]} or names(
        problems
    ) == {"box_outside": ["over the border", "outside"], "box_degenerate": ["no area"]}
    assert {item.severity for item in problems if "over the border" in item.message} == {"warning"}
    assert {item.severity for item in problems if "left out" in item.message} == {"error"}
    odd = find_odd_boxes(places, (105, 105))
    found = names([item for item in odd if item.check != "empty_annotation"])
    assert found == {"box_tiny": ["tiny"], "box_aspect": ["tiny", "thin"], "box_duplicate": ["again"]}
    empty = [(item.split, Path(item.path).name) for item in odd if item.check == "empty_annotation"]
    assert empty == [("train", "2.jpg"), ("val", "2.jpg")]
    # at twice the size the box that is 1 pixel wide is 2 pixels wide, at four times 4
    assert not [item for item in find_odd_boxes(places, (420, 420)) if item.check == "box_tiny"]


@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
@settings(max_examples=20)
def test_overlaps_are_those_of_torchvision(seed: int, count: int) -> None:
    import torch
    from torchvision.ops import box_iou

    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 50, (count, 2))], axis=1).astype(np.float32)
    assert np.allclose(overlaps(boxes), box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)), atol=1e-5)


def test_masks(tmp_path: Path) -> None:
    """Values without a name, files that can't be read, and masks of nothing, as the worker sees them."""
    values = {"good": [[0, 1], [1, 255]], "unknown": [[0, 7], [7, 9]], "nothing": [[255, 255], [255, 255]]}
    targets = []
    for name, rows in values.items():
        Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / f"{name}.png")
        targets.append(ClassMap(str(tmp_path / f"{name}.png"), ((0, 0), (1, 1), (255, IGNORE))))
    targets.append(ClassMap(str(tmp_path / "missing.png"), ((0, 0),)))
    looks = look_at_masks(targets)
    assert looks[0].pixels == {0: 1, 1: 2}
    assert looks[1].unknown == {7: 2, 9: 1}
    assert looks[2] == ("", {}, {})
    from cvpipe.data.splits import Split
    from cvpipe.types import Labels

    paths = [write(image, tmp_path / f"{i}.jpg") for i, image in enumerate(pieces()[:4])]
    split = Split("train", tuple(paths), tuple(targets))
    places = Places.of([split], scanned(paths, tmp_path / "scan"), Labels(("sky", "road")))
    found = find_odd_masks(places, range(4), looks)
    assert [(item.check, Path(item.related).name) for item in found] == [
        ("mask_values", "unknown.png"),
        ("empty_annotation", "nothing.png"),
        ("mask_values", "missing.png"),
    ]
    assert pixel_counts(places, range(4), looks) == {"train": {"sky": 2, "road": 2}}


def test_problems_of_the_reader_are_all_there(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set")
    path = folder / "annotations" / "instances_train.json"
    values = json.loads(path.read_text())
    values["images"].append({"id": 77, "file_name": "missing.jpg", "width": 5, "height": 5})
    values["annotations"].append({"id": 50, "image_id": 999, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81})
    path.write_text(json.dumps(values))
    splits, _ = load(folder, "detection")
    found = find_problems(splits.problems)
    assert len(found) == len(splits.problems)
    assert Counter(item.check for item in found)["annotation"] >= 2


@pytest.mark.parametrize("task", ["keypoints", "instance_segmentation", "detection", "semantic_segmentation"])
def test_the_scenes_have_no_faulty_annotation(task: str, tmp_path: Path) -> None:
    config = parse_config({"task": task, "data": {"train": "demo:scenes"}})
    splits = find_task(task).load_data(config)
    assert find_problems(splits.problems) == []
