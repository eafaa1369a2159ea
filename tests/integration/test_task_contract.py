"""What every task must do, built in or not. A new task is tested by being found."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from cvpipe.bundle import Bundle
from cvpipe.config import TrackingConfig
from cvpipe.config_file import load_config
from cvpipe.flavor import BundleModel
from cvpipe.predictor import Predictor
from cvpipe.task import Task, tasks
from cvpipe.tracking import Tracker
from cvpipe.types import Failure, arrow_schema
from cvpipe.utils.trees import Outputs, concatenate, largest_difference

pytestmark = pytest.mark.integration

KINDS: dict[str, Any] = {
    "string": lambda v: type(v) is str,
    "double": lambda v: type(v) is float,
    "int": lambda v: type(v) is int,
    "list<string>": lambda v: type(v) is list and all(type(x) is str for x in v),
    "list<double>": lambda v: type(v) is list and all(type(x) is float for x in v),
    "list<list<double>>": lambda v: type(v) is list and all(KINDS["list<double>"](x) for x in v),
}


class Case:
    """A task with its example, built as training builds it."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.file = folder / "example.yaml"
        self.file.write_text(yaml.safe_dump(task.example(folder / "data")))
        self.config = load_config(self.file)
        self.splits = task.load_data(self.config)
        torch.manual_seed(0)
        self.module = task.module(self.config, self.splits.labels)
        self.data = task.data_module(self.config, self.splits)
        self.batch = next(iter(self.data.train_dataloader()))
        self.losses = self._fit()
        self.bundle = Bundle.create(folder / "bundle", self.config, self.splits.labels, self.module.network)

    def _fit(self) -> list[float]:
        """The loss on one batch, over and over; without gradients, scores of noise and then of the batch itself."""
        if not self.module.learns_by_gradient:
            self.module.train()
            assert self.module.training_step(self.batch, 0) is None
            self.module.conclude()
            self.module.eval()
            noise = torch.randint(0, 256, self.batch.images.shape, dtype=torch.uint8)
            with torch.inference_mode():
                scores = [self.module.network(images)["score"] for images in (noise, self.batch.images)]
            return [float(score) for part in scores for score in part[:3]]
        optimizer = self.module.configure_optimizers()["optimizer"]
        self.module.train()
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = self.module.training_step(self.batch, 0)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        self.module.eval()
        return losses


@pytest.fixture(scope="module", params=sorted(tasks()))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tasks()[request.param], tmp_path_factory.mktemp(request.param))


def test_there_are_tasks() -> None:
    assert "classification" in tasks()


def test_the_example_config(case: Case) -> None:
    assert type(case.config) is case.task.config
    again = pickle.loads(pickle.dumps(case.config))
    assert again == case.config
    assert again.to_dict() == case.config.to_dict()
    assert case.config.task == case.task.name
    assert pickle.loads(pickle.dumps(case.task)) == case.task, "workers get the task"
    assert len(case.splits.train) > 0 < len(case.splits.val)


def test_a_batch(case: Case) -> None:
    height, width = case.config.data.image_size
    assert case.batch.images.dtype == torch.uint8
    assert case.batch.images.shape[1:] == (3, height, width)
    assert case.batch.images.is_contiguous(memory_format=torch.channels_last)
    assert case.batch.bad == []


def test_one_batch_is_learnt(case: Case) -> None:
    assert np.isfinite(case.losses).all()
    assert np.mean(case.losses[-3:]) < 0.7 * np.mean(case.losses[:3]), case.losses


def test_the_head_and_the_monitor_exist(case: Case) -> None:
    names = [name for name, _ in case.module.network.named_parameters()]
    for prefix in case.module.head:
        assert any(name.startswith(f"{prefix}.") for name in names), prefix
    from lightning.pytorch import Trainer

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (found,) = trainer.validate(case.module, datamodule=case.data, verbose=False)
    assert np.isfinite(found[case.module.monitor])


def test_the_bundle_holds_the_network(case: Case) -> None:
    loaded = Bundle.load(case.bundle.path)
    assert type(loaded.config) is type(case.config)
    assert loaded.config.to_dict() == case.config.to_dict()
    assert loaded.labels == case.splits.labels
    network = loaded.network()
    assert not network.training
    own = case.module.network.state_dict()
    assert set(network.state_dict()) == set(own)
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    with torch.inference_mode():
        _same_outputs(network(case.batch.images), case.module.network(case.batch.images))


def _same_outputs(one: Outputs, other: Outputs) -> None:
    difference, scale = largest_difference(one, other)
    assert difference <= 1e-5 * max(1.0, scale)


def test_predictor_and_network_agree(case: Case) -> None:
    paths = list(case.splits.val.paths)
    answers = Predictor(Bundle.load(case.bundle.path), device="cpu", batch_size=3).predict(paths)
    batches = list(case.data.val_dataloader())
    with torch.inference_mode():
        raw = concatenate([case.module.network(batch.images) for batch in batches])
    processor = case.task.processor(case.config, case.splits.labels)
    from cvpipe.data.decode import read_image

    sizes = [tuple(read_image(path).shape[1:]) for path in paths]
    for answer, expected in zip(answers, processor.postprocess(raw, sizes), strict=True):
        assert type(answer) is case.task.prediction
        _same(answer.to_record(), expected.to_record())


def _same(one: Any, other: Any, key: str = "") -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            _same(value, other[key], key)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _same(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-4)
    elif key.endswith("_png"):
        left, right = (_pixels(text) for text in (one, other))
        assert left.shape == right.shape
        # where a value lies between two whole numbers, or two classes are equally likely, the last digit decides
        assert (np.abs(left - right) > 1).mean() < 0.001
    else:
        assert one == other


def _pixels(png: str) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image).astype(np.int64)


def test_records(case: Case) -> None:
    answers = Predictor(case.bundle, device="cpu").predict(case.splits.val.paths[:4])
    schema = case.task.prediction.record_schema
    for answer in answers:
        assert not isinstance(answer, Failure)
        record = answer.to_record()
        assert list(record) == [name for name, _ in schema]
        for name, kind in schema:
            assert KINDS[kind](record[name]), (name, kind, record[name])
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        tail = {"path": "x", "error": None, "model_uri": "u", "model_version": ""}
        table = pa.Table.from_pylist([record | tail], schema=arrow_schema(case.task.prediction))
        assert table.to_pylist() == [{name: (record | tail)[name] for name in table.column_names}]
        assert str(answer)


def test_params_of_the_task(case: Case) -> None:
    predictor = Predictor(case.bundle, device="cpu")
    for name, kind in case.task.params.items():
        default = getattr(case.config.inference, name)
        assert isinstance(default, kind)
        plain = predictor.predict(case.splits.val.paths[0])
        given = predictor.predict(case.splits.val.paths[0], **{name: default})
        _same(given[0].to_record(), plain[0].to_record())


def test_assessment(case: Case) -> None:
    answers = Predictor(case.bundle, device="cpu").predict(case.splits.val.paths)
    answers[0] = Failure("a reason")
    config = case.config.replace(**{"evaluation.bootstrap": 20})
    found = case.task.assess(answers, case.splits.val, config, case.splits.labels)
    assert found.headline
    assert set(found.headline) <= set(found.metrics)
    assert case.module.monitor.partition("/")[2] in found.metrics
    for interval in found.metrics.values():
        assert np.isfinite(interval.value)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.high


def test_through_mlflow_and_back(case: Case, mlflow_uri: str) -> None:
    import mlflow
    import pandas as pd

    tracker = Tracker(TrackingConfig(tracking_uri=mlflow_uri, system_metrics=False), "contract")
    logged = tracker.log_model(case.bundle, register_as="contract", alias="champion")
    tracker.finish()
    assert logged.uri == "models:/contract/1"
    data = [Path(path).read_bytes() for path in case.splits.val.paths[:3]]
    expected = Predictor(case.bundle, device="cpu").predict(data)
    model = mlflow.pyfunc.load_model("models:/contract@champion")
    frame = model.predict(pd.DataFrame({"image": data}))
    for row, answer in zip(frame.to_dict("records"), expected, strict=True):
        assert row.pop("error") == ""
        _same(row, answer.to_record())
    network = mlflow.pytorch.load_model("models:/contract@champion")
    with torch.inference_mode():
        _same_outputs(network(case.batch.images), case.module.network(case.batch.images))
    direct = BundleModel(Predictor(case.bundle, device="cpu")).predict(data)
    assert list(direct.columns) == list(frame.columns)
