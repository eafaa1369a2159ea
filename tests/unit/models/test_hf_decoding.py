"""From what the transformers models give to boxes, masks and points: compared with their own image processors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.models.hf_boxes import best_boxes, relative_boxes
from cvpipe.models.hf_masks import best_masks
from cvpipe.models.hf_network import Made
from cvpipe.models.hf_points import HfPoints, decode_points, gaussian_maps

pytest.importorskip("transformers")

SEEDS = st.integers(0, 2**31 - 1)


def random_queries(seed: int, images: int, queries: int, logits: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        logits=3 * torch.randn(images, queries, logits, generator=generator),
        pred_boxes=torch.rand(images, queries, 4, generator=generator),
    )


def compare(ours: dict[str, torch.Tensor], theirs: list[dict[str, torch.Tensor]]) -> None:
    """Sorted by score: DETR's processor leaves the queries' order."""
    for row, found in enumerate(theirs):
        order = found["scores"].argsort(descending=True, stable=True)
        assert torch.allclose(ours["scores"][row], found["scores"][order], atol=1e-6)
        assert torch.equal(ours["labels"][row], found["labels"][order])
        assert torch.allclose(ours["boxes"][row], found["boxes"][order], atol=1e-3)


@given(seed=SEEDS, queries=st.integers(1, 12), classes=st.integers(1, 5))
@settings(max_examples=25)
def test_boxes_with_a_sigmoid_are_those_of_rt_detrs_processor(seed: int, queries: int, classes: int) -> None:
    from transformers import RTDetrImageProcessor

    found = random_queries(seed, 2, queries, classes)
    theirs = RTDetrImageProcessor().post_process_object_detection(
        found, threshold=-1.0, target_sizes=[(64, 96), (64, 96)]
    )
    compare(best_boxes(found.logits, found.pred_boxes, (64, 96), classes), theirs)


@given(seed=SEEDS, queries=st.integers(1, 12), classes=st.integers(1, 5))
@settings(max_examples=25)
def test_boxes_with_a_softmax_are_those_of_detrs_processor(seed: int, queries: int, classes: int) -> None:
    from transformers import DetrImageProcessor

    found = random_queries(seed, 2, queries, classes + 1)
    theirs = DetrImageProcessor().post_process_object_detection(
        found, threshold=-1.0, target_sizes=[(64, 96), (64, 96)]
    )
    compare(best_boxes(found.logits, found.pred_boxes, (64, 96), classes), theirs)


@given(corners=st.lists(st.tuples(*[st.floats(0, 64)] * 4), max_size=4))
def test_relative_boxes_come_back_from_the_queries(corners: list[tuple[float, ...]]) -> None:
    boxes = torch.tensor(corners).reshape(-1, 4)
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    shares = relative_boxes(boxes, (64, 128))
    assert bool(((shares >= 0) & (shares <= 1)).all())
    logits = torch.arange(len(boxes), 0, -1.0)[None, :, None]  # keeps the order
    back = best_boxes(logits, shares[None], (64, 128), classes=1)["boxes"][0]
    assert torch.allclose(back, boxes, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_those_of_mask2formers_processor(seed: int) -> None:
    from transformers import Mask2FormerImageProcessor

    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(2, 5, 12, 12, generator=generator)
    masks[:, 3] = -9.0  # nowhere
    found = SimpleNamespace(
        class_queries_logits=3 * torch.randn(2, 5, 4, generator=generator), masks_queries_logits=masks
    )
    # the processor counts pixels at 384 x 384
    ours = best_masks(found.class_queries_logits, found.masks_queries_logits, (384, 384))
    theirs = Mask2FormerImageProcessor().post_process_instance_segmentation(
        found, threshold=1e-9, return_binary_maps=True
    )
    assert torch.equal(ours["scores"], ours["scores"].sort(dim=1, descending=True).values)
    for row, result in enumerate(theirs):
        known = [(info["score"], info["label_id"], mask) for info, mask in zip(
            result["segments_info"], result["segmentation"], strict=True
        )]  # fmt: skip
        assert int((ours["scores"][row] > 1e-9).sum()) == len(known) > 0
        known.sort(key=lambda entry: -entry[0])
        for slot, (score, label, mask) in enumerate(known):
            assert float(ours["scores"][row, slot]) == pytest.approx(score, abs=2e-6)
            assert int(ours["labels"][row, slot]) == label
            rows, columns = np.nonzero(mask.numpy())
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert ours["boxes"][row, slot].tolist() == box
            logits = torch.logit(ours["mask_maps"][row, slot])
            large = torch.nn.functional.interpolate(logits[None, None], size=(384, 384), mode="bilinear")[0, 0]
            assert float(((large > 0) != mask.bool()).float().mean()) < 1e-3
        assert not ours["boxes"][row, len(known) :].any()


# points


def blobs(seed: int, images: int, points: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Uneven hills: the peaks are between cells, with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    maps = np.zeros((images, points, *size))
    for image in range(images):
        for point in range(points):
            for height in (1.0, 0.4):
                y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
                width = rng.uniform(1.5, 3, size=2)
                maps[image, point] += height * np.exp(-(((rows - y) / width[0]) ** 2 + ((columns - x) / width[1]) ** 2))
    return (maps + rng.normal(0, 0.01, maps.shape)).astype(np.float32)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_points_are_those_of_vitposes_processor(seed: int) -> None:
    from transformers import VitPoseImageProcessor

    height, width = 64, 48
    maps = blobs(seed, images=2, points=3, size=(16, 12))
    ours = decode_points(torch.from_numpy(maps), (height, width))
    # a crop that the processor maps pixel by pixel onto the canvas; it counts from the first pixel's centre
    centre = np.array([[(width - 1) / 2, (height - 1) / 2]] * 2, np.float32)
    scale = np.array([[width - 1, height - 1]] * 2, np.float32) / 200
    theirs, scores = VitPoseImageProcessor().keypoints_from_heatmaps(maps, centre, scale)
    expected = np.clip(theirs + 0.5, 0, [width, height])
    assert np.abs(ours[..., :2].numpy() - expected).max() < 0.05
    assert np.allclose(ours[..., 2].numpy(), np.clip(scores[..., 0], 0, 1), atol=1e-6)


@given(x=st.floats(8, 56), y=st.floats(8, 88), visibility=st.sampled_from([0.0, 1.0, 2.0]))
@settings(max_examples=40)
def test_a_points_map_leads_back_to_the_point(x: float, y: float, visibility: float) -> None:
    maps, weight = gaussian_maps(torch.tensor([[[x, y, visibility]]]), (96, 64), (24, 16))
    assert weight.item() == float(visibility > 0)
    found = decode_points(maps, (96, 64))[0, 0]
    assert found[0].item() == pytest.approx(x, abs=0.15)
    assert found[1].item() == pytest.approx(y, abs=0.15)
    assert 0.8 < found[2].item() <= 1


def test_points_stay_on_the_canvas_and_flat_maps_have_no_confidence() -> None:
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 1, 0, 0] = 1.0
    maps[0, 2] = -1.0
    found = decode_points(maps, (64, 64))[0]
    assert found.isfinite().all()
    assert bool(((found[:, :2] >= 0) & (found[:, :2] <= 64)).all())
    assert found[:, 2].tolist() == [0, 1, 0]
    assert found[1, :2].max() < 4


def test_the_box_is_around_confident_points() -> None:
    class Fixed(torch.nn.Module):
        """Heat maps that were decided on before."""

        config = SimpleNamespace(backbone_config=SimpleNamespace())

        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            points = torch.tensor([[[10.0, 20, 2], [40, 50, 2], [60, 4, 2]], [[30, 30, 2], [8, 8, 2], [9, 9, 2]]])
            maps, _ = gaussian_maps(points, (64, 64), (16, 16))
            maps[0, 2] *= 0.2  # not confident
            maps[1, 1:] *= 0.2
            return SimpleNamespace(heatmaps=maps)

    network = HfPoints(Made(Fixed(), (0.0,) * 3, (1.0,) * 3, ("head",), classes=1, points=3))
    found = network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (2, 1, 4), "scores": (2, 1), "labels": (2, 1), "points": (2, 1, 3, 3),
    }  # fmt: skip
    assert torch.allclose(found["boxes"][0, 0], torch.tensor([10.0, 20, 40, 50]), atol=0.2)
    assert found["boxes"][1, 0].tolist() == [0, 0, 64, 64], "one confident point spans no box"
    assert torch.allclose(found["scores"][:, 0], found["points"][:, 0, :, 2].mean(dim=1))
