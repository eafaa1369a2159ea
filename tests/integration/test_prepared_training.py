"""Prepared data through the commands: a run that is killed goes on, and training, evaluation, prediction take it."""

from __future__ import annotations

import json
import multiprocessing
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cvpipe.cli import run
from cvpipe.config_file import load_config
from cvpipe.data.packed.index import load_index
from cvpipe.data.prepared import read_splits
from cvpipe.task import find_task

pytestmark = pytest.mark.integration

Cvpipe = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


def write_photos(folder: Path, count: int, size: int = 32) -> None:
    """Two kinds of noise: dark and bright."""
    noise = np.random.default_rng(0)
    for i in range(count):
        pixels = noise.integers(0, 120, (size, size, 3), dtype=np.uint8) + 130 * (i % 2)
        path = folder / ("bright" if i % 2 else "dark") / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_config(folder: Path, train: str) -> Path:
    config = {
        "task": "classification",
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"train": train, "image_size": 32},
        "training": {"epochs": 1, "num_workers": 0, "batch_size": 8, "output_dir": str(folder / "run"), "seed": 3},
        "tracking": {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
        "evaluation": {"bootstrap": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cvpipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cvpipe:
    """Runs a command in this process, in the test's folder; gives its JSON object, or what it says of a mistake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert run([*words, "--json"]) == code
        printed = capsys.readouterr()
        return json.loads(printed.out) if code == 0 else printed.err

    return call


def _prepare_slowly(config: Path, to: Path, pause: float) -> None:
    from cvpipe.data.packed import rows
    from cvpipe.data.packed.folder import prepare_shards
    from cvpipe.data.packed.shrink import Shrink

    real = rows.make_row

    def slow(*args: Any) -> Any:
        time.sleep(pause)
        return real(*args)

    rows.make_row = slow
    loaded = load_config(config)
    splits = read_splits(find_task(loaded.task), loaded)
    prepare_shards(loaded, splits, to, Shrink(), shard_bytes=8000)


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 120)
    config = write_config(tmp_path, str(tmp_path / "in"))
    # forked: a fresh interpreter would take longer to start than the work takes
    context = multiprocessing.get_context("fork")

    def start(to: str, pause: float) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_prepare_slowly, args=(config, tmp_path / to, pause))
        process.start()
        return process

    whole = start("whole", 0)
    whole.join(100)
    assert whole.exitcode == 0
    running = start("out", 0.1)
    deadline = time.monotonic() + 100
    while len(list((tmp_path / "out").glob("*.arrow.json"))) < 3:
        assert running.is_alive(), "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    running.join(20)
    assert running.exitcode == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    assert not (tmp_path / "out" / "index.json").exists()
    again = start("out", 0)
    again.join(100)
    assert again.exitcode == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    assert len(kept.items() & now.items()) >= 3, "finished files are not written again"
    assert load_index(tmp_path / "out") == load_index(tmp_path / "whole")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.arrow")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.arrow")
    }


def test_training_from_shards_gives_the_weights_of_training_from_files(tmp_path: Path, cvpipe: Cvpipe) -> None:
    write_photos(tmp_path / "in", 48)
    config = str(write_config(tmp_path, str(tmp_path / "in")))
    made = cvpipe("data", "prepare", "--config", config, "--to", "shards")
    assert (made["images"], made["bad"]) == ({"train": 38, "val": 10}, 0)
    files = cvpipe("train", "--config", config, "training.output_dir=files")
    shards = cvpipe("train", "--config", config, "data.train=shards", "training.output_dir=packed")
    assert shards["metrics"] == files["metrics"]
    weights = [(tmp_path / run / "bundle" / "weights.safetensors").read_bytes() for run in ("files", "packed")]
    assert weights[0] == weights[1]
    bundle = str(tmp_path / "packed" / "bundle")
    again = cvpipe("evaluate", "--model-uri", bundle, "--split", "val", "--data", "shards")
    assert again["metrics"] == shards["metrics"]
    predictions = (tmp_path / "packed" / "evaluation" / "predictions.csv").read_text()
    assert ".arrow::" in predictions
    assert "/dark/" in predictions
    found = cvpipe("predict", "-m", bundle, "-i", "in", "-o", "found.json")
    assert (found["images"], found["failed"]) == (48, 0)


def test_bad_input_and_checksums(tmp_path: Path, cvpipe: Cvpipe) -> None:
    write_photos(tmp_path / "in", 20)
    config = str(write_config(tmp_path, str(tmp_path / "in")))
    cvpipe("data", "prepare", "--config", config, "--to", "shards")
    assert cvpipe("data", "prepare", "--verify", "shards")["files"] == 2
    shard = sorted((tmp_path / "shards").glob("train*.arrow"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in cvpipe("data", "prepare", "--verify", "shards", code=2)
    assert shard.name in cvpipe("train", "--config", config, "data.train=shards", code=2)
    assert "--to" in cvpipe("data", "prepare", "--config", config, code=2)
    assert "holds other files" in cvpipe("data", "prepare", "--config", config, "--to", "in", code=2)


def test_the_commands_of_the_docs(tmp_path: Path, cvpipe: Cvpipe) -> None:
    """`data prepare` as docs/data_preparation.md has it, one line after the other, and what training then reads."""
    pytest.importorskip("deltalake", reason="deltalake is not installed: pip install 'databricks-cv-pipeline[delta]'")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    page = (ROOT / "docs" / "data_preparation.md").read_text("utf-8")
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    prepared = [shlex.split(line)[1:] for line in lines if line.startswith("cvpipe data prepare")]
    trained = [shlex.split(line)[1:] for line in lines if line.startswith("cvpipe train")]
    assert len(prepared) + len(trained) == len(lines)
    for words in prepared:
        cvpipe(*words)
    for words in trained:
        override = words[-1].replace("=delta:", f"=delta:{tmp_path}/").replace("=shards", f"={tmp_path}/shards")
        config = load_config(tmp_path / words[2], [override, f"data.cache={tmp_path / 'cache'}"])
        assert sum(len(split) for split in read_splits(find_task(config.task), config).all()) == 1797
