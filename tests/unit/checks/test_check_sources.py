"""What the check is pointed at, and what it takes it for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from planted import pieces, write

from cvpipe.checks.sources import is_config, open_source, output_folder
from cvpipe.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("clothing", "classification"),
        ("bccd", "detection"),
        ("camvid", "semantic_segmentation"),
        ("coco_cc_mini", "instance_segmentation"),
        ("magnetic_tile", "anomaly"),
        ("fly_keypoints", "keypoints"),
    ],
)
def test_the_richest_task_is_found(name: str, task: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"the data set {name} is not here")
    source = open_source(str(DATA / name), None, ())
    assert source.task is not None
    assert source.task.name == task
    assert not source.from_config
    assert source.name == name


def test_a_demo_and_a_named_task() -> None:
    found = open_source("demo:digits", None, ())
    assert (found.name, found.config.task) == ("digits", "classification")
    assert open_source("demo:scenes", "detection", ()).config.task == "detection"
    with pytest.raises(DataError, match="another task's kind"):
        open_source("demo:digits", "detection", ())


def test_a_config_with_overrides(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": str(digits), "check": {"limits": {"near_duplicate": 0.05}}}))
    source = open_source(str(path), None, ["check.limits.leakage=null", "check.features=plain"])
    limits = source.config.check.limits
    assert source.from_config
    assert source.name == "mine"
    assert (limits.near_duplicate, limits.leakage, limits.unreadable) == (0.05, None, 0)
    with pytest.raises(ConfigError, match=r"(?s)check.limits.leaks.*leakage"):
        open_source(str(path), None, ["check.limits.leaks=1"])
    with pytest.raises(ConfigError, match="no such file"):
        open_source(str(tmp_path / "absent.yaml"), None, ())


def test_a_yolo_file_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"path": ".", "train": "images", "names": ["a"]}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": "detection", "data": "x"}))
    assert not is_config(str(tmp_path / "data.yaml"))
    assert is_config(str(tmp_path / "config.yaml"))
    assert is_config(str(tmp_path / "absent.yml"))
    assert not is_config(str(tmp_path))


def test_images_without_labels(tmp_path: Path) -> None:
    for i, image in enumerate(pieces()[:4]):
        write(image, tmp_path / "set" / ("train" if i < 3 else "Val") / f"{i}.jpg")
    shutil.copy(tmp_path / "set" / "train" / "0.jpg", tmp_path / "set" / ".hidden.jpg")
    source = open_source(str(tmp_path / "set"), None, ())
    assert source.task is None
    assert source.data is None
    assert {split.name: len(split) for split in source.splits} == {"train": 3, "val": 1}
    # never in silence
    assert "images alone are checked" in source.notes[0]
    assert "classification: " in source.notes[0]
    with pytest.raises(DataError, match="no class folders"):
        open_source(str(tmp_path / "set"), "classification", ())


def test_boxes_without_masks_are_no_masks(tmp_path: Path) -> None:
    write(pieces()[0], tmp_path / "set" / "train" / "0.jpg")
    values = {
        "images": [{"id": i, "file_name": "0.jpg", "width": 105, "height": 105} for i in range(1)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}],
        "categories": [{"id": 1, "name": "a"}],
    }
    for split in ("train", "val"):
        write(pieces()[0], tmp_path / "set" / split / "0.jpg")
        path = tmp_path / "set" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
    assert open_source(str(tmp_path / "set"), None, ()).config.task == "detection"


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(str(tmp_path / "absent"), None, ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_source(str(tmp_path / "empty"), None, ())


def test_results_do_not_go_into_the_data(tmp_path: Path) -> None:
    write(pieces()[0], tmp_path / "0.jpg")
    source = open_source(str(tmp_path), None, ())
    assert output_folder(source, None) == Path("checks") / tmp_path.name
    with pytest.raises(DataError, match="inside the data set"):
        output_folder(source, tmp_path / "results")
