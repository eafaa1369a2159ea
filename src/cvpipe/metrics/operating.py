"""What happens at a chosen score: where precision and recall are in balance, and what is taken for what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvpipe.metrics.coco import Floats
from cvpipe.metrics.matching import Matches, greedy
from cvpipe.metrics.overlaps import Ints, Overlaps, ranks_of


@dataclass(frozen=True)
class Operating:
    """A score from which detections are kept, and what that gives at overlap 0.5."""

    threshold: float
    precision: float
    recall: float


def operating_point(found: Overlaps, outcome: Matches, label: int | None = None) -> Operating | None:
    """The score from which F1 at overlap 0.5 is greatest, of one class or of all; None where nothing is right."""
    scores, hits, ends, objects = sweep(found, outcome, label)
    if not len(ends) or not hits[-1] or not objects:
        return None
    precision, recall = hits / (ends + 1), hits / objects
    best = int(np.argmax(2 * hits / (ends + 1 + objects)))
    return Operating(float(scores[best]), float(precision[best]), float(recall[best]))


def confusion(found: Overlaps, outcome: Matches, threshold: float) -> Ints:
    """(classes + 1, classes + 1) true class x found class; the last row and column stand for nothing.

    Detections of at least that score count, at overlap 0.5. First objects and detections of the same class come
    together as in average precision; then what is left, of any classes, best scores first.
    """
    nothing = found.classes
    kept = (found.dt_score >= threshold) & outcome.counted[:, 0]
    hit = kept & outcome.right[:, 0]
    free = outcome.wanted.copy()
    free[outcome.objects[hit, 0]] = False
    loose = kept & ~hit
    allowed = loose[found.pair_dt] & free[found.pair_gt]
    ranks = ranks_of(found.dt_image, np.zeros_like(found.dt_image))
    others = greedy(found, allowed, ranks, ~outcome.wanted, np.array([0.5]))[:, 0]
    swapped = others >= 0
    free[others[swapped]] = False
    rows = [found.dt_label[hit], found.gt_label[others[swapped]], found.gt_label[free]]
    columns = [found.dt_label[hit], found.dt_label[swapped], np.full(free.sum(), nothing)]
    false = loose & ~swapped
    rows.append(np.full(false.sum(), nothing))
    columns.append(found.dt_label[false])
    side = nothing + 1
    cells = np.concatenate(rows) * side + np.concatenate(columns)
    return np.bincount(cells, minlength=side * side).reshape(side, side)


def sweep(found: Overlaps, outcome: Matches, label: int | None) -> tuple[Floats, Floats, Ints, int]:
    """(scores, right detections from that score, position of the last of them, objects), highest score first."""
    counted, wanted = outcome.counted[:, 0], outcome.wanted
    if label is not None:
        counted, wanted = counted & (found.dt_label == label), wanted & (found.gt_label == label)
    kept = np.flatnonzero(counted)
    kept = kept[np.argsort(-found.dt_score[kept], kind="stable")]
    scores = found.dt_score[kept]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])
    hits = np.cumsum(outcome.right[kept, 0]).astype(np.float64)
    return scores[ends], hits[ends], ends, int(wanted.sum())
