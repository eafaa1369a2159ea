"""docs/adding_a_task.md, followed word for word in a copy of the checkout: what comes of it trains and predicts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# some ten processes start one after the other: two minutes on a free machine
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding_a_task.md").read_text("utf-8")
COPIED = ("src", "configs", "tests/conftest.py", "tests/integration/conftest.py", "tests/integration/training_runs.py")


def section(title: str) -> list[list[str]]:
    """The command lines of a section's bash blocks, split into words."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    assert text, title
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def checkout(mlflow_template: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands need of the repository, and a folder DIR of pictures."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*COPIED, "tests/integration/test_task_contract.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(mlflow_template, folder / "mlflow.db")
    (folder / "DIR" / "sub").mkdir(parents=True)
    for number, path in enumerate(sorted((digits / "test").rglob("*.png"))[::90][:3]):
        shutil.copy(path, folder / "DIR" / ("sub" if number else "") / f"{number}.png")
    return folder


def command(words: list[str], folder: Path, *more: str) -> str:
    """Runs `cvpipe …` or `pytest …` with the copy's source, and returns what it printed."""
    modules = {"cvpipe": ["-m", "cvpipe.cli"], "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider"]}
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    # `site` is where the test installs packages, in place of pip
    env["PYTHONPATH"] = os.pathsep.join(str(path) for path in (folder / "src", *sorted((folder / "site").glob("*"))))
    done = subprocess.run(
        [sys.executable, *modules[words[0]], *words[1:], *more],
        cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def snapshot(folder: Path) -> dict[str, bytes]:
    places = ("src", "configs", "tests")
    files = (path for place in places for path in (folder / place).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "__pycache__" not in path.parts}


def test_a_task_of_ones_own(checkout: Path) -> None:
    before = snapshot(checkout)
    printed: dict[str, str] = {}
    for words in section("A task of your own, in a checkout"):
        verb = " ".join(words[:3] if words[1] in ("tasks", "config") else words[:2])
        printed[verb] = printed.get(verb, "") + command(words, checkout)
    after = snapshot(checkout)
    assert {name: after[name] for name in before} == before, "no existing file changes"
    table = re.findall(r"^\| `([\w./]+)` \|", PAGE.partition("## The same as a package")[0], re.M)
    assert len(table) == 4
    assert all((checkout / name).exists() for name in table), "what the page says is written"

    assert re.search(r"^  depth_estimation +\S", printed["cvpipe tasks list"], re.M)
    assert "`unit`" in printed["cvpipe config reference"]
    scores = [float(x) for x in re.findall(r"val/delta1 (\d\.\d+)", printed["cvpipe train"])]
    assert scores[-1] > 0.8 > scores[0], "it learns"
    assert "val/delta1" in printed["cvpipe evaluate"]
    assert "3 images, 0 failed" in printed["cvpipe predict"]
    assert "3 pictures -> pictures" in printed["cvpipe predict"]
    records = [json.loads(line) for line in (checkout / "depth.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == ["DIR/0.png", "DIR/sub/1.png", "DIR/sub/2.png"]
    assert all(0 < record["low"] <= record["mean"] <= record["high"] and record["values_png"] for record in records)
    drawn = {str(path.relative_to(checkout)) for path in (checkout / "pictures").rglob("*.png")}
    assert drawn == {"pictures/0.png", "pictures/sub/1.png", "pictures/sub/2.png"}
    assert "6 passed" in printed["pytest tests/unit/tasks/test_depth_estimation.py"]
    assert re.search(r"1\d passed", printed["pytest tests/integration/test_task_contract.py"])


def test_the_same_as_a_package(checkout: Path) -> None:
    new, install, train = section("The same as a package")
    command(new, checkout)
    assert install == ["pip", "install", "-e", "crop_height"]
    # what that does: the source on the path, and the entry point in the package's metadata
    project = (checkout / "crop_height" / "pyproject.toml").read_text("utf-8")
    ((entry, value),) = re.findall(r'^(\w+) = "([\w.:]+:TASK)"$', project, re.M)
    (version,) = re.findall(r'^version = "(.*)"$', project, re.M)
    (name,) = re.findall(r'^name = "(.*)"$', project, re.M)
    site = checkout / "site" / "src"
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[cvpipe.tasks]\n{entry} = {value}\n")
    shutil.copytree(checkout / "crop_height" / "src" / "cvpipe_crop_height", site / "cvpipe_crop_height")
    assert "crop_height" in command(["cvpipe", "tasks", "list"], checkout)
    printed = command(train, checkout, "training.epochs=1", "tracking.system_metrics=false")
    assert "models:/crop_height/1" in printed
    assert "6 passed" in command(["pytest", "crop_height/tests", "--rootdir", "crop_height"], checkout)
