"""Fixtures that several test files share. Nothing here may write into the checkout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# CI tries the same examples each time, so that a red run is the change's fault; everybody else explores
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# set before anything reads them: no test may wait for a network or write to the user's folders
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
# the networks of the tests are tiny: threads of several test processes would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("CVPIPE_CACHE")
    os.environ["CVPIPE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["CVPIPE_CACHE"]
    else:
        os.environ["CVPIPE_CACHE"] = before


@pytest.fixture(autouse=True)
def _mlflow_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without it, a run that names no tracking server would leave mlflow.db in the checkout."""
    import sys

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'default-mlflow.db'}")
    # set first: what was absent is otherwise not noted, and what a test leaves behind would stay for the next file
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


@pytest.fixture(scope="session")
def digits(_cache_folder: Path) -> Path:
    """The ImageFolder root of demo:digits: train/, val/ and test/ with a folder for each digit."""
    from cvpipe.data.demo import demo_folder

    return demo_folder("demo:digits")


@pytest.fixture(scope="session")
def tiny_values(digits: Path) -> dict[str, Any]:
    """Nested settings of a classifier that takes milliseconds a batch."""
    return {
        "task": "classification",
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"train": str(digits), "image_size": 32},
        "training": {"batch_size": 32, "num_workers": 0, "epochs": 1, "device": "cpu"},
        "tracking": {"system_metrics": False},
    }


@pytest.fixture(scope="session")
def tiny_config(tiny_values: dict[str, Any]) -> Any:
    from cvpipe.config_file import parse_config

    return parse_config(tiny_values)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle of a briefly fitted network, so that its scores differ from image to image. Don't write to it."""
    import torch

    from cvpipe.bundle import Bundle
    from cvpipe.task import find_task

    task = find_task("classification")
    splits = task.load_data(tiny_config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = task.module(tiny_config, splits.labels)
        optimizer = torch.optim.AdamW(module.network.parameters(), lr=5e-3)
        module.network.train()
        for step, batch in enumerate(task.data_module(tiny_config, splits).train_dataloader()):
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            if step == 12:
                break
    return Bundle.create(tmp_path_factory.mktemp("bundle") / "model", tiny_config, splits.labels, module.network)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database whose tables exist. Migrating takes seconds; copying this file takes none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "template.db"
    with pytest.MonkeyPatch.context() as patch:
        # the default experiment's artifacts go below the folder in which the database was made
        patch.chdir(database.parent)
        MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`sqlite:///…` of a fresh database below tmp_path; artifacts land there too."""
    database = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, database)
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # MLflow puts the artifacts of an SQLite server below the current folder
    monkeypatch.chdir(tmp_path)
    return uri
