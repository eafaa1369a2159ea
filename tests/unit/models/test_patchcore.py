"""PatchCore: the coreset, distances, the score, what is not looked at, and that a fitted network can be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from cvpipe.config_file import parse_config
from cvpipe.data.transforms import PAD_GREY
from cvpipe.errors import ModelError
from cvpipe.models.fold import fold_batch_norm
from cvpipe.models.patchcore import (
    PatchCore,
    aggregated,
    build_patchcore,
    coreset,
    equalized,
    gaussian_blur,
    nearest,
    reweighted,
    seen_cells,
    visible,
)

SEEDS = st.integers(0, 2**31 - 1)


def config(**model: Any) -> Any:
    values = {"name": "patchcore", "backbone": "test_resnet", "pretrained": False, "strides": [4, 8], **model}
    return parse_config({"task": "anomaly", "model": values, "data": {"train": "x", "image_size": 64}})


@pytest.fixture(scope="module")
def network() -> PatchCore:
    torch.manual_seed(0)
    found = build_patchcore(config(), False).eval()
    patches = torch.cat(found.patches(images(0)))
    found.bank = patches[coreset(patches, 60, 0)].clone()
    found.threshold.fill_(2.5)
    return found


def images(seed: int, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def points(seed: int, count: int, dimensions: int = 5) -> torch.Tensor:
    return torch.randn((count, dimensions), generator=torch.Generator().manual_seed(seed))


def radius(patches: torch.Tensor, chosen: Sequence[int]) -> float:
    return float(torch.cdist(patches, patches[list(chosen)]).min(dim=1).values.max())


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 12))
def test_the_coreset_is_the_greedy_one(seed: int, count: int) -> None:
    patches = points(seed, 40)
    found = coreset(patches, count, 0).tolist()
    assert len(set(found)) == len(found) == count
    assert found[0] == int((patches - patches.mean(dim=0)).norm(dim=1).argmin())
    for step in range(1, count):
        apart = torch.cdist(patches, patches[found[:step]]).min(dim=1).values
        assert float(apart[found[step]]) == pytest.approx(float(apart.max()), rel=1e-4)


@pytest.mark.parametrize("candidates", [1, 3, 16])
def test_the_choice_among_the_farthest_is_the_choice_among_all(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = points(3, 200)
    whole = coreset(patches, 90, 0)  # all are candidates: looked at once
    monkeypatch.setattr("cvpipe.models.patchcore._CANDIDATES", candidates)
    assert coreset(patches, 90, 0).tolist() == whole.tolist()


def test_the_coreset_covers_better_than_chance_after_projection() -> None:
    patches = points(1, 1500, 400)
    patches[:300] *= 4  # few far ones, which chance misses
    greedy = radius(patches, coreset(patches, 350, 0).tolist())
    chance = [radius(patches, torch.randperm(1500, generator=torch.Generator().manual_seed(s))[:350]) for s in range(3)]
    assert greedy < min(chance)


def test_copies_are_remembered_once() -> None:
    patches = points(2, 6).repeat(5, 1)
    assert sorted(index % 6 for index in coreset(patches, 20, 0).tolist()) == list(range(6))
    assert len(coreset(patches[:0], 5, 0)) == 0


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 1000.0]))
def test_nearest_agrees_with_scikit_learn(seed: int, offset: float) -> None:
    patches, bank = points(seed, 30) + offset, points(seed + 1, 12) + offset
    distance, index = nearest(patches, bank)
    expected, positions = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank).kneighbors(patches)
    np.testing.assert_allclose(distance, expected[:, 0], rtol=1e-3, atol=1e-4)
    if not offset:
        assert index.tolist() == positions[:, 0].tolist()


def test_many_patches_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, bank = points(0, 50), points(1, 7)
    whole = nearest(patches, bank)
    monkeypatch.setattr("cvpipe.models.patchcore._MOST_DISTANCES", 20)
    assert all(torch.equal(one, other) for one, other in zip(nearest(patches, bank), whole, strict=True))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 9))
def test_the_score_is_the_papers(seed: int, neighbours: int) -> None:
    patch, bank = points(seed, 1), points(seed + 1, 10)
    distance, index = nearest(patch, bank)
    # equation 7, word for word
    around = (bank - bank[index]).norm(dim=1).argsort()[:neighbours]
    exponents = (bank[around] - patch).norm(dim=1).double().exp()
    expected = (1 - distance.double().exp() / exponents.sum()) * distance
    assert float(reweighted(distance, patch, index, bank, neighbours)) == pytest.approx(float(expected), rel=1e-4)


def test_large_distances_do_not_overflow() -> None:
    patch, bank = points(0, 1) * 1e4, points(1, 10)
    distance, index = nearest(patch, bank)
    assert torch.isfinite(reweighted(distance, patch, index, bank, 5)).all()
    assert torch.equal(reweighted(distance, patch, index, bank[:1], 5), distance)


def test_places_are_means_of_their_neighbourhood() -> None:
    fine, coarse = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    found = aggregated([fine, coarse])
    assert found.shape == (2, 8, 8, 8)
    torch.testing.assert_close(found[:, :3, 3, 3], fine[:, :, 2:5, 2:5].mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, :3, 0, 0], fine[:, :, :2, :2].mean(dim=(2, 3)))
    near = F.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(found[:, 3:], F.interpolate(near, size=(8, 8), mode="bilinear"))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]), st.integers(3, 40), st.integers(3, 40))
def test_the_blur_agrees_with_scipy(seed: int, sigma: float, height: int, width: int) -> None:
    maps = torch.randn((2, 1, height, width), generator=torch.Generator().manual_seed(seed))
    found = gaussian_blur(maps, sigma)
    for one, blurred in zip(maps[:, 0], found[:, 0], strict=True):
        np.testing.assert_allclose(blurred, gaussian_filter(one.numpy(), sigma), atol=1e-5)
    assert torch.equal(gaussian_blur(maps, 0), maps)


def test_grey_bars_are_not_looked_at(network: PatchCore) -> None:
    plain = images(5, 2)
    padded = plain.clone()
    padded[0, :, :16] = padded[0, :, -16:] = PAD_GREY
    padded[1, :, 30:40] = PAD_GREY  # in the middle: a part of the image
    seen = visible(padded)
    assert seen[0].any(dim=1).tolist() == [False] * 16 + [True] * 32 + [False] * 16
    assert seen[1].all()
    assert seen_cells(seen, (16, 16))[0].sum() == 8 * 16
    assert [len(found) for found in network.patches(padded)] == [8 * 16, 16 * 16]
    heat = network(padded)["heat"]
    assert (heat[0, :16] == 0).all()
    assert (heat[0, 16:-16] > 0).all()
    assert visible(torch.full((1, 3, 64, 64), PAD_GREY, dtype=torch.uint8)).all()


def test_known_images_are_near_and_others_far(network: PatchCore) -> None:
    with torch.no_grad():
        whole = torch.cat(network.patches(images(0)))
        known = nearest(whole, network.bank)[0]
        strange = network(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    assert float(strange["score"]) > float(known.max())
    assert strange["heat"].shape == (1, 64, 64)
    assert strange["heat"].dtype == strange["score"].dtype == torch.float32
    assert strange["threshold"].tolist() == [2.5]


def test_heat_is_told_in_units_of_the_score(network: PatchCore) -> None:
    other = PatchCore(network.stages, network.positions, tuple(network.bank.shape))
    other.load_state_dict(network.state_dict())
    plain = other(images(6))["heat"]
    other.pixel_threshold.fill_(0.5)
    torch.testing.assert_close(other(images(6))["heat"], plain * 2)
    torch.testing.assert_close(other(images(6))["score"], network(images(6))["score"])


def test_normalized_features_do_not_know_their_length(network: PatchCore) -> None:
    other = PatchCore(network.stages, network.positions, normalize=True)
    found = other.dense_outputs(images(6))
    torch.testing.assert_close(found.norm(dim=1), torch.ones_like(found[:, 0]))
    torch.testing.assert_close(found, F.normalize(network.dense_outputs(images(6)), dim=1))


@given(SEEDS, st.floats(0.3, 1.2), st.floats(-30, 30))
@settings(max_examples=30, deadline=None)
def test_equalized_images_do_not_know_light_and_exposure(seed: int, gain: float, offset: float) -> None:
    grey = torch.randn((2, 3, 24, 24), generator=torch.Generator().manual_seed(seed)) * 20 + 120
    seen = torch.ones((2, 24, 24), dtype=torch.bool)
    seen[1, :5] = False
    found = equalized(grey, seen)
    torch.testing.assert_close(found[0].mean(), torch.tensor(120.0), atol=0.5, rtol=0)
    torch.testing.assert_close(found[0].std(correction=0), torch.tensor(45.0), atol=1, rtol=0)
    assert torch.equal(found[1, :, :5], grey[1, :, :5]), "the bars stay as they are"
    other = torch.where(seen[:, None], (grey - 120) * gain + 120 + offset, grey)
    torch.testing.assert_close(equalized(other, seen), found, atol=0.01, rtol=0)


def test_noise_of_a_blank_image_stays_noise() -> None:
    blank = torch.full((1, 3, 24, 24), 80.0) + torch.rand((1, 3, 24, 24))
    found = equalized(blank, torch.ones((1, 24, 24), dtype=torch.bool))
    assert found.std() < 5
    assert not found.isnan().any()


def test_equalizing_is_part_of_the_network(network: PatchCore) -> None:
    other = PatchCore(network.stages, network.positions, equalize=True)
    bright = images(6).float() * 0.5 + 60
    torch.testing.assert_close(
        other.dense_outputs(bright), other.dense_outputs(images(6).float()), atol=1e-3, rtol=1e-3
    )
    assert build_patchcore(config(equalize=True), False).equalize


def test_an_images_answer_does_not_depend_on_its_batch(network: PatchCore) -> None:
    batch = images(7, 4)
    together, alone = network(batch), network(batch[2:3])
    for name, value in together.items():
        torch.testing.assert_close(value[2:3], alone[name], rtol=1e-4, atol=1e-4)


def test_training_changes_nothing_in_the_features(network: PatchCore) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    expected = network(images(8))["score"]
    network.train()
    assert network.training
    torch.testing.assert_close(network(images(8))["score"], expected)
    network.eval()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_fitted_network_is_loaded_into_one_that_was_not(network: PatchCore) -> None:
    state = network.state_dict()
    assert network.architecture == {"bank": [60, network.bank.shape[1]]}
    for architecture in (None, network.architecture, {"bank": [5, network.bank.shape[1]]}):
        other = build_patchcore(config(), False, architecture).eval()
        other.load_state_dict(state)
        torch.testing.assert_close(other(images(9)), network(images(9)))
    smaller = build_patchcore(config(strides=[8]), False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        smaller.load_state_dict(state)


def test_folding_keeps_the_answers(network: PatchCore) -> None:
    folded = fold_batch_norm(network, images(3, 1))
    assert folded is not network
    torch.testing.assert_close(folded(images(4)), network(images(4)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("top", "neighbours"), [(0.0, 0), (0.1, 9)])
def test_other_scores(network: PatchCore, top: float, neighbours: int) -> None:
    other = PatchCore(network.stages, network.positions, tuple(network.bank.shape), neighbours=neighbours, top=top)
    other.load_state_dict(network.state_dict())
    other.eval()
    with torch.no_grad():
        distances = nearest(network.patches(images(6, 1))[0], network.bank)[0].sort(descending=True).values
    wanted = distances[: max(1, round(top * len(distances)))].mean()
    torch.testing.assert_close(other(images(6, 1))["score"][0], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_wrong_is_named(network: PatchCore) -> None:
    with pytest.raises(ModelError, match=r"model.name: unknown network for anomaly detection 'patchcroe'.*patchcore"):
        build_patchcore(config(name="patchcroe"), False)
    with pytest.raises(ModelError, match=r"test_resnet has no feature map of stride 5. It has: 2, 4, 8"):
        build_patchcore(config(strides=[5, 8]), False)
    with pytest.raises(ModelError, match="was not fitted"):
        build_patchcore(config(), False)(images(0))
