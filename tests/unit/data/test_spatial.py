"""Augmentation moves pixels, boxes, masks, points and class maps together, and depends on its seed only."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import spatial
from cvpipe.data.geometry import fit_geometry
from cvpipe.data.loader import ImageDataset
from cvpipe.data.spatial import SpatialEval, SpatialTrain, paste
from cvpipe.data.splits import Split
from cvpipe.data.targets import IGNORE, NO_OBJECTS, ClassMap, Objects, ObjectTensors, Tiled, boxes_of, encode_rle
from cvpipe.errors import ConfigError, DataError, ImageError
from cvpipe.tasks.spatial import SpatialAugmentConfig

SIZE = (48, 64)
seeds = st.integers(0, 2**62)
policies = st.sampled_from(["letterbox", "stretch", "short_side"])
STILL: dict[str, Any] = {"hflip": 0, "scale": (1, 1), "color_jitter": 0}


def nobody(number: int) -> None:
    return None


def objects(boxes: Any, **fields: Any) -> Objects:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1)
    return Objects(array, np.arange(len(array), dtype=np.int64), np.zeros(len(array), bool), areas, **fields)


def painted(height: int, width: int, seed: int, count: int = 3) -> tuple[torch.Tensor, Objects]:
    """Black, with white rectangles that don't touch, their masks, and points in two corners and the middle."""
    rng = random.Random(seed)
    image = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)  # as the decoder leaves it
    boxes, masks, points = [], [], []
    for column in range(count):
        part = width / count
        x1, x2 = round(column * part + 2), round((column + 1) * part - 2)
        y1 = rng.randint(0, height // 2)
        y2 = rng.randint(y1 + height // 3, height)
        image[:, y1:y2, x1:x2] = 255
        mask = np.zeros((height, width), np.uint8)
        mask[y1:y2, x1:x2] = 1
        boxes.append([x1, y1, x2, y2])
        masks.append(encode_rle(mask))
        points.append([[x1, y1, 2], [x2, y1, 2], [(x1 + x2) / 2, (y1 + y2) / 2, 1]])
    return image, objects(boxes, masks=tuple(masks), points=np.array(points, np.float32).reshape(-1, 3, 3))


def gallery(number: int) -> tuple[torch.Tensor, Objects]:
    return painted(60 + number % 5 * 9, 70 + number % 7 * 11, number, 1 + number % 3)


def class_map(folder: Path, objects: Objects, size: tuple[int, int], name: str = "map.png") -> ClassMap:
    values = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in objects.boxes.astype(int):
        values[y1:y2, x1:x2] = 1
    Image.fromarray(values).save(folder / name)
    return ClassMap(str(folder / name), ((0, 0), (1, 1)))


def near_edges(mask: torch.Tensor, by: int) -> torch.Tensor:
    """Which pixels lie within `by` of a pixel of the other kind or of the canvas' border."""
    grown = torch.nn.functional.max_pool2d(mask[None].float(), 2 * by + 1, 1, by)[0] > 0
    shrunk = torch.nn.functional.max_pool2d(1 - mask[None].float(), 2 * by + 1, 1, by)[0] > 0
    return grown & shrunk


augments = st.builds(
    SpatialAugmentConfig,
    hflip=st.just(0.5),
    vflip=st.sampled_from([0, 0.5]),
    scale=st.sampled_from([(1, 1), (0.5, 2), (1.5, 2), (0.4, 0.7)]),
    color_jitter=st.just(0),
    mosaic=st.sampled_from([0, 1]),
)


@settings(max_examples=80)
@given(augments, policies, seeds, st.integers(0, 99))
def test_pixels_masks_boxes_and_points_stay_together(augment: Any, policy: str, seed: int, number: int) -> None:
    transform = SpatialTrain(augment, SIZE, policy, kind="masks")
    assert len(transform(*gallery(number), seed, gallery)[1].labels), "there is always something in sight"
    with mock.patch.object(spatial, "_LEAST_VISIBLE", 0):  # no white pixels without an object
        pixels, found = transform(*gallery(number), seed, gallery)
    assert pixels.shape == (3, *SIZE)
    assert pixels.dtype == torch.uint8
    assert pixels.permute(1, 2, 0).is_contiguous()
    assert found.masks is not None
    assert found.points is None
    np.testing.assert_allclose(found.boxes.numpy(), boxes_of(found.masks).numpy(), atol=0.51)
    inside = found.masks.amax(dim=0)
    assert int(found.masks.sum(dim=0).max()) == 1
    white = (pixels[0] > 127).to(torch.uint8)  # grey is 114
    assert not ((white != inside) & ~near_edges(inside, 1) & ~near_edges(white, 1)).any()
    plain = SpatialTrain(augment, SIZE, policy, kind="boxes")(*gallery(number), seed, gallery)
    assert torch.equal(plain[0], pixels)
    assert plain[1].masks is plain[1].points is None


@settings(max_examples=50)
@given(augments, policies, seeds)
def test_points_are_the_corners_of_their_boxes(augment: Any, policy: str, seed: int) -> None:
    """Left and right corner swap in name when they swap in place: the first is always the left one on the canvas."""
    transform = SpatialTrain(augment, SIZE, policy, ((0, 1),), kind="points", points=3)
    _, found = transform(*gallery(seed % 100), seed, gallery)
    assert found.masks is None
    assert found.points is not None
    turned = 0
    for box, points in zip(found.boxes.tolist(), found.points.tolist(), strict=True):
        (x1, y1, s1), (x2, y2, s2), (_, _, s3) = points
        assert {s1, s2} <= {0, 2}
        assert s3 in (0, 1)
        if s1 and s2:
            # mirrored once: swapped, so left stays left. Turned around (both ways): they change places, rightly
            turned += x1 > x2
            assert abs(abs(x1 - x2) - (box[2] - box[0])) <= 0.01
            assert y1 == pytest.approx(y2)
        for x, y, seen in points:
            if seen:
                assert box[0] - 0.01 <= x <= box[2] + 0.01
                assert box[1] - 0.01 <= y <= box[3] + 0.01
    assert turned == 0 or augment.vflip


@settings(max_examples=30, deadline=None)
@given(augments, policies, seeds)
def test_class_maps_move_with_the_pixels(tmp_path_factory: Any, augment: Any, policy: str, seed: int) -> None:
    folder = tmp_path_factory.mktemp("maps")

    def mapped(number: int) -> tuple[torch.Tensor, ClassMap]:
        image, known = gallery(number % 4)
        return image, class_map(folder, known, tuple(image.shape[1:]), f"{number % 4}.png")

    pixels, found = SpatialTrain(augment, SIZE, policy, kind="classes")(*mapped(seed), seed, mapped)
    assert found.shape == SIZE
    assert found.dtype == torch.int64
    assert set(found.unique().tolist()) <= {0, 1, IGNORE}
    grey = (pixels == 114).all(dim=0)
    ignored = found == IGNORE
    assert bool(grey[ignored].all()), "what is ignored is border"
    white = (pixels[0] > 127).to(torch.uint8)
    classes = (found == 1).to(torch.uint8)
    assert not ((white != classes) & ~near_edges(classes, 1) & ~near_edges(white, 1)).any()


@pytest.mark.parametrize("kind", ["boxes", "masks", "points"])
@pytest.mark.parametrize("mixing", [{}, {"mosaic": 1}, {"copy_paste": 1}, {"mosaic": 0.5, "copy_paste": 0.5}])
def test_the_seed_decides(kind: Any, mixing: dict[str, float]) -> None:
    transform = SpatialTrain(SpatialAugmentConfig(**mixing), SIZE, "letterbox", ((0, 1),), kind, 3)
    image, known = gallery(3)
    before = torch.get_rng_state()
    first = [transform(image, known, seed, gallery) for seed in range(6)]
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    torch.manual_seed(99)
    random.seed(1)
    copy = pickle.loads(pickle.dumps(transform))
    again = [copy(image, known, seed, gallery) for seed in range(5, -1, -1)][::-1]
    for (pixels, found), (pixels2, found2) in zip(first, again, strict=True):
        assert torch.equal(pixels, pixels2)
        for one, other in zip(found, found2, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    assert len({pixels.numpy().tobytes() for pixels, _ in first}) == 6
    assert torch.equal(image, gallery(3)[0]), "the image that came in is left alone"


@settings(max_examples=60)
@given(seeds, policies, st.floats(1, 3), st.integers(20, 200), st.integers(20, 200))
def test_a_crop_keeps_an_object_in_sight(seed: int, policy: str, zoom: float, height: int, width: int) -> None:
    augment = SpatialAugmentConfig(scale=(zoom, zoom), color_jitter=0)
    known = objects([[width - 12, height - 12, width - 4, height - 4]])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    _, found = SpatialTrain(augment, (64, 64), policy)(image, known, seed, nobody)
    assert len(found.labels) == 1 or min(64 / height, 64 / width) * zoom * 8 < 2


def test_crops_are_random_all_the_same() -> None:
    """Where the object is in sight anyway, nothing is forced; a crowd is no object to be kept."""
    transform = SpatialTrain(SpatialAugmentConfig(hflip=0, scale=(2, 2), color_jitter=0), (64, 64), "stretch")
    ramp = torch.arange(256, dtype=torch.uint8)[None, None, :].expand(3, 256, 256).contiguous()
    middle = objects([[120, 120, 136, 136]])
    starts = {int(transform(ramp, middle, seed, nobody)[0][0, 0, 0]) for seed in range(60)}
    assert min(starts) < 15
    assert max(starts) > 112
    corner = objects([[0, 0, 8, 8]])
    crowd = replace(corner, crowd=np.array([True]))
    assert all(len(transform(ramp, corner, seed, nobody)[1].labels) == 1 for seed in range(20))
    assert sum(len(transform(ramp, crowd, seed, nobody)[1].labels) for seed in range(20)) < 10


def test_the_zoom_has_the_range_asked_for() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    known = objects([[24, 24, 40, 40]])
    transform = SpatialTrain(SpatialAugmentConfig(scale=(0.5, 2), color_jitter=0), (64, 64), "letterbox")
    widths = []
    for seed in range(150):
        _, found = transform(image, known, seed, nobody)
        widths.append(float((found.boxes[:, 2:] - found.boxes[:, :2]).max()) / 16)
    assert 0.45 < min(widths) < 0.6
    assert 1.8 < max(widths) < 2.1
    assert 0.9 < np.exp(np.mean(np.log(widths))) < 1.1


@settings(max_examples=30)
@given(policies, st.integers(10, 90), st.integers(10, 90))
def test_without_randomness_training_shows_what_evaluation_shows(policy: str, height: int, width: int) -> None:
    image, known = painted(height, width, 1, 1)
    still = SpatialTrain(SpatialAugmentConfig(**STILL), SIZE, "stretch")(image, known, 5, nobody)
    plain = SpatialEval(SIZE, "stretch")(image, known, 5, nobody)
    assert torch.equal(still[0], plain[0])
    assert torch.equal(still[1].boxes, plain[1].boxes)
    pixels, found = SpatialEval(SIZE, policy)(image, known, 0, nobody)
    geometry = fit_geometry((height, width), SIZE, policy)
    assert torch.equal(pixels, geometry.image(image))
    assert torch.equal(found.boxes, replace(known, masks=None).on_canvas(geometry).boxes)


@pytest.mark.parametrize(("hflip", "vflip"), [(1, 0), (0, 1), (1, 1)])
def test_mirroring_is_torchvisions(hflip: int, vflip: int) -> None:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    image, known = painted(*SIZE, 4)
    image = image + torch.arange(64, dtype=torch.uint8)
    augment = SpatialAugmentConfig(**STILL | {"hflip": hflip, "vflip": vflip})
    pixels, found = SpatialTrain(augment, SIZE, "stretch", kind="masks")(image, known, 3, nobody)
    plain = SpatialEval(SIZE, "stretch", kind="masks")(image, known, 3, nobody)[1]
    ops = v2.Compose([*[v2.RandomHorizontalFlip(1)] * hflip, *[v2.RandomVerticalFlip(1)] * vflip])
    expected, boxes, masks = ops(
        tv_tensors.Image(image),
        tv_tensors.BoundingBoxes(known.boxes, format="XYXY", canvas_size=SIZE),
        tv_tensors.Mask(plain.masks),
    )
    assert torch.equal(pixels, expected)
    assert torch.equal(found.boxes, boxes)
    assert torch.equal(found.masks, masks)


def test_colours_are_torchvisions() -> None:
    from torchvision.transforms import v2

    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels, _ = SpatialTrain(SpatialAugmentConfig(**STILL | {"color_jitter": 0.4}), SIZE, "stretch")(
        image, NO_OBJECTS, 11, nobody
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = v2.ColorJitter(0.4, 0.4, 0.4)(image)
    assert int((pixels.int() - expected.int()).abs().max()) <= 2


# mosaic


def test_a_mosaic_has_four_parts_in_place() -> None:
    def flat(number: int) -> tuple[torch.Tensor, Objects]:
        return torch.full((3, 40, 40), 1 + number % 200, dtype=torch.uint8), objects([[0, 0, 40, 40]])

    transform = SpatialTrain(SpatialAugmentConfig(**STILL | {"mosaic": 1, "scale": (4, 4)}), (64, 64), "letterbox")
    centres = set()
    for seed in range(30):
        pixels, found = transform(*flat(200), seed, flat)
        assert len(found.labels) == 4
        for box in found.boxes.round().int().tolist():
            part = pixels[:, box[1] : box[3], box[0] : box[2]]
            assert part.min() == part.max(), "each part shows one image"
        assert float((found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1).sum()) == 64 * 64
        centres.add(tuple(found.boxes[0, 2:].tolist()))
    xs = [x for x, _ in centres]
    assert 19 <= min(xs) < 26
    assert 38 < max(xs) <= 45


def test_a_mosaic_leaves_out_what_is_broken() -> None:
    transform = SpatialTrain(SpatialAugmentConfig(**STILL | {"mosaic": 1}), SIZE, "letterbox", kind="masks")
    asked: list[int] = []

    def broken(number: int) -> None:
        asked.append(number)

    pixels, found = transform(*gallery(2), 7, broken)
    assert len(asked) == 9
    assert len(found.labels) > 0
    assert (pixels == 114).all(dim=0).float().mean() > 0.5


# copy-paste


@settings(max_examples=60)
@given(seeds, policies, st.sampled_from([0, 1]), st.integers(0, 99))
def test_pasting_keeps_masks_disjoint(seed: int, policy: str, mosaic: int, number: int) -> None:
    augment = SpatialAugmentConfig(color_jitter=0, copy_paste=1, mosaic=mosaic)
    pixels, found = SpatialTrain(augment, SIZE, policy, kind="masks")(*gallery(number), seed, gallery)
    assert found.masks is not None
    assert int(found.masks.sum(dim=0).max()) == 1
    assert bool((found.masks.flatten(1).sum(dim=1) > 0).all())
    np.testing.assert_allclose(found.boxes.numpy(), boxes_of(found.masks).numpy(), atol=0.51)
    inside = found.masks.amax(dim=0)
    white = (pixels[0] > 127).to(torch.uint8)
    outside = (white != inside) & ~near_edges(inside, 1) & ~near_edges(white, 1)
    # objects of which too little was left are dropped from the list; their pixels stay
    assert not (outside & (inside == 1)).any()
    assert float(outside.float().mean()) < 0.1


def test_what_pasting_does_to_the_objects_below() -> None:
    def tensors(rectangles: list[tuple[int, int, int, int]], points: Any = None) -> ObjectTensors:
        masks = torch.zeros(len(rectangles), 20, 20, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, rectangles, strict=True):
            mask[y1:y2, x1:x2] = 1
        n = len(rectangles)
        return ObjectTensors(boxes_of(masks), torch.arange(n), torch.zeros(n, dtype=torch.bool), masks, points)

    points = torch.tensor([[[1.0, 1, 2], [9.5, 1, 2]], [[12.0, 12, 2], [18, 18, 1]], [[1.0, 15, 2], [3, 17, 0]]])
    below = tensors([(0, 0, 10, 4), (12, 12, 19, 19), (0, 14, 4, 18)], points)
    pasted = tensors([(6, 0, 20, 10), (11, 11, 20, 20)], torch.zeros(2, 2, 3))
    image, above = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.full((3, 20, 20), 9, dtype=torch.uint8)
    pixels, found = paste(image, below, above, pasted)
    assert torch.equal(pixels[0] == 9, pasted.masks.amax(dim=0) > 0)
    assert found.labels.tolist() == [0, 2, 0, 1], "the covered one is gone, the pasted ones come last"
    assert found.boxes.tolist() == [[0, 0, 6, 4], [0, 14, 4, 18], [6, 0, 20, 10], [11, 11, 20, 20]]
    assert found.points is not None
    assert found.points[0, :, 2].tolist() == [2, 1], "a point that is covered is hidden"
    assert found.points[1, :, 2].tolist() == [2, 0]
    assert below.points is not None
    assert below.points[0, 1, 2] == 2
    nothing = paste(image, below, above, tensors([], torch.zeros(0, 2, 3)))
    assert nothing[1] is below


def test_crowds_are_not_pasted() -> None:
    image, known = painted(60, 80, 0)
    crowded = replace(known, crowd=np.array([True, True, True]))
    transform = SpatialTrain(SpatialAugmentConfig(**STILL | {"copy_paste": 1}), SIZE, "letterbox", kind="masks")
    _, found = transform(image, known, 1, lambda _: (image, crowded))
    assert len(found.labels) == 3
    assert not found.crowd.any()


def test_pasting_needs_masks() -> None:
    image, known = painted(60, 80, 0)
    bare = replace(known, masks=None)
    transform = SpatialTrain(SpatialAugmentConfig(copy_paste=1), SIZE, "letterbox")
    with pytest.raises(DataError, match=r"3 objects without masks.*copy_paste"):
        transform(image, bare, 1, gallery)
    _, found = transform(image, known, 1, gallery)
    assert found.masks is None


# borders of what can be asked


@pytest.mark.parametrize("mixing", [{}, {"mosaic": 1, "copy_paste": 1}])
@pytest.mark.parametrize("kind", ["boxes", "masks", "points"])
def test_images_without_objects(kind: Any, mixing: dict[str, float]) -> None:
    transform = SpatialTrain(SpatialAugmentConfig(**mixing), SIZE, "letterbox", ((0, 1),), kind, points=3)
    image = torch.zeros(3, 30, 50, dtype=torch.uint8)
    for run in (transform, SpatialEval(SIZE, "letterbox", ((0, 1),), kind, 3)):
        pixels, found = run(image, NO_OBJECTS, 3, lambda _: (image, NO_OBJECTS))
        assert pixels.shape == (3, *SIZE)
        assert found.boxes.shape == (0, 4)
        assert (found.masks is None) == (kind != "masks")
        assert found.masks is None or found.masks.shape == (0, *SIZE)
        assert (found.points is None) == (kind != "points")
        assert found.points is None or found.points.shape == (0, 3, 3)
    if mixing:
        # an empty image among others that have objects
        found = transform(image, NO_OBJECTS, 3, gallery)[1]
        assert len(found.labels) > 0


def test_five_hundred_objects() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 90, (500, 2))
    boxes = np.concatenate([corners, corners + 10], axis=1)
    masks = []
    for x, y in corners:
        mask = np.zeros((100, 100), np.uint8)
        mask[y : y + 10, x : x + 10] = 1
        masks.append(encode_rle(mask))
    many = objects(boxes, masks=tuple(masks))
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    augment = SpatialAugmentConfig(mosaic=1, copy_paste=1)
    _, found = SpatialTrain(augment, (64, 64), "letterbox", kind="masks")(image, many, 1, lambda _: (image, many))
    assert len(found.labels) > 300
    np.testing.assert_allclose(found.boxes.numpy(), boxes_of(found.masks).numpy(), atol=0.51)


def test_settings_that_can_not_work() -> None:
    for scale in ((0, 1), (2, 1), (-1, 1)):
        with pytest.raises(ConfigError, match=r"data\.augment\.scale"):
            SpatialTrain(SpatialAugmentConfig.model_construct(**STILL | {"scale": scale}), SIZE, "letterbox")
    with pytest.raises(ConfigError, match=r"data\.augment\.copy_paste.*class map"):
        SpatialTrain(SpatialAugmentConfig(copy_paste=0.1), SIZE, "letterbox", kind="classes")


def test_annotations_that_do_not_fit_the_task() -> None:
    image, known = gallery(2)
    with pytest.raises(DataError, match="without masks"):
        SpatialEval(SIZE, "letterbox", kind="masks")(image, replace(known, masks=None), 0, nobody)
    with pytest.raises(DataError, match="without keypoints"):
        SpatialEval(SIZE, "letterbox", kind="points")(image, replace(known, points=None), 0, nobody)


def test_a_class_map_of_another_size_is_the_images_fault(tmp_path: Path) -> None:
    image, known = gallery(1)
    small = class_map(tmp_path, known, (60, 60))
    transform = SpatialEval(SIZE, "letterbox", kind="classes")
    with pytest.raises(ImageError, match=r"map\.png: the class map has 60x60 pixels, its image 81x69"):
        transform(image, small, 0, nobody)
    # in a mosaic, another image's fault is not this one's
    whole = class_map(tmp_path, known, (69, 81), "whole.png")
    train = SpatialTrain(SpatialAugmentConfig(mosaic=1), SIZE, "letterbox", kind="classes")
    _, found = train(image, whole, 0, lambda _: (image, small))
    assert (found != IGNORE).any()


# tiles


@settings(max_examples=40)
@given(policies, st.booleans(), seeds, st.data())
def test_a_tile_is_an_image_of_its_own(policy: str, random_: bool, seed: int, data: st.DataObject) -> None:
    image, known = painted(80, 120, 5)
    top, left = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 70))
    height, width = data.draw(st.integers(20, 80 - top)), data.draw(st.integers(20, 120 - left))
    augment = SpatialAugmentConfig(vflip=0.5, scale=(0.5, 2))
    transform = SpatialTrain(augment, SIZE, policy, kind="masks") if random_ else SpatialEval(SIZE, policy, (), "masks")
    pixels, found = transform(image, Tiled(known, (top, left, height, width)), seed, nobody)
    crop = image[:, top : top + height, left : left + width]
    moved = []
    for x1, y1, x2, y2 in known.boxes:
        mask = np.zeros((80, 120), np.uint8)
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        moved.append(encode_rle(mask[top : top + height, left : left + width]))
    shifted = replace(known, boxes=known.boxes - np.float32([left, top] * 2), masks=tuple(moved), points=None)
    expected_pixels, expected = transform(crop, shifted, seed, nobody)
    assert torch.equal(pixels, expected_pixels)
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.masks, expected.masks)


def test_a_tile_of_a_class_map(tmp_path: Path) -> None:
    image, known = painted(80, 120, 5)
    target = class_map(tmp_path, known, (80, 120))
    pixels, found = SpatialEval((20, 30), "stretch", (), "classes")(image, Tiled(target, (10, 40, 20, 30)), 0, nobody)
    assert torch.equal(pixels, image[:, 10:30, 40:70])
    assert torch.equal(found == 1, image[0, 10:30, 40:70] > 0)
    with pytest.raises(ImageError, match="larger one"):
        SpatialEval(SIZE, "stretch")(image, Tiled(known, (70, 0, 20, 20)), 0, nobody)


# through the loader, on real images


def test_the_loader_hands_over_seed_and_other_images(tmp_path: Path) -> None:
    paths, targets = [], []
    for number in range(5):
        image, known = gallery(number)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
        targets.append(known)
    transform = SpatialTrain(SpatialAugmentConfig(mosaic=1, copy_paste=1), SIZE, "letterbox", kind="masks")
    dataset = ImageDataset(Split("train", tuple(paths), tuple(targets)), transform, 5, 10**6, replace=True)
    one, two = dataset[(0, 3, 2)], dataset[(0, 3, 2)]
    assert one[0] is not None
    assert two[0] is not None
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1].masks, two[1].masks)
    other = dataset[(1, 3, 2)]
    assert other[0] is not None
    assert not torch.equal(one[0], other[0])
