"""Targets of every task are the same after a way through the columns of a file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packed_sets import TASKS, example, pack, read

from cvpipe.data.packed.codec import TARGET_COLUMNS, Layout, decode_target, encode_target, schema
from cvpipe.data.targets import IGNORE, ClassMap, Inspection, Objects
from cvpipe.errors import DataError
from cvpipe.task import find_task

CLASSES = ("cat", "dog", "bird")
POSITION = {name: i for i, name in enumerate(CLASSES)}
FLOATS = st.floats(-1e4, 1e4, width=32)


def through(target: Any, multi_label: bool = False, mask: str = "") -> Any:
    """Encoded, through Arrow, and decoded."""
    layout = Layout.of([target], multi_label, "here")
    layout = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    table = pa.Table.from_pylist([encode_target(target, CLASSES)], schema=schema()).select(TARGET_COLUMNS)
    return decode_target(table.to_pylist()[0], layout, POSITION, mask)


def assert_same(one: Any, other: Any) -> None:
    """Equal in value, shape and type."""
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)
    elif isinstance(one, (tuple, list)):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, Objects):
        for entry in fields(Objects):
            assert_same(getattr(one, entry.name), getattr(other, entry.name))
    else:
        assert type(one) is type(other)
        assert one == other


@st.composite
def objects(draw: Any) -> Objects:
    count = draw(st.integers(0, 4))
    polygons = st.lists(
        st.integers(3, 6).flatmap(lambda n: arrays.arrays(np.float32, (n, 2), elements=FLOATS)), min_size=1
    )
    rle = st.fixed_dictionaries(
        {"size": st.just([4, 5]), "counts": st.sampled_from(["0d0", "52203", [3, 4, 13]])},
    )
    masks = st.none() | st.lists(polygons.map(tuple) | rle, min_size=count, max_size=count).map(tuple)
    points = draw(st.none() | st.integers(1, 3))
    return Objects(
        boxes=draw(arrays.arrays(np.float32, (count, 4), elements=FLOATS)),
        labels=draw(arrays.arrays(np.int64, count, elements=st.integers(0, 2))),
        crowd=draw(arrays.arrays(np.bool_, count)),
        areas=draw(arrays.arrays(np.float32, count, elements=FLOATS)),
        masks=draw(masks),
        points=None if points is None else draw(arrays.arrays(np.float32, (count, points, 3), elements=FLOATS)),
        ids=tuple(draw(st.lists(st.integers(0, 99) | st.text(max_size=5), min_size=count, max_size=count))),
    )


@settings(max_examples=50, deadline=None)
@given(objects())
def test_objects(target: Objects) -> None:
    assert_same(target, through(target))


@given(st.integers(0, 2))
def test_classes(target: int) -> None:
    assert_same(target, through(target))


@given(st.lists(st.integers(0, 2), unique=True))
def test_sets_of_classes(target: list[int]) -> None:
    assert_same(tuple(target), through(tuple(target), multi_label=True))


@given(st.lists(st.tuples(st.integers(0, 2**24), st.sampled_from([0, 1, 2, IGNORE]))), st.booleans())
def test_class_maps(values: list[tuple[int, int]], segments: bool) -> None:
    target = ClassMap("folder/a.png", tuple(values), segments)
    assert through(target, mask="folder/a.png") == target


@pytest.mark.parametrize("target", [Inspection("good"), Inspection("crack"), Inspection("crack", "m/a.png")])
def test_inspections(target: Inspection) -> None:
    assert through(target, mask="m/a.png") == target


def test_other_targets_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"data\.train: a target of the type dict has no columns.*from its files"):
        Layout.of([{}], False, "data.train")
    with pytest.raises(DataError, match="of 2 kinds"):
        Layout.of([1, ClassMap("a", ())], False, "data.train")


@pytest.mark.parametrize("name", TASKS)
def test_batches_from_shards_are_those_from_files(name: str, tmp_path: Path) -> None:
    config = example(name, tmp_path / "data").replace(**{"training.num_workers": 0})
    files = read(config)
    pack(config, tmp_path / "shards")
    packed = config.replace(**{"data.train": str(tmp_path / "shards"), "data.val": None, "data.test": None})
    shards = read(packed)
    assert shards.labels == files.labels
    assert [len(split) for split in shards.all()] == [len(split) for split in files.all()]
    task = find_task(name)
    for left, right in zip(_batches(task, config, files), _batches(task, packed, shards), strict=True):
        assert not left.bad
        assert not right.bad
        _assert_equal(left, right)


def _batches(task: Any, config: Any, splits: Any) -> list[Any]:
    data = task.data_module(config, splits)
    return [*data.train_dataloader(), *data.val_dataloader()]


def _assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _assert_equal(left, right)
    else:
        assert one == other
