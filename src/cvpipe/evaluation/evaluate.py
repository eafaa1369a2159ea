"""Measures a model on labelled images: metrics with intervals, speed, and a report."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvpipe.bundle import Bundle
from cvpipe.config import DataSource
from cvpipe.data.prepared import read_split, read_splits
from cvpipe.data.splits import Split
from cvpipe.data.targets import Objects
from cvpipe.errors import CvpipeError, DataError, InputError, TrackingError
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.types import Assessment, Failure, Interval, Prediction
from cvpipe.utils import console
from cvpipe.utils.filesystem import atomic_open, write_json

SPLITS = ("train", "val", "test")
_REMOTE = ("models:/", "runs:/")
_TIMED = 20  # single images that the latency is taken from
_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a split.

    Attributes:
        metrics: `split/metric` -> value with its 95 % interval, the most important first.
        images: images of the split, those without a prediction included.
        failures: images without a prediction; they are in no metric.
        images_per_second: files to predictions, decoding included.
        latency_ms: p50 and p95 of predicting one file, milliseconds; empty where nothing could be predicted.
        report: the HTML report.
        folder: report.html, metrics.json and predictions.csv.
        headline: names in `metrics` to show first.
    """

    metrics: dict[str, Interval]
    images: int
    failures: int
    images_per_second: float
    latency_ms: dict[str, float]
    report: Path
    folder: Path
    headline: tuple[str, ...] = field(default=())

    def records(self) -> dict[str, dict[str, float | None]]:
        """`split/metric` -> {value, low, high}, as in metrics.json and in a bundle."""
        return {name: {"value": m.value, "low": m.low, "high": m.high} for name, m in self.metrics.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints: `metrics` are plain numbers, `intervals` their [low, high]."""
        return {
            "metrics": {name: metric.value for name, metric in self.metrics.items()},
            "intervals": {name: [m.low, m.high] for name, m in self.metrics.items() if m.low is not None},
            "images": self.images,
            "failures": self.failures,
            "images_per_second": self.images_per_second,
            "latency_ms": self.latency_ms,
            "report": str(self.report),
            "folder": str(self.folder),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The metrics as table rows."""
        return [
            {"metric": name, "value": m.value, "95 % interval": _interval_text(m)} for name, m in self.metrics.items()
        ]

    def __str__(self) -> str:
        shown = self.headline or tuple(self.metrics)
        lines = [f"{name} {self.metrics[name]}" for name in shown]
        failed = f", {self.failures} without a prediction" if self.failures else ""
        return "\n".join([*lines, f"{self.images} images{failed}; report: {self.report}"])

    def _repr_html_(self) -> str:
        from cvpipe.utils.notebook import table

        rows = [{**row, "value": f"{row['value']:.4f}"} for row in self.rows()]
        rows.append({"metric": "images", "value": self.images, "95 % interval": f"{self.failures} failed"})
        return table(rows)


def evaluate(
    model: str | Path | Bundle | Predictor,
    data: str | Path | DataSource | Split | None = None,
    *,
    split: str = "test",
    output_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    log_to_run: bool = True,
) -> Evaluation:
    """Applies a model to labelled images, prints the metrics, and writes report.html, metrics.json, predictions.csv.

    A local bundle remembers the metrics on its own test split (metrics.json in the bundle).

    Args:
        model: a bundle's directory, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, or a loaded
            Bundle or Predictor (which keeps its own device and batch size).
        data: a folder, a manifest, `demo:NAME`, a DataSource or a Split. Left out: what the model's config names.
        split: train, val or test. Without `data`, val stands in where the data set has no test split.
        output_dir: left out: `evaluation` in the folder of the run, else in the working directory.
        log_to_run: also log metrics and report to the MLflow run that made the model, where there is one.

    Raises:
        InputError: the model or the data can't be used.
        CvpipeError: no image gave a prediction; the files, with the reasons, are written before.
    """
    if split not in SPLITS:
        raise InputError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}.")
    predictor = _predictor(model, device, batch_size, tracking_uri, registry_uri)
    chosen, source = labelled_split(predictor.bundle, data, split)
    folder = Path(output_dir) if output_dir is not None else _default_folder(predictor.bundle, data)
    evaluation = evaluate_split(predictor, chosen, folder, source)
    show(evaluation)
    if not evaluation.metrics and evaluation.failures < evaluation.images:
        raise CvpipeError(f"{source}: nothing to compare the answers with: the images have no annotation that counts.")
    if not evaluation.metrics:
        raise CvpipeError(
            f"{source}: none of the {evaluation.images} images gave a prediction. The reasons are in "
            f"{folder / 'predictions.csv'}."
        )
    bundle, remote = predictor.bundle, predictor.bundle.uri.startswith(_REMOTE)
    own = (data is None and split == "test") or (isinstance(data, Split) and not bundle.metrics)
    if own and not remote:
        bundle.write_metrics(evaluation.records())
    if remote and log_to_run:
        _log(bundle.uri, evaluation, _folder_name(data), tracking_uri, registry_uri)
    return evaluation


def evaluate_split(predictor: Predictor, split: Split, folder: str | Path, source: str = "") -> Evaluation:
    """The measuring and writing alone, for a loaded model and split. Prints only progress, logs nothing to MLflow.

    Args:
        split: targets as indices of the model's classes; its name becomes the prefix of the metrics.
        folder: where the files go.
        source: where the images come from, for the report.
    """
    if not len(split):
        raise DataError(f"{source or split.name}: no images to evaluate on.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    answers, rate = _predict_all(predictor, split)
    good = [path for path, answer in zip(split.paths, answers, strict=True) if not isinstance(answer, Failure)]
    latency = _latency(predictor, good)
    assessment = predictor.task.assess(answers, split, predictor.bundle.config, predictor.bundle.labels)
    order = dict.fromkeys([*assessment.headline, *assessment.metrics])
    evaluation = Evaluation(
        metrics={f"{split.name}/{name}": assessment.metrics[name] for name in order},
        images=len(split),
        failures=len(split) - len(good),
        images_per_second=rate,
        latency_ms=latency,
        report=folder / "report.html",
        folder=folder,
        headline=tuple(f"{split.name}/{name}" for name in assessment.headline),
    )
    _write_predictions(folder / "predictions.csv", predictor, split, answers)
    facts = _facts(predictor, split, source)
    write_json(folder / "metrics.json", _metrics_file(evaluation, facts))
    _write_report(evaluation, assessment, predictor, split, facts)
    return evaluation


def labelled_split(bundle: Bundle, data: str | Path | DataSource | Split | None, name: str) -> tuple[Split, str]:
    """(the images to evaluate on, where they come from). Raises DataError."""
    if isinstance(data, Split):
        return data, f"{data.name} split"
    if data is not None:
        source = data if isinstance(data, DataSource) else str(data)
        return read_split(find_task(bundle.config.task), source, bundle.config, bundle.labels, name), str(data)
    try:
        splits = read_splits(find_task(bundle.config.task), bundle.config)
    except DataError as error:
        raise DataError(f"The data of the model's own config: {error} Or name other data to evaluate on.") from None
    if splits.labels != bundle.labels:
        raise DataError(
            f"{bundle.config.data.train}: its classes are no longer those of the model. Found "
            f"{', '.join(splits.labels.classes)}; the model knows {', '.join(bundle.labels.classes)}."
        )
    by_name = {found.name: found for found in splits.all()}
    if name not in by_name:
        console.say(f"{bundle.config.data.train} has no {name} split: evaluating on val, which chose the best epoch.")
    chosen = by_name.get(name, splits.val)
    return chosen, f"{bundle.config.data.train} ({chosen.name})"


def show(evaluation: Evaluation) -> None:
    """Prints the metrics, the failures, and where the report is."""
    console.say()
    console.table(evaluation.rows())
    console.say()
    facts: dict[str, object] = {"speed": f"{evaluation.images_per_second:.1f} images/s, decoding included"}
    if evaluation.latency_ms:
        facts["latency"] = _latency_text(evaluation.latency_ms)
    facts["report"] = evaluation.report
    console.facts(facts)
    if evaluation.failures:
        console.warn(
            f"{evaluation.failures} of {evaluation.images} images gave no prediction and are in no metric; the reasons "
            f"are in {evaluation.folder / 'predictions.csv'}"
        )


def _predictor(
    model: str | Path | Bundle | Predictor,
    device: str,
    batch_size: int | None,
    tracking_uri: str | None,
    registry_uri: str | None,
) -> Predictor:
    if isinstance(model, Predictor):
        return model
    bundle = model if isinstance(model, Bundle) else Bundle.load(model, tracking_uri, registry_uri)
    return Predictor(bundle, device=device, batch_size=batch_size)


def _default_folder(bundle: Bundle, data: str | Path | DataSource | Split | None) -> Path:
    """Next to a bundle that lies in its run's folder; other models get a folder of their own in ./evaluation."""
    if not bundle.uri.startswith(_REMOTE) and bundle.path.name == "bundle":
        return bundle.path.parent / _folder_name(data)
    return Path(_folder_name(data)) / _slug(bundle.uri if bundle.uri.startswith(_REMOTE) else bundle.path.name)


def _folder_name(data: str | Path | DataSource | Split | None) -> str:
    """Other data than the model's own get a folder of their own, so that neither report replaces the other."""
    if data is None:
        return "evaluation"
    if isinstance(data, DataSource):
        data = data.annotations or data.masks or data.images
    return f"evaluation-{_slug(data.name if isinstance(data, Split) else Path(str(data)).name)}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", re.sub(r"^\w+:/+", "", text)).strip("-.") or "model"


def _predict_all(predictor: Predictor, split: Split) -> tuple[list[Prediction | Failure], float]:
    """(answers in the order of the split, images a second)"""
    # the first batch pays for memory and kernels once; in a rate it would say more about the split's size
    params = predictor.task.evaluation_params
    predictor.predict(split.paths[: predictor.batch_size], **params)
    answers: list[Prediction | Failure] = []
    start = time.perf_counter()
    with console.Progress("evaluating", len(split)) as progress:
        for answer in predictor.stream(split.paths, **params):
            answers.append(answer)
            progress.advance()
    return answers, len(answers) / max(1e-9, time.perf_counter() - start)


def _latency(predictor: Predictor, paths: Sequence[str]) -> dict[str, float]:
    """{p50, p95} of one call with one file, milliseconds."""
    import numpy as np

    if not paths:
        return {}
    times = []
    for turn in range(_TIMED + 2):
        start = time.perf_counter()
        predictor.predict([paths[turn % len(paths)]])
        times.append((time.perf_counter() - start) * 1000)
    low, high = np.percentile(times[2:], [50, 95])  # the first two warm up
    return {"p50": float(low), "p95": float(high)}


def _target_text(target: Any, classes: Sequence[str]) -> str:
    if isinstance(target, tuple):
        return ";".join(classes[c] for c in target)
    if isinstance(target, int):
        return classes[target]
    return ";".join(classes[c] for c in target.labels) if isinstance(target, Objects) else str(target)


def _write_predictions(path: Path, predictor: Predictor, split: Split, answers: Sequence[Prediction | Failure]) -> None:
    """path, target, the scalar columns of the task's records, error. Several labels are joined by `;`."""
    import csv

    labels = predictor.bundle.labels
    # lists and pictures have no place in a table that people read
    schema = predictor.task.prediction.record_schema
    scalars = [name for name, kind in schema if not kind.startswith("list") and not name.endswith("_png")]
    # file names need not be UTF-8; surrogates carry their bytes through
    with atomic_open(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "target", *scalars, "error"])
        for name, target, answer in zip(split.paths, split.targets, answers, strict=True):
            record = answer.to_record()
            if labels.multi_label and "labels" in record:
                record["label"] = ";".join(record["labels"])
            cells = [record.get(column, "") for column in scalars]
            writer.writerow([name, _target_text(target, labels.classes), *cells, record.get("error", "")])


def _facts(predictor: Predictor, split: Split, source: str) -> dict[str, Any]:
    bundle = predictor.bundle
    return {
        "model": bundle.uri,
        "model_version": bundle.version,
        "network": bundle.config.model.name,
        "task": bundle.config.task,
        "data": source or split.name,
        "split": split.name,
        "device": str(predictor.device),
        "batch_size": predictor.batch_size,
    }


def _metrics_file(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metrics": evaluation.records(),
        "images": evaluation.images,
        "failures": evaluation.failures,
        "images_per_second": evaluation.images_per_second,
        "latency_ms": evaluation.latency_ms,
        **facts,
    }


def _write_report(
    evaluation: Evaluation, assessment: Assessment, predictor: Predictor, split: Split, facts: Mapping[str, Any]
) -> None:
    from cvpipe.report import Report

    bundle = predictor.bundle
    report = Report(f"Evaluation of {bundle.config.model.name}", f"{facts['data']}, {len(split)} images")
    if evaluation.failures:
        reasons = list(
            dict.fromkeys(row["reason"] for rows in assessment.tables.values() for row in rows if "reason" in row)
        )
        report.warning(
            f"{evaluation.failures} of {evaluation.images} images gave no prediction and are in no metric: "
            f"{'; '.join(reasons[:_SHOWN_FAILURES]) or 'see predictions.csv'}."
        )
    report.tiles(
        [
            (name, f"{assessment.metrics[name].value:.4f}", _interval_text(assessment.metrics[name]))
            for name in assessment.headline
        ]
    )
    report.table("Metrics", evaluation.rows())
    report.facts(
        {
            "model": f"{bundle.uri}{f' (version {bundle.version})' if bundle.version else ''}",
            "task": bundle.config.task,
            "classes": len(bundle.labels.classes),
            "data": facts["data"],
            "images": evaluation.images,
            "speed": f"{evaluation.images_per_second:.1f} images/s, files to predictions",
            "latency": _latency_text(evaluation.latency_ms) or None,
            "device": f"{predictor.device}, batches of {predictor.batch_size}",
            "made with": ", ".join(f"{k} {v}" for k, v in bundle.info.get("versions", {}).items()),
        },
        "Model and data",
    )
    for title, svg in assessment.figures.items():
        report.figure(title, svg)
    for title, rows in assessment.tables.items():
        report.table(title, rows)
    drawn = any(not isinstance(image, str) for image, _ in assessment.gallery)
    title = "Worst images: annotated, and found" if drawn else "Most confident mistakes"
    report.gallery(title, assessment.gallery, wide=drawn)
    resamples = bundle.config.evaluation.bootstrap
    if resamples:
        report.text(
            f"Intervals: 95 % percentile bootstrap, {resamples} resamples of the images (of whole groups where the "
            f"data name groups), seed {bundle.config.training.seed}; widened where needed to hold the value.",
            "How this was measured",
        )
    report.write(evaluation.report)


def _interval_text(metric: Interval) -> str:
    return "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"


def _latency_text(latency: Mapping[str, float]) -> str:
    return f"{latency['p50']:.1f} ms an image (median), {latency['p95']:.1f} ms (95th percentile)" if latency else ""


def _log(uri: str, evaluation: Evaluation, name: str, tracking_uri: str | None, registry_uri: str | None) -> None:
    """Into the run that made the model. The files are on disk by now: a server that refuses costs a warning."""
    from cvpipe.tracking import log_evaluation, run_of

    try:
        run_id = run_of(uri, tracking_uri, registry_uri)
        if run_id is None:
            return
        values = {metric: found.value for metric, found in evaluation.metrics.items()}
        files = [evaluation.report, evaluation.folder / "metrics.json"]
        log_evaluation(run_id, values, files, name, tracking_uri, registry_uri)
    except TrackingError as error:
        console.warn(f"the evaluation was not logged to MLflow: {error}")
