"""The settings themselves: defaults, forms of values, copies."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cvpipe.config import TrainingConfig, flatten
from cvpipe.config_file import parse_config
from cvpipe.tasks.classification.config import ClassificationConfig


def test_configs_are_frozen() -> None:
    config = parse_config({"data": "x"})
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.task = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90), (1.5, 1.5), ("90s", 90), ("1.5s", 1.5), ("15m", 900), ("15min", 900), ("1h30m", 5400),
        ("2d", 172_800), ("1d2h3m4s", 93_784), ("01:30:00", 5400), ("2:30", 150), ("PT1H", 3600), (" 2H ", 7200),
        (0, 0),
    ],
)  # fmt: skip
def test_durations(value: Any, seconds: float) -> None:
    assert TrainingConfig(max_time=value).max_time == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "soon", "5", "m5", "1h30", "1.2.3s", "-5s", -1, True, [1], float("nan"), "s"])
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(max_time=value)


@given(st.integers(0, 10**9))
def test_durations_of_any_length_survive_json(milliseconds: int) -> None:
    config = TrainingConfig(checkpoint_every=timedelta(milliseconds=milliseconds))
    assert TrainingConfig.model_validate(config.model_dump(mode="json")).checkpoint_every == config.checkpoint_every


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (64, (64, 64)), ([32, 48], (32, 48)), ((8, 8192), (8, 8192)), ("64", None), (7, None), (True, None),
        ([32], None), ([32, 32, 3], None), (8193, None), ([64, 7], None),
    ],
)  # fmt: skip
def test_image_size(value: Any, size: tuple[int, int] | None) -> None:
    values = {"data": {"train": "x", "image_size": value}}
    if size is None:
        with pytest.raises(ValidationError):
            ClassificationConfig.model_validate(values)
    else:
        assert ClassificationConfig.model_validate(values).data.image_size == size


def test_the_digits_are_small_unless_told_otherwise() -> None:
    assert parse_config({"data": "demo:digits"}).data.image_size == (32, 32)
    assert parse_config({"data": {"train": "demo:digits", "image_size": 64}}).data.image_size == (64, 64)
    assert parse_config({"data": "folder"}).data.image_size == (224, 224)


def test_precision_may_be_written_as_a_number() -> None:
    assert TrainingConfig.model_validate({"precision": 32}).precision == "32"
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate({"precision": 64})


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0}, {"learning_rate": float("inf")}, {"learning_rate": float("nan")}, {"epochs": 1.5},
        {"num_workers": -1}, {"ema": 1.0}, {"layer_decay": 0}, {"warmup": 1.1}, {"weight_decay": float("inf")},
    ],
)  # fmt: skip
def test_values_out_of_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(**values)


def test_dicts_and_copies() -> None:
    config = parse_config({"data": {"train": "x", "val": 0.25}, "training": {"max_time": "2h"}})
    again = type(config).model_validate(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.training.max_time == timedelta(hours=2)
    flat = config.flat()
    assert flat["training.max_time"] == "7200s"
    assert flat["data.augment.hflip"] == 0.5
    assert not any(isinstance(value, dict) for value in flat.values())
    changed = config.replace(**{"training.epochs": 3, "data.image_size": 64})
    assert (changed.training.epochs, changed.data.image_size) == (3, (64, 64))
    assert config.training.epochs == 10
    with pytest.raises(ValidationError):
        config.replace(**{"training.epochs": 0})


def test_configs_can_be_pickled() -> None:
    config = parse_config({"data": "x"})
    again = pickle.loads(pickle.dumps(config))
    assert type(again) is ClassificationConfig
    assert again == config
    assert again.where("data.train") == config.where("data.train")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}
