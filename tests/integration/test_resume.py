"""Training that was killed goes on to the same weights as training that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# everything that holds state: dropout, mixup, EMA, one-cycle, accumulation, augmentation with torchvision's random ops
CONFIG = {
    "model": {"name": "test_resnet", "pretrained": False, "dropout": 0.2},
    "data": {"train": "DIGITS", "image_size": 32, "augment": {"mixup": 0.2, "color_jitter": 0.3, "rotate": 10}},
    "training": {
        "epochs": 3,
        "batch_size": 25,
        "accumulate": 2,
        "num_workers": 1,
        "learning_rate": 2e-3,
        "schedule": "one_cycle",
        "ema": 0.9,
        "checkpoint_every": "0s",
        "seed": 7,
    },
    "evaluation": {"bootstrap": 0, "gallery": 0},
    "tracking": {"system_metrics": False},
}


@pytest.fixture(scope="module")
def small_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 training and 60 validation digits."""
    root = tmp_path_factory.mktemp("small-digits")
    for split, most in (("train", 31), ("val", 6)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for path in sorted((digits / split / str(label)).iterdir())[:most]:
                (folder / path.name).write_bytes(path.read_bytes())
    return root


def command(folder: Path, config: Path, *extra: str) -> list[str]:
    options = [f"training.output_dir={folder / 'run'}", "--json", *extra]
    return [sys.executable, "-m", "cvpipe.cli", "train", "--config", str(config), *options]


def prepare(folder: Path, data: Path, mlflow_template: Path) -> tuple[Path, dict[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "data": {**CONFIG["data"], "train": str(data)}}))  # type: ignore[dict-item]
    database = folder / "mlflow.db"
    database.write_bytes(mlflow_template.read_bytes())
    return config, {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}


@pytest.fixture(scope="module")
def uninterrupted(
    small_digits: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path
) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config, env = prepare(folder, small_digits, mlflow_template)
    done = subprocess.run(command(folder, config), env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(json.loads(done.stdout)["bundle"] + "/weights.safetensors")


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_points_changes_nothing(
    seed: int, uninterrupted: dict[str, torch.Tensor], small_digits: Path, tmp_path: Path, mlflow_template: Path
) -> None:
    rng = random.Random(seed)
    config, env = prepare(tmp_path, small_digits, mlflow_template)
    checkpoints = tmp_path / "run" / "checkpoints"
    kills, run_ids = 0, set()
    for _ in range(8):
        process = subprocess.Popen(
            command(tmp_path, config, "--resume"),
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if kills < 2:
            before = newest(checkpoints)
            while process.poll() is None and newest(checkpoints) < before + 1:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 1.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        else:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            result = json.loads(out)
            break
        run_ids.add(json.loads((tmp_path / "run" / "run.json").read_text())["run_id"])
    assert kills == 2
    assert {result["run_id"]} == run_ids, "every part of the training belongs to one MLflow run"
    weights = load_file(result["bundle"] + "/weights.safetensors")
    assert weights.keys() == uninterrupted.keys()
    for key, value in weights.items():
        assert torch.equal(value, uninterrupted[key]), key


def newest(checkpoints: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in checkpoints.glob("last-*.ckpt")), default=0)


def test_ctrl_c_saves_the_state_and_says_how_to_go_on(
    uninterrupted: dict[str, torch.Tensor], small_digits: Path, tmp_path: Path, mlflow_template: Path
) -> None:
    config, env = prepare(tmp_path, small_digits, mlflow_template)
    arguments = command(tmp_path, config, "training.checkpoint_every=1h")
    process = subprocess.Popen(
        arguments, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and newest(tmp_path / "run" / "checkpoints") == 0:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in err
    done = subprocess.run([*arguments, "--resume"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    weights = load_file(json.loads(done.stdout)["bundle"] + "/weights.safetensors")
    for key, value in weights.items():
        assert torch.equal(value, uninterrupted[key]), key
