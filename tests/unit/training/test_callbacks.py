"""What happens around steps, in real little fits on the CPU."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cvpipe.data.loader import Batch
from cvpipe.data.splits import BadFile
from cvpipe.errors import TrainingError
from cvpipe.training.callbacks import (
    BadFileCounter,
    CheckpointWriter,
    Ema,
    Interrupted,
    NanGuard,
    RandomState,
    StopSignals,
)
from cvpipe.training.checkpoint import CheckpointStore


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def batch(fill: float | None = None, bad: list[BadFile] | None = None) -> Batch:
    images = torch.rand(5, 3, 8, 8) if fill is None else torch.full((5, 3, 8, 8), fill)
    return Batch(images, torch.tensor([0, 1, 0, 1, 1]), torch.arange(5), bad or [])


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    data = batch()
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(data.images), data.targets).backward()
    optimizer.step()


def trainer(**values: Any) -> Any:
    return SimpleNamespace(**{"global_step": 0, "callback_metrics": {}, "current_epoch": 0, **values})


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_ema_is_the_average_that_its_docstring_promises(decay: float) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    module: Any = SimpleNamespace(network=net, learns_by_gradient=True)
    ema = Ema(decay)
    ema.on_train_start(trainer(), module)
    expected = copy.deepcopy(net.state_dict())
    for n in range(1, 31):
        step(net, optimizer)
        # the reference, by hand: the decay that is in force, on parameters and on the statistics of the normalisation
        d = min(decay, (1 + n) / (10 + n))
        for key, value in net.state_dict().items():
            expected[key] = d * expected[key] + (1 - d) * value if value.is_floating_point() else value.clone()
        ema.on_train_batch_end(trainer(global_step=n), module, None, batch(), n)
        # once more without an optimizer step (accumulation): nothing may change
        ema.on_train_batch_end(trainer(global_step=n), module, None, batch(), n)
    assert set(ema.average) == set(net.state_dict())
    assert int(ema.average["1.num_batches_tracked"]) == 30
    for key, value in expected.items():
        assert torch.allclose(ema.average[key], value, atol=1e-5), key
    assert not torch.allclose(ema.average["3.weight"], net.state_dict()["3.weight"], atol=1e-4)
    assert not torch.allclose(ema.average["1.running_mean"], net.state_dict()["1.running_mean"], atol=1e-4)


def test_ema_equals_torchs_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    module: Any = SimpleNamespace(network=net, learns_by_gradient=True)
    ema = Ema(0.1)  # below (1 + 1) / (10 + 1), so that the decay is the same from the first step
    ema.on_train_start(trainer(), module)
    reference = AveragedModel(net, avg_fn=get_ema_avg_fn(0.1), use_buffers=True)
    reference.update_parameters(net)  # torch copies at its first call; ours begins with the weights at the start
    for n in range(1, 11):
        step(net, optimizer)
        ema.on_train_batch_end(trainer(global_step=n), module, None, batch(), n)
        reference.update_parameters(net)
    for key, value in reference.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(ema.average[key], value, atol=1e-5), key


def test_ema_stands_in_for_validation_only() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    module: Any = SimpleNamespace(network=net, learns_by_gradient=True)
    ema = Ema(0.9)
    ema.on_train_start(trainer(), module)
    for n in range(1, 4):
        step(net, optimizer)
        ema.on_train_batch_end(trainer(global_step=n), module, None, batch(), n)
    raw = copy.deepcopy(net.state_dict())
    addresses = [p.data_ptr() for p in net.parameters()]
    ema.on_validation_start(trainer(), module)
    assert all(torch.equal(value, ema.average[key]) for key, value in net.state_dict().items())
    assert any(not torch.equal(value, raw[key]) for key, value in net.state_dict().items())
    ema.on_validation_end(trainer(), module)
    assert all(torch.equal(value, raw[key]) for key, value in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == addresses, "the optimizer still holds these tensors"

    again = Ema(0.9)
    again.load_state_dict(copy.deepcopy(ema.state_dict()))
    again.on_train_start(trainer(), module)
    step(net, optimizer)
    for one in (ema, again):
        one.on_train_batch_end(trainer(global_step=4), module, None, batch(), 4)
    assert all(torch.equal(value, again.average[key]) for key, value in ema.average.items())


def guarded_module() -> Any:
    paths = tuple(f"image-{i}.png" for i in range(5))
    splits = SimpleNamespace(train=SimpleNamespace(paths=paths))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(splits=splits))
    return SimpleNamespace(network=network(), learns_by_gradient=True, trainer=trainer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_guard_saves_the_batch(tmp_path: Path, value: float) -> None:
    guard = NanGuard(tmp_path / "nan")
    module = guarded_module()
    guard.on_train_batch_end(trainer(global_step=1), module, {"loss": torch.tensor(0.7)}, batch(), 0)
    assert not (tmp_path / "nan").exists()
    culprit = batch(3.0)
    with pytest.raises(TrainingError) as caught:
        guard.on_train_batch_end(trainer(global_step=2), module, {"loss": torch.tensor(value)}, culprit, 1)
    assert f"the loss is {value} at step 2. The batch is saved in {tmp_path / 'nan'}." in str(caught.value)
    assert "training.learning_rate" in str(caught.value)
    saved = load_file(tmp_path / "nan" / "batch.safetensors")
    assert torch.equal(saved["images"], culprit.images)
    assert torch.equal(saved["targets"], culprit.targets)
    about = json.loads((tmp_path / "nan" / "batch.json").read_text())
    assert about == {"step": 2, "loss": str(value), "images": [f"image-{i}.png" for i in range(5)]}
    guard.check(module)  # said once


def writer(tmp_path: Path, event: threading.Event | None = None) -> CheckpointWriter:
    store = CheckpointStore(tmp_path)
    return CheckpointWriter(store, 1e9, NanGuard(tmp_path / "nan"), None, event or threading.Event())


def test_best_is_the_latest_of_equals_and_survives_a_score_without_meaning(tmp_path: Path) -> None:
    module = guarded_module()
    module.monitor = "val/x"
    keeper = writer(tmp_path)
    for epoch, (score, best) in enumerate([("nan", 0), (0.5, 1), (0.5, 2), (0.4, 2), ("nan", 2), (0.6, 5)]):
        metrics = {"val/x": torch.tensor(float(score))}
        keeper.on_validation_end(trainer(callback_metrics=metrics, current_epoch=epoch, global_step=epoch), module)
        assert keeper.best_epoch == best
    assert keeper.best_score == pytest.approx(0.6)
    assert keeper.store.best() is not None
    again = writer(tmp_path)
    again.load_state_dict(keeper.state_dict())
    assert (again.best_score, again.best_epoch) == (keeper.best_score, 5)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    module = guarded_module()
    module.monitor = "val/x"
    with torch.no_grad():
        module.network[3].bias[1] = float("inf")
    with pytest.raises(TrainingError, match=r"the weights 3\.bias are not finite any more"):
        writer(tmp_path).on_validation_end(trainer(callback_metrics={"val/x": torch.tensor(1.0)}), module)
    assert list(tmp_path.iterdir()) == []


def test_random_states_come_back() -> None:
    def draw() -> tuple[float, float, float, float]:
        return float(torch.rand(1)), random.random(), float(np.random.rand()), float(np.random.randn())

    np.random.randn()  # leaves one cached normal number behind
    saved = RandomState().state_dict()
    expected = draw()
    restored = RandomState()
    # through the weights-only file format, as in a checkpoint
    import io

    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    draw()
    restored.on_train_batch_start(trainer(), None, None, 0)
    assert draw() == expected
    after = draw()
    restored.on_train_batch_start(trainer(), None, None, 1)  # only once
    assert draw() != expected != after


def test_bad_files_are_counted_once_and_limited(tmp_path: Path) -> None:
    report = tmp_path / "bad.csv"
    counter = BadFileCounter((BadFile("train", "known.png", "old"),), 0.2, 10, report)
    counter.on_train_batch_end(trainer(), None, None, batch(), 0)
    assert not report.exists()
    one = BadFile("train", "a.png", "broken")
    for _ in range(3):
        counter.on_train_batch_end(trainer(), None, None, batch(bad=[one]), 0)
    assert report.read_text().splitlines() == ["split,path,reason", "train,known.png,old", "train,a.png,broken"]
    with pytest.raises(TrainingError) as caught:
        counter.on_validation_batch_end(trainer(), None, None, batch(bad=[BadFile("val", "b.png", "empty")]), 0)
    assert "3 of 10 images can't be read, more than data.max_bad_fraction = 0.2 allows" in str(caught.value)
    assert "The last: b.png: empty." in str(caught.value)
    assert "val,b.png,empty" in report.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as signals:
        assert not signals.event.is_set()
        os.kill(os.getpid(), number)
        assert signals.event.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_in_another_thread_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with StopSignals() as signals:
            seen.append((signal.getsignal(signal.SIGINT), signals.event.is_set()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_interrupted_is_an_interrupt_for_whoever_knows_no_better() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)
