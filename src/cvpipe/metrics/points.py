"""How far found keypoints are from the annotated ones: the percentage of correct keypoints.

PCK at 0.1 (Yang and Ramanan 2013): a point is correct within a tenth of the longer side of the object's annotated box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.data.targets import Objects
from cvpipe.metrics.bootstrap import Statistics
from cvpipe.metrics.coco import Floats, target_points
from cvpipe.metrics.matching import match
from cvpipe.metrics.overlaps import Ints, overlaps
from cvpipe.predictions import KeypointPrediction

SHARES = {"pck": 0.1, "pck_05": 0.05}
"""Metric -> the largest distance, as a share of the box's longer side."""


@dataclass(frozen=True, eq=False)
class PointDistances:
    """Objects with at least one annotated point, crowds excepted.

    Attributes:
        image: (n,) position of its image.
        distance: (n, points) from found to annotated point as a share of the longer side of the annotated box;
            infinite where the object was not found, NaN where the point is not annotated.
        images: how many there are, those without such objects included.
    """

    image: Ints
    distance: Floats
    images: int


def point_distances(
    predictions: Sequence[KeypointPrediction], targets: Sequence[Objects], classes: int
) -> PointDistances:
    """Gives each object the detection of its class that found it: box overlap of at least 0.5, best scores first.

    Boxes decide and not points, so that a badly placed point does not make its object a missed one.
    """
    count = predictions[0].points.shape[1]
    found = overlaps(predictions, targets, "bbox", classes)
    owner = match(found, thresholds=np.array([0.5])).objects[:, 0]
    truth = np.concatenate([target_points(target, count) for target in targets])
    boxes = np.concatenate([target.boxes.astype(np.float64).reshape(-1, 4) for target in targets])
    guesses = np.full((len(truth), count, 2), np.inf)
    for dt in np.flatnonzero(owner >= 0):
        guesses[owner[dt]] = predictions[found.dt_image[dt]].points[found.dt_index[dt], :, :2]
    side = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0), 1e-9)
    distance = np.hypot(*np.moveaxis(guesses - truth[..., :2], 2, 0)) / side[:, None]
    visible = truth[..., 2] > 0
    distance = np.where(visible, distance, np.nan)
    kept = ~found.gt_crowd & visible.any(axis=1)
    return PointDistances(found.gt_image[kept], distance[kept], len(predictions))


def point_statistics(found: PointDistances) -> Statistics:
    """`pck` and `pck_05` as functions of image weights: the share of the annotated points of all objects."""
    total = _per_image(found, ~np.isnan(found.distance))
    correct = {name: _per_image(found, found.distance <= share) for name, share in SHARES.items()}

    def statistics(weights: Floats) -> dict[str, Floats]:
        points = weights @ total
        defined = points > 0
        return {
            name: np.where(defined, weights @ hits / np.where(defined, points, 1.0), np.nan)
            for name, hits in correct.items()
        }

    return statistics


def point_rows(found: PointDistances, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each point; the median distance is that of the objects that were found."""
    rows = []
    for name, column in zip(names, found.distance.T, strict=True):
        distance = column[~np.isnan(column)]
        near = distance[np.isfinite(distance)]
        row: dict[str, Any] = {"point": name, "annotated": len(distance), "found": len(near)}
        row |= {key: float((distance <= share).mean()) if len(distance) else None for key, share in SHARES.items()}
        rows.append(row | {"median distance": float(np.median(near)) if len(near) else None})
    return rows


def within(found: PointDistances, shares: Floats) -> Floats:
    """(len(shares),) the share of annotated points whose distance is at most that."""
    distance = np.sort(found.distance[~np.isnan(found.distance)])
    reached: Floats = np.searchsorted(distance, shares, side="right") / max(1, len(distance))
    return reached


def _per_image(found: PointDistances, points: npt.NDArray[np.bool_]) -> Floats:
    counts = points.sum(axis=1).astype(np.float64)
    return np.bincount(found.image, weights=counts, minlength=found.images).astype(np.float64, copy=False)
