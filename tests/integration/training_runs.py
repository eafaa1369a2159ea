"""Small trainings for the tests, and what is asked of their results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cvpipe.predictor import Predictor
from cvpipe.training.train import TrainResult

COUNTS = {"train": 8, "val": 3, "test": 2}


def values(data: Path | str, output: Path | str, **training: Any) -> dict[str, Any]:
    return {
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"train": str(data), "image_size": 32, "augment": {"hflip": 0}},
        "training": {
            "batch_size": 32,
            "num_workers": 0,
            "epochs": 1,
            "device": "cpu",
            "output_dir": str(output),
            **training,
        },
        "evaluation": {"bootstrap": 0, "gallery": 0},
        "tracking": {"system_metrics": False},
    }


def run_json(result: TrainResult | Path) -> dict[str, Any]:
    folder = result.run_dir if isinstance(result, TrainResult) else result
    state: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return state


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.bundle / "weights.safetensors")


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def history(result: TrainResult, name: str) -> list[Any]:
    return sorted(client().get_metric_history(result.run_id, name), key=lambda metric: metric.step)


def all_runs() -> list[Any]:
    return list(client().search_runs([e.experiment_id for e in client().search_experiments()]))


def usable(result: TrainResult, data: Path) -> None:
    """The bundle answers, and its scores are numbers."""
    answers = Predictor.load(result.bundle, device="cpu").predict(sorted((data / "test").rglob("*.png"))[:3])
    assert all(abs(float(answer.scores.sum()) - 1) < 1e-4 for answer in answers)  # type: ignore[union-attr]
