"""Objects on the canvas: boxes, masks and points stay together; masks are those of pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data.geometry import Geometry, fit_geometry
from cvpipe.data.targets import (
    IGNORE,
    NO_OBJECTS,
    ClassMap,
    Objects,
    Tiled,
    boxes_of,
    decode_rle,
    encode_rle,
    mask_on_canvas,
    swapped,
)

PAIRS = ((1, 2),)


def objects(boxes: Any, **fields: Any) -> Objects:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1)
    labels = np.arange(len(array), dtype=np.int64) % 3
    return Objects(array, labels, np.zeros(len(array), bool), areas, **fields)


def rectangle_masks(boxes: Any, size: tuple[int, int]) -> tuple[Any, ...]:
    found = []
    for x1, y1, x2, y2 in np.array(boxes, int).reshape(-1, 4):
        mask = np.zeros(size, np.uint8)
        mask[y1:y2, x1:x2] = 1
        found.append(encode_rle(mask))
    return tuple(found)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Objects, Geometry]:
    """Rectangles with masks on an image, and somewhere to put them."""
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        x, y = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        boxes.append([x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))])
    top, left = draw(st.integers(0, height - 4)), draw(st.integers(0, width - 4))
    window = (top, left, draw(st.integers(4, height - top)), draw(st.integers(4, width - left)))
    place = (draw(st.integers(0, 10)), draw(st.integers(0, 10)), draw(st.integers(4, 60)), draw(st.integers(4, 60)))
    canvas = (place[0] + place[2] + draw(st.integers(0, 9)), place[1] + place[3] + draw(st.integers(0, 9)))
    geometry = Geometry((height, width), window, place, canvas, draw(st.booleans()), draw(st.booleans()))
    return objects(boxes, masks=rectangle_masks(boxes, (height, width))), geometry


@given(scenes())
def test_boxes_are_the_extents_of_the_masks(scene: tuple[Objects, Geometry]) -> None:
    known, geometry = scene
    found = known.on_canvas(geometry)
    assert found.masks is not None
    assert found.masks.shape == (len(found.labels), *geometry.canvas)
    kinds = [found.boxes.dtype, found.labels.dtype, found.crowd.dtype, found.masks.dtype]
    assert kinds == [torch.float32, torch.int64, torch.bool, torch.uint8]
    assert bool(found.masks.flatten(1).any(dim=1).all()), "no object without a pixel"
    np.testing.assert_allclose(found.boxes.numpy(), boxes_of(found.masks).numpy(), atol=0.5 + 1e-3)
    x1, y1, x2, y2 = geometry.visible()
    outside = found.masks.clone()
    outside[:, y1:y2, x1:x2] = 0
    assert not outside.any()
    assert ((found.boxes >= torch.tensor([x1, y1, x1, y1])) & (found.boxes <= torch.tensor([x2, y2, x2, y2]))).all()


@given(scenes())
def test_objects_out_of_sight_are_dropped_and_no_others(scene: tuple[Objects, Geometry]) -> None:
    known, geometry = scene
    found = Objects(known.boxes, known.labels, known.crowd, known.areas).on_canvas(geometry, least_visible=0.3)
    x1, y1, x2, y2 = geometry.visible()
    assert found.boxes.dtype == torch.float32
    expected = []
    for row, (a, b, c, d) in enumerate(geometry.boxes(known.boxes).astype(float).tolist()):
        w, h = min(c, x2) - max(a, x1), min(d, y2) - max(b, y1)
        if w >= 1 and h >= 1 and w * h >= 0.3 * min((c - a) * (d - b), (x2 - x1) * (y2 - y1)):
            expected.append(row)
    assert found.labels.tolist() == known.labels[expected].tolist()
    assert found.masks is None
    assert found.points is None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=8), st.booleans())
def test_polygons_are_filled_as_pycocotools_does(corners: list[Any], twice: bool) -> None:
    from pycocotools import mask as coco

    polygons = tuple(np.array(points, np.float32) for points in ([corners, corners[::-1]] if twice else [corners]))
    geometry = fit_geometry((30, 40), (30, 40), "stretch")
    flat = [points.astype(float).reshape(-1).tolist() for points in polygons]
    expected = coco.decode(coco.merge(coco.frPyObjects(flat, 30, 40)))
    np.testing.assert_array_equal(mask_on_canvas(polygons, geometry).numpy(), expected)


@given(scenes())
def test_polygons_and_runs_of_the_same_shape_agree(scene: tuple[Objects, Geometry]) -> None:
    known, geometry = scene
    polygons = tuple((np.array([[a, b], [c, b], [c, d], [a, d]], np.float32),) for a, b, c, d in known.boxes)
    one = known.on_canvas(geometry)
    other = Objects(known.boxes, known.labels, known.crowd, known.areas, masks=polygons).on_canvas(geometry)
    assert one.masks is not None
    assert other.masks is not None
    if len(one.labels) == len(other.labels):
        ends = boxes_of(one.masks) - boxes_of(other.masks)
        assert not len(ends) or float(ends.abs().amax()) <= 1
    else:  # only slivers may be seen by one and not by the other
        sides = geometry.boxes(known.boxes)
        assert (sides[:, 2:] - sides[:, :2]).min() < 3


def test_a_polygon_of_two_points_is_not_taken_for_a_box() -> None:
    geometry = fit_geometry((30, 40), (30, 40), "stretch")
    assert not mask_on_canvas((np.array([[1, 1], [20, 20]], np.float32),), geometry).any()


def test_a_polygon_does_not_leave_the_part_of_the_canvas_that_shows_the_image() -> None:
    geometry = Geometry((20, 20), (5, 5, 10, 10), (4, 4, 10, 10), (20, 20))
    square = (np.array([[0, 0], [20, 0], [20, 20], [0, 20]], np.float32),)
    expected = torch.zeros(20, 20, dtype=torch.uint8)
    expected[4:14, 4:14] = 1
    assert torch.equal(mask_on_canvas(square, geometry), expected)


@pytest.mark.parametrize(("hflip", "vflip", "swaps"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, False)])
def test_points_swap_sides_in_a_mirrored_image(hflip: int, vflip: int, swaps: bool) -> None:
    points = np.array([[[10, 4, 2], [5, 8, 2], [15, 8, 1]]], np.float32)
    geometry = fit_geometry((20, 20), (40, 40), "stretch").flipped(bool(hflip), bool(vflip))
    found = objects([[0, 0, 20, 20]], points=points).on_canvas(geometry, PAIRS).points
    assert found is not None
    moved = geometry.points(points[..., :2])[0]
    order = [0, 2, 1] if swaps else [0, 1, 2]
    np.testing.assert_allclose(found[0, :, :2].numpy(), moved[order])
    assert found[0, :, 2].tolist() == points[0, order, 2].tolist()


def test_points_outside_and_unknown_ones_are_zero() -> None:
    points = np.array([[[2, 2, 2], [9, 9, 2], [9, 2, 0]]], np.float32)
    geometry = Geometry((10, 10), (0, 0, 8, 10), (0, 0, 8, 10), (8, 10))
    found = objects([[0, 0, 10, 10]], points=points).on_canvas(geometry).points
    assert found is not None
    assert found.tolist() == [[[2, 2, 2], [0, 0, 0], [0, 0, 0]]]
    assert points[0, 1].tolist() == [9, 9, 2], "the annotation itself is left alone"


def test_the_order_of_mirrored_points_is_its_own_inverse() -> None:
    order = swapped(6, ((0, 1), (4, 2)))
    assert order.tolist() == [1, 0, 4, 3, 2, 5]
    assert order[order].tolist() == list(range(6))


def test_a_cut_object_keeps_the_box_of_what_is_left_of_its_mask() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[0:4, 0:20] = 1  # an L: the right end reaches down only in the part that is cut off
    mask[0:20, 16:20] = 1
    known = objects([[0, 0, 20, 20]], masks=(encode_rle(mask),))
    cut = Geometry((20, 20), (0, 0, 20, 12), (0, 0, 20, 12), (20, 12))
    assert known.on_canvas(cut).boxes.tolist() == [[0, 0, 12, 4]]
    assert known.on_canvas(fit_geometry((20, 20), (20, 20), "stretch")).boxes.tolist() == [[0, 0, 20, 20]]
    below = Geometry((20, 20), (6, 0, 14, 14), (0, 0, 14, 14), (14, 14))
    assert len(known.on_canvas(below).labels) == 0, "the box shows half, the mask nothing"


def test_a_view_into_an_object_is_full_of_it() -> None:
    known = objects([[0, 0, 100, 100], [0, 0, 52, 52]])
    inside = Geometry((100, 100), (50, 50, 20, 20), (0, 0, 20, 20), (20, 20))
    found = known.on_canvas(inside)
    assert found.labels.tolist() == [0], "of the second, a sliver: 2 of 52 pixels, and of the view 1 %"
    assert found.boxes.tolist() == [[0, 0, 20, 20]]


def test_no_objects_and_many() -> None:
    geometry = fit_geometry((40, 60), (32, 32), "letterbox")
    found = NO_OBJECTS.on_canvas(geometry)
    assert found.boxes.shape == (0, 4)
    rng = np.random.default_rng(0)
    corners = np.stack([rng.integers(0, 50, 500), rng.integers(0, 30, 500)], axis=1)
    boxes = np.concatenate([corners, corners + 8], axis=1)
    known = objects(boxes, masks=rectangle_masks(boxes, (40, 60)), points=np.ones((500, 4, 3), np.float32))
    found = known.on_canvas(geometry)
    assert len(found.labels) == 500
    assert found.masks is not None
    assert found.points is not None
    assert found.masks.shape == (500, 32, 32)
    picked = found.select(torch.tensor([3, 1]))
    assert torch.equal(picked.boxes, found.boxes[[3, 1]])
    assert picked.masks is not None
    assert torch.equal(picked.masks, found.masks[[3, 1]])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_runs_are_those_of_pycocotools(height: int, width: int, seed: int) -> None:
    from pycocotools import mask as coco

    mask = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8)
    compressed = encode_rle(mask)
    np.testing.assert_array_equal(coco.decode(compressed), mask)
    np.testing.assert_array_equal(decode_rle(compressed), mask)
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    plain = {"size": [height, width], "counts": counts if not flat[0] else [0, *counts]}
    np.testing.assert_array_equal(decode_rle(plain), mask)


def test_boxes_of_empty_masks_are_zero() -> None:
    masks = torch.zeros(2, 5, 6, dtype=torch.uint8)
    masks[1, 4, 5] = 1
    assert boxes_of(masks).tolist() == [[0, 0, 0, 0], [5, 4, 6, 5]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_what_a_digest_of_the_data_sees() -> None:
    one, other = objects([[0, 0, 4, 4]]), objects([[0, 0, 4, 5]])
    assert repr(one) == repr(objects([[0, 0, 4, 4]]))
    assert repr(one) != repr(other)
    masks = [rectangle_masks([box], (9, 9)) for box in ([0, 0, 4, 4], [0, 0, 4, 3])]
    assert repr(objects([[0, 0, 4, 4]], masks=masks[0])) != repr(objects([[0, 0, 4, 4]], masks=masks[1]))
    square = np.array([[0, 0], [4, 0], [4, 4]], np.float32)
    assert repr(objects([[0, 0, 4, 4]], masks=((square,),))) != repr(objects([[0, 0, 4, 4]], masks=((square + 1,),)))
    assert repr(Tiled(one, (0, 0, 4, 4))) != repr(Tiled(one, (0, 0, 4, 5)))


def test_class_maps_read_values(tmp_path: Any) -> None:
    values = np.array([[0, 1, 7], [255, 2, 0]], np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    found = ClassMap(str(path), ((0, 0), (1, 1), (7, 2), (255, IGNORE))).load()
    assert found.tolist() == [[0, 1, 2], [IGNORE, IGNORE, 0]]
    rgb = np.zeros((1, 2, 3), np.uint8)
    rgb[0, 1] = (1, 2, 3)
    Image.fromarray(rgb).save(path)
    found = ClassMap(str(path), ((0, 0), (1 + 2 * 256 + 3 * 65536, 1)), segments=True).load()
    assert found.tolist() == [[0, 1]]
