"""The parts of the dense template: targets, geometry, loss, metrics, records.

What every task must do is tested by tests/integration/test_task_contract.py of cvpipe, which finds this one by itself.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvpipe.config_file import parse_config
from cvpipe.data.loader import Batch
from cvpipe.data.splits import Split
from cvpipe.scaffold.dense_template import TASK
from cvpipe.scaffold.dense_template.config import NAME
from cvpipe.scaffold.dense_template.data import PairTransform, ValueMap
from cvpipe.scaffold.dense_template.prediction import DenseTemplatePrediction, map_png
from cvpipe.types import Failure

RNG = np.random.default_rng(0)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return parse_config(TASK.example(tmp_path / "data"))


@pytest.fixture
def values() -> Any:
    """(24, 40) float32, some of them not known."""
    found = RNG.uniform(0.5, 9, (24, 40)).astype(np.float32)
    found[RNG.random((24, 40)) < 0.1] = np.nan
    return found


def saved(values: Any, path: Path) -> ValueMap:
    path.write_bytes(map_png(values, 0.001))
    return ValueMap(str(path), 0.001)


def test_maps_are_read_as_they_were_written(values: Any, tmp_path: Path) -> None:
    again = saved(values, tmp_path / "map.png").load()
    assert np.array_equal(np.isnan(again), np.isnan(values))
    assert np.nanmax(np.abs(again - values)) <= 0.0006


def test_image_and_map_move_together(values: Any, tmp_path: Path, config: Any) -> None:
    target = saved(values, tmp_path / "map.png")
    # an image whose red channel is the map: it must still be after the transform
    grey = np.nan_to_num(values / 9 * 255).astype(np.uint8)
    image = torch.from_numpy(np.repeat(grey[None], 3, axis=0))
    settings = config.replace(**{"data.image_size": [24, 40], "data.augment.brightness": 0}).data
    for seed in range(6):
        moved, truth = PairTransform(settings, train=True)(image, target, seed, lambda number: None)
        known = truth.isfinite()
        assert (moved[0][known] - truth[known] / 9 * 255).abs().max() < 2
    mirrored = {bool((moved != image).any()) for moved in (
        PairTransform(settings, train=True)(image, target, seed, lambda number: None)[0] for seed in range(20)
    )}  # fmt: skip
    assert mirrored == {True, False}


def test_unknown_pixels_do_not_count_in_the_loss(config: Any) -> None:
    torch.manual_seed(0)
    module = TASK.module(config, TASK.load_data(config).labels).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    targets = torch.rand(2, 32, 32) + 0.5
    targets[0] = float("nan")
    loss = module.loss(Batch(images, targets, torch.arange(2), []))
    alone = module.loss(Batch(images[1:], targets[1:], torch.arange(1), []))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    assert module.loss(Batch(images[:1], targets[:1], torch.arange(1), [])).item() == 0


def test_values_come_back_to_the_size_of_the_image(config: Any) -> None:
    """A ramp over the network's input is a ramp over the image, also where the image was letterboxed."""
    processor = TASK.processor(config, TASK.load_data(config).labels)
    ramp = torch.linspace(1, 3, 32)[None, None].expand(1, 32, 32)
    (found,) = processor.postprocess(ramp, [(20, 40)])
    assert isinstance(found, DenseTemplatePrediction)
    assert found.values.shape == (20, 40)
    assert np.abs(found.values - np.linspace(1, 3, 40)).max() < 0.06
    assert np.ptp(found.values, axis=0).max() < 1e-5


def test_metrics_are_those_of_the_formula(config: Any, tmp_path: Path) -> None:
    truth = [RNG.uniform(0.5, 9, (6, 8)).astype(np.float32) for _ in range(5)]
    truth[2][:, :3] = np.nan
    targets = [saved(values, tmp_path / f"{i}.png") for i, values in enumerate(truth)]
    found = [np.abs(values + RNG.normal(0, 1, values.shape)).astype(np.float32) + 0.1 for values in truth]
    found = [np.nan_to_num(values, nan=1.0) for values in found]
    answers: list[Any] = [DenseTemplatePrediction(values, 0.001) for values in found]
    paths = sorted((tmp_path / "data" / "images").iterdir())[:5]
    split = Split("test", tuple(map(str, paths)), tuple(targets))
    config = config.replace(**{"evaluation.bootstrap": 50, "evaluation.gallery": 0})
    a = np.concatenate([values[np.isfinite(t.load())] for values, t in zip(found, targets, strict=True)])
    b = np.concatenate([t.load()[np.isfinite(t.load())] for t in targets])
    metrics = TASK.assess(answers, split, config, TASK.load_data(config).labels).metrics
    assert metrics["mae"].value == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert metrics["rmse"].value == pytest.approx(np.sqrt(((a - b) ** 2).mean()), rel=1e-5)
    assert metrics["abs_rel"].value == pytest.approx((np.abs(a - b) / b).mean(), rel=1e-5)
    assert metrics["delta1"].value == pytest.approx((np.maximum(a / b, b / a) < 1.25).mean(), rel=1e-5)
    perfect = [DenseTemplatePrediction(np.nan_to_num(t.load(), nan=1.0), 0.001) for t in targets]
    assert TASK.assess(perfect, split, config, TASK.load_data(config).labels).metrics["mae"].value == 0
    failed = TASK.assess([Failure("broken")] * 5, split, config, TASK.load_data(config).labels)
    assert not failed.metrics


def test_records_hold_the_map(values: Any, tmp_path: Path) -> None:
    full = np.nan_to_num(values, nan=2.0)
    record = DenseTemplatePrediction(full, 0.001).to_record()
    (tmp_path / "again.png").write_bytes(base64.b64decode(record["values_png"]))
    assert np.abs(ValueMap(str(tmp_path / "again.png"), 0.001).load() - full).max() <= 0.0006
    assert (record["height"], record["width"]) == (24, 40)
    assert TASK.name == NAME
