"""How good found objects are: detection, instance segmentation and keypoints, with 95 % bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from cvpipe.config import Config
from cvpipe.data.splits import Split
from cvpipe.data.targets import Objects
from cvpipe.errors import ImageError
from cvpipe.metrics import pictures, plots
from cvpipe.metrics.bootstrap import failure_table, intervals, units_of
from cvpipe.metrics.coco import Kind
from cvpipe.metrics.errors import KINDS, MEANINGS, Errors, missed_at, split_errors
from cvpipe.metrics.matching import Matches, class_precision, match, precision_statistics
from cvpipe.metrics.operating import Operating, confusion, operating_point, sweep
from cvpipe.metrics.overlaps import Bools, Ints, Overlaps, overlaps
from cvpipe.metrics.points import point_distances, point_rows, point_statistics, within
from cvpipe.predictions import DetectionPrediction, KeypointPrediction
from cvpipe.types import Assessment, Failure, Interval, Labels, Prediction

Objective = Literal["boxes", "masks", "points"]

_BOX_NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "ar")
_HEADLINE = {
    "boxes": ("map_50", "map", "map_75", "ar_100"),
    "masks": ("mask_map_50", "mask_map", "map_50", "map"),
    "points": ("pck", "oks_map", "oks_map_50", "pck_05"),
}
_TITLES = {"boxes": "", "masks": "mask ", "points": "OKS "}
_BUDGET = 600_000_000  # numbers that the resamples of average precision may go through: some ten seconds
_LEAST_RESAMPLES = 100
_NO_THRESHOLD = 0.5  # where no detection is right, no score is better than another
_CAPTIONS = {
    "missed": "missed",
    "classification": "wrong class",
    "localisation": "badly placed",
    "both": "wrong class and place",
    "duplicate": "double",
    "background": "not there",
}


def assess_objects(
    predictions: Sequence[Prediction | Failure],
    split: Split,
    config: Config,
    kind: Objective,
    labels: Labels,
    sigmas: Sequence[float] | None = None,
) -> Assessment:
    """Metrics, tables, plots and the images with the most mistakes.

    - boxes: `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `ar_100` as COCO defines them.
    - masks: the same of the boxes, and `mask_map`, `mask_map_50`, `mask_map_75`.
    - points: `oks_map`, `oks_map_50` (COCO's, by object keypoint similarity), `pck` and `pck_05` (see
      `cvpipe.metrics.points`).

    A metric that the data leave undefined is absent. Tables, plots and pictures go by boxes, masks or points as `kind`
    says, at overlap 0.5.

    Args:
        predictions: one for each image of the split, with all detections down to a score of about 0. Failures count
            in no metric and stand in a table of their own.
        split: targets are `cvpipe.data.targets.Objects`.
        sigmas: of the points' similarity, see `cvpipe.metrics.coco.oks_sigmas`.

    Raises:
        DataError: masks or points are missing in the targets, or don't fit the images.
    """
    if len(predictions) != len(split):
        raise ValueError(f"{len(predictions)} predictions for {len(split)} images")
    good = [i for i, answer in enumerate(predictions) if not isinstance(answer, Failure)]
    failures = failure_table(predictions, split)
    if not good:
        return Assessment({}, failures, {}, [], ())
    case = _Case(
        answers=[cast(DetectionPrediction, predictions[i]) for i in good],
        targets=[split.targets[i] for i in good],
        paths=[split.paths[i] for i in good],
        units=units_of(split, good),
        config=config,
        labels=labels,
    )
    compared: dict[str, Kind] = {"boxes": "bbox", "masks": "segm", "points": "keypoints"}
    found = case.overlaps(compared[kind], sigmas)
    matches = {"all": match(found)}
    if kind == "boxes":
        matches |= _by_size(found)
        case.measure(found, matches, _BOX_NAMES, "")
    elif kind == "masks":
        case.measure(found, matches, ("map", "map_50", "map_75"), "mask_")
        boxes = case.overlaps("bbox")
        case.measure(boxes, {"all": match(boxes)} | _by_size(boxes), _BOX_NAMES, "")
    else:
        case.measure(found, matches, ("map", "map_50"), "oks_")
    tables, figures, gallery = _details(case, found, matches["all"], _TITLES[kind])
    if kind == "points":
        extra_tables, extra_figures = _points(case)
        tables, figures = tables | extra_tables, figures | extra_figures
    if case.fewer:
        tables["Fewer resamples"] = case.fewer
    headline = tuple(name for name in _HEADLINE[kind] if name in case.metrics)
    return Assessment(case.metrics, failures | tables, figures, gallery, headline)


class _Case:
    """The images with an answer, and the metrics found so far."""

    def __init__(
        self,
        answers: list[DetectionPrediction],
        targets: list[Objects],
        paths: list[str],
        units: Ints,
        config: Config,
        labels: Labels,
    ) -> None:
        self.answers, self.targets, self.paths, self.units = answers, targets, paths, units
        self.labels, self.classes = labels, answers[0].classes
        self.resamples, self.seed = config.evaluation.bootstrap, config.training.seed
        self.shown = config.evaluation.gallery
        self.metrics: dict[str, Interval] = {}
        self.fewer: list[dict[str, Any]] = []

    def overlaps(self, kind: Kind, sigmas: Sequence[float] | None = None) -> Overlaps:
        return overlaps(self.answers, self.targets, kind, len(self.classes), sigmas, self.paths)

    def measure(self, found: Overlaps, matches: dict[str, Matches], names: Sequence[str], prefix: str) -> None:
        statistics, cost = precision_statistics(found, matches, names)
        affordable = max(_LEAST_RESAMPLES, _BUDGET // max(1, cost))
        resamples = min(self.resamples, affordable)
        values = intervals(statistics, self.units, resamples, self.seed)
        named = {f"{prefix}{'ar_100' if name == 'ar' else name}": value for name, value in values.items()}
        self.metrics |= named
        if resamples < self.resamples:
            self.fewer.append({"metrics": ", ".join(named), "resamples": resamples, "configured": self.resamples})


def _by_size(found: Overlaps) -> dict[str, Matches]:
    return {size: match(found, size) for size in ("small", "medium", "large")}


def _points(case: _Case) -> tuple[dict[str, Any], dict[str, str]]:
    answers = cast(list[KeypointPrediction], case.answers)
    found = point_distances(answers, case.targets, len(case.classes))
    case.metrics |= intervals(point_statistics(found), case.units, case.resamples, case.seed)
    count = found.distance.shape[1]
    names = case.labels.keypoints or [str(i + 1) for i in range(count)]
    shares = np.linspace(0.0, 0.2, 101)
    drawn = plots.lines(
        [],
        "distance, share of the box's longer side",
        "share of annotated points",
        ("all points", shares, within(found, shares)),
        xlim=(0, 0.2),
    )
    return {"Points": point_rows(found, names)}, {"Points within a distance": drawn}


def _details(
    case: _Case, found: Overlaps, outcome: Matches, title: str
) -> tuple[dict[str, Any], dict[str, str], list[tuple[Any, str]]]:
    """(tables, figures, gallery) at overlap 0.5."""
    errors = split_errors(found, outcome)
    best = operating_point(found, outcome)
    threshold = _NO_THRESHOLD if best is None else best.threshold
    missed = missed_at(found, outcome, errors, threshold)
    tables: dict[str, Any] = {
        "Classes": _class_rows(case, found, outcome, best, title),
        "Errors": _error_rows(found, errors, threshold, missed),
    }
    figures = {
        "Precision and recall": _curves(found, outcome, case.classes),
        "Confusion matrix": plots.confusion_matrix(
            confusion(found, outcome, threshold), [*case.classes, "(nothing)"], f"score from {threshold:.2f}"
        ),
    }
    if best is not None:
        figures["Choice of the threshold"] = _choice(found, outcome)
    if any(errors.lost.values()):
        figures["Errors"] = plots.bars(list(errors.lost), list(errors.lost.values()), f"{title}AP50 lost")
    return tables, figures, _gallery(case, found, outcome, errors, threshold, missed)


def _class_rows(
    case: _Case, found: Overlaps, outcome: Matches, best: Operating | None, title: str
) -> list[dict[str, Any]]:
    precision, precision_50 = class_precision(found, outcome)
    defined = np.isfinite(precision)
    objects = np.bincount(found.gt_label[outcome.wanted], minlength=found.classes)
    means = [float(v[defined].mean()) if defined.any() else None for v in (precision, precision_50)]

    def row(name: str, count: int, values: Sequence[float | None], point: Operating | None) -> dict[str, Any]:
        return {
            "class": name,
            "objects": count,
            f"{title}AP": values[0],
            f"{title}AP50": values[1],
            "best threshold": point and point.threshold,
            "precision": point and point.precision,
            "recall": point and point.recall,
        }

    rows = [row("(all)", int(objects.sum()), means, best)]
    for c, name in enumerate(case.classes):
        values = [float(v[c]) if defined[c] else None for v in (precision, precision_50)]
        rows.append(row(name, int(objects[c]), values, operating_point(found, outcome, c)))
    return rows


def _error_rows(found: Overlaps, errors: Errors, threshold: float, missed: Bools) -> list[dict[str, Any]]:
    kept = found.dt_score >= threshold
    rows = []
    for number, name in enumerate(KINDS):
        these = errors.kind == number
        counts = (errors.missed.sum(), missed.sum()) if name == "missed" else (these.sum(), (these & kept).sum())
        rows.append(
            {
                "error": name,
                "meaning": MEANINGS[name],
                "AP50 lost": errors.lost.get(name),
                f"score from {threshold:.2f}": int(counts[1]),
                "any score": int(counts[0]),
            }
        )
    return rows


def _curves(found: Overlaps, outcome: Matches, classes: Sequence[str]) -> str:
    def curve(name: str, label: int | None) -> plots.Series | None:
        _, hits, ends, objects = sweep(found, outcome, label)
        if not len(ends) or not objects:
            return None
        recall, precision = plots.thin(hits / objects, hits / (ends + 1))
        return name, np.append(0.0, recall), np.append(precision[0], precision)

    series = (
        [curve(plots.short(name), c) for c, name in enumerate(classes)] if len(classes) <= plots.MOST_CURVES else []
    )
    return plots.lines([s for s in series if s is not None], "recall", "precision", curve("all classes", None))


def _choice(found: Overlaps, outcome: Matches) -> str:
    scores, hits, ends, objects = sweep(found, outcome, None)
    values = {
        "precision": hits / (ends + 1),
        "recall": hits / objects,
    }
    series = [(name, *plots.thin(scores[::-1], value[::-1])) for name, value in values.items()]
    f1 = plots.thin(scores[::-1], (2 * hits / (ends + 1 + objects))[::-1])
    return plots.lines(series, "threshold on the score", "all classes, overlap 0.5", ("F1", *f1))


def _gallery(
    case: _Case, found: Overlaps, outcome: Matches, errors: Errors, threshold: float, missed: Bools
) -> list[tuple[Any, str]]:
    """The images with the most mistakes, and among equals those where less is right."""
    kept = (found.dt_score >= threshold) & outcome.counted[:, 0]
    hit = kept & outcome.right[:, 0]
    right = np.bincount(found.dt_image[hit], minlength=found.images)
    wrong = np.bincount(found.dt_image[kept & ~hit], minlength=found.images)
    wrong = wrong + np.bincount(found.gt_image[outcome.wanted], minlength=found.images) - right
    # the number of mistakes times 1 - F1: neither full images nor those with a single object come first as such
    weight = wrong**2 / np.maximum(2 * right + wrong, 1)
    order = np.argsort(-weight, kind="stable")[: case.shown]
    shown = []
    for i in order[wrong[order] > 0].tolist():
        here = kept & (found.dt_image == i)
        counts = {name: int((errors.kind[here] == number).sum()) for number, name in enumerate(KINDS)}
        counts["missed"] = int((missed & (found.gt_image == i)).sum())
        parts = [f"{counts[name]} {words}" for name, words in _CAPTIONS.items() if counts[name]]
        shown.append(_shown(case, i, threshold, ", ".join(parts)))
    return shown


def _shown(case: _Case, i: int, threshold: float, caption: str) -> tuple[Any, str]:
    try:
        picture = pictures.beside(case.paths[i], case.targets[i], case.answers[i], threshold, case.labels)
    except ImageError:
        # the report says below the path why it can't be shown
        return case.paths[i], caption
    return picture, f"{'/'.join(case.paths[i].replace(chr(92), '/').split('/')[-2:])}: {caption}"
