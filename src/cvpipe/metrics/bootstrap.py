"""95 % bootstrap intervals for any metric that is a function of image weights; the images without an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.data.splits import Split
from cvpipe.types import Failure, Interval, Prediction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistics = Callable[[Floats], dict[str, Floats]]
"""(resamples, images) weights -> metric name -> (resamples,) values, NaN where a resample leaves one undefined."""

_CHUNK = 2_000_000  # weights in memory at a time: 16 MB


def intervals(statistics: Statistics, units: Ints, resamples: int, seed: int) -> dict[str, Interval]:
    """Values with 95 % percentile intervals (Efron and Tibshirani 1993, chapter 13).

    Resampling moves some metrics to one side: the calibration error grows with the added noise, macro F1 suffers where
    the few images of a class were not drawn. Where the percentiles pass the value, the interval is widened to hold it.

    Args:
        statistics: the metrics as functions of weights.
        units: (images,) 0 … n - 1; images with equal numbers are drawn together.
        resamples: how many; 0 gives values without intervals.
    """
    count, images = int(units.max()) + 1, len(units)
    values = {name: float(v[0]) for name, v in statistics(np.ones((1, images))).items() if np.isfinite(v[0])}
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Floats]] = {name: [] for name in values}
    most = max(1, _CHUNK // images)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        draws = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        drawn = np.bincount(draws.ravel(), minlength=rows * count).reshape(rows, count)
        for name, part in statistics(drawn[:, units].astype(np.float64)).items():
            if name in parts:
                parts[name].append(part)
    found = {}
    for name, value in values.items():
        sample = np.concatenate(parts[name]) if parts[name] else np.empty(0)
        sample = sample[np.isfinite(sample)]
        if len(sample):
            low, high = np.quantile(sample, [0.025, 0.975])
            found[name] = Interval(value, min(float(low), value), max(float(high), value))
        else:
            found[name] = Interval(value)
    return found


def units_of(split: Split, good: Sequence[int]) -> Ints:
    """(images,) what is drawn together: an image, or its group, because images of a group are not independent."""
    if split.groups is None:
        return np.arange(len(good))
    return np.unique([split.groups[i] for i in good], return_inverse=True)[1].reshape(-1).astype(np.int64)


def failure_table(predictions: Sequence[Prediction | Failure], split: Split) -> dict[str, list[dict[str, Any]]]:
    pairs = [(a.reason, path) for a, path in zip(predictions, split.paths, strict=True) if isinstance(a, Failure)]
    first = dict(reversed(pairs))
    rows = [
        {"reason": reason, "images": count, "first": first[reason]}
        for reason, count in Counter(reason for reason, _ in pairs).most_common()
    ]
    return {"Images without a prediction (in no metric)": rows} if rows else {}
