"""demo:scenes: everything its annotations say can be read off its pixels, and its splits share nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvpipe.data import demo_scenes
from cvpipe.data.demo import cache_folder, demo_folder, written_once
from cvpipe.data.demo_scenes import CLASSES, COUNTS, POINTS, SIDE, scenes_folder
from cvpipe.errors import DataError

SPLITS = tuple(COUNTS)


@pytest.fixture(scope="module")
def root(_cache_folder: Path) -> Path:
    return scenes_folder()


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, Any]:
    return {split: json.loads((root / "annotations" / f"{split}.json").read_text()) for split in SPLITS}


def objects_of(document: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


def decoded(annotation: dict[str, Any]) -> Any:
    from pycocotools import mask as coco

    return coco.decode(annotation["segmentation"]).astype(bool)


def test_the_layout(root: Path, documents: dict[str, Any]) -> None:
    for split, count in COUNTS.items():
        names = [f"{i:04d}" for i in range(count)]
        assert sorted(p.name for p in (root / "images" / split).iterdir()) == [f"{name}.jpg" for name in names]
        assert sorted(p.name for p in (root / "masks" / split).iterdir()) == [f"{name}.png" for name in names]
        assert [image["file_name"] for image in documents[split]["images"]] == [f"{name}.jpg" for name in names]
        with Image.open(root / "images" / split / "0003.jpg") as image:
            assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    names = json.loads((root / "masks" / "classes.json").read_text())
    assert names == {"0": "background", "1": "zero", "2": "one", "3": "four", "4": "seven"}


@pytest.mark.parametrize("split", SPLITS)
def test_pycocotools_reads_it(root: Path, split: str) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(root / "annotations" / f"{split}.json"))
    categories = coco.loadCats(coco.getCatIds())
    assert [c["name"] for c in categories] == list(CLASSES.values())
    for category in categories:
        assert tuple(category["keypoints"]) == POINTS
        swapped = [{POINTS[i - 1] for i in pair} for pair in category["flip_pairs"]]
        assert swapped == [{"left", "right"}]
        assert all(1 <= i <= len(POINTS) for pair in category["skeleton"] for i in pair)
    counts = [len(coco.getAnnIds(imgIds=[i])) for i in coco.getImgIds()]
    assert min(counts) == 0
    assert max(counts) == 6
    by_class = [len(coco.getAnnIds(catIds=[c["id"]])) for c in categories]
    assert min(by_class) > 0.5 * max(by_class)


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_points_and_class_maps_agree_with_the_masks(root: Path, documents: dict[str, Any], split: str) -> None:
    for image, members in objects_of(documents[split]).items():
        classes = np.zeros((SIDE, SIDE), np.uint8)
        covered = np.zeros((SIDE, SIDE), int)
        for annotation in members:
            mask = decoded(annotation)
            y, x = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == [left, top, left + width, top + height]
            assert annotation["area"] == mask.sum() >= 40
            covered += mask
            classes[mask] = annotation["category_id"]
            points = np.array(annotation["keypoints"]).reshape(-1, 3)
            assert (points[:, 2] == 2).all()
            assert ((points[:, :2] > [left, top]) & (points[:, :2] < [left + width, top + height])).all()
            assert points[0, 1] == top + 0.5
            assert points[1, 0] == left + width - 0.5
            assert points[2, 1] == top + height - 0.5
            assert points[3, 0] == left + 0.5
            assert points[0, 0] == pytest.approx(x[y == top].mean() + 0.5, abs=0.006)
            assert points[3, 1] == pytest.approx(y[x == left].mean() + 0.5, abs=0.006)
        assert covered.max(initial=0) <= 1, "what is covered belongs to the digit on top alone"
        with Image.open(root / "masks" / split / f"{image - 1:04d}.png") as indexed:
            assert indexed.mode == "P"
            np.testing.assert_array_equal(np.array(indexed), classes)


def test_ink_stands_out(root: Path, documents: dict[str, Any]) -> None:
    """The pixels of a mask have one colour, another one than those around its box."""
    luma = np.array([0.299, 0.587, 0.114])
    differences = []
    for image, members in list(objects_of(documents["val"]).items())[:30]:
        with Image.open(root / "images" / "val" / f"{image - 1:04d}.jpg") as file:
            grey = np.asarray(file, dtype=np.float64) @ luma
        ink = sum((decoded(a).astype(int) for a in members), np.zeros((SIDE, SIDE), int)) > 0
        for annotation in members:
            left, top, width, height = annotation["bbox"]
            part = np.s_[top : top + height, left : left + width]
            around = grey[part][~ink[part]]
            differences.append(abs(grey[decoded(annotation)].mean() - around.mean()))
    assert np.median(differences) > 60


def test_splits_share_neither_scans_nor_photographs(documents: dict[str, Any]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = {split: {a["scan"] for a in documents[split]["annotations"]} for split in SPLITS}
    assert all(len(found) > 50 for found in scans.values())
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not scans[one] & scans[other]
        (a, b), (c, d) = demo_scenes._COLUMNS[one], demo_scenes._COLUMNS[other]
        assert b <= c or d <= a
    for split in SPLITS:
        for annotation in documents[split]["annotations"]:
            assert list(CLASSES)[annotation["category_id"] - 1] == digits.target[annotation["scan"]]


def test_the_background_comes_from_the_columns_of_the_split() -> None:
    ramp = np.repeat(np.arange(640)[None, :, None] / 4, 427, axis=0).repeat(3, axis=2).astype(np.uint8)
    for split, (low, high) in demo_scenes._COLUMNS.items():
        rng = np.random.default_rng(0)
        for _ in range(20):
            # the brightness is changed by a factor at most: the ratio of the ends tells the columns
            state = rng.bit_generator.state
            pixels = demo_scenes._background(ramp, (low, high), rng)
            assert pixels.shape == (SIDE, SIDE, 3)
            assert low / 4 * 0.7 - 2 <= pixels.min(), split
            assert pixels.max() <= high / 4 * 1.2 + 2, split
            assert rng.bit_generator.state != state


def test_a_second_call_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(demo_scenes, "write_scenes", None)
    assert scenes_folder() == root
    assert demo_folder("demo:scenes", ("scenes",)) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_pixels_are_the_same_each_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_scenes, "COUNTS", {"train": 6})
    demo_scenes.write_scenes(tmp_path)
    for path in [*(tmp_path / "images").rglob("*.jpg"), *(tmp_path / "masks").rglob("*.png")]:
        assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes()


def test_half_a_data_set_is_never_seen() -> None:
    def breaks(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        written_once("broken-1", breaks)
    assert not list((cache_folder() / "demo").glob("broken-1*"))


def test_another_process_may_be_faster() -> None:
    target = cache_folder() / "demo" / "raced-1"

    def slow(folder: Path) -> None:
        target.mkdir()
        (target / "theirs").write_text("x")
        (folder / "ours").write_text("x")

    assert written_once("raced-1", slow) == target
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert not list((cache_folder() / "demo").glob("raced-1-*"))


def test_names_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"labels of another task's kind\. Known: demo:digits\."):
        demo_folder("demo:scenes")
    with pytest.raises(
        DataError, match=r"unknown data set 'demo:scene'\. Did you mean 'scenes'\? Known: demo:scenes\."
    ):
        demo_folder("demo:scene", ("scenes",))
