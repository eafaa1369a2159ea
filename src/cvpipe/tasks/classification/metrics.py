"""How good classifications are, with 95 % bootstrap intervals.

Every metric is a function of image weights: ones give its value, and the counts with which a bootstrap drew each
image give one resample. So a value and its interval can't come from different formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cvpipe.config import Config
from cvpipe.data.splits import Split
from cvpipe.metrics.bootstrap import Statistics, failure_table, intervals, units_of
from cvpipe.predictions import ClassificationPrediction
from cvpipe.types import Assessment, Failure, Prediction

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_RANK_BUDGET = 300_000_000  # images x classes x resamples that average precision and AUROC may cost: a few seconds
_RANK_LEAST = 100
_MOST_CONFUSED = 20
_SINGLE_HEADLINE = ("accuracy", "top5_accuracy", "macro_f1", "calibration_error")
_MULTI_HEADLINE = ("map", "auroc", "micro_f1", "macro_f1", "calibration_error")


def assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config) -> Assessment:
    """Metrics, tables, plots and the most confident mistakes.

    Single label: accuracy, top5_accuracy (more than five classes), macro_f1, calibration_error, log_loss.
    Multi-label: map, auroc, micro_f1, macro_f1, calibration_error. A metric that the data leave undefined is absent.

    Args:
        predictions: one for each image of the split. Failures count in no metric and stand in a table of their own.
        split: targets are class indices, or tuples of them (multi-label).
    """
    if len(predictions) != len(split):
        raise ValueError(f"{len(predictions)} predictions for {len(split)} images")
    good = [i for i, answer in enumerate(predictions) if not isinstance(answer, Failure)]
    failures = failure_table(predictions, split)
    if not good:
        return Assessment({}, failures, {}, [], ())
    answers = [cast(ClassificationPrediction, predictions[i]) for i in good]
    case = _Case(
        classes=answers[0].classes,
        scores=np.stack([answer.scores for answer in answers]),
        targets=[split.targets[i] for i in good],
        paths=[split.paths[i] for i in good],
        units=units_of(split, good),
        config=config,
    )
    multi_label = isinstance(case.targets[0], tuple)
    found = _assess_multi(case) if multi_label else _assess_single(case)
    return Assessment(found.metrics, failures | found.tables, found.figures, found.gallery, found.headline)


class _Case:
    """What both kinds of labels start from: scores (images, classes) and who belongs to which resampling unit."""

    def __init__(
        self,
        classes: tuple[str, ...],
        scores: npt.NDArray[np.float32],
        targets: list[Any],
        paths: list[str],
        units: Ints,
        config: Config,
    ) -> None:
        self.classes, self.scores, self.targets, self.paths = classes, scores, targets, paths
        self.units, self.resamples, self.seed = units, config.evaluation.bootstrap, config.training.seed
        self.shown, self.threshold = config.evaluation.gallery, config.inference.threshold


def _assess_single(case: _Case) -> Assessment:
    from cvpipe.metrics import plots

    classes, count = case.classes, len(case.classes)
    targets: Ints = np.asarray(case.targets, dtype=np.int64)
    predicted, confidence = case.scores.argmax(axis=1), case.scores.max(axis=1).astype(np.float64)
    correct = (predicted == targets).astype(np.float64)
    confusion = np.bincount(targets * count + predicted, minlength=count * count).reshape(count, count)
    bins = bins_of(confidence)
    metrics = intervals(single_label_statistics(case.scores, targets), case.units, case.resamples, case.seed)
    mistakes = sorted(np.flatnonzero(correct == 0).tolist(), key=lambda i: -confidence[i])[: case.shown]
    truth = targets[:, None] == np.arange(count)
    return Assessment(
        metrics=metrics,
        tables={"Classes": _class_rows(classes, confusion), "Most confused": _confused_rows(classes, confusion)},
        figures={
            "Confusion matrix": plots.confusion_matrix(confusion, classes),
            "Calibration": plots.reliability(*_per_bin(bins, confidence, correct), "confidence", "accuracy"),
            "Precision and recall": plots.precision_recall(case.scores, truth, classes),
        },
        gallery=[
            (case.paths[i], f"true {classes[targets[i]]}, predicted {classes[predicted[i]]} {confidence[i]:.2f}")
            for i in mistakes
        ],
        headline=tuple(name for name in _SINGLE_HEADLINE if name in metrics),
    )


def single_label_statistics(scores: npt.NDArray[np.float32], targets: Ints) -> Statistics:
    """accuracy, top5_accuracy, macro_f1, calibration_error and log_loss as functions of weights.

    - macro_f1: mean F1 over the classes that occur, in the targets or in the predictions.
    - calibration_error: expected calibration error of the best class, 15 equal bins (Guo et al. 2017,
      arXiv:1706.04599).
    - log_loss: mean of -ln p(true class), p at least the smallest step of a 32-bit float.
    """
    classes = scores.shape[1]
    predicted = scores.argmax(axis=1)
    correct = (predicted == targets).astype(np.float64)
    confidence = scores.max(axis=1).astype(np.float64)
    bins = bins_of(confidence)
    chosen = scores[np.arange(len(targets)), targets]
    surprise = -np.log(np.clip(chosen.astype(np.float64), np.finfo(np.float32).eps, 1.0))
    # of equal scores the earlier class comes first, as in the predictions
    ahead = (scores > chosen[:, None]) | ((scores == chosen[:, None]) & (np.arange(classes) < targets[:, None]))
    among_five = (ahead.sum(axis=1) < 5).astype(np.float64)

    def statistics(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        hits = _sums(weights * correct, targets, classes)
        mass = _sums(weights, targets, classes) + _sums(weights, predicted, classes)
        found = {"accuracy": weights @ correct / total}
        if classes > 5:
            found["top5_accuracy"] = weights @ among_five / total
        found["macro_f1"] = _mean_where(_ratio(2 * hits, mass))
        found["calibration_error"] = np.abs(_sums(weights * (correct - confidence), bins, BINS)).sum(axis=1) / total
        found["log_loss"] = weights @ surprise / total
        return found

    return statistics


def _assess_multi(case: _Case) -> Assessment:
    from cvpipe.metrics import plots

    classes, scores = case.classes, case.scores
    truth = np.zeros(scores.shape, dtype=bool)
    for row, members in enumerate(case.targets):
        truth[row, list(members)] = True
    called = scores >= case.threshold
    affordable = max(_RANK_LEAST, _RANK_BUDGET // scores.size)
    rank_resamples = min(case.resamples, affordable)
    metrics = intervals(rank_statistics(scores, truth), case.units, rank_resamples, case.seed)
    metrics |= intervals(decision_statistics(scores, truth, called), case.units, case.resamples, case.seed)
    tables = {"Classes": _multi_rows(classes, scores, truth, called)}
    if rank_resamples < case.resamples:
        tables["Fewer resamples"] = [
            {"metrics": "map, auroc", "resamples": rank_resamples, "configured": case.resamples}
        ]
    flat = scores.reshape(-1).astype(np.float64)
    return Assessment(
        metrics=metrics,
        tables=tables,
        figures={
            "Calibration": plots.reliability(
                *_per_bin(bins_of(flat), flat, truth.reshape(-1).astype(np.float64)), "score", "share of positives"
            ),
            "Precision and recall": plots.precision_recall(scores, truth, classes),
        },
        gallery=_multi_mistakes(case, truth, called),
        headline=tuple(name for name in _MULTI_HEADLINE if name in metrics),
    )


def decision_statistics(
    scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_]
) -> Statistics:
    """micro_f1, macro_f1 (over classes that occur or are predicted) and calibration_error as functions of weights.

    calibration_error is that of all image-class pairs: the score against the share of positives, 15 equal bins.
    """
    images, classes = scores.shape
    hits, mass = (truth & called).astype(np.float64), truth.astype(np.float64) + called
    cells = (np.arange(images)[:, None] * BINS + bins_of(scores)).ravel()
    gaps = np.bincount(cells, weights=(truth.astype(np.float64) - scores).ravel(), minlength=images * BINS)

    def statistics(weights: Floats) -> dict[str, Floats]:
        hit, found = 2 * (weights @ hits), weights @ mass
        off = np.abs(weights @ gaps.reshape(images, BINS)).sum(axis=1)
        return {
            "micro_f1": _ratio(hit.sum(axis=1), found.sum(axis=1)),
            "macro_f1": _mean_where(_ratio(hit, found)),
            "calibration_error": off / (weights.sum(axis=1) * classes),
        }

    return statistics


def rank_statistics(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> Statistics:
    """map (mean over classes with positives) and auroc (classes with positives and negatives)."""

    def statistics(weights: Floats) -> dict[str, Floats]:
        pairs = [rank_scores(weights, scores[:, c], truth[:, c]) for c in range(scores.shape[1])]
        return {
            "map": _mean_where(np.stack([precision for precision, _ in pairs], axis=1)),
            "auroc": _mean_where(np.stack([area for _, area in pairs], axis=1)),
        }

    return statistics


def rank_scores(
    weights: Floats, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """(average precision, area under the ROC curve) of one class for each row of weights; NaN where undefined.

    Average precision is the step-wise sum of precision times gain in recall. Equal scores count as one threshold
    there, and as half a win in the area (Mann-Whitney).

    Args:
        weights: (resamples, images). scores, truth: (images,).
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    run = np.searchsorted(ends, np.flatnonzero(positive))
    end = ends[run]
    before = np.append(-1, ends)[run]  # last position with a higher score
    ordered = weights[:, order]
    above = np.cumsum(ordered, axis=1)
    positives_above = np.cumsum(ordered * positive, axis=1)
    negatives_above = np.pad(above - positives_above, ((0, 0), (1, 0)))
    hits = ordered[:, positive]
    positives, negatives = positives_above[:, -1], negatives_above[:, -1]
    precision = np.nan_to_num(_ratio(positives_above[:, end], above[:, end]))
    wins = negatives[:, None] - 0.5 * (negatives_above[:, end + 1] + negatives_above[:, before + 1])
    return _ratio((hits * precision).sum(axis=1), positives), _ratio((hits * wins).sum(axis=1), positives * negatives)


def bins_of(scores: npt.NDArray[Any]) -> Ints:
    """Scores in 0..1 -> bins 0 … 14; a score on a border belongs to the lower bin."""
    return np.clip(np.ceil(scores.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _per_bin(bins: Ints, scores: Floats, outcomes: Floats) -> tuple[Ints, Floats, Floats]:
    """(scores in each bin, their mean, the share of good outcomes); NaN in empty bins."""
    counts = np.bincount(bins, minlength=BINS)
    means = [_ratio(np.bincount(bins, weights=v, minlength=BINS), counts) for v in (scores, outcomes)]
    return counts, means[0], means[1]


def _sums(weights: Floats, groups: Ints, count: int) -> Floats:
    """(resamples, images) -> (resamples, groups): sums over the images of each group."""
    rows = len(weights)
    cells = (np.arange(rows)[:, None] * count + groups).ravel()
    sums: Floats = np.bincount(cells, weights=weights.ravel(), minlength=rows * count).astype(np.float64, copy=False)
    return sums.reshape(rows, count)


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """NaN where `below` is 0."""
    ratio: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio


def _mean_where(values: Floats) -> Floats:
    """(rows, columns) -> (rows,): the mean of the columns that are not NaN, NaN where all are."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _f1_columns(hits: Ints, support: Ints, called: Ints) -> tuple[Floats, Floats, Floats]:
    """(precision, recall, F1) for each class; NaN where a class was never predicted, does not occur, or neither."""
    return _ratio(hits, called), _ratio(hits, support), _ratio(2 * hits, support + called)


def _class_rows(classes: Sequence[str], confusion: Ints) -> list[dict[str, Any]]:
    support = confusion.sum(axis=1)
    columns = _f1_columns(confusion.diagonal(), support, confusion.sum(axis=0))
    return [
        {"class": name, "images": int(support[c])}
        | {key: _number(v[c]) for key, v in zip(("precision", "recall", "f1"), columns, strict=True)}
        for c, name in enumerate(classes)
    ]


def _confused_rows(classes: Sequence[str], confusion: Ints) -> list[dict[str, Any]]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED].tolist()
    cells = [divmod(cell, len(classes)) for cell in order]
    return [
        {
            "true": classes[t],
            "predicted": classes[p],
            "images": int(wrong[t, p]),
            "share of true": float(wrong[t, p] / confusion[t].sum()),
        }
        for t, p in cells
        if wrong[t, p]
    ]


def _multi_rows(
    classes: Sequence[str],
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    called: npt.NDArray[np.bool_],
) -> list[dict[str, Any]]:
    ones = np.ones((1, len(scores)))
    columns = _f1_columns((truth & called).sum(axis=0), truth.sum(axis=0), called.sum(axis=0))
    rows = []
    for c, name in enumerate(classes):
        ranks = rank_scores(ones, scores[:, c], truth[:, c])
        values = {"average precision": ranks[0][0], "auroc": ranks[1][0]}
        values |= {key: v[c] for key, v in zip(("precision", "recall", "f1"), columns, strict=True)}
        rows.append({"class": name, "images": int(truth[:, c].sum())} | {key: _number(v) for key, v in values.items()})
    return rows


def _multi_mistakes(case: _Case, truth: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_]) -> list[tuple[str, str]]:
    """Images with a wrong decision, those furthest on the wrong side of it first."""
    distance = np.where(truth != called, np.abs(truth.astype(np.float64) - case.scores), -1.0)
    worst = distance.argmax(axis=1)
    depth = distance[np.arange(len(worst)), worst]
    found = []
    for i in sorted(np.flatnonzero(depth >= 0).tolist(), key=lambda i: -depth[i])[: case.shown]:
        names = ", ".join(case.classes[c] for c in np.flatnonzero(truth[i])) or "none"
        verb = "missed" if truth[i, worst[i]] else "predicted"
        found.append((case.paths[i], f"true {names}, {verb} {case.classes[worst[i]]} {case.scores[i, worst[i]]:.2f}"))
    return found
