"""What `cvpipe data bench` measures and advises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.cli import run
from cvpipe.data.workers import Rate
from cvpipe.task import find_task
from cvpipe.training.data_bench import STAGES, verdict

EVEN = dict.fromkeys(STAGES, 1.0)


def judge(loader: float, network: float, stages: dict[str, float] | None = None, more: float = 0.0) -> tuple[str, str]:
    rates = [Rate(2, loader), *([Rate(4, more)] if more else [])]
    bottleneck, advice = verdict(EVEN | (stages or {}), rates, 2, loader, network, 4, "cpu")
    assert advice
    return bottleneck, "\n".join(advice)


def test_the_slower_one_is_the_bottleneck() -> None:
    assert judge(1000, 100)[0] == "network"
    assert judge(100, 1000)[0] == "loader"
    assert judge(100, 101)[0] == "both"


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_the_bottleneck_follows_the_rates(loader: float, network: float) -> None:
    found = judge(loader, network)[0]
    assert found in {"loader", "network", "both"}
    assert found != "network" or loader > network
    assert found != "loader" or network > loader


@pytest.mark.parametrize(
    ("stages", "more", "said"),
    [
        ({"read": 10.0}, 0, "data.cache"),
        ({"decode": 10.0}, 0, "--short-side"),
        ({"augment": 10.0}, 0, "color_jitter"),
        ({}, 190, "training.num_workers=4"),
        ({}, 0, "4 CPUs"),
    ],
)
def test_advice_follows_the_longest_step(stages: dict[str, float], more: float, said: str) -> None:
    assert said in judge(100, 1000, stages, more)[1]


@pytest.mark.parametrize("name", ["classification", "detection", "anomaly"])
def test_the_command_measures_a_task(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = find_task(name).example(tmp_path)
    values["training"]["num_workers"] = 1
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    assert run(["data", "bench", str(path), "--seconds", "0.2", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found["stages"]) == set(STAGES)
    assert all(value >= 0 for value in found["stages"].values())
    assert found["stages"]["decode"] > 0
    assert found["network"] > 0
    assert found["loader"]["1"] > 0
    assert found["chosen"] == 1
    assert found["bottleneck"] in {"loader", "network", "both"}
    assert "bottleneck: " in printed.err
    assert f"next: cvpipe train --config {path}" in printed.err


def test_a_config_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "bench", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml" in capsys.readouterr().err


def test_data_without_a_readable_image_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "images" / label / f"{i}.jpg").write_bytes(b"\xff\xd8 not a picture")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "task": "classification",
                "model": {"name": "test_resnet", "pretrained": False},
                "data": {"train": str(tmp_path / "images")},
                "training": {"num_workers": 0},
            }
        )
    )
    assert run(["data", "bench", str(path), "--seconds", "0.2"]) == 2
    assert "cvpipe data check" in capsys.readouterr().err
