"""The fit: one function that every launcher runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from cvpipe.bundle import Bundle
from cvpipe.config import Config
from cvpipe.data.splits import Splits
from cvpipe.errors import TrainingError
from cvpipe.task import Task
from cvpipe.tasks.base import TaskModule
from cvpipe.training.callbacks import (
    BadFileCounter,
    CheckpointWriter,
    Ema,
    Interrupted,
    NanGuard,
    RandomState,
    StopSignals,
)
from cvpipe.training.checkpoint import CheckpointStore, VerifiedCheckpointIO
from cvpipe.training.progress import LogMetrics, TrainingLog, quiet_lightning
from cvpipe.training.run_dir import RunDir
from cvpipe.utils.console import say, warn
from cvpipe.utils.device import choose_device, choose_precision

_MOST_HALVINGS = 3


@dataclass(frozen=True)
class FitSettings:
    """What may differ from the config while running: see RunState."""

    batch_size: int
    accumulate: int
    learning_rate: float


@dataclass(frozen=True)
class FitResult:
    """What a finished fit gives.

    Attributes:
        bundle: the best weights.
        monitor, best_score, best_epoch: which validation metric chose them, its value, and the epoch (from 1).
        history: validation metrics by epoch.
        images_per_second, data_wait: over the training steps; data_wait is a share of the time.
    """

    bundle: Bundle
    monitor: str
    best_score: float
    best_epoch: int
    history: list[dict[str, float]]
    images_per_second: float
    data_wait: float


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fit(
    config: Config,
    task: Task,
    splits: Splits,
    run: RunDir,
    settings: FitSettings,
    log_metrics: LogMetrics,
    module: TaskModule | None = None,
) -> FitResult:
    """Trains from the last whole checkpoint in `run`, or from the start, and writes the bundle.

    Args:
        splits: the data; broken files were dropped.
        settings: batch size, accumulation and learning rate to use.
        log_metrics: takes metrics and the step.
        module: the freshly built module, if the caller has it already.

    Raises:
        TrainingError: NaN, too many bad images, a full disk.
        torch.OutOfMemoryError: the batch does not fit.
        Interrupted: after SIGINT or SIGTERM; the state is saved.
    """
    quiet_lightning()
    seed_everything(config.training.seed)
    if module is None:
        module = task.module(config, splits.labels)
    module.learning_rate = settings.learning_rate
    data = task.data_module(config, splits)
    data.batch_size = settings.batch_size
    for note in data.notes:
        say(note)
    module.total_steps = math.ceil(data.train_batches() / settings.accumulate) * config.training.epochs
    device = choose_device(config.training.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    _prepare_network(module, config, device)

    store = CheckpointStore(run.checkpoints)
    for path in store.broken():
        warn(f"{path} is not whole and is left aside")
    log = TrainingLog(config.training.log_every.total_seconds(), log_metrics)
    with StopSignals() as signals:
        writer, callbacks = _callbacks(config, splits, run, store, log, module.monitor, signals)
        trainer = _trainer(config, settings, device, callbacks, store, run.path)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(store))
        except SystemExit:  # what Lightning from 2.6 on makes of any KeyboardInterrupt
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise Interrupted
    best = store.best()
    if best is None:
        raise TrainingError(f"no validation has finished, so there are no weights to keep. Checkpoints: {store.folder}")
    module.network.load_state_dict(best)
    bundle = Bundle.create(run.bundle, config, splits.labels, module.network)
    return FitResult(
        bundle=bundle,
        monitor=module.monitor,
        best_score=writer.best_score,
        best_epoch=writer.best_epoch + 1,
        history=log.history,
        images_per_second=log.images / max(1e-9, log.seconds),
        data_wait=log.waited / max(1e-9, log.seconds),
    )


def fit_within_memory(
    config: Config,
    task: Task,
    splits: Splits,
    run: RunDir,
    settings: FitSettings,
    log_metrics: LogMetrics,
    remember: Any,
    module: TaskModule | None = None,
) -> FitResult:
    """`fit`, with half the batch and twice the accumulation after running out of memory, at most three times.

    The product of both stays, so the result stays comparable. `remember` is called with the settings that are tried.
    """
    for _ in range(_MOST_HALVINGS):
        try:
            return fit(config, task, splits, run, settings, log_metrics, module)
        except torch.OutOfMemoryError as error:
            half = settings.batch_size // 2
            if half < 1:
                raise TrainingError(f"out of memory with one image a batch: {_first_line(error)}") from error
            if CheckpointStore(run.checkpoints).last() is not None:
                raise TrainingError(
                    f"out of memory after training had begun: {_first_line(error)}. Free memory and --resume, or start "
                    f"a new run with training.batch_size={half} training.accumulate={settings.accumulate * 2}."
                ) from error
            warn(
                f"out of memory with batches of {settings.batch_size}; starting again with batches of {half}, "
                f"gradients of {settings.accumulate * 2} added up"
            )
            settings = FitSettings(half, settings.accumulate * 2, settings.learning_rate)
        # outside the handler: the error's traceback holds on to the tensors of the failed step
        module = None
        remember(settings)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    try:
        return fit(config, task, splits, run, settings, log_metrics)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory with batches of {settings.batch_size}, after {_MOST_HALVINGS} halvings: "
            f"{_first_line(error)}. Use a smaller data.image_size or model."
        ) from error


def find_learning_rate(config: Config, task: Task, splits: Splits, settings: FitSettings, folder: Path) -> float:
    """Learning-rate range test (Smith, 2015, arXiv:1506.01186) on up to 100 batches of a throw-away copy."""
    from lightning.pytorch.tuner.tuning import Tuner

    quiet_lightning()
    seed_everything(config.training.seed)
    module = task.module(config, splits.labels)
    data = task.data_module(config, splits)
    data.batch_size = settings.batch_size
    device = choose_device(config.training.device)
    _prepare_network(module, config, device)
    trainer = Trainer(
        **_device_options(config, device),
        max_epochs=100,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    try:
        finder = Tuner(trainer).lr_find(
            module, datamodule=data, min_lr=1e-6, max_lr=1.0, num_training=100, attr_name="learning_rate"
        )
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory in the learning-rate range test with batches of {settings.batch_size}: "
            f"{_first_line(error)}. Use a smaller training.batch_size, or set training.learning_rate."
        ) from error
    except SystemExit:  # Ctrl-C, see fit
        if not trainer.interrupted:
            raise
    if trainer.interrupted:
        raise Interrupted
    found = finder.suggestion() if finder else None
    if found is None:
        raise TrainingError("training.learning_rate=auto found no falling loss. Set a number, such as 0.001.")
    return float(found)


def _prepare_network(module: TaskModule, config: Config, device: torch.device) -> None:
    if config.training.channels_last:
        module.network.to(memory_format=torch.channels_last)
    if config.training.compile:
        module.network.compile()


def _callbacks(
    config: Config,
    splits: Splits,
    run: RunDir,
    store: CheckpointStore,
    log: TrainingLog,
    monitor: str,
    signals: StopSignals,
) -> tuple[CheckpointWriter, list[Callback]]:
    """In the order in which they act after a step; the checkpoint comes last."""
    training = config.training
    total = sum(len(split) for split in (splits.train, splits.val)) + len(splits.bad)
    ema = Ema(training.ema) if training.ema else None
    guard = NanGuard(run.path / "nan_batch")
    writer = CheckpointWriter(store, training.checkpoint_every.total_seconds(), guard, ema, signals.event)
    callbacks: list[Callback] = [
        *([ema] if ema else []),
        guard,
        BadFileCounter(splits.bad, config.data.max_bad_fraction, total, run.bad_files),
        log,
        RandomState(),
    ]
    if training.early_stopping:
        # it counts validations
        patience = math.ceil(training.early_stopping / training.validate_every)
        callbacks.append(EarlyStopping(monitor, patience=patience, mode="max"))
    return writer, [*callbacks, writer]


def _device_options(config: Config, device: torch.device) -> dict[str, Any]:
    precision, _ = choose_precision(config.training.precision, device)
    return {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "precision": precision,
        "gradient_clip_val": config.training.gradient_clip or None,
    }


def _trainer(
    config: Config,
    settings: FitSettings,
    device: torch.device,
    callbacks: list[Callback],
    store: CheckpointStore,
    folder: Path,
) -> Trainer:
    return Trainer(
        **_device_options(config, device),
        max_epochs=config.training.epochs,
        max_time=config.training.max_time,
        accumulate_grad_batches=settings.accumulate,
        check_val_every_n_epoch=config.training.validate_every,
        callbacks=callbacks,
        plugins=[VerifiedCheckpointIO(store)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _checkpoint(store: CheckpointStore) -> str | None:
    path = store.last()
    if path is None:
        return None
    say(f"going on from {path}")
    return str(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
