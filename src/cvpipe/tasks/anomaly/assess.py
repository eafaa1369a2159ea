"""How good anomaly scores are: metrics, a table of the kinds of defects, plots, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cvpipe.config import Config
from cvpipe.data.formats.mvtec import read_mask
from cvpipe.data.splits import Split
from cvpipe.data.targets import Inspection
from cvpipe.draw import open_image
from cvpipe.errors import DataError, ImageError
from cvpipe.metrics import plots
from cvpipe.metrics.anomaly import (
    Bools,
    Floats,
    PixelCounter,
    PixelCounts,
    area_under_roc,
    image_statistics,
    levels_of,
    pixel_statistics,
)
from cvpipe.metrics.bootstrap import failure_table, intervals, units_of
from cvpipe.predictions import AnomalyPrediction
from cvpipe.tasks.anomaly.pictures import compared
from cvpipe.types import Assessment, Failure, Labels, Prediction

_HEADLINE = ("image_auroc", "pixel_auroc", "pro", "f1", "false_alarm_rate")
_BINS = 30


def assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    """Metrics with intervals (see `metrics.anomaly`): of images, and of pixels where a defect's place is known.

    A metric that the data leave undefined, such as image_auroc where nothing is defective, is absent.

    Args:
        predictions: one for each image of the split. Failures count in no metric and stand in a table of their own.
        split: targets are `Inspection`s.

    Raises:
        DataError: a mask can't be read, or is not of its image's size.
    """
    if len(predictions) != len(split):
        raise ValueError(f"{len(predictions)} predictions for {len(split)} images")
    rows = [i for i, answer in enumerate(predictions) if not isinstance(answer, Failure)]
    failures = failure_table(predictions, split)
    if not rows:
        return Assessment({}, failures, {}, [], ())
    found = [cast(AnomalyPrediction, predictions[i]) for i in rows]
    targets: list[Inspection] = [split.targets[i] for i in rows]
    paths = [split.paths[i] for i in rows]
    scores = np.array([answer.score for answer in found])
    truth = np.array([not target.is_good for target in targets])
    threshold = found[0].threshold
    levels = levels_of([answer.heat for answer in found], threshold)
    pixels = _pixels(found, targets, paths, levels) if any(target.mask for target in targets) else None
    of_images = image_statistics(scores, truth, threshold)
    of_pixels = pixel_statistics(pixels, int(np.searchsorted(levels, threshold))) if pixels is not None else None

    def statistics(weights: Floats) -> dict[str, Floats]:
        return of_images(weights) | (of_pixels(weights) if of_pixels else {})

    metrics = intervals(statistics, units_of(split, rows), config.evaluation.bootstrap, config.training.seed)
    tables = failures | {"Kinds of defects": _kinds(scores, targets, threshold, pixels)}
    figures = {"Scores": _histogram(scores, truth, threshold)}
    if truth.any() and not truth.all():
        figures["ROC of the images"] = _roc(scores, truth)
    gallery = _worst(found, targets, paths, config.evaluation.gallery)
    return Assessment(metrics, tables, figures, gallery, tuple(name for name in _HEADLINE if name in metrics))


def at_size(heat: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The heat in the image's own (height, width), bilinear."""
    if heat.shape == size:
        return heat
    values = torch.from_numpy(heat)[None, None]
    resized: npt.NDArray[np.float32] = F.interpolate(values, size=size, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    return resized


def _pixels(
    found: Sequence[AnomalyPrediction], targets: Sequence[Inspection], paths: Sequence[str], levels: Floats
) -> PixelCounts:
    counter = PixelCounter(levels)
    for answer, target, path in zip(found, targets, paths, strict=True):
        if target.mask is None and not target.is_good:
            counter.skip()
            continue
        mask = np.zeros(answer.size, bool) if target.mask is None else _read(target.mask, path, answer.size)
        counter.add(at_size(answer.heat, answer.size), mask)
    return counter.counts()


def _read(mask: str, path: str, size: tuple[int, int]) -> Bools:
    try:
        pixels = read_mask(mask)
    except ImageError as error:
        raise DataError(f"the mask of {path} can't be read: {error}. Repair it, or remove it.") from None
    if pixels.shape != size:
        raise DataError(
            f"{mask}: the mask has {pixels.shape[1]}x{pixels.shape[0]} pixels, and its image {path} has "
            f"{size[1]}x{size[0]}. They must agree."
        )
    return pixels


def _kinds(
    scores: Floats, targets: Sequence[Inspection], threshold: float, pixels: PixelCounts | None
) -> list[dict[str, Any]]:
    """A row for each kind of defect, compared with all good images; good ones first."""
    labels = np.array([target.label for target in targets])
    good = np.array([target.is_good for target in targets])
    kinds = [*(["good"] if good.any() else []), *sorted(set(labels[~good].tolist()))]
    rows = []
    for kind in kinds:
        own = good if kind == "good" else labels == kind
        row: dict[str, Any] = {
            "kind": kind,
            "images": int(own.sum()),
            "counted as anomalous": f"{(scores[own] >= threshold).mean():.1%}",
            "median score": f"{np.median(scores[own]):.3f}",
        }
        both = own | good
        values = {"image AUROC": np.nan, "pixel AUROC": np.nan, "PRO": np.nan}
        if kind != "good":
            values["image AUROC"] = area_under_roc(scores[both], ~good[both])
            if pixels is not None and pixels.region_count[own].any():
                part = pixel_statistics(pixels.select(both))(np.ones((1, int(both.sum()))))
                values["pixel AUROC"], values["PRO"] = float(part["pixel_auroc"][0]), float(part["pro"][0])
        rows.append(row | {name: f"{value:.4f}" if np.isfinite(value) else "" for name, value in values.items()})
    return rows


def _histogram(scores: Floats, truth: Bools, threshold: float) -> str:
    edges = np.linspace(0, max(float(scores.max()), threshold) * 1.02 + 1e-12, _BINS + 1)
    series: list[plots.Series] = []
    most = 1
    for name, own in (("good", ~truth), ("anomalous", truth)):
        if own.any():
            counts = np.histogram(scores[own], edges)[0]
            most = max(most, int(counts.max()))
            series.append((name, np.repeat(edges, 2)[1:-1], np.repeat(counts, 2)))
    line = ("threshold", np.array([threshold, threshold]), np.array([0, most]))
    return plots.lines(series, "score", "images", line, xlim=(0, float(edges[-1])), ylim=(0, most * 1.05))


def _roc(scores: Floats, truth: Bools) -> str:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, alarms = np.cumsum(truth[order])[ends], np.cumsum(~truth[order])[ends]
    x, y = np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])
    return plots.lines([], "false alarms, share of the good images", "defects found", ("all images", *plots.thin(x, y)))


def _worst(
    found: Sequence[AnomalyPrediction], targets: Sequence[Inspection], paths: Sequence[str], shown: int
) -> list[tuple[Any, str]]:
    """False alarms and misses, the worst of each kind first, in turns."""
    ratio = [answer.score / max(answer.threshold, 1e-12) for answer in found]
    wrong = [i for i, answer in enumerate(found) if answer.is_anomalous == targets[i].is_good]
    alarms = sorted((i for i in wrong if targets[i].is_good), key=lambda i: -ratio[i])
    misses = sorted((i for i in wrong if not targets[i].is_good), key=lambda i: ratio[i])
    turns = sorted([*enumerate(alarms), *enumerate(misses)])
    gallery = []
    for _, i in turns[:shown]:
        kind = "false alarm" if targets[i].is_good else f"missed: {targets[i]}"
        picture = compared(open_image(paths[i]), targets[i], found[i])
        gallery.append((picture, f"{Path(paths[i]).name}: {kind}, score {ratio[i]:.2f} of the threshold"))
    return gallery
