"""What happens around training steps: averaged weights, random state, NaN guard, checkpoints, interruption."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from cvpipe.data.loader import Batch
from cvpipe.data.splits import BadFile
from cvpipe.data.verify import write_bad_files
from cvpipe.errors import TrainingError
from cvpipe.tasks.base import TaskModule
from cvpipe.training.checkpoint import CheckpointStore
from cvpipe.utils.filesystem import atomic_path, write_json


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived, and the state was saved."""


class Ema(Callback):
    """Exponential moving average of the network's weights; validated and kept in place of the raw ones.

    The decay grows with the steps, min(decay, (1 + n) / (10 + n)), so that early weights are soon forgotten.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self._raw: dict[str, torch.Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        state = module.network.state_dict()
        if self.average:
            self.average = {key: value.to(state[key].device) for key, value in self.average.items()}
        else:
            self.average = {key: value.detach().clone() for key, value in state.items()}

    @torch.no_grad()
    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: TaskModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients were only added up
            return
        self._step = trainer.global_step
        weight = 1 - min(self.decay, (1 + self._step) / (10 + self._step))
        state = module.network.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[key] for key in floats], [state[key] for key in floats], weight)
        for key, value in state.items():
            if not value.is_floating_point():
                self.average[key].copy_(value)

    def on_validation_start(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._raw = {key: value.detach().clone() for key, value in module.network.state_dict().items()}
        module.network.load_state_dict(self.average)

    def on_validation_end(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        module.network.load_state_dict(self._raw)
        self._raw = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self._step = state_dict["average"], state_dict["step"]


class RandomState(Callback):
    """Saves the global random states and puts them back before the first step of a resumed run."""

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        numpy = np.random.get_state(legacy=False)
        keys, position = numpy["state"]["key"], int(numpy["state"]["pos"])
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": random.getstate(),
            "numpy": [
                str(numpy["bit_generator"]),
                torch.from_numpy(keys.astype(np.int64)),
                position,
                int(numpy["has_gauss"]),
                float(numpy["gauss"]),
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self._pending is None:
            return
        state, self._pending = self._pending, None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        random.setstate(state["python"])
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


class NanGuard(Callback):
    """Stops when the loss is not finite, and saves the batch that did it.

    On a GPU the loss is looked at one step later, so that the step need not wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: tuple[torch.Tensor, Batch, int] | None = None

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: TaskModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.check(module)
        if not module.learns_by_gradient:
            return
        loss = outputs["loss"].detach()
        self._pending = (loss, batch, trainer.global_step)
        if loss.device.type == "cpu":
            self.check(module)

    def check(self, module: TaskModule) -> None:
        """Raises TrainingError if the last loss was not finite."""
        if self._pending is None:
            return
        (loss, batch, step), self._pending = self._pending, None
        if torch.isfinite(loss):
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        targets = batch.targets if isinstance(batch.targets, torch.Tensor) else torch.empty(0)
        with atomic_path(self.folder / "batch.safetensors") as staged:
            save_file({"images": batch.images.cpu().contiguous(), "targets": targets.cpu().contiguous()}, staged)
        paths = module.trainer.datamodule.splits.train.paths  # type: ignore[attr-defined]
        images = [paths[i] for i in batch.indices.tolist()]
        write_json(self.folder / "batch.json", {"step": step, "loss": str(float(loss)), "images": images})
        raise TrainingError(
            f"the loss is {float(loss)} at step {step}. The batch is saved in {self.folder}. Try a lower "
            "training.learning_rate, training.gradient_clip=1 or training.precision=32."
        )


class CheckpointWriter(Checkpoint):
    """Saves the state after each epoch and every `every` seconds within, and the best weights after each validation.

    Args:
        store: where to.
        every: seconds between checkpoints within an epoch.
        guard: asked first; weights that are not finite are never saved.
        ema: its average is what is kept as the best weights.
        stop: asked after each step; when it is set the state is saved and the fit ends with `Interrupted`.
    """

    def __init__(
        self, store: CheckpointStore, every: float, guard: NanGuard, ema: Ema | None, stop: threading.Event
    ) -> None:
        self.store, self.every, self.guard, self.ema, self.stop = store, every, guard, ema, stop
        self.best_score = -float("inf")
        self.best_epoch = 0
        self._saved_at = time.monotonic()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: TaskModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            # whatever training.validate_every says: weights that end a training are measured
            trainer.check_val_every_n_epoch = 1
        # the state at the last batch of an epoch is saved when the epoch has ended
        if trainer.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        if self.stop.is_set() or time.monotonic() - self._saved_at >= self.every:
            self._save(trainer, module)
            self._check_stop()

    def on_validation_end(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        score = float(trainer.callback_metrics.get(module.monitor, -float("inf")))
        if math.isnan(score):  # a metric that has no meaning on this split: as good as none
            score = -float("inf")
        # equal scores: the later weights have seen more
        if score >= self.best_score:
            self.guard.check(module)
            _check_finite(module)
            self.best_score, self.best_epoch = score, trainer.current_epoch
            self.store.save_best(self.ema.average if self.ema else module.network.state_dict(), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._save(trainer, module)
        self._check_stop()

    def _save(self, trainer: Trainer, module: TaskModule) -> None:
        self.guard.check(module)
        _check_finite(module)
        trainer.save_checkpoint(self.store.folder / "last.ckpt")
        self._saved_at = time.monotonic()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]


class BadFileCounter(Callback):
    """Collects images that could not be decoded while training, and stops where they become too many."""

    def __init__(self, known: tuple[BadFile, ...], limit: float, total: int, report: Path) -> None:
        self.found = {file.path: file for file in known}
        self.limit, self.total, self.report = limit, total, report

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._add(batch.bad)

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(batch.bad)

    def _add(self, bad: list[BadFile]) -> None:
        fresh = [file for file in bad if file.path not in self.found]
        if not fresh:
            return
        self.found |= {file.path: file for file in fresh}
        write_bad_files(list(self.found.values()), self.report)
        if len(self.found) > self.limit * self.total:
            raise TrainingError(
                f"{len(self.found)} of {self.total} images can't be read, more than data.max_bad_fraction = "
                f"{self.limit:g} allows. The last: {fresh[-1].path}: {fresh[-1].reason}. All are in {self.report}."
            )


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a request to stop after the step; the second one interrupts at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()


def _check_finite(module: TaskModule) -> None:
    for name, value in module.network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(
                f"the weights {name} are not finite any more; the last checkpoint is from before. Try a lower "
                "training.learning_rate, training.gradient_clip=1 or training.precision=32."
            )
