"""The commands and the Python of README and docs, run as they stand there, in a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "model.pretrained=false",
    "model.name=test_resnet",
    "training.epochs=1",
    "training.num_workers=0",
    "evaluation.bootstrap=50",
    "tracking.system_metrics=false",
    "tracking.registered_model_name=NAME",
)
PICTURES = 12


def documented(start: str) -> list[str]:
    """The command line of the README that starts so."""
    (line,) = re.findall(rf"^({re.escape(start)}.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    return shlex.split(line)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)


def run(words: list[str], folder: Path) -> str:
    """Runs `python …` with this interpreter and the default MLflow database of the folder; returns what it printed."""
    assert words[0] == "python"
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(digits: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """src and configs as they are in the repository, and a folder DIR of pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(mlflow_template, folder / "mlflow.db")
    (folder / "DIR").mkdir()
    for path in sorted((digits / "test").rglob("*.png"))[::30][: PICTURES - 3]:
        shutil.copy(path, folder / "DIR")
    for name, digit in (("a.png", "3"), ("b.png", "7")):
        shutil.copy(next((digits / "test" / digit).iterdir()), folder / "DIR" / name)
    (folder / "DIR" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def trained(checkout: Path) -> str:
    """What the documented training command prints, made small."""
    return run([*documented("python -m src.training.train"), *SMALL], checkout)


@pytest.fixture(scope="module")
def records(checkout: Path, trained: str) -> list[dict[str, Any]]:
    """What the documented batch command writes, word for word."""
    printed = run(documented("python -m src.inference.batch_inference"), checkout)
    assert f"{PICTURES} images, 1 failed" in printed
    found: list[dict[str, Any]] = json.loads((checkout / "predictions.json").read_text("utf-8"))
    return found


@pytest.fixture
def inside(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For Python that runs in this process: the checkout as working directory, with its MLflow database."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout / 'mlflow.db'}")
    return checkout


def test_the_documented_training(checkout: Path, trained: str) -> None:
    for start in ("data", "classes", "model", "device", "loading", "training", "results", "MLflow"):
        assert re.search(rf"^  {start}  +\S", trained, re.M), start
    assert "test/accuracy" in trained
    assert trained.rstrip().splitlines()[-1].startswith("next: cvpipe predict --model-uri models:/NAME@champion")
    run_dir = checkout / "runs" / "classification_resnet50-0001"
    for name in ("config.yaml", "run.json", "bundle/weights.safetensors", "evaluation/report.html"):
        assert (run_dir / name).is_file()
    assert {path.name.split("-")[0] for path in (run_dir / "checkpoints").iterdir()} == {"last", "best"}


def test_the_documented_batch_inference(checkout: Path, records: list[dict[str, Any]]) -> None:
    (example, broken) = json.loads(blocks("docs/inference.md", "json")[0])
    assert [record["path"] for record in records] == sorted(f"DIR/{name}" for name in os.listdir(checkout / "DIR"))
    assert all(record.keys() == example.keys() for record in records)
    assert [record for record in records if record["error"]] == [broken]
    assert {record["model_uri"] for record in records} == {"models:/NAME/1"}
    assert not (checkout / "predictions.json.parts").exists()


def test_the_python_of_the_readme(inside: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the config that it names, with fewer images and epochs
    data = inside / "few"
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for digit in range(10):
            (data / split / str(digit)).mkdir(parents=True)
            for path in sorted((digits / split / str(digit)).iterdir())[:count]:
                shutil.copy(path, data / split / str(digit))
    path = inside / "configs" / "classification_digits.yaml"
    values = yaml.safe_load(path.read_text("utf-8"))
    values["data"]["train"] = "few"
    values["training"] |= {"epochs": 1, "num_workers": 0, "device": "cpu"}
    values["tracking"]["system_metrics"] = False
    path.write_text(yaml.safe_dump(values))
    (code,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["result"].model_uri == "models:/digits/1"
    assert 0 <= names["result"].metrics["test/accuracy"] <= 1
    assert all(len(answer.labels) == 3 for answer in names["predictor"].predict(["DIR/a.png", "DIR/b.png"], top_k=3))
    assert capsys.readouterr().out.rstrip().splitlines()[-1].count(",") == 2


@pytest.mark.parametrize("page", ["inference", "monitoring", "configuration", "evaluation"])
def test_the_python_of_the_docs(page: str, inside: Path, records: list[dict[str, Any]], digits: Path) -> None:
    if page == "evaluation":
        for digit in ("3", "7"):
            shutil.copytree(digits / "val" / digit, inside / "new_photos" / digit)
    for number, code in enumerate(blocks(f"docs/{page}.md", "python")):
        exec(compile(code, f"{page}.md, block {number}", "exec"), {})


def test_the_request_of_the_docs(inside: Path, records: list[dict[str, Any]]) -> None:
    import mlflow
    from mlflow.pyfunc.scoring_server import invocations

    _, request, response = blocks("docs/inference.md", "json")
    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    answer = invocations(request, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    found, shown = (json.loads(text)["predictions"] for text in (answer.response, response))
    assert len(found) == 2
    assert found[0]["error"] == ""
    assert [len(found[0][name]) for name in ("labels", "scores")] == [2, 2]
    assert found[0].keys() == shown[0].keys()
    assert found[1] == shown[1]
