"""What training prints and logs while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from cvpipe.data.loader import Batch
from cvpipe.tasks.base import TaskModule
from cvpipe.utils.console import duration, say, stream

LogMetrics = Callable[[dict[str, float], int], None]
_POINTS = 2000


class TrainingLog(Callback):
    """One aligned line per interval and one per epoch on the console; the same figures to the tracker.

    The loss stays on the device between lines: asking for it would make every step wait.

    Args:
        every: seconds between lines.
        log_metrics: takes metrics and the step.
    """

    def __init__(self, every: float, log_metrics: LogMetrics) -> None:
        self.every, self.log_metrics = every, log_metrics
        self.history: list[dict[str, float]] = []
        self.images = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._losses: list[tuple[int, torch.Tensor]] = []
        self._best = -float("inf")
        self._validated = False

    def on_train_start(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._total = max(1, module.total_steps)
        self._stride = max(1, self._total // _POINTS)
        self._first = trainer.global_step
        self._start = self._line_at = self._ended = time.perf_counter()
        self._line_images, self._line_wait, self._line_seconds = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._ended = time.perf_counter()
        self._validated = False

    def on_validation_end(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._validated = True

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        wait = time.perf_counter() - self._ended
        self._line_wait += wait
        self._line_seconds += wait
        self._began = self._ended + wait

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: TaskModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._line_seconds += now - self._began
        self._ended = now
        self._line_images += len(batch.indices)
        if not module.learns_by_gradient:
            self.images, self.seconds, self.waited = self._line_images, self._line_seconds, self._line_wait
            return
        self._losses.append((trainer.global_step, outputs["loss"].detach()))
        if now - self._line_at >= (0.2 if stream().isatty() else self.every):
            self._line(trainer, redraw=stream().isatty())

    def on_train_epoch_end(self, trainer: Trainer, module: TaskModule) -> None:  # type: ignore[override]
        self._line(trainer, redraw=False, closing=True)
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        # an epoch without validation still has the values of an earlier one
        values = {key: value for key, value in logged.items() if key.startswith("val/") and self._validated}
        self.history.append({"epoch": trainer.current_epoch + 1, **values})
        # the parts of a loss, where a task logs them, go to the tracker alone
        parts = {key: value for key, value in logged.items() if key.startswith("train/")}
        if values or parts:
            self.log_metrics(values | parts, trainer.global_step)
        if not values:
            return
        shown = "  ".join(f"{key} {value:.4f}" for key, value in sorted(values.items()))
        score = values.get(module.monitor, -float("inf"))
        mark = "  * best" if score >= self._best else ""
        self._best = max(self._best, score)
        say(f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  {shown}{mark}")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._best = state_dict["history"], state_dict["best"]

    def _line(self, trainer: Trainer, redraw: bool, closing: bool = False) -> None:
        now, step = time.perf_counter(), trainer.global_step
        if not self._losses:
            return
        loss = float(torch.stack([value for _, value in self._losses]).float().mean())
        seconds = max(1e-9, self._line_seconds)
        rate, waiting = self._line_images / seconds, self._line_wait / seconds
        optimizer = trainer.optimizers[0]
        learning_rate = max(float(group["lr"]) for group in optimizer.param_groups)
        done = step - self._first
        left = (now - self._start) / max(1, done) * (self._total - step)
        epoch = trainer.current_epoch + 1
        text = (
            f"epoch {epoch:>3}/{trainer.max_epochs}  step {step:>{len(str(self._total))}}/{self._total}  "
            f"loss {loss:.4f}  lr {learning_rate:.1e}  {rate:7.1f} images/s  waiting for data {waiting:4.0%}  "
            f"ETA {duration(left)}"
        )
        if redraw:
            print(f"\r\x1b[K{text}", end="", file=stream(), flush=True)
        else:
            if stream().isatty():
                print("\r\x1b[K", end="", file=stream())
            if not closing or now - self._line_at > 1 or not stream().isatty():
                say(text)
        # with accumulation several batches belong to a step
        by_step: dict[int, list[float]] = {}
        for at, value in self._losses:
            if at % self._stride == 0:
                by_step.setdefault(at, []).append(float(value))
        for at, values in by_step.items():
            self.log_metrics({"train/loss": sum(values) / len(values)}, at)
        self.log_metrics(
            {"train/learning_rate": learning_rate, "train/images_per_second": rate, "train/data_wait": waiting}, step
        )
        self.images += self._line_images
        self.waited += self._line_wait
        self.seconds += self._line_seconds
        self._losses, self._line_images, self._line_wait, self._line_seconds = [], 0, 0.0, 0.0
        self._line_at = now


def quiet_lightning() -> None:
    """Lightning's own notes on devices and loaders; ours say the same in one place."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
        # a class without an image in val: average precision leaves it out
        warnings.filterwarnings("ignore", message="No positive samples found in target")
