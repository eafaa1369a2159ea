"""Swapped labels are found, right ones are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.checks.labels import find_uneven, suspects

SWAPPED = 0.05


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=8)
def test_swapped_labels_among_clusters(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 16)) * 2
    true = np.arange(classes * 60) % classes
    features = (centres[true] + rng.normal(size=(len(true), 16)) * 0.5).astype(np.float32)
    wrong = rng.choice(len(true), max(1, int(SWAPPED * len(true))), replace=False)
    given_labels = true.copy()
    given_labels[wrong] = (true[wrong] + 1) % classes
    found, judged = suspects(features, given_labels, np.arange(len(true)))
    positions = {item.position for item in found}
    hit = len(positions & set(wrong.tolist()))
    assert judged == len(true)
    assert hit >= 0.6 * len(wrong)
    assert hit >= 0.8 * len(positions)
    assert all(item.suggested != given_labels[item.position] for item in found)
    margins = [item.suggested_probability - item.given_probability for item in found]
    assert margins == sorted(margins, reverse=True)


def test_copies_do_not_vouch_for_each_other() -> None:
    """Three copies of one wrongly labelled image in three folds would teach their own error."""
    rng = np.random.default_rng(0)
    true = np.arange(120) % 2
    features = np.where(true[:, None] == 0, -1, 1) + rng.normal(size=(120, 4)) * 0.2
    labels, families = true.copy(), np.arange(120)
    for copy in (2, 4, 6, 8, 10):
        features[copy], families[copy] = features[0], 0
    labels[[0, 2, 4, 6, 8, 10]] = 1
    found, _ = suspects(features.astype(np.float32), labels, families)
    assert {0, 2, 4, 6, 8, 10} <= {item.position for item in found}


def test_classes_with_few_examples_are_not_judged() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 20 + [1] * 20 + [2] * 3)
    features = rng.normal(size=(43, 4)).astype(np.float32)
    found, judged = suspects(features, labels, np.arange(43))
    assert judged == 40
    assert all(item.position < 40 and item.suggested < 2 for item in found)
    assert suspects(features[:20], labels[:20], np.arange(20)) == ([], 0)


def test_real_digits_with_swapped_labels(digits: Path, tmp_path: Path) -> None:
    """Plain features on 600 scanned digits, 30 of them with the label of another class."""
    from planted import scanned

    from cvpipe.checks.pairs import directions

    paths = sorted(map(str, (digits / "train").rglob("*.png")))[::2]
    scan = scanned(paths, tmp_path / "scan", "plain")
    labels = np.array([int(Path(path).parent.name) for path in paths])
    rng = np.random.default_rng(1)
    wrong = rng.choice(len(paths), 30, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 30)) % 10
    found, _ = suspects(directions(scan.features), labels, np.arange(len(paths)))
    positions = [item.position for item in found]
    hit = len(set(positions) & set(wrong.tolist()))
    assert hit >= 23
    assert hit >= 0.9 * len(positions)
    right = [int(Path(paths[item.position]).parent.name) == item.suggested for item in found]
    assert np.mean(right) > 0.85


def test_missing_and_rare_classes() -> None:
    counts = {"train": {"a": 100, "b": 9}, "val": {"a": 10, "c": 1}, "test": {}}
    found = [(item.check, item.split, item.annotation) for item in find_uneven(counts, ["a", "b", "c"])]
    assert found == [("missing_class", "train", "c"), ("missing_class", "val", "b"), ("rare_class", "train", "b")]
