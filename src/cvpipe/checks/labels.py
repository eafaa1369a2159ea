"""Classes: how many examples they have, and which labels the features contradict."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.checks.findings import Finding, finding
from cvpipe.checks.places import Places
from cvpipe.types import Labels

FOLDS = 5
LEAST = 8
"""Examples that a class needs for its labels to be judged."""
MARGIN = 0.4
"""By how much the probability of another class must exceed that of the given one."""
_STRENGTH, _STRENGTH_OF_ALL = 0.03, 15.0
"""Of one example, and at least of all together, against the prior (C of the logistic regression). With more,
probabilities of the wrong class are as certain as those of the right one."""
_FITTED = 20_000
_RARE_SHARE = 0.1


def class_counts(places: Places) -> dict[str, dict[str, int]]:
    """Split -> class -> images (for objects: objects). Empty where targets say no class."""
    assert places.labels is not None
    counts = {}
    for split in places.splits:
        count: Counter[str] = Counter()
        for target in split.targets:
            count.update(_names(target, places.labels))
        counts[split.name] = dict(count)
    return counts


def _names(target: Any, labels: Labels) -> list[str]:
    if isinstance(target, (int, np.integer)):
        return [labels.classes[int(target)]]
    if isinstance(target, tuple):
        return [labels.classes[int(item)] for item in target]
    found = getattr(target, "labels", None)
    if found is not None:
        return [labels.classes[int(item)] for item in found]
    label = getattr(target, "label", None)
    return [label] if isinstance(label, str) else []


def find_uneven(counts: dict[str, dict[str, int]], classes: Sequence[str], unit: str = "examples") -> list[Finding]:
    """Classes that a split has no example of, and classes of which train has few.

    Few is less than a tenth of what the largest class has.
    """
    found = []
    for split, count in counts.items():
        for name in classes:
            if sum(count.values()) and not count.get(name):
                where = ", ".join(f"{other} {counts[other].get(name, 0)}" for other in counts if other != split)
                text = f"no example in {split} ({where})" if where else f"no example in {split}"
                found.append(finding("missing_class", split, "", text, annotation=name, value=0))
    train = counts.get("train", {})
    most = max(train.values(), default=0)
    for name, number in sorted(train.items(), key=lambda item: item[1]):
        if number < _RARE_SHARE * most:
            text = f"{number:,} {unit} in train, the largest class has {most:,}"
            found.append(finding("rare_class", "train", "", text, annotation=name, value=number))
    return found


@dataclass(frozen=True)
class Suspect:
    """A label that the features contradict.

    Attributes:
        position: of the example.
        suggested: class index.
        given_probability, suggested_probability: by models that have not seen the example.
    """

    position: int
    suggested: int
    given_probability: float
    suggested_probability: float


def suspects(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], families: npt.NDArray[np.int64], seed: int = 0
) -> tuple[list[Suspect], int]:
    """Likely label errors, most certain first, and how many examples were judged.

    Confident learning (Northcutt, Jiang, Chuang 2021, arXiv:1911.00068): an example counts for a class where its
    out-of-sample probability is at least the mean one of the examples with that label; an example that counts for
    another class than its own, and clearly more so, is off the diagonal of the confident joint. Probabilities come from
    logistic regression in five folds; a family (near copies) is never divided between folds.

    Args:
        features: (n, length).
        labels: (n,) class indices. Classes with fewer than 8 examples are left out.
        families: (n,) equal numbers stay together.
    """
    counts = np.bincount(labels)
    judged = np.flatnonzero(counts[labels] >= LEAST)
    present, own = np.unique(labels[judged], return_inverse=True)
    if len(present) < 2:
        return [], 0
    probabilities = _out_of_sample(features[judged], own, families[judged], len(present), seed)
    everyone = np.arange(len(own))
    given = probabilities[everyone, own]
    thresholds = np.array([given[own == k].mean() for k in range(len(present))])
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    best = confident[everyone, suggested]
    wrong = np.flatnonzero((suggested != own) & (best >= given + MARGIN))
    order = wrong[np.argsort(given[wrong] - best[wrong], kind="stable")]
    return [Suspect(int(judged[i]), int(present[suggested[i]]), float(given[i]), float(best[i])) for i in order], len(
        judged
    )


def _out_of_sample(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    families: npt.NDArray[np.int64],
    classes: int,
    seed: int,
) -> npt.NDArray[np.float64]:
    """(n, classes) probabilities from models that have seen neither the example nor its family."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    _, firsts, family = np.unique(families, return_index=True, return_inverse=True)
    fold_of = np.zeros(len(firsts), np.int64)
    with warnings.catch_warnings():
        # a class whose examples are of few families: it is not in all folds
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, members) in enumerate(
            StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(firsts, labels[firsts])
        ):
            fold_of[members] = fold
    folds = fold_of[np.asarray(family).reshape(-1)]
    rng = np.random.default_rng(seed)
    found = np.zeros((len(labels), classes))
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if not len(outside):
            continue
        if len(inside) > _FITTED:
            inside = np.sort(rng.choice(inside, _FITTED, replace=False))
        if len(np.unique(labels[inside])) < 2:
            found[outside, labels[inside[0]]] = 1.0
            continue
        mean, scale = features[inside].mean(axis=0), float(features[inside].std(axis=0).mean()) + 1e-9
        model = LogisticRegression(C=max(_STRENGTH, _STRENGTH_OF_ALL / len(inside)), max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((features[inside] - mean) / scale, labels[inside])
        found[np.ix_(outside, model.classes_)] = model.predict_proba((features[outside] - mean) / scale)
    return found


def find_label_errors(
    places: Places, chosen: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32], families: npt.NDArray[np.int64]
) -> tuple[list[Finding], int]:
    """Label errors of whole images with one class each, and how many labels were judged.

    Args:
        chosen: (k,) images.
        vectors: (k, length) their features.
        families: of all images.
    """
    assert places.labels is not None
    targets = [places.target(int(place)) for place in chosen]
    if places.labels.multi_label or not all(isinstance(target, (int, np.integer)) for target in targets):
        return [], 0
    labels = np.array(targets, dtype=np.int64)
    found = []
    items, judged = suspects(vectors, labels, families[chosen])
    for item in items:
        place = int(chosen[item.position])
        text = _text(places.labels.classes, int(labels[item.position]), item)
        value = item.suggested_probability - item.given_probability
        found.append(finding("label_error", places.name(place), places.path(place), text, value=value))
    return found, judged


def _text(classes: Sequence[str], given: int, item: Suspect) -> str:
    return (
        f"labelled {classes[given]} ({item.given_probability:.0%}), looks like {classes[item.suggested]} "
        f"({item.suggested_probability:.0%})"
    )


def find_box_errors(
    places: Places, crops: Sequence[tuple[int, Any]], families: npt.NDArray[np.int64]
) -> tuple[list[Finding], int]:
    """Label errors of boxes, and how many labels were judged.

    Args:
        crops: (image, (boxes, length) float16 features of its boxes in order) each.
        families: of all images. Boxes of one image stay together, too.
    """
    from cvpipe.checks.pairs import directions

    assert places.labels is not None
    owner = np.concatenate([np.full(len(features), place) for place, features in crops])
    inner = np.concatenate([np.arange(len(features)) for _, features in crops])
    labels = np.concatenate([places.target(place).labels for place, _ in crops])
    vectors = directions(np.concatenate([features for _, features in crops]))
    items, judged = suspects(vectors, labels, families[owner])
    found = []
    for item in items:
        place, position = int(owner[item.position]), int(inner[item.position])
        target = places.target(place)
        text = _text(places.labels.classes, int(labels[item.position]), item)
        value = item.suggested_probability - item.given_probability
        name = str(target.ids[position]) if target.ids else f"box {position}"
        found.append(finding("label_error", places.name(place), places.path(place), text, annotation=name, value=value))
    return found, judged
