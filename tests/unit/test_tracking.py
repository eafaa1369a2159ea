"""The tracker keeps what a server that is away can't take."""

from __future__ import annotations

from typing import Any

import pytest

from cvpipe.config import TrackingConfig
from cvpipe.errors import TrackingError
from cvpipe.tracking import Tracker, check_reachable


@pytest.fixture
def tracker(mlflow_uri: str) -> Tracker:
    return Tracker(TrackingConfig(tracking_uri=mlflow_uri), "run")


def break_server(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("connection refused")

    monkeypatch.setattr(tracker.client, "log_batch", refuse)


def test_metrics_wait_while_the_server_is_away(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker._pause = 0.0
    with monkeypatch.context() as broken:
        break_server(tracker, broken)
        tracker.log_metrics({"train/loss": 2.0}, 1)
        tracker.log_metrics({"train/loss": 1.0}, 2)
    assert capsys.readouterr().err.count("connection refused") == 1, "one warning, not one for each step"
    tracker.finish()
    history = tracker.client.get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_finished_run_that_can_not_be_written_says_how_to_go_on(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.log_metrics({"val/accuracy": 0.5}, 1)
    break_server(tracker, monkeypatch)
    with pytest.raises(TrackingError, match=r"connection refused.*--resume"):
        tracker.finish()


def test_a_failed_run_keeps_its_own_error(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.log_metrics({"val/accuracy": 0.5}, 1)
    break_server(tracker, monkeypatch)
    tracker.finish("FAILED")
    assert "connection refused" in capsys.readouterr().err


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError) as caught:
        check_reachable("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    assert "tracking.tracking_uri=sqlite:///mlflow.db" in str(caught.value)
