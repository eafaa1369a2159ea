"""What goes wrong in detection, and what it costs: the errors of TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115).

A detection that is no hit at overlap 0.5 is one of

- localisation: on an object of its class, overlap 0.1 to 0.5,
- classification: on an object of another class, overlap 0.5 and more,
- duplicate: on an object of its class that a better detection has found,
- background: on nothing, overlap below 0.1,
- both: wrong class and place: whatever is left.

An object that is neither found nor the target of one of the first two is missed. What a kind of error costs is how much
`map_50` rises when only these errors are put right: the detection gets the object's class or place (if another does
not find the object), the other kinds of detections vanish, missed objects are no longer asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvpipe.metrics.coco import Floats
from cvpipe.metrics.matching import Matches, average_precision
from cvpipe.metrics.overlaps import LEAST, Bools, Ints, Overlaps

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
MEANINGS = {
    "classification": "right place, wrong class",
    "localisation": "right class, badly placed (overlap 0.1 to 0.5)",
    "both": "wrong class and badly placed",
    "duplicate": "an object that a better detection has found",
    "background": "nothing there (overlap below 0.1)",
    "missed": "an object that no detection is near",
}
NO_ERROR = -1


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors of all detections, whatever their score.

    Attributes:
        kind: (D,) position in `KINDS`, -1 for detections that are right or without consequence.
        target: (D,) of classification and localisation errors the object that was meant, else -1.
        missed: (G,) objects.
        lost: kind of error -> `map_50` lost by it; empty where no class has objects.
    """

    kind: Ints
    target: Ints
    missed: Bools
    lost: dict[str, float]


def split_errors(found: Overlaps, outcome: Matches) -> Errors:
    """Sorts the errors at overlap 0.5 and puts each kind right in turn.

    Args:
        outcome: that for objects of all sizes; its first threshold is 0.5.
    """
    right, counted = outcome.right[:, 0], outcome.counted[:, 0]
    kind, target = _kinds(found, outcome, counted & ~right)
    used = np.zeros(len(outcome.wanted), np.bool_)
    used[outcome.objects[right, 0]] = True
    meant = np.zeros_like(used)
    meant[target[target >= 0]] = True
    missed = outcome.wanted & ~used & ~meant
    return Errors(kind, target, missed, _lost(found, outcome, kind, target, used, missed))


def missed_at(found: Overlaps, outcome: Matches, errors: Errors, threshold: float) -> Bools:
    """(G,) the objects that are missed when only detections of at least that score are kept."""
    kept = found.dt_score >= threshold
    seen = np.zeros(len(outcome.wanted), np.bool_)
    seen[outcome.objects[kept & outcome.right[:, 0], 0]] = True
    seen[errors.target[kept & (errors.target >= 0)]] = True
    return outcome.wanted & ~seen


def _kinds(found: Overlaps, outcome: Matches, wrong: Bools) -> tuple[Ints, Ints]:
    some = wrong[found.pair_dt] & outcome.wanted[found.pair_gt]
    dt, gt, value = found.pair_dt[some], found.pair_gt[some], found.pair_value[some]
    same = found.dt_label[dt] == found.gt_label[gt]
    own, own_value = _best(dt[same], gt[same], value[same], len(wrong))
    other, other_value = _best(dt[~same], gt[~same], value[~same], len(wrong))
    near = (own_value >= LEAST) & (own_value <= 0.5)
    # in the order of the reference implementation: a place error comes before a class error, that before a duplicate
    choices = [near, other_value >= 0.5, own_value >= 0.5, np.maximum(own_value, other_value) <= LEAST]
    names = [KINDS.index(name) for name in ("localisation", "classification", "duplicate", "background")]
    kind = np.where(wrong, np.select(choices, names, KINDS.index("both")), NO_ERROR).astype(np.int64)
    target = np.where(kind == names[0], own, np.where(kind == names[1], other, -1))
    return kind, target


def _best(dt: Ints, gt: Ints, value: Floats, count: int) -> tuple[Ints, Floats]:
    """(count,) for each detection the object of the greatest overlap (of equals the first; -1: none), and how much."""
    objects, values = np.full(count, -1, np.int64), np.zeros(count)
    order = np.lexsort((-gt, value, dt))
    objects[dt[order]], values[dt[order]] = gt[order], value[order]
    return objects, values


def _lost(found: Overlaps, outcome: Matches, kind: Ints, target: Ints, used: Bools, missed: Bools) -> dict[str, float]:
    right, counted = outcome.right[:, 0], outcome.counted[:, 0]
    positives = np.bincount(found.gt_label[outcome.wanted], minlength=found.classes)
    if not positives.any():
        return {}
    base = _map_50(found, found.dt_label, right, counted, positives)
    repaired = _repairs(found, target, used)
    lost = {}
    for number, name in enumerate(KINDS):
        labels, hits, kept, wanted = found.dt_label, right, counted, positives
        if name == "missed":
            wanted = positives - np.bincount(found.gt_label[missed], minlength=found.classes)
        else:
            these = kind == number
            hits, kept = right | (these & repaired), counted & (~these | repaired)
            if name == "classification":
                labels = np.where(these & repaired, found.gt_label[target], labels) if len(used) else labels
        # fewer detections can move a point of the curve across one of the 101 recalls: a tiny loss, which is none
        lost[name] = max(0.0, _map_50(found, labels, hits, kept, wanted) - base)
    return lost


def _repairs(found: Overlaps, target: Ints, used: Bools) -> Bools:
    """(D,) errors that would be hits if put right: for each object not found, the best of those that meant it."""
    repaired = np.zeros(len(target), np.bool_)
    meant = np.flatnonzero(target >= 0)
    meant = meant[~used[target[meant]]]
    meant = meant[np.argsort(-found.dt_score[meant], kind="stable")]
    repaired[meant[np.unique(target[meant], return_index=True)[1]]] = True
    return repaired


def _map_50(found: Overlaps, labels: Ints, right: Bools, counted: Bools, positives: Ints) -> float:
    """The mean over classes with objects; 0 where none is left."""
    kept = np.flatnonzero(counted)
    kept = kept[np.lexsort((-found.dt_score[kept], labels[kept]))]
    bounds = np.searchsorted(labels[kept], np.arange(found.classes + 1))
    values = []
    for c in np.flatnonzero(positives):
        hits = right[kept[bounds[c] : bounds[c + 1]]].astype(np.float64)
        places = np.flatnonzero(hits)
        ranks = (places + 1.0)[None].astype(np.float64)
        rights = np.cumsum(hits)[places][None].astype(np.float64)
        values.append(average_precision(rights, ranks, positives[[c]].astype(np.float64))[0])
    return float(np.mean(values)) if values else 0.0
