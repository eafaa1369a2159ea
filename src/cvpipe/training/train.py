"""`cvpipe train` and `python -m src.training.train`: from a config to a registered model."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.config import Config, DataSource
from cvpipe.config_file import as_config
from cvpipe.data.splits import Split, Splits
from cvpipe.task import Task, find_task
from cvpipe.training.run_dir import RunDir, RunState, open_run
from cvpipe.types import Interval
from cvpipe.utils.console import duration, facts, say

if TYPE_CHECKING:
    from cvpipe.evaluation.evaluate import Evaluation
    from cvpipe.tasks.base import TaskModule
    from cvpipe.tracking import LoggedModel, Tracker
    from cvpipe.training.fit import FitResult, FitSettings


@dataclass(frozen=True)
class TrainResult:
    """Where everything is after training.

    Attributes:
        run_id: of MLflow.
        model_uri: `models:/NAME/VERSION` where the model was registered, else the logged model.
        bundle: directory of the model.
        metrics: `split/metric` -> value, such as `test/accuracy`.
        intervals: the same with 95 % intervals.
        report: HTML report of the evaluation.
        run_dir: directory of the run.
    """

    run_id: str
    model_uri: str
    bundle: Path
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    report: Path
    run_dir: Path

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "model_uri": self.model_uri,
            "bundle": str(self.bundle),
            "metrics": self.metrics,
            "intervals": {name: [i.value, i.low, i.high] for name, i in self.intervals.items()},
            "report": str(self.report),
            "run_dir": str(self.run_dir),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainResult:
        return cls(
            run_id=values["run_id"],
            model_uri=values["model_uri"],
            bundle=Path(values["bundle"]),
            metrics=dict(values["metrics"]),
            intervals={name: Interval(*i) for name, i in values["intervals"].items()},
            report=Path(values["report"]),
            run_dir=Path(values["run_dir"]),
        )

    def _repr_html_(self) -> str:
        from cvpipe.utils.notebook import table

        rows = [{"metric": name, "value [95 %]": str(value)} for name, value in self.intervals.items()]
        places: list[dict[str, Any]] = [
            {"": "model", " ": self.model_uri},
            {"": "report", " ": self.report},
            {"": "run", " ": self.run_id},
        ]
        return table(rows) + table(places)


def train(
    config: Config | str | Path | Mapping[str, Any], overrides: Iterable[str] = (), resume: bool = False
) -> TrainResult:
    """Checks the data, trains, evaluates, logs and registers.

    Args:
        config: a Config, a YAML file, or nested values.
        overrides: `section.key=value` texts.
        resume: go on with an interrupted run (the newest of this config, or the one in `training.output_dir`).

    Raises:
        InputError: config, data, weights or MLflow server can't work as they are; nothing was trained.
        TrainingError: training stopped; the run directory holds the last whole checkpoint.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    config = as_config(config, overrides)
    task = find_task(config.task)
    run, state = open_run(config, resume)
    if state is not None and state.status == "finished" and state.result is not None:
        say(f"{run.path} is finished already.")
        return TrainResult.from_dict(state.result)
    try:
        return _train(config, task, run, state)
    except BaseException:
        if run.state() is None:  # nothing was started: leave no directory that looks like a run
            _remove_empty(run)
        raise


def _train(config: Config, task: Task, run: RunDir, state: RunState | None) -> TrainResult:
    from cvpipe.models.catalog import check_license
    from cvpipe.tracking import check_reachable, resolve_uris
    from cvpipe.utils.device import choose_device

    for uri in set(resolve_uris(config.tracking)):
        check_reachable(uri)
    choose_device(config.training.device)
    check_license(config)
    splits = _load_data(config, task, run)

    from cvpipe.tracking import Tracker
    from cvpipe.training.fit import seed_everything

    seed_everything(config.training.seed)
    module = task.module(config, splits.labels)
    started = time.monotonic()
    tracker = Tracker(config.tracking, run.path.name, state.run_id if state else None, {"cvpipe.task": config.task})
    state = replace(state, status="running") if state else RunState("running", run_id=tracker.run_id)
    run.write_config(config)
    run.write_state(state)
    status = "FAILED"
    try:
        settings = _settings(config, task, splits, run, state)
        _announce(config, splits, run, tracker, module, settings)
        _log_inputs(config, splits, tracker)
        if config.tracking.system_metrics:
            tracker.start_system_metrics()
        from cvpipe.training.fit import fit_within_memory

        def remember(tried: FitSettings) -> None:
            changed = RunState("running", tracker.run_id, tried.batch_size, tried.accumulate, tried.learning_rate)
            run.write_state(changed)

        fitted = fit_within_memory(config, task, splits, run, settings, tracker.log_metrics, remember, module)
        tracker.log_metrics(
            {f"best/{fitted.monitor}": fitted.best_score, "best/epoch": fitted.best_epoch}, fitted.best_epoch
        )
        evaluation = _evaluate(config, fitted, splits, run)
        logged = _log_outputs(config, run, tracker, fitted, evaluation)
        result = TrainResult(
            run_id=tracker.run_id,
            model_uri=logged.uri,
            bundle=run.bundle,
            metrics={name: interval.value for name, interval in evaluation.metrics.items()},
            intervals=dict(evaluation.metrics),
            report=evaluation.report,
            run_dir=run.path,
        )
        tracker.flush()
        run.write_state(replace(run.state() or state, status="finished", result=result.to_dict()))
        status = "FINISHED"
        _summary(config, fitted, evaluation, logged, tracker, run, time.monotonic() - started)
        return result
    except KeyboardInterrupt:
        status = "KILLED"
        run.write_state(replace(run.state() or state, status="interrupted"))
        say(f"\nstopped; the state is in {run.checkpoints}")
        say(f"go on with: {_resume_command(config, run)}")
        raise
    except Exception:
        run.write_state(replace(run.state() or state, status="failed"))
        raise
    finally:
        tracker.finish(status)


def _load_data(config: Config, task: Task, run: RunDir) -> Splits:
    """Finds the images, checks what is known about them, and looks at every file once."""
    from cvpipe.data.prepared import read_splits
    from cvpipe.data.verify import check_annotations, drop_bad_files

    splits = read_splits(task, config)
    limit = getattr(config.data, "max_bad_annotations", 0.0)
    check_annotations(splits.problems, splits.annotations, limit, run.bad_annotations)
    return drop_bad_files(splits, config.data.max_bad_fraction, run.bad_files)


def _settings(config: Config, task: Task, splits: Splits, run: RunDir, state: RunState) -> FitSettings:
    from cvpipe.training.fit import FitSettings, find_learning_rate

    training = config.training
    settings = FitSettings(
        batch_size=state.batch_size or training.batch_size,
        accumulate=state.accumulate or training.accumulate,
        learning_rate=state.learning_rate
        or (training.learning_rate if isinstance(training.learning_rate, float) else 0.0),
    )
    if settings.learning_rate == 0.0:
        rate = find_learning_rate(config, task, splits, settings, run.path)
        say(f"learning rate {rate:.2e} (found by a range test)")
        settings = replace(settings, learning_rate=rate)
        run.write_state(replace(state, learning_rate=rate))
    return settings


def _announce(
    config: Config, splits: Splits, run: RunDir, tracker: Tracker, module: TaskModule, settings: FitSettings
) -> None:
    """The decisions, and why."""
    from cvpipe.data.workers import described
    from cvpipe.models.catalog import licenses_of
    from cvpipe.utils.device import choose_device, choose_precision

    device = choose_device(config.training.device)
    precision, reason = choose_precision(config.training.precision, device)
    counts = ", ".join(f"{len(split)} {split.name}" for split in splits.all())
    classes = splits.labels.classes
    shown = ", ".join(classes[:6]) + (f" … {len(classes) - 6} more" if len(classes) > 6 else "")
    why_device = "as configured" if config.training.device != "auto" else "the best one here"
    height, width = config.data.image_size
    parameters = sum(p.numel() for p in module.network.parameters())
    effective = f" x {settings.accumulate}" if settings.accumulate > 1 else ""
    say(f"cvpipe train: {config.task}")
    facts(
        {
            "data": f"{counts} images; {'; '.join(splits.notes)}",
            "classes": f"{len(classes)}: {shown}" + (" (multi-label)" if splits.labels.multi_label else ""),
            **({"bad files": f"{len(splits.bad)}, left out, listed in {run.bad_files}"} if splits.bad else {}),
            **({"bad annotations": _bad_annotations(splits, run)} if splits.problems else {}),
            "model": f"{config.model.name}, {parameters / 1e6:.1f} M parameters, {width}x{height} pixels; "
            + "; ".join(module.notes),
            "licences": str(licenses_of(config) or "not known"),
            "device": f"{device} ({why_device}), precision {precision} ({reason})",
            "loading": described(config.training.num_workers, len(splits.train) * config.training.epochs),
            "training": f"{config.training.epochs} epochs, batches of {settings.batch_size}{effective}, "
            f"{config.training.optimizer}, learning rate {settings.learning_rate:g}"
            if module.learns_by_gradient
            else f"one pass, batches of {settings.batch_size}, no gradients",
            "results": f"{run.path}/",
            "MLflow": f"{tracker.tracking_uri}, experiment {config.tracking.experiment}, run {tracker.run_id}",
        }
    )


def _bad_annotations(splits: Splits, run: RunDir) -> str:
    """`3 of 120 left out, 2 more noted, listed in …`"""
    dropped = sum(problem.dropped for problem in splits.problems)
    noted = len(splits.problems) - dropped
    parts = [
        *([f"{dropped} of {splits.annotations} left out"] if dropped else []),
        *([f"{noted} kept"] if noted else []),
    ]
    return f"{', '.join(parts)}, listed in {run.bad_annotations}"


def _log_inputs(config: Config, splits: Splits, tracker: Tracker) -> None:
    """Config, environment and data set."""
    from cvpipe.bundle import library_versions

    # what `cvpipe data check` looks at has no part in the training
    params = {key: value for key, value in config.flat().items() if not key.startswith("check.")}
    tracker.log_params(params | {"data.class_count": len(splits.labels.classes)})
    tracker.set_tags({f"version.{name}": version for name, version in library_versions().items()})
    for split in splits.all():
        digest = hashlib.sha256()
        for path, target in zip(split.paths, split.targets, strict=True):
            digest.update(f"{os.path.basename(path)}\t{_described(target)}\n".encode())
        profile = json.dumps(_profile(split, splits))
        schema = json.dumps({"classes": list(splits.labels.classes)[:200], "multi_label": splits.labels.multi_label})
        source = getattr(config.data, split.name, None)
        tracker.log_dataset(
            name=f"{Path(str(config.data.train).partition(', ')[0]).name}-{split.name}",
            source=json.dumps({"uri": str(source if isinstance(source, (str, DataSource)) else config.data.train)}),
            digest=digest.hexdigest()[:16],
            context={"train": "training", "val": "validation"}.get(split.name, "testing"),
            profile=profile,
            schema=schema,
        )


def _profile(split: Split, splits: Splits) -> dict[str, int]:
    """What a data set's entry in MLflow says about a split."""
    values = {"images": len(split), "classes": len(splits.labels.classes)}
    problems = sum(problem.split == split.name for problem in splits.problems)
    return values | ({"bad_annotations": problems} if problems else {})


def _described(target: object) -> object:
    """What the digest of a data set holds of a target: nothing that depends on where the data lies."""
    from cvpipe.data.targets import ClassMap

    return (os.path.basename(target.path), target.classes) if isinstance(target, ClassMap) else target


def _evaluate(config: Config, fitted: FitResult, splits: Splits, run: RunDir) -> Evaluation:
    from cvpipe.evaluation.evaluate import evaluate

    split, device = splits.test or splits.val, config.training.device
    return evaluate(fitted.bundle, split, split=split.name, output_dir=run.evaluation, device=device, log_to_run=False)


def _log_outputs(
    config: Config, run: RunDir, tracker: Tracker, fitted: FitResult, evaluation: Evaluation
) -> LoggedModel:
    from cvpipe.bundle import Bundle

    tracker.log_metrics({name: interval.value for name, interval in evaluation.metrics.items()}, 0)
    tracker.log_artifact(run.path / "config.yaml")
    tracker.log_artifact(evaluation.folder)
    for listed in (run.bad_files, run.bad_annotations):
        if listed.is_file():
            tracker.log_artifact(listed)
    # the evaluation wrote its metrics into the bundle: read it again, so that the logged model carries them
    name = config.tracking.registered_model_name
    return tracker.log_model(Bundle.load(run.bundle), name, config.tracking.alias if name else None)


def _summary(
    config: Config,
    fitted: FitResult,
    evaluation: Evaluation,
    logged: LoggedModel,
    tracker: Tracker,
    run: RunDir,
    seconds: float,
) -> None:
    alias = f"models:/{logged.name}@{config.tracking.alias}" if logged.name and config.tracking.alias else logged.uri
    say()
    facts(
        {
            "best": f"epoch {fitted.best_epoch}, {fitted.monitor} {fitted.best_score:.4f}",
            "speed": f"{fitted.images_per_second:.1f} images/s, waiting for data {fitted.data_wait:.0%}, "
            f"{duration(seconds)} in all",
            "model": f"{logged.uri} and {run.bundle}",
            "report": evaluation.report,
        }
    )
    say(f"next: cvpipe predict --model-uri {alias} --input-dir DIR --output-file predictions.json")


def _resume_command(config: Config, run: RunDir) -> str:
    return f"cvpipe train --config {run.path / 'config.yaml'} --resume training.output_dir={run.path}"


def _remove_empty(run: RunDir) -> None:
    """Removes a run directory that was made and not used; lists of bad files are kept, the error points at them."""
    if run.path.is_dir() and not any(run.path.iterdir()):
        run.path.rmdir()


def main(argv: Sequence[str] | None = None) -> int:
    from cvpipe.cli import run

    return run(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
