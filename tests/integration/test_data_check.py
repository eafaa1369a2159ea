"""`cvpipe data check` as a command: exit codes, worker processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

IMAGES = 400


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cvpipe.cli", "data", "check", *words, "check.features=none", "check.gallery=2"]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def data(digits: Path, tmp_path: Path) -> Path:
    """Digits of 8x8 pixels, more than one process gets by itself."""
    for split, step in (("train", 3), ("val", 2)):
        for path in sorted((digits / split).rglob("*.png"))[::step]:
            target = tmp_path / "set" / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path / "set"


def test_processes_see_what_one_sees(data: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    for workers in ("0", "2"):
        done = run(tmp_path, str(data), "--json", "--output-dir", workers, f"check.workers={workers}")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["passed"]
        assert result["images"] > IMAGES
        found.append((tmp_path / workers / "findings.csv").read_text())
    assert found[0] == found[1]


def test_a_limit_that_is_passed_is_exit_code_1_and_bad_input_2(data: Path, tmp_path: Path) -> None:
    first = next((data / "train" / "3").iterdir())
    shutil.copy(first, data / "val" / "3" / "leak.png")
    done = run(tmp_path, str(data), "check.workers=0")
    assert done.returncode == 1, done.stderr
    assert "limit exceeded: leakage: 1 " in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("next: ")
    assert (tmp_path / "checks" / "set" / "report.html").is_file()
    again = run(tmp_path, str(data), "check.workers=0", "check.limits.leakage=1")
    assert again.returncode == 0, again.stderr
    bad = run(tmp_path, str(data / "absent"))
    assert bad.returncode == 2
    assert "no such file or folder" in bad.stderr
