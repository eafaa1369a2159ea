from __future__ import annotations

import pytest
import torch

from cvpipe.utils.trees import Outputs, concatenate, finite_rows, largest_difference, map_tensors


def outputs(start: int, images: int, as_dict: bool) -> Outputs:
    boxes = torch.arange(start, start + images * 4, dtype=torch.float32).view(images, 4)
    return {"boxes": boxes, "labels": torch.full((images, 2), start)} if as_dict else boxes


@pytest.mark.parametrize("as_dict", [False, True])
def test_parts_and_whole(as_dict: bool) -> None:
    whole = concatenate([outputs(0, 2, as_dict), outputs(8, 1, as_dict)])
    boxes = whole["boxes"] if isinstance(whole, dict) else whole
    assert torch.equal(boxes, torch.arange(12, dtype=torch.float32).view(3, 4))
    last = map_tensors(lambda tensor: tensor[2:], whole)
    assert largest_difference(last, outputs(8, 1, as_dict)) == (0.0, 11.0)
    one = outputs(0, 2, as_dict)
    assert concatenate([one]) is one


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(value: float) -> None:
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 1, 2, dtype=torch.int64), "c": torch.zeros(3)}
    assert finite_rows(found) == [True, True, True]
    found["a"][1, 1] = value
    found["c"][2] = value
    assert finite_rows(found) == [True, False, False]
    assert finite_rows(found["a"]) == [True, False, True]


def test_differences_are_those_of_floats() -> None:
    one: Outputs = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([1, 2]), "c": torch.zeros(0)}
    other: Outputs = {"a": torch.tensor([1.5, -4.0]), "b": torch.tensor([9, 9]), "c": torch.zeros(0)}
    assert largest_difference(one, other) == (0.5, 4.0)
