"""Tiny trainings on real scanned digits, from a config to a model in MLflow, in this process."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import all_runs, client, history, run_json, usable, values, weights

import cvpipe
from cvpipe.bundle import Bundle
from cvpipe.cli import run as run_command
from cvpipe.config_file import dump_config, parse_config
from cvpipe.errors import InputError, TrainingError
from cvpipe.tasks.classification.model import ClassificationModule
from cvpipe.training.callbacks import Interrupted
from cvpipe.training.train import TrainResult

pytestmark = pytest.mark.integration


# one run and everything that MLflow holds of it


@pytest.fixture(scope="module")
def base(small: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(result, tracking URI, values) of a registered run; the tests only read it."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    settings = values(small, folder / "run", epochs=2, learning_rate=0.003)
    settings["tracking"] = {
        "tracking_uri": uri,
        "registered_model_name": "digits",
        "alias": "champion",
        "experiment": "tests",
        "system_metrics": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
        result = cvpipe.train(settings)
    return result, uri, settings


@pytest.fixture
def base_uri(base: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", base[1])
    return str(base[1])


def test_the_result(base: Any, small: Path) -> None:
    result = base[0]
    assert result.model_uri == "models:/digits/1"
    assert set(result.metrics) >= {"test/accuracy", "test/macro_f1", "test/calibration_error"}
    assert result.intervals["test/accuracy"].value == result.metrics["test/accuracy"]
    assert result.report.is_file()
    assert result.bundle == result.run_dir / "bundle"
    assert Bundle.load(result.bundle).metrics["test/accuracy"]["value"] == result.metrics["test/accuracy"]
    assert "models:/digits/1" in result._repr_html_()
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    usable(result, small)


def test_one_run_holds_everything(base: Any, base_uri: str) -> None:
    result, _, settings = base
    (run,) = all_runs()
    assert run.info.run_id == result.run_id
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert client().get_experiment(run.info.experiment_id).name == "tests"
    flat = parse_config(settings).flat()
    expected = {key: str(value) for key, value in flat.items() if not key.startswith("check.")}
    assert {key: run.data.params[key] for key in expected} == expected
    assert run.data.params["data.class_count"] == "10"
    assert run.data.tags["version.torch"] == version("torch")
    assert run.data.tags["cvpipe.task"] == "classification"


def test_data_sets_of_the_run(base: Any, base_uri: str) -> None:
    inputs = client().get_run(base[0].run_id).inputs.dataset_inputs
    found = {item.tags[0].value: json.loads(item.dataset.profile)["images"] for item in inputs}
    assert found == {"training": 80, "validation": 30, "testing": 20}
    assert len({item.dataset.digest for item in inputs}) == 3


def test_metrics_of_the_run(base: Any, base_uri: str) -> None:
    result = base[0]
    # 80 images in batches of 32: 3 steps an epoch
    losses = history(result, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4, 5, 6]
    assert all(0 < metric.value < 20 for metric in losses)
    for name in ("val/accuracy", "val/loss"):
        assert [metric.step for metric in history(result, name)] == [3, 6]
    metrics = client().get_run(result.run_id).data.metrics
    assert metrics["test/accuracy"] == pytest.approx(result.metrics["test/accuracy"])
    assert metrics["best/val/accuracy"] == pytest.approx(max(m.value for m in history(result, "val/accuracy")))
    assert metrics["best/epoch"] in (1, 2)
    assert metrics["train/learning_rate"] <= 0.003
    assert metrics["train/images_per_second"] > 0
    assert 0 <= metrics["train/data_wait"] <= 1
    assert any(name.startswith("system/") for name in metrics), sorted(metrics)


def test_exactly_one_logged_model(base: Any, base_uri: str) -> None:
    import mlflow

    result = base[0]
    assert client().get_model_version_by_alias("digits", "champion").run_id == result.run_id
    assert len(client().search_model_versions("name='digits'")) == 1
    if hasattr(client(), "search_logged_models"):
        run = client().get_run(result.run_id)
        (model,) = client().search_logged_models([run.info.experiment_id])
        assert model.source_run_id == result.run_id
        assert str(model.status).endswith("READY")
    folder = Path(mlflow.artifacts.download_artifacts("models:/digits@champion"))
    logged = mlflow.models.Model.load(str(folder))
    assert logged.signature is not None
    assert [column.name for column in logged.signature.inputs.inputs] == ["image"]
    assert logged.load_input_example(str(folder)) is not None
    assert Bundle.load(folder).metrics["test/accuracy"]["value"] == result.metrics["test/accuracy"]


def test_artifacts_of_the_run(base: Any, base_uri: str) -> None:
    run_id = base[0].run_id
    assert {"config.yaml", "evaluation"} <= {item.path for item in client().list_artifacts(run_id)}
    inside = {item.path for item in client().list_artifacts(run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/metrics.json", "evaluation/predictions.csv"} <= inside


def test_a_second_run_into_the_same_folder_is_refused(base: Any, base_uri: str) -> None:
    with pytest.raises(InputError, match=r"holds a run already \(finished\)"):
        cvpipe.train(base[2])
    assert len(all_runs()) == 1


def test_a_finished_run_resumed_is_the_same_result(base: Any, base_uri: str, capsys: Any) -> None:
    assert cvpipe.train(base[2], resume=True) == base[0]
    assert "is finished already" in capsys.readouterr().out
    assert len(all_runs()) == 1


def test_a_registered_model_as_pretrained_weights(
    base: Any, small: Path, mlflow_uri: str, tmp_path: Path, capsys: Any
) -> None:
    """Looked up at the config's server, not at the one that the environment names."""
    settings = values(small, tmp_path / "run", freeze="backbone", learning_rate=1e-9)
    settings["model"]["pretrained"] = "models:/digits@champion"
    with pytest.raises(InputError, match="digits@champion: not found"):
        cvpipe.train(settings)
    assert not (tmp_path / "run").exists()
    settings["tracking"]["tracking_uri"] = base[1]
    result = cvpipe.train(settings)
    assert "tensors from models:/digits@champion" in capsys.readouterr().out
    before = weights(base[0])
    for key, value in weights(result).items():
        assert torch.allclose(value, before[key], atol=1e-5), key


# memory, numbers, time


def _out_of_memory_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    real = ClassificationModule.loss

    def loss(self: Any, batch: Any) -> torch.Tensor:
        sizes.append(len(batch.indices))
        if len(batch.indices) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    return sizes


def test_out_of_memory_halves_the_batch(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sizes = _out_of_memory_above(8, monkeypatch)
    result = cvpipe.train(values(small, tmp_path / "run", batch_size=32))
    assert sizes[:3] == [32, 16, 8]
    state = run_json(result)
    assert (state["batch_size"], state["accumulate"], state["status"]) == (8, 4, "finished")
    err = capsys.readouterr().err
    assert "out of memory with batches of 32; starting again with batches of 16, gradients of 2 added up" in err
    assert "out of memory with batches of 16; starting again with batches of 8, gradients of 4 added up" in err
    # 10 batches of 8 in groups of 4
    assert [metric.step for metric in history(result, "val/accuracy")] == [3]
    steps = [metric.step for metric in history(result, "train/loss")]
    assert len(steps) == len(set(steps)), "one value a step, whatever was added up"
    assert len(all_runs()) == 1
    usable(result, small)


def test_out_of_memory_gives_up_after_three_halvings(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sizes = _out_of_memory_above(1, monkeypatch)
    config = tmp_path / "c.yaml"
    config.write_text(dump_config(parse_config(values(small, tmp_path / "run"))))
    assert run_command(["train", "--config", str(config)]) == 1
    assert sizes == [32, 16, 8, 4]
    err = capsys.readouterr().err
    assert (
        "error: out of memory with batches of 4, after 3 halvings: CUDA out of memory. Tried to allocate 2.00 GiB.. "
        "Use a smaller data.image_size or model." in err
    )
    assert [run.info.status for run in all_runs()] == ["FAILED"]
    assert run_json(tmp_path / "run")["status"] == "failed"


def test_out_of_memory_with_one_image(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _out_of_memory_above(0, monkeypatch)
    with pytest.raises(TrainingError, match="out of memory with one image a batch"):
        cvpipe.train(values(small, tmp_path / "run", batch_size=1))


def test_a_loss_that_is_not_a_number_stops_the_run(small: Path, mlflow_uri: str, tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "c.yaml"
    settings = values(small, tmp_path / "run", learning_rate=1e30, optimizer="sgd", warmup=0, gradient_clip=0)
    config.write_text(dump_config(parse_config(settings)))
    assert run_command(["train", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert "error: the loss is " in err
    assert "Traceback" not in err
    folder = tmp_path / "run" / "nan_batch"
    assert str(folder) in err
    saved = load_file(folder / "batch.safetensors")
    about = json.loads((folder / "batch.json").read_text())
    assert saved["images"].shape[1:] == (3, 32, 32)
    assert saved["images"].dtype == torch.uint8
    assert len(about["images"]) == len(saved["images"]) == len(saved["targets"])
    for path, target in zip(about["images"], saved["targets"].tolist(), strict=True):
        assert Path(path).parent.name == str(target)
    assert [run.info.status for run in all_runs()] == ["FAILED"]
    assert run_json(tmp_path / "run")["status"] == "failed"


def test_early_stopping(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    # 31 possible accuracies: without an improvement in each epoch it stops, long before 60
    result = cvpipe.train(values(small, tmp_path / "run", epochs=60, early_stopping=1, learning_rate=1e-7))
    scores = [metric.value for metric in history(result, "val/accuracy")]
    assert 2 <= len(scores) < 60
    assert scores[-1] <= scores[-2]
    assert all(later > earlier for earlier, later in itertools.pairwise(scores[:-1]))
    assert client().get_run(result.run_id).data.metrics["best/epoch"] == len(scores) - (scores[-1] < scores[-2])


def test_validation_every_few_epochs(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    result = cvpipe.train(values(small, tmp_path / "run", epochs=5, validate_every=3))
    assert len(history(result, "val/accuracy")) == 2, "after the third epoch and the last"
    assert client().get_run(result.run_id).data.metrics["best/epoch"] in (3, 5)
    timed = cvpipe.train(values(small, tmp_path / "timed", epochs=100_000, validate_every=90_000, max_time="2s"))
    assert len(history(timed, "val/accuracy")) == 1, "a training that ends for want of time is validated"
    usable(timed, small)


def test_max_time_ends_in_good_order(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    result = cvpipe.train(values(small, tmp_path / "run", epochs=100_000, max_time="2s"))
    assert run_json(result)["status"] == "finished"
    assert client().get_run(result.run_id).info.status == "FINISHED"
    assert 1 <= len(history(result, "val/accuracy")) < 1000
    usable(result, small)


def test_max_time_within_the_first_epoch(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    real = ClassificationModule.loss
    steps = 0

    def slow(self: Any, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        time.sleep(0.1)
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", slow)
    result = cvpipe.train(values(small, tmp_path / "run", batch_size=2, max_time="1s"))
    assert steps < 30, "40 steps are an epoch"
    assert len(history(result, "val/accuracy")) == 1
    usable(result, small)


def test_the_learning_rate_is_found(small: Path, mlflow_uri: str, tmp_path: Path, capsys: Any) -> None:
    result = cvpipe.train(values(small, tmp_path / "run", learning_rate="auto", batch_size=8))
    found = run_json(result)["learning_rate"]
    assert 1e-6 <= found <= 1
    assert f"learning rate {found:.2e} (found by a range test)" in capsys.readouterr().out
    assert not list(result.run_dir.rglob(".lr_find*"))
    assert max(m.value for m in history(result, "train/learning_rate")) <= found * 1.0001


def test_out_of_memory_in_the_range_test(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _out_of_memory_above(8, monkeypatch)
    with pytest.raises(TrainingError, match=r"in the learning-rate range test with batches of 32.*training.batch_size"):
        cvpipe.train(values(small, tmp_path / "run", learning_rate="auto"))
    assert [run.info.status for run in all_runs()] == ["FAILED"]


def test_an_interrupt_after_the_last_epoch(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = values(small, tmp_path / "run")
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("cvpipe.training.train._evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cvpipe.train(settings)
    assert run_json(tmp_path / "run")["status"] == "interrupted"
    assert [run.info.status for run in all_runs()] == ["KILLED"]
    result = cvpipe.train(settings, resume=True)
    assert [run.info.status for run in all_runs()] == ["FINISHED"]
    assert len(history(result, "val/accuracy")) == 1, "nothing is trained twice"
    usable(result, small)


def test_a_signal_stops_and_the_run_goes_on(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Stopped in the middle of the second epoch, in which the frozen layers are free again."""
    training = {"epochs": 2, "freeze": "backbone", "freeze_epochs": 1, "batch_size": 16, "optimizer": "sgd"}
    expected = weights(cvpipe.train(values(small, tmp_path / "whole", **training)))
    real = ClassificationModule.loss
    calls = 0

    def loss(self: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:  # of 5 an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    settings = values(small, tmp_path / "run", **training)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        cvpipe.train(settings)
    assert calls == 7, "the step is finished, no other one begins"
    assert signal.getsignal(signal.SIGTERM) is before
    out = capsys.readouterr().out
    assert "--resume training.output_dir=" in out
    assert run_json(tmp_path / "run")["status"] == "interrupted"
    assert Counter(run.info.status for run in all_runs()) == {"FINISHED": 1, "KILLED": 1}
    result = cvpipe.train(settings, resume=True)
    assert calls == 10
    assert Counter(run.info.status for run in all_runs()) == {"FINISHED": 2}
    for key, value in weights(result).items():
        assert torch.equal(value, expected[key]), key


def test_exit_code_of_an_interrupt(
    small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = ClassificationModule.loss

    def loss(self: Any, batch: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    config = tmp_path / "c.yaml"
    config.write_text(dump_config(parse_config(values(small, tmp_path / "run", epochs=3))))
    assert run_command(["train", "--config", str(config)]) == 130
