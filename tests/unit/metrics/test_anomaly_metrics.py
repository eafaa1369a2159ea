"""Metrics of anomaly scores: against scikit-learn, and against a slow and direct per-region overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from cvpipe.metrics.anomaly import (
    PRO_LIMIT,
    PixelCounter,
    area_under_roc,
    best_threshold,
    image_statistics,
    levels_of,
    pixel_statistics,
)

SEEDS = st.integers(0, 2**32 - 1)


def scored(seed: int, count: int = 40) -> tuple[Any, Any]:
    """Scores with ties, and which of them are defects; both kinds occur."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.4
    truth[:2] = (True, False)
    return np.round(rng.normal(truth * 1.0, 1.0) + 3, 1), truth


def ones(count: int) -> Any:
    return np.ones((1, count))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(1, 5))
def test_image_metrics_agree_with_scikit_learn(seed: int, threshold: float) -> None:
    scores, truth = scored(seed)
    found = {name: value[0] for name, value in image_statistics(scores, truth, threshold)(ones(len(scores))).items()}
    answers = scores >= threshold
    assert found["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["image_ap"] == pytest.approx(average_precision_score(truth, scores))
    assert found["f1"] == pytest.approx(f1_score(truth, answers))
    assert found["recall"] == pytest.approx(recall_score(truth, answers))
    assert found["false_alarm_rate"] == pytest.approx(answers[~truth].mean())
    if answers.any():
        assert found["precision"] == pytest.approx(precision_score(truth, answers))
    assert found["best_f1"] == pytest.approx(max(f1_score(truth, scores >= level) for level in scores))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_weights_stand_for_repeated_images(seed: int) -> None:
    scores, truth = scored(seed, 15)
    weights = np.random.default_rng(seed).integers(0, 4, 15)
    weights[:2] = 1
    drawn = np.repeat(np.arange(15), weights)
    weighted = image_statistics(scores, truth, 3.0)(weights[None].astype(float))
    repeated = image_statistics(scores[drawn], truth[drawn], 3.0)(ones(len(drawn)))
    for name, value in weighted.items():
        np.testing.assert_allclose(value, repeated[name], err_msg=name)


def test_metrics_without_a_defect_are_undefined() -> None:
    found = image_statistics(np.array([1.0, 3.0]), np.array([False, False]), 2.0)(ones(2))
    assert found.pop("false_alarm_rate")[0] == 0.5
    assert all(np.isnan(value[0]) for value in found.values())
    assert np.isnan(area_under_roc(np.array([1.0]), np.array([True])))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_threshold_has_the_best_f1(seed: int) -> None:
    scores, truth = scored(seed)
    found = best_threshold(scores, truth, 0.9)
    assert f1_score(truth, scores >= found) == pytest.approx(max(f1_score(truth, scores >= level) for level in scores))
    assert found not in scores or found == scores.min()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 0.9, 1.0]))
def test_without_defects_the_threshold_is_a_quantile(seed: int, quantile: float) -> None:
    scores = np.random.default_rng(seed).normal(5, 1, 50)
    found = best_threshold(scores, np.zeros(50, bool), quantile)
    assert (scores < found).mean() == pytest.approx(quantile, abs=0.021)
    assert (scores < found).mean() >= quantile - 1e-9 or quantile < 1


def pixels(seed: int, images: int = 4, side: int = 12) -> tuple[list[Any], list[Any]]:
    """Heats with ties and masks, some of them empty, some with several regions."""
    rng = np.random.default_rng(seed)
    masks = []
    for image in range(images):
        mask = np.zeros((side, side), bool)
        for _ in range(image):
            top, left = rng.integers(0, side - 3, 2)
            mask[top : top + rng.integers(1, 4), left : left + rng.integers(1, 4)] = True
        masks.append(mask)
    heats = [np.round(rng.normal(mask * 1.0, 1.0) + 4, 1).astype(np.float32) for mask in masks]
    return heats, masks


def regions(mask: Any) -> list[Any]:
    """Connected regions, sides and corners, by flooding."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        front, region = [left.pop()], []
        while front:
            y, x = front.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(np.array(region))
    return found


def direct_pro(heats: list[Any], masks: list[Any]) -> float:
    """The definition: one threshold after the other, one region after the other, then the area by small steps."""
    good = np.concatenate([heat[~mask] for heat, mask in zip(heats, masks, strict=True)])
    inside = [heat[tuple(r.T)] for heat, mask in zip(heats, masks, strict=True) for r in regions(mask)]
    x, y = [0.0], [0.0]
    for level in np.unique(np.concatenate([heat.ravel() for heat in heats]))[::-1]:
        x.append((good >= level).mean())
        y.append(np.mean([(values >= level).mean() for values in inside]))
    at = np.linspace(0, PRO_LIMIT, 200_001)
    return float(np.interp(at, x, y).mean())


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_pixel_metrics_agree_with_the_definitions(seed: int) -> None:
    heats, masks = pixels(seed)
    counter = PixelCounter(np.unique(np.concatenate([heat.ravel() for heat in heats])).astype(np.float64))
    for heat, mask in zip(heats, masks, strict=True):
        counter.add(heat, mask)
    counter.skip()
    own = seed % len(counter.levels)
    found = pixel_statistics(counter.counts(), own)(ones(5))
    flat = [np.concatenate([part.ravel() for part in parts]) for parts in (masks, heats)]
    assert found["pixel_auroc"][0] == pytest.approx(roc_auc_score(*flat))
    assert found["pro"][0] == pytest.approx(direct_pro(heats, masks), abs=1e-4)
    assert found["pixel_f1"][0] == pytest.approx(f1_score(flat[0], flat[1] >= counter.levels[own]))
    assert "pixel_f1" not in pixel_statistics(counter.counts())(ones(5))


def test_a_grid_of_levels_is_enough() -> None:
    rng = np.random.default_rng(0)
    masks = [mask.repeat(3, axis=0).repeat(3, axis=1) for mask in pixels(3, images=4)[1]]
    heats = [(rng.gamma(2, 1, mask.shape) + 2 * mask).astype(np.float32) for mask in masks]
    levels = levels_of(heats, 2.345)
    own = int(np.searchsorted(levels, 2.345))
    assert levels[own] == 2.345
    assert (np.diff(levels) > 0).all()
    assert len(levels) < 2000
    counter = PixelCounter(levels)
    for heat, mask in zip(heats, masks, strict=True):
        counter.add(heat, mask)
    found = pixel_statistics(counter.counts(), own)(ones(4))
    flat = [np.concatenate([part.ravel() for part in parts]) for parts in (masks, heats)]
    assert found["pixel_auroc"][0] == pytest.approx(roc_auc_score(*flat), abs=1e-4)
    assert found["pro"][0] == pytest.approx(direct_pro(heats, masks), abs=1e-3)
    assert found["pixel_f1"][0] == pytest.approx(f1_score(flat[0], flat[1] >= 2.345))


def test_a_perfect_map_and_a_blind_one() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:5, 2:5] = True
    for heat, auroc, pro in ((mask * 1.0, 1.0, 1.0), (np.ones((10, 10)), 0.5, PRO_LIMIT / 2)):
        counter = PixelCounter(np.unique(heat))
        counter.add(heat.astype(np.float32), mask)
        found = pixel_statistics(counter.counts())(ones(1))
        assert found["pixel_auroc"][0] == pytest.approx(auroc)
        assert found["pro"][0] == pytest.approx(pro)
