"""Anomaly scores of images and pixels compared with what is known: areas under curves, F1, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.metrics.bootstrap import Statistics

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PRO_LIMIT = 0.3
"""False positive rate up to which the per-region overlap is integrated, as its authors do."""
_LEVELS = 500


def area_under_roc(scores: Floats, truth: Bools) -> float:
    """The probability that a defect scores higher than a good image, ties counting half; NaN without both kinds."""
    return float(image_statistics(scores, truth, 0.0)(np.ones((1, len(scores))))["image_auroc"][0])


def best_threshold(scores: Floats, truth: Bools, quantile: float) -> float:
    """The score from which an image, or a pixel, should count as anomalous.

    Args:
        scores, truth: (n,) of held-out images or of their pixels; at least one is good.
        quantile: share of the good ones that stay below, where none is anomalous.

    Returns:
        Halfway between the scores around the best F1; of several equally good places the highest.
    """
    if not truth.any():
        return float(np.nextafter(np.float32(np.quantile(scores, quantile)), np.float32(np.inf)))
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    levels, hits = scores[order][ends], np.cumsum(truth[order])[ends]
    best = int((2 * hits / (ends + 1 + hits[-1])).argmax())  # the first one is the highest
    return float(levels[best] if best == len(levels) - 1 else (levels[best] + levels[best + 1]) / 2)


def image_statistics(scores: Floats, truth: Bools, threshold: float) -> Statistics:
    """Metrics of image scores as functions of image weights.

    image_auroc, image_ap (average precision), best_f1 (at the threshold that is best for these very images: what a
    perfect choice would give), and at the model's own threshold f1, precision, recall and false_alarm_rate.

    Args:
        scores, truth: (images,); truth: whether there is a defect.
        threshold: score from which an image counts as anomalous.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    found = scores >= threshold

    def statistics(weights: Floats) -> dict[str, Floats]:
        positive, negative = weights * truth, weights * ~truth
        ups = np.add.reduceat(positive[:, order], starts, axis=1)
        downs = np.add.reduceat(negative[:, order], starts, axis=1)
        hits, alarms = ups.cumsum(axis=1), downs.cumsum(axis=1)
        defects, good = hits[:, -1:], alarms[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = hits / (hits + alarms)
            own_hits, own_alarms = (positive * found).sum(axis=1), (negative * found).sum(axis=1)
            total = defects[:, 0]
            return {
                "image_auroc": ((hits - ups / 2) * downs).sum(axis=1) / (total * good[:, 0]),
                "image_ap": np.where(ups > 0, precision * ups, 0).sum(axis=1) / total,
                "best_f1": np.where(total > 0, (2 * hits / (hits + alarms + defects)).max(axis=1), np.nan),
                "f1": np.where(total > 0, 2 * own_hits / (own_hits + own_alarms + total), np.nan),
                "precision": np.where(total > 0, own_hits / (own_hits + own_alarms), np.nan),
                "recall": own_hits / total,
                "false_alarm_rate": own_alarms / good[:, 0],
            }

    return statistics


class PixelCounts(NamedTuple):
    """How pixels of each image are spread over levels of heat, lowest level first.

    Attributes:
        good, defect: (images, levels + 1) pixels outside and inside of defects.
        regions: (images, levels + 1) the sum over an image's connected regions of the share of the region's pixels.
        region_count: (images,) number of regions.
    """

    good: Floats
    defect: Floats
    regions: Floats
    region_count: Floats

    def select(self, rows: Bools) -> PixelCounts:
        return PixelCounts(*(part[rows] for part in self))


class PixelCounter:
    """Counts pixels one image at a time.

    Args:
        levels: thresholds in rising order. With all values that occur the metrics are exact.
    """

    def __init__(self, levels: Floats) -> None:
        self.levels = levels
        self._rows: list[tuple[Floats, Floats, Floats, float]] = []

    def add(self, heat: npt.NDArray[np.float32], mask: Bools) -> None:
        """Both (height, width). Regions are connected at sides and corners."""
        from scipy.ndimage import label

        size = len(self.levels) + 1
        bins = np.searchsorted(self.levels, heat.ravel(), side="right")
        numbers, count = label(mask, structure=np.ones((3, 3), int))
        inside, numbers = bins[mask.ravel()], numbers[mask]
        share = 1 / np.maximum(np.bincount(numbers, minlength=count + 1), 1)
        defect = np.bincount(inside, minlength=size).astype(np.float64)
        good = np.bincount(bins, minlength=size) - defect
        regions = np.bincount(inside, weights=share[numbers], minlength=size).astype(np.float64)
        self._rows.append((good, defect, regions, float(count)))

    def skip(self) -> None:
        """An image of which it is not known where the defect is: it counts nowhere."""
        nothing = np.zeros(len(self.levels) + 1)
        self._rows.append((nothing, nothing, nothing, 0.0))

    def counts(self) -> PixelCounts:
        good, defect, regions, count = (np.array(part) for part in zip(*self._rows, strict=True))
        return PixelCounts(good, defect, regions, count)


def levels_of(heats: Sequence[npt.NDArray[np.float32]], threshold: float) -> Floats:
    """Thresholds that follow the spread of the heat, closer together where it is high; `threshold` is one of them."""
    step = max(1, sum(heat.size for heat in heats) // 5_000_000)
    values = np.concatenate([heat.ravel()[::step] for heat in heats]).astype(np.float64)
    shares = np.concatenate([np.linspace(0, 1, _LEVELS), np.linspace(0.9, 1, _LEVELS)])
    steps = np.linspace(values.min(), values.max(), _LEVELS)
    return np.unique(np.concatenate([np.quantile(values, shares), steps, [threshold]]))


def pixel_statistics(counts: PixelCounts, own: int | None = None) -> Statistics:
    """pixel_auroc, pro and pixel_f1 as functions of image weights.

    pro: area under the per-region overlap (Bergmann et al., 2020, arXiv:1911.02357): the mean over all connected
    regions of the share that is found, against the false positive rate, up to 0.3 of it, as a share of that area.
    pixel_f1: F1 of all pixels, defects against the rest, at the model's own threshold.

    Args:
        own: the model's threshold, as a position in the levels; None: without pixel_f1.
    """

    def statistics(weights: Floats) -> dict[str, Floats]:
        good, defect, regions = (_from_above(weights @ part) for part in counts[:3])
        with np.errstate(invalid="ignore", divide="ignore"):
            false = good / good[:, -1:]
            found = defect / defect[:, -1:]
            overlap = regions / (weights @ counts.region_count)[:, None]
            areas = {"pixel_auroc": _area(false, found, 1.0), "pro": _area(false, overlap, PRO_LIMIT)}
            if own is None:
                return areas
            # what is at least at level i lies in the bins above i
            hits, alarms = (part[:, -2 - own] for part in (defect, good))
            return areas | {"pixel_f1": 2 * hits / (hits + alarms + defect[:, -1])}

    return statistics


def _from_above(spread: Floats) -> Floats:
    """(resamples, levels + 1) -> (resamples, levels + 2): how much is at least at each level, highest level first."""
    return np.pad(spread[:, ::-1].cumsum(axis=1), ((0, 0), (1, 0)))


def _area(x: Floats, y: Floats, limit: float) -> Floats:
    """(rows,) area under curves whose x rises from 0 to 1, up to `limit`, as a share of `limit`."""
    left, right = np.minimum(x[:, :-1], limit), np.minimum(x[:, 1:], limit)
    width = x[:, 1:] - x[:, :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(width > 0, (y[:, 1:] - y[:, :-1]) / width, 0.0)
    # the step that passes the limit ends there
    ends = y[:, :-1] + slope * (right - x[:, :-1])
    ends = np.where(width > 0, ends, y[:, 1:])
    area: Floats = ((y[:, :-1] + ends) / 2 * (right - left)).sum(axis=1) / limit
    return area
