"""Tasks are found by name, and finding them loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cvpipe import task as task_module
from cvpipe.config_file import parse_config
from cvpipe.errors import ConfigError
from cvpipe.task import Task, find_task, tasks

HEAVY = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "mlflow",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "transformers",
)


def test_built_in_tasks() -> None:
    found = tasks()
    assert "classification" in found
    for name, task in found.items():
        assert isinstance(task, Task)
        assert task.name == name
        assert task.summary
        assert task is find_task(name)


def test_unknown_task_suggests() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown task 'clasification'\. Did you mean 'classification'\? Known tasks: "
    ):
        find_task("clasification")


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs entry points for one test."""

    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(task_module, "entry_points", lambda group: points if group == "cvpipe.tasks" else ())
        tasks.cache_clear()

    yield install
    monkeypatch.undo()
    tasks.cache_clear()


def test_a_task_of_another_package(entry_points: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_package.py").write_text(
        "from dataclasses import replace\n"
        "from cvpipe.tasks.classification import TASK as BASE\n"
        "TASK = replace(BASE, name='counting')\n"
        "NONE = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry_points(EntryPoint("counting", "their_package:TASK", "cvpipe.tasks"))
    assert find_task("counting").name == "counting"
    assert parse_config({"task": "counting", "data": "x"}).task == "counting"

    entry_points(EntryPoint("bad", "their_package:NONE", "cvpipe.tasks"))
    with pytest.raises(ConfigError, match=r"entry point bad \(their_package:NONE\): expected a cvpipe\.Task, found 3"):
        tasks()

    entry_points(EntryPoint("again", "cvpipe.tasks.classification:TASK", "cvpipe.tasks"))
    with pytest.raises(ConfigError, match="the task 'classification' exists already"):
        tasks()


@pytest.mark.parametrize(
    "module",
    ["cvpipe", "cvpipe.config", "cvpipe.config_file", "cvpipe.task", "cvpipe.types", "cvpipe.errors", "cvpipe.bundle",
     "cvpipe.predictor", "cvpipe.tracking", "cvpipe.cli"],
)  # fmt: skip
def test_imports_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_a_config_is_read_without_torch() -> None:
    code = (
        "import sys, cvpipe\ncvpipe.parse_config({'data': 'x'}, ['training.epochs=3'])\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == ""


def test_the_example_of_every_task_loads(tmp_path: Path) -> None:
    for name, task in tasks().items():
        config = parse_config(task.example(tmp_path / name))
        assert isinstance(config, task.config)
        splits = task.load_data(config)
        assert len(splits.train) > 0
        assert len(splits.val) > 0


def test_the_public_names() -> None:
    import cvpipe

    assert set(cvpipe.__all__) <= {*cvpipe._HOMES, "__version__"}
    assert dir(cvpipe) == sorted(cvpipe.__all__)
    assert cvpipe.Task is Task
    assert cvpipe.Bundle.__name__ == "Bundle"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cvpipe.nothing
