"""How good the values are, with 95 % bootstrap intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cvpipe.data.splits import Split
from cvpipe.draw import beside, open_image
from cvpipe.errors import DataError
from cvpipe.metrics.bootstrap import failure_table, intervals, units_of
from cvpipe.scaffold.dense_template.config import CLOSE, DenseTemplateConfig
from cvpipe.scaffold.dense_template.prediction import DenseTemplatePrediction, Floats
from cvpipe.scaffold.dense_template.utils import draw
from cvpipe.types import Assessment, Failure, Prediction

Sums = npt.NDArray[np.float64]
_BANDS = 4
_SAMPLED = 1000  # pixels an image that the table looks at


def assess(
    predictions: Sequence[Prediction | Failure],
    split: Split,
    config: DenseTemplateConfig,
) -> Assessment:
    """mae and rmse in the unit of the targets, abs_rel, and delta1: the share of pixels that are off by less than a
    factor of 1.25 (Eigen et al., 2014, arXiv:1406.2283). Over all pixels whose value is known.

    Args:
        predictions: one for each image of the split. Failures count in no metric and stand in a table of their own.
    """
    good = [i for i, answer in enumerate(predictions) if not isinstance(answer, Failure)]
    failures = failure_table(predictions, split)
    sums: list[Sums] = []
    kept: list[int] = []
    samples: list[Sums] = []
    for position in good:
        found = cast(DenseTemplatePrediction, predictions[position]).values
        truth = _truth(split, position, found.shape)
        known = np.isfinite(truth)
        if known.any():
            kept.append(position)
            sums.append(_sums(found[known], truth[known]))
            step = max(1, int(known.sum()) // _SAMPLED)
            samples.append(np.stack([found[known][::step], truth[known][::step]]).astype(np.float64))
    if not kept:
        return Assessment({}, failures, {}, [], ())
    table = np.stack(sums)

    # every metric is a function of image weights: ones give its value, and the counts with which a bootstrap drew each
    # image give one resample. So a value and its interval can't come from different formulas
    def statistics(weights: Sums) -> dict[str, Sums]:
        pixels, absolute, squared, relative, close = (weights @ table).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "delta1": close / pixels,
                "mae": absolute / pixels,
                "rmse": np.sqrt(squared / pixels),
                "abs_rel": relative / pixels,
            }

    metrics = intervals(statistics, units_of(split, kept), config.evaluation.bootstrap, config.training.seed)
    worst = np.argsort(-table[:, 1] / table[:, 0], kind="stable")[: config.evaluation.gallery]
    return Assessment(
        metrics=metrics,
        tables=failures | {"Error by true value": _bands(np.concatenate(samples, axis=1))},
        figures={},
        gallery=[_compare(split, kept[row], predictions[kept[row]], table[row]) for row in worst],
        headline=("delta1", "mae", "rmse"),
    )


def _truth(split: Split, position: int, shape: tuple[int, ...]) -> Floats:
    values: Floats = split.targets[position].load()
    if values.shape != shape:
        raise DataError(
            f"{split.targets[position]}: {values.shape} pixels, its image {split.paths[position]} has {shape}. A map "
            "must have its image's size."
        )
    return values


def _sums(found: Floats, truth: Floats) -> Sums:
    """(5,) over the known pixels of an image: their number, absolute, squared and relative errors, close ones."""
    a, b = found.astype(np.float64), truth.astype(np.float64)
    off, ratio = np.abs(a - b), np.maximum(a / b, b / np.maximum(a, 1e-12))
    return np.array([len(b), off.sum(), (off**2).sum(), (off / b).sum(), (ratio < CLOSE).sum()])


def _bands(samples: Sums) -> list[dict[str, Any]]:
    """The mean error in quarters of the true values: near things, far things.

    Args:
        samples: (2, pixels) found and true values.
    """
    found, truth = samples
    edges = np.quantile(truth, np.linspace(0, 1, _BANDS + 1)).tolist()
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (truth >= low) & (truth <= high)
        rows.append({"from": low, "to": high, "mae": float(np.abs(found - truth)[inside].mean())})
    return rows


def _compare(split: Split, position: int, answer: Any, sums: Sums) -> tuple[Any, str]:
    """Truth and prediction next to each other, and a caption, for the report."""
    image = open_image(split.paths[position])
    picture = beside(draw(image, split.targets[position]), draw(image, answer))
    return picture, f"true, predicted; off by {sums[1] / sums[0]:.3f} on average"
