"""Blocked searches give what a double loop gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.checks import pairs


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ROWS", 5)
    monkeypatch.setattr(pairs, "COLUMNS", 7)


def unit(seed: int, count: int, length: int = 4) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(-0.5, 0.99))
@settings(max_examples=40)
def test_all_pairs_are_found(seed: int, count: int, least: float) -> None:
    vectors = unit(seed, count)
    found = pairs.alike_pairs(vectors, least)
    products = vectors @ vectors.T
    clear = {(i, j) for i in range(count) for j in range(i) if products[i, j] > max(least, 0) + 1e-5}
    possible = {(i, j) for i in range(count) for j in range(i) if products[i, j] >= least - 1e-5}
    got = list(zip(found.late.tolist(), found.early.tolist(), strict=True))
    assert len(got) == len(set(got))
    if all(sum(i == late for late, _ in got) < pairs.PARTNERS for i in range(count)):
        assert clear <= set(got) <= possible
    assert np.allclose(found.values, np.minimum(products[found.late, found.early], 1), atol=1e-5)


def test_many_equal_images_have_few_pairs_of_the_earliest_ones() -> None:
    found = pairs.alike_pairs(np.ones((100, 1), np.float32), 0.9)
    counts = np.bincount(found.late, minlength=100)
    assert counts.tolist() == [min(i, pairs.PARTNERS) for i in range(100)]
    assert found.early.max() == pairs.PARTNERS - 1


@given(st.integers(0, 2**32 - 1), st.integers(7, 40))
@settings(max_examples=20)
def test_loneliness_is_that_of_scikit_learn(seed: int, count: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    vectors = unit(seed, count)
    near = NearestNeighbors(n_neighbors=pairs.NEIGHBOURS, metric="cosine").fit(vectors)
    wanted = near.kneighbors()[0].mean(axis=1)  # without arguments: the point itself does not count
    assert np.allclose(pairs.loneliness(vectors), wanted, atol=1e-4)


def test_directions_are_those_of_scikit_learns_components() -> None:
    from sklearn.decomposition import PCA

    features = (np.random.default_rng(0).normal(size=(50, 30)) * np.arange(1, 31)).astype(np.float16)
    found = pairs.directions(features)
    wanted = PCA().fit_transform(features.astype(np.float32))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(found @ found.T, wanted @ wanted.T, atol=1e-3)
    assert pairs.directions(np.random.default_rng(0).normal(size=(300, 200)).astype(np.float16)).shape == (300, 128)


def test_one_image_has_no_pairs() -> None:
    assert len(pairs.near_pairs(np.zeros((1, 1024), np.uint8), 10).late) == 0
    assert pairs.loneliness(np.ones((1, 3), np.float32)).tolist() == [0.0]
