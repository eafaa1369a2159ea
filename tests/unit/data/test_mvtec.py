"""The layout of MVTec AD: what is found, what is refused, what is reported; and the demo of that layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvpipe.config_file import parse_config
from cvpipe.data.demo_defects import COUNTS, write_defects
from cvpipe.data.formats.mvtec import LABELS, load_inspection_split, load_inspections, read_mask
from cvpipe.errors import DataError
from cvpipe.tasks.anomaly.example import write_example


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_example(tmp_path)
    return tmp_path


def config(train: Any, **data: Any) -> Any:
    return parse_config({"task": "anomaly", "data": {"train": str(train), **data}})


def counts(split: Any) -> dict[str, int]:
    labels = [target.label for target in split.targets]
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_what_lies_there_is_found(root: Path) -> None:
    splits = load_inspections(config(root))
    assert splits.labels == LABELS
    assert not splits.problems
    assert counts(splits.train) == {"good": 12}
    assert counts(splits.val) == {"good": 6, "scratch": 3, "spot": 3}
    assert splits.test is not None
    assert counts(splits.test) == {"good": 6, "spot": 4}
    for split in splits.all():
        for path, target in zip(split.paths, split.targets, strict=True):
            assert Path(path).parent.name == target.label
            assert (target.mask is None) == target.is_good
            if target.mask:
                assert Path(target.mask).name == f"{Path(path).stem}_mask.png"
                assert read_mask(target.mask).any()


def test_good_images_are_held_out(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    splits = load_inspections(config(root, val=0.25))
    assert counts(splits.val) == {"good": 3}
    assert len(splits.train) == 9
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert load_inspections(config(root, val=0.25)) == splits


def test_defects_are_not_learnt(root: Path) -> None:
    (root / "test" / "spot").rename(root / "train" / "spot")
    with pytest.raises(DataError, match=r"holds defects: 4 spot. What is normal is learnt from good images alone"):
        load_inspections(config(root))


def test_masks_that_cannot_be_used_are_reported(root: Path) -> None:
    masks = root / "ground_truth" / "spot"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(masks / "test00_mask.png")
    Image.fromarray(np.full((9, 7), 255, np.uint8)).save(masks / "test01_mask.png")
    (masks / "test02_mask.png").unlink()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(masks / "nobody_mask.png")
    splits = load_inspections(config(root))
    reasons = {Path(problem.file).name: (problem.reason, problem.dropped) for problem in splits.problems}
    assert reasons["test00_mask.png"][0].startswith("it is empty")
    assert reasons["test01_mask.png"][0].startswith("it has 7x9 pixels")
    assert reasons["nobody_mask.png"][0].startswith("no image of this name")
    assert reasons["test02.png"][0].startswith("no mask of this name")
    assert [name for name, (_, dropped) in reasons.items() if not dropped] == ["test02.png"]
    assert splits.test is not None
    assert [bool(target.mask) for target in splits.test.targets if not target.is_good] == [False] * 3 + [True]
    with pytest.raises(DataError, match="annotations can't be used"):
        load_inspection_split(str(root), config(root), LABELS, "test")


def test_one_split_by_itself(root: Path) -> None:
    own = config(root)
    whole = load_inspections(own)
    assert load_inspection_split(str(root), own, LABELS, "test") == whole.test
    alone = load_inspection_split(str(root / "test"), own, LABELS, "test")
    assert alone == whole.test


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_other_folders_are_refused(root: Path, missing: str) -> None:
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"data.train: .*(does not exist|not laid out for anomaly detection)"):
        load_inspections(config(root / missing))


def test_the_demo(tmp_path: Path) -> None:
    write_defects(tmp_path)
    splits = load_inspections(config(tmp_path))
    assert len(splits.train) + len(splits.val) == COUNTS["train/good"]
    assert splits.test is not None
    assert counts(splits.test) == {place.split("/")[1]: n for place, n in COUNTS.items() if place.startswith("test")}
    assert not splits.problems
    sizes = [read_mask(target.mask).mean() for target in splits.test.targets if target.mask]
    assert len(sizes) == 60
    assert 0.001 < min(sizes) < max(sizes) < 0.12
