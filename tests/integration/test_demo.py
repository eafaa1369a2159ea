"""The first command of the README, with one epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cvpipe.demo
from cvpipe.cli import run

pytestmark = pytest.mark.integration


def test_demo_ends_by_saying_where_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = {**cvpipe.demo.CONFIG, "training": {**cvpipe.demo.CONFIG["training"], "epochs": 1, "num_workers": 0}}
    monkeypatch.setattr(cvpipe.demo, "CONFIG", {**short, "evaluation": {"bootstrap": 10}})
    assert run(["demo", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    for place in ("report", "bundle", "predictions"):
        assert Path(result[place]).exists()
        assert result[place] in captured.err
    assert "mlflow ui --backend-store-uri sqlite:///demo/mlflow.db" in captured.err
    assert len(json.loads(Path(result["predictions"]).read_text())) == 364
    assert {path.name for path in tmp_path.iterdir()} <= {"demo", "default-mlflow.db"}, "all is in the demo's folder"

    assert run(["demo"]) == 0, "a second time makes a second run"
    assert "models:/digits/2" in capsys.readouterr().out
