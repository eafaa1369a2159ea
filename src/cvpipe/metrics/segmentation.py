"""How good class maps are: counts for each image, and metrics as functions of the images' weights.

Pixels whose target is IGNORE are left out of everything, boundaries included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.data.targets import IGNORE
from cvpipe.metrics.bootstrap import Statistics

TOLERANCE = 0.0075
"""How far boundaries may be apart, as a share of the image's diagonal (Csurka et al., 2013)."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ClassIndices = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Counts:
    """What the metrics need to know of each image.

    Attributes:
        hits: (images, classes) int64 pixels of the class that were found as such.
        truth, found: (images, classes) int64 pixels of the class in the target, in the prediction.
        boundary: (images, classes) float64 F1 of the class's boundaries, NaN where neither side has one.
        confusion: (classes, classes) int64 pixels of all images: true class, found class.
    """

    hits: Ints
    truth: Ints
    found: Ints
    boundary: Floats
    confusion: Ints


class Counter:
    """Collects `Counts`, one image after the other."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._rows: list[tuple[Ints, Ints, Ints, Floats]] = []
        self._confusion = np.zeros((classes, classes), np.int64)

    def add(self, truth: ClassIndices, found: ClassIndices) -> None:
        """Both (height, width) uint8 positions in the classes; `truth` may hold IGNORE."""
        matrix = confusion_of(truth, found, self.classes)
        self._confusion += matrix
        row = matrix.diagonal().copy(), matrix.sum(axis=1), matrix.sum(axis=0)
        self._rows.append((*row, boundary_f1(truth, found, self.classes)))

    def counts(self) -> Counts:
        """Of all images so far; at least one."""
        hits, truth, found, boundary = (np.stack(column) for column in zip(*self._rows, strict=True))
        return Counts(hits, truth, found, boundary, self._confusion)


def confusion_of(truth: ClassIndices, found: ClassIndices, classes: int) -> Ints:
    """(classes, classes) int64 pixels: row the true class, column the found one."""
    valid = truth != IGNORE
    cells = truth[valid].astype(np.int64) * classes + found[valid]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def boundary_f1(truth: ClassIndices, found: ClassIndices, classes: int) -> Floats:
    """(classes,) float64: how well the outlines of each class agree; NaN where neither side has one.

    Precision is the share of the found boundary pixels that have a true one within 0.75 % of the diagonal, recall the
    share of the true ones that have a found one there; F1 is their harmonic mean (Csurka, Larlus, Perronnin, "What is
    a good evaluation measure for semantic segmentation?", BMVC 2013). A boundary pixel has a neighbour, above, below,
    left or right, of another class. The border of the image, and that of an ignored region, is no boundary.
    """
    from scipy.spatial import cKDTree

    reach = TOLERANCE * math.hypot(*truth.shape)
    valid = truth != IGNORE
    outlines = [_outline(np.where(valid, side, IGNORE)) for side in (truth, found)]
    scores = np.full(classes, np.nan)
    for index in range(classes):
        points = [
            np.argwhere(outline & valid & (side == index))
            for outline, side in zip(outlines, (truth, found), strict=True)
        ]
        if not len(points[0]) and not len(points[1]):
            continue
        if not len(points[0]) or not len(points[1]):
            scores[index] = 0.0
            continue
        trees = [cKDTree(one) for one in points]
        # the bound itself is excluded by scipy, and included by the definition
        bound = float(np.nextafter(reach, np.inf))
        recall, precision = (
            float(np.isfinite(trees[other].query(points[own], distance_upper_bound=bound)[0]).mean())
            for own, other in ((0, 1), (1, 0))
        )
        scores[index] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def _outline(indices: ClassIndices) -> npt.NDArray[np.bool_]:
    """(height, width): which pixels touch another class; IGNORE is none."""
    outline = np.zeros(indices.shape, bool)
    for one, other in (((slice(None), slice(1, None)), (slice(None), slice(-1))), ((slice(1, None),), (slice(-1),))):
        differs = (indices[one] != indices[other]) & (indices[one] != IGNORE) & (indices[other] != IGNORE)
        outline[one] |= differs
        outline[other] |= differs
    return outline


def statistics_of(counts: Counts) -> Statistics:
    """miou, dice, pixel_accuracy and boundary_f1 as functions of weights.

    - miou: hits / (true + found - hits) of each class over all pixels of all images, mean over the classes that occur,
      in the targets or in the predictions.
    - dice: 2 hits / (true + found), the same mean; what F1 is for classes.
    - pixel_accuracy: the share of pixels that have their class.
    - boundary_f1: mean over the images in which a class has an outline, then over the classes.
    """
    hits, truth, found = (part.astype(np.float64) for part in (counts.hits, counts.truth, counts.found))
    outlined = np.isfinite(counts.boundary).astype(np.float64)
    boundary = np.nan_to_num(counts.boundary)

    def statistics(weights: Floats) -> dict[str, Floats]:
        hit, true, named = weights @ hits, weights @ truth, weights @ found
        return {
            "miou": _mean_where(_ratio(hit, true + named - hit)),
            "dice": _mean_where(_ratio(2 * hit, true + named)),
            "boundary_f1": _mean_where(_ratio(weights @ boundary, weights @ outlined)),
            "pixel_accuracy": _ratio(hit.sum(axis=1), true.sum(axis=1)),
        }

    return statistics


def image_ious(counts: Counts) -> Floats:
    """(images,) mean IoU of each image over the classes that occur in it; NaN where all of it is ignored."""
    return _mean_where(_ratio(counts.hits, counts.truth + counts.found - counts.hits))


def class_rows(counts: Counts, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """A table row for each class; None where a value is not defined."""
    hits, truth, found = (part.sum(axis=0) for part in (counts.hits, counts.truth, counts.found))
    outlined = np.isfinite(counts.boundary)
    columns = {
        "iou": _ratio(hits, truth + found - hits),
        "dice": _ratio(2 * hits, truth + found),
        "precision": _ratio(hits, found),
        "recall": _ratio(hits, truth),
        "boundary f1": _ratio(np.nan_to_num(counts.boundary).sum(axis=0), outlined.sum(axis=0)),
        "share of pixels": _ratio(truth, np.full(len(truth), truth.sum())),
    }
    images = (counts.truth > 0).sum(axis=0)
    return [
        {"class": name, "images": int(images[c])}
        | {key: float(values[c]) if np.isfinite(values[c]) else None for key, values in columns.items()}
        for c, name in enumerate(classes)
    ]


def confused_rows(confusion: Ints, classes: tuple[str, ...], most: int = 20) -> list[dict[str, Any]]:
    """The pairs of classes that share the most wrong pixels, most first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    cells = [divmod(cell, len(classes)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()]
    return [
        {
            "true": classes[t],
            "predicted": classes[p],
            "share of true": float(wrong[t, p] / confusion[t].sum()),
            "share of all wrong pixels": float(wrong[t, p] / wrong.sum()),
        }
        for t, p in cells
        if wrong[t, p]
    ]


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """NaN where `below` is 0."""
    ratio: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio


def _mean_where(values: Floats) -> Floats:
    """(rows, columns) -> (rows,): the mean of the columns that are not NaN, NaN where all are."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))
