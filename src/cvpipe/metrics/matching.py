"""Which detections find which objects, computed once, and average precision as a function of image weights.

The rules are COCO's, so that weights of 1 give its values; counts of drawn images as weights give bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvpipe.metrics.bootstrap import Statistics
from cvpipe.metrics.coco import AREAS, RECALLS, THRESHOLDS, Floats
from cvpipe.metrics.overlaps import Bools, Ints, Overlaps, ranks_of

_CELLS = 200_000  # numbers in an array of resamples x detections, so that it stays in the processor's cache
_MANY = 500  # right detections from which 101 searches among them beat a search for each of them


@dataclass(frozen=True, eq=False)
class Matches:
    """The outcome for one range of object sizes.

    Attributes:
        objects: (D, thresholds) the object that a detection found, -1 where none.
        right: (D, thresholds) it found an object that counts.
        counted: (D, thresholds) right or wrong; the others are without consequence.
        wanted: (G,) objects that count.
    """

    objects: Ints
    right: Bools
    counted: Bools
    wanted: Bools


def match(found: Overlaps, size: str = "all", thresholds: Floats = THRESHOLDS) -> Matches:
    """COCO's matching within each image and class: the best detections choose first, the object they overlap most.

    Args:
        size: a name in `AREAS`. Objects of another size need not be found; detections of another size that find
            nothing are no mistake.
    """
    least, most = AREAS[size]
    ignore = found.gt_ignore | (found.gt_area < least) | (found.gt_area > most)
    same = found.dt_label[found.pair_dt] == found.gt_label[found.pair_gt]
    ranks = ranks_of(found.dt_image, found.dt_label)
    objects = greedy(found, same, ranks, ignore, thresholds)
    hit = objects >= 0
    # -1 takes the last object, where there is one; `hit` discards it
    aside = hit & ignore[objects] if len(ignore) else np.zeros_like(hit)
    outside = (found.dt_area < least) | (found.dt_area > most)
    return Matches(objects, hit & ~aside, ~aside & (hit | ~outside[:, None]), ~ignore)


def greedy(found: Overlaps, allowed: Bools, ranks: Ints, ignore: Bools, thresholds: Floats) -> Ints:
    """(D, thresholds) the object that each detection gets, -1 where none.

    Detections choose in the order of their rank; those of equal rank never compete. Each takes the free object of
    the greatest overlap, one that counts before one that does not; of equals the last. A crowd is always free.

    Args:
        allowed: (P,) pairs that may come together.
        ranks: (D,) from 0, unlike for detections that have an object in common.
        ignore: (G,) objects that do not count.
    """
    count, columns = len(found.dt_score), np.arange(len(thresholds))
    objects = np.full((count, len(columns)), -1, np.int64)
    taken = np.zeros((len(ignore), len(columns)), np.bool_)
    pairs = np.flatnonzero(allowed & (found.pair_value >= thresholds[0]))
    pairs = pairs[np.argsort(ranks[found.pair_dt[pairs]], kind="stable")]
    turns = ranks[found.pair_dt[pairs]]
    last_of_turn = np.append(turns[1:] != turns[:-1], True) if len(turns) else np.zeros(0, np.bool_)
    start = 0
    for end in (np.flatnonzero(last_of_turn) + 1).tolist():
        turn = pairs[start:end]
        start = end
        dt, gt, value = found.pair_dt[turn], found.pair_gt[turn], found.pair_value[turn][:, None]
        free = (value >= thresholds) & ~(taken[gt] & ~found.gt_crowd[gt][:, None])
        # a power of two keeps all digits, and even a full overlap below the least threshold
        key = np.where(free, np.where(ignore[gt][:, None], value / 1024, value), -1.0)
        firsts = np.flatnonzero(np.append(True, dt[1:] != dt[:-1]))
        best = np.maximum.reduceat(key, firsts, axis=0)
        own = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(dt))))
        position = np.where(free & (key == best[own]), np.arange(len(dt))[:, None], -1)
        last = np.maximum.reduceat(position, firsts, axis=0)
        chosen = np.where(last >= 0, gt[last], -1)
        rows, cells = np.nonzero(chosen >= 0)
        taken[chosen[rows, cells], columns[cells]] = True
        objects[dt[firsts]] = chosen
    return objects


def precision_statistics(found: Overlaps, matches: dict[str, Matches], names: Sequence[str]) -> tuple[Statistics, int]:
    """Those of `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large` and `ar` that `names` holds.

    `ar` is the mean of the recalls with all detections that take part: with boxes and masks COCO's ar_100.

    Args:
        matches: size -> outcome, for `all` and the sizes that the names need.

    Returns:
        The metrics as functions of weights, and what one resample costs, in numbers to go through.
    """
    sizes = [size for size in matches if size == "all" or f"map_{size}" in names]
    curves = [_Curves(found, {size: matches[size] for size in sizes}, c) for c in range(found.classes)]

    def statistics(weights: Floats) -> dict[str, Floats]:
        shape = (len(weights), found.classes, len(THRESHOLDS))
        precision = {size: np.full(shape, np.nan) for size in sizes}
        recall = {size: np.full(shape, np.nan) for size in sizes}
        for c, curve in enumerate(curves):
            curve.fill(weights, {size: (precision[size][:, c], recall[size][:, c]) for size in sizes})
        whole = precision.pop("all")
        values = {"map": whole, "map_50": whole[:, :, 0], "map_75": whole[:, :, 5], "ar": recall["all"]}
        values |= {f"map_{size}": part for size, part in precision.items()}
        return {name: _mean_where(values[name]) for name in names}

    return statistics, sum(curve.cost for curve in curves)


def class_precision(found: Overlaps, outcome: Matches) -> tuple[Floats, Floats]:
    """(average precision, that at overlap 0.5) of each class; NaN for classes without objects."""
    values = np.full((found.classes, len(THRESHOLDS)), np.nan)
    ones = np.ones((1, found.images))
    for c in range(found.classes):
        precision, recall = np.full((2, 1, len(THRESHOLDS)), np.nan)
        _Curves(found, {"all": outcome}, c).fill(ones, {"all": (precision, recall)})
        values[c] = precision[0]
    return values.mean(axis=1), values[:, 0]


def average_precision(hits: Floats, before: Floats, positives: Floats) -> Floats:
    """(rows,) the area under the precision-recall curve, read at 101 recalls as COCO does; NaN without positives.

    Args:
        hits: (rows, right detections) weight of the right detections up to each, best score first.
        before: the same of all detections that count, right or wrong.
        positives: (rows,) weight of the objects.
    """
    defined = positives > 0
    if not hits.shape[1]:
        return np.where(defined, 0.0, np.nan)
    recall = hits / np.where(defined, positives, 1.0)[:, None]
    precision = hits / (before + np.spacing(1))
    # precision only rises at right detections: the best that is still to come is found among them
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if hits.shape[1] > _MANY:
        ended = np.pad(envelope, ((0, 0), (0, 1)))
        area = np.array([best[np.searchsorted(row, RECALLS)].sum() for row, best in zip(recall, ended, strict=True)])
    else:
        reached = np.searchsorted(RECALLS, recall, side="right")
        area = (np.diff(reached, axis=1, prepend=0) * envelope).sum(axis=1)
    return np.where(defined, area / len(RECALLS), np.nan)


class _Curves:
    """The curves of one class: what does not depend on weights, sorted by score over all images."""

    def __init__(self, found: Overlaps, matches: dict[str, Matches], label: int) -> None:
        mine = np.flatnonzero(found.dt_label == label)
        # stable: of equal scores the earlier image comes first, as in COCO
        mine = mine[np.argsort(-found.dt_score[mine], kind="stable")]
        right = {size: outcome.right[mine] for size, outcome in matches.items()}
        # what comes after the last right detection changes nothing
        any_right = np.stack([r.any(axis=1) for r in right.values()]).any(axis=0)
        length = int(np.flatnonzero(any_right)[-1]) + 1 if any_right.any() else 0
        self.image = found.dt_image[mine[:length]]
        owned = found.gt_label == label
        self.objects = {
            size: np.unique(found.gt_image[owned & outcome.wanted], return_counts=True)
            for size, outcome in matches.items()
        }
        # for each size and threshold: positions of the right ones among those that count, of those that count (None:
        # all), of the right ones among all
        self.cells: dict[str, list[tuple[Ints, Ints | None, Ints]]] = {size: [] for size in matches}
        self.cost = length
        for size, outcome in matches.items():
            counted = outcome.counted[mine[:length]]
            for t in range(counted.shape[1]):
                hit, count = right[size][:length, t], counted[:, t]
                kept = None if count.all() else np.flatnonzero(count)
                places = np.flatnonzero(hit if kept is None else hit[kept])
                self.cells[size].append((places, kept, np.flatnonzero(hit)))
                self.cost += 4 * len(places) + (0 if kept is None else len(kept))

    def fill(self, weights: Floats, into: dict[str, tuple[Floats, Floats]]) -> None:
        """Writes (rows, thresholds) average precision and recall of each size; NaN where no object has weight."""
        step = max(1, _CELLS // max(1, len(self.image)))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            self._fill(weights[rows], {size: (p[rows], r[rows]) for size, (p, r) in into.items()})

    def _fill(self, weights: Floats, into: dict[str, tuple[Floats, Floats]]) -> None:
        drawn = weights[:, self.image]
        above = np.cumsum(drawn, axis=1)
        for size, (precision, recall) in into.items():
            images, counts = self.objects[size]
            positives = weights[:, images] @ counts.astype(np.float64)
            defined = positives > 0
            for t, (places, kept, right) in enumerate(self.cells[size]):
                before = above if kept is None else np.cumsum(drawn[:, kept], axis=1)
                hits = np.cumsum(drawn[:, right], axis=1)
                precision[:, t] = average_precision(hits, before[:, places], positives)
                last = hits[:, -1] if len(right) else np.zeros(len(weights))
                recall[:, t] = np.where(defined, last / np.where(defined, positives, 1.0), np.nan)


def _mean_where(values: Floats) -> Floats:
    """(rows, …) -> (rows,): the mean of what is not NaN, NaN where all is."""
    flat = values.reshape(len(values), -1)
    defined = np.isfinite(flat)
    count = defined.sum(axis=1)
    total = np.where(defined, flat, 0.0).sum(axis=1)
    mean: Floats = np.divide(total, count, out=np.full(len(flat), np.nan), where=count > 0)
    return mean
