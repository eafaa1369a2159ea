"""How good predicted class maps are: metrics, tables, plots, the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from cvpipe.config import Config
from cvpipe.data.splits import Split
from cvpipe.data.targets import ClassMap
from cvpipe.draw import open_image
from cvpipe.errors import DataError, ImageError
from cvpipe.metrics import plots
from cvpipe.metrics.bootstrap import failure_table, intervals, units_of
from cvpipe.metrics.segmentation import (
    ClassIndices,
    Counter,
    Counts,
    Ints,
    class_rows,
    confused_rows,
    image_ious,
    statistics_of,
)
from cvpipe.predictions import SegmentationPrediction
from cvpipe.tasks.semantic_segmentation.pictures import colours, compared
from cvpipe.types import Assessment, Failure, Labels, Prediction

_HEADLINE = ("miou", "dice", "boundary_f1", "pixel_accuracy")


def assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    """miou, dice, boundary_f1 and pixel_accuracy with intervals (see `metrics.segmentation.statistics_of`).

    A metric that the data leave undefined, such as all of them where each pixel is ignored, is absent. Class maps are
    read one at a time.

    Args:
        predictions: one for each image of the split. Failures count in no metric and stand in a table of their own.
        split: targets are `ClassMap`s.

    Raises:
        DataError: a class map can't be read, or is not of its image's size.
    """
    if len(predictions) != len(split):
        raise ValueError(f"{len(predictions)} predictions for {len(split)} images")
    good = [i for i, answer in enumerate(predictions) if not isinstance(answer, Failure)]
    failures = failure_table(predictions, split)
    if not good:
        return Assessment({}, failures, {}, [], ())
    counter = Counter(len(labels.classes))
    for i in good:
        found = cast(SegmentationPrediction, predictions[i]).mask
        counter.add(read_truth(split.targets[i], split.paths[i], found.shape), found)
    counts = counter.counts()
    metrics = intervals(statistics_of(counts), units_of(split, good), config.evaluation.bootstrap, config.training.seed)
    rows = class_rows(counts, labels.classes)
    tables: dict[str, list[dict[str, Any]]] = {"Classes": rows}
    if confused := confused_rows(counts.confusion, labels.classes):
        tables["Most confused"] = confused
    figures = {
        "Confusion matrix (% of the true class)": plots.confusion_matrix(_percent(counts.confusion), labels.classes),
        "Colours of the worst images (left: true, right: found)": colours(labels.classes),
    }
    gallery = _worst(counts, good, predictions, split, config.evaluation.gallery, labels)
    if not gallery:
        figures.popitem()
    return Assessment(
        metrics, failures | tables, figures, gallery, tuple(name for name in _HEADLINE if name in metrics)
    )


def read_truth(target: ClassMap, path: str, size: tuple[int, ...]) -> ClassIndices:
    """(height, width) uint8, positions in the classes or IGNORE, of that size. Raises DataError."""
    try:
        truth = target.load()
    except ImageError as error:
        raise DataError(f"the class map of {path} can't be read: {error}. Repair it, or leave the image out.") from None
    if truth.shape != size:
        raise DataError(
            f"{target.path}: the class map has {truth.shape[1]}x{truth.shape[0]} pixels, and its image {path} has "
            f"{size[1]}x{size[0]}. They must agree."
        )
    return truth


def _percent(confusion: Ints) -> Ints:
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    percent: Ints = np.rint(100 * confusion / totals).astype(np.int64)
    return percent


def _worst(
    counts: Counts,
    good: Sequence[int],
    predictions: Sequence[Prediction | Failure],
    split: Split,
    shown: int,
    labels: Labels,
) -> list[tuple[Any, str]]:
    """The images with the lowest mean IoU of their own classes, lowest first; those without a mistake are left out."""
    ious = image_ious(counts)
    gallery: list[tuple[Any, str]] = []
    for row in np.argsort(ious, kind="stable").tolist():  # NaN comes last
        wrong = counts.truth[row] - counts.hits[row]
        if len(gallery) == shown or not np.isfinite(ious[row]):
            break
        if not wrong.any():
            continue
        i = good[row]
        found = cast(SegmentationPrediction, predictions[i]).mask
        picture = compared(open_image(split.paths[i]), read_truth(split.targets[i], split.paths[i], found.shape), found)
        worst = int(wrong.argmax())
        share = counts.hits[row].sum() / counts.truth[row].sum()
        caption = (
            f"{Path(split.paths[i]).name}: mean IoU {ious[row]:.2f}, {share:.0%} of the pixels right; most missed: "
            f"{labels.classes[worst]} ({wrong[worst] / counts.truth[row].sum():.0%} of the pixels)"
        )
        gallery.append((picture, caption))
    return gallery
