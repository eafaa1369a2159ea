"""One geometry moves pixels, boxes, points and class maps alike, and back, as torchvision's transforms do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.data.geometry import Geometry, fit_geometry
from cvpipe.data.transforms import fit, resize

POLICIES = ("letterbox", "stretch", "short_side")
sides = st.integers(3, 90)
flips = st.booleans()


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any window of any image at any place of any canvas."""
    source, canvas = (draw(sides), draw(sides)), (draw(sides), draw(sides))
    lengths = []
    for side in (*source, *canvas):
        start = draw(st.integers(0, side - 1))
        lengths.append((start, draw(st.integers(1, side - start))))
    (top, height), (left, width), (y, h), (x, w) = lengths
    return Geometry(source, (top, left, height, width), (y, x, h, w), canvas, draw(flips), draw(flips))


@st.composite
def fitted(draw: st.DrawFn) -> Geometry:
    source, size = (draw(sides), draw(sides)), (draw(sides), draw(sides))
    return fit_geometry(source, size, draw(st.sampled_from(POLICIES))).flipped(draw(flips), draw(flips))


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


any_geometry = st.one_of(geometries(), fitted())
numbers = st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=1, max_size=8)


@given(any_geometry, numbers)
def test_back_is_the_inverse_of_points(geometry: Geometry, values: list[Any]) -> None:
    points = np.array(values, np.float32)
    scale = 1 + max(geometry.scale) + 1 / min(geometry.scale)
    np.testing.assert_allclose(geometry.back(geometry.points(points)), points, atol=2e-4 * scale)
    np.testing.assert_allclose(geometry.points(geometry.back(points)), points, atol=2e-4 * scale)


@given(any_geometry)
def test_boxes_inside_the_window_come_back(geometry: Geometry) -> None:
    top, left, height, width = geometry.window
    boxes = np.array(
        [
            [left, top, left + width, top + height],
            [left + width / 4, top + height / 4, left + width / 2, top + height],
        ],
        np.float32,
    )
    moved = geometry.boxes(boxes)
    assert (moved[:, 2:] >= moved[:, :2]).all()
    np.testing.assert_allclose(moved[0], geometry.visible(), atol=1e-3)
    np.testing.assert_allclose(geometry.boxes_back(moved), boxes, atol=0.02)
    far = np.array([[-1e5, -1e5, 1e5, 1e5]], np.float32)
    assert geometry.boxes_back(far)[0].tolist() == [left, top, left + width, top + height]


@given(any_geometry)
def test_the_grey_is_where_the_image_does_not_reach(geometry: Geometry) -> None:
    image = torch.full((3, *geometry.source), 7, dtype=torch.uint8)
    x1, y1, x2, y2 = geometry.visible()
    assert 0 <= x1 < x2 <= geometry.canvas[1]
    assert 0 <= y1 < y2 <= geometry.canvas[0]
    inside = torch.zeros(geometry.canvas, dtype=torch.bool)
    inside[y1:y2, x1:x2] = True
    pixels = geometry.image(image)
    assert pixels.shape == (3, *geometry.canvas)
    assert pixels.dtype == torch.uint8
    assert (pixels[:, inside] == 7).all()
    assert (pixels[:, ~inside] == 114).all()
    classes = geometry.class_map(torch.full(geometry.source, 3, dtype=torch.uint8), 255)
    assert (classes[inside] == 3).all()
    assert (classes[~inside] == 255).all()


@given(any_geometry, st.data())
def test_pixels_boxes_and_class_maps_agree(geometry: Geometry, data: st.DataObject) -> None:
    """A rectangle, drawn and moved, ends where its moved box ends."""
    top, left, height, width = geometry.window
    y1, x1 = data.draw(st.integers(top, top + height - 1)), data.draw(st.integers(left, left + width - 1))
    y2, x2 = data.draw(st.integers(y1 + 1, top + height)), data.draw(st.integers(x1 + 1, left + width))
    drawn = torch.zeros(geometry.source, dtype=torch.int64)
    drawn[y1:y2, x1:x2] = 5
    (box,) = geometry.boxes(np.array([[x1, y1, x2, y2]], np.float32))
    moved = geometry.class_map(drawn, 0)
    assert moved.dtype == torch.int64
    rows, columns = np.nonzero(moved.numpy())
    if len(rows):
        ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(ends, box, atol=0.5 + 1e-3)
    else:
        assert min(box[2] - box[0], box[3] - box[1]) <= 1 + 1e-3
    image = (drawn > 0).to(torch.uint8).mul(255).expand(3, -1, -1)
    pixels = geometry.image(image)[0]
    a, b, c, d = geometry.visible()
    seen = pixels[b:d, a:c] > 127
    # nearest and bilinear disagree about the cells on the rim alone
    rim = 1 + max(1 / s for s in geometry.scale)
    ys, xs = np.nonzero((seen != (moved[b:d, a:c] > 0)).numpy())
    distance = np.minimum.reduce([abs(xs + a + 0.5 - box[0]), abs(xs + a + 0.5 - box[2]),
                                  abs(ys + b + 0.5 - box[1]), abs(ys + b + 0.5 - box[3])])  # fmt: skip
    assert (distance <= max(rim, *geometry.scale)).all()


@given(fitted())
def test_class_maps_are_those_of_nearest_exact(geometry: Geometry) -> None:
    classes = torch.randint(0, 9, geometry.source, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    top, left, height, width = geometry.window
    part = classes[None, None, top : top + height, left : left + width]
    x1, y1, x2, y2 = geometry.visible()
    found = geometry.mirror(geometry.class_map(classes, 255)[y1:y2, x1:x2])
    expected = torch.nn.functional.interpolate(part.float(), size=geometry.place[2:], mode="nearest-exact")[0, 0]
    same = found == expected
    # where a centre falls on the border of two pixels, floats decide in torch
    tie = [((torch.arange(steps) * 2 + 1) * length % (2 * steps) == 0) for length, steps in
           zip((height, width), geometry.place[2:], strict=True)]  # fmt: skip
    assert bool((same | tie[0][:, None] | tie[1][None]).all())


@settings(max_examples=40)
@given(st.tuples(sides, sides), st.tuples(sides, sides), flips, flips)
def test_torchvision_moves_them_to_the_same_place(source: Any, size: Any, hflip: bool, vflip: bool) -> None:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    geometry = fit_geometry(source, size, "stretch").flipped(hflip, vflip)
    image = noise(*source)
    boxes = np.array([[0, 0, 2, 1], [1, 0.5, source[1], source[0]]], np.float32)
    ops = [v2.Resize(size, antialias=True), *[v2.RandomHorizontalFlip(1)] * hflip, *[v2.RandomVerticalFlip(1)] * vflip]
    pixels, moved = v2.Compose(ops)(
        tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=source)
    )
    assert int((geometry.image(image).int() - pixels.int()).abs().max()) <= 1
    np.testing.assert_allclose(geometry.boxes(boxes), moved.numpy(), atol=1e-3)


@pytest.mark.parametrize("policy", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(50, 100), (100, 50), (64, 64), (33, 57)])
def test_fit_geometry_shows_what_fit_shows(policy: str, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    assert torch.equal(fit_geometry(shape, (64, 48), policy).image(image), fit(image, (64, 48), policy, 1.0))


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_what_each_policy_promises(source: Any, size: Any) -> None:
    everything = (0, 0, *source)
    letterbox, stretch, short = (fit_geometry(source, size, policy) for policy in POLICIES)
    assert letterbox.window == stretch.window == everything
    assert stretch.place == short.place == (0, 0, *size)
    assert size[0] in letterbox.place[2:] or size[1] in letterbox.place[2:]
    assert source[0] == short.window[2] or source[1] == short.window[3]
    # one scale for both sides, but for rounding to whole pixels
    for sides_, exact in (
        (letterbox.place[2:], [side * min(size[0] / source[0], size[1] / source[1]) for side in source]),
        (short.window[2:], [side / max(size[0] / source[0], size[1] / source[1]) for side in size]),
    ):
        for side, wanted in zip(sides_, exact, strict=True):
            assert side == 1 or abs(side - wanted) <= 0.5 + 1e-6
            assert side > 1 or wanted <= 1.5 + 1e-6
    with pytest.raises(ValueError, match="unknown resize policy"):
        fit_geometry(source, size, "crop")


@given(any_geometry, st.integers(0, 30), st.integers(0, 30))
def test_a_part_of_a_larger_image(geometry: Geometry, top: int, left: int) -> None:
    large = noise(geometry.source[0] + top + 3, geometry.source[1] + left + 5)
    part = large[:, top : top + geometry.source[0], left : left + geometry.source[1]]
    whole = geometry.within((large.shape[1], large.shape[2]), top, left)
    assert torch.equal(whole.image(large), geometry.image(part))
    points = np.array([[3.0, 4.0], [0.5, 9.25]], np.float32)
    np.testing.assert_allclose(whole.points(points + np.float32([left, top])), geometry.points(points), atol=0.01)


@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("source", "policy"), [((60, 41), "letterbox"), ((37, 80), "letterbox"), ((50, 70), "stretch")]
)
@pytest.mark.parametrize("stride", [1, 2, 8])
def test_maps_come_back_to_the_place_they_came_from(source: Any, policy: str, stride: int, flip: Any) -> None:
    """A ramp over the image, moved to the canvas and averaged in cells, is the ramp again: nothing is shifted."""
    geometry = fit_geometry(source, (64, 64), policy).flipped(*flip)
    y, x = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5, indexing="ij")
    ramps = geometry.back(np.stack([x, y], axis=-1).astype(np.float32))
    maps = torch.from_numpy(ramps).permute(2, 0, 1)
    coarse = torch.nn.functional.avg_pool2d(maps, stride)
    found = geometry.uncanvas(coarse)
    assert found.shape == (2, *source)
    expected = np.meshgrid(np.arange(source[0]) + 0.5, np.arange(source[1]) + 0.5, indexing="ij")
    # bilinear interpolation holds the outermost half of a cell constant
    rim = max(1, int(np.ceil((stride / 2 + 1) / min(geometry.scale))))
    inner = np.s_[rim : source[0] - rim, rim : source[1] - rim]
    np.testing.assert_allclose(found[0].numpy()[inner], expected[1][inner], atol=0.02)
    np.testing.assert_allclose(found[1].numpy()[inner], expected[0][inner], atol=0.02)


def test_the_map_of_a_window_has_the_windows_size() -> None:
    geometry = fit_geometry((40, 100), (32, 32), "short_side")
    assert geometry.uncanvas(torch.zeros(3, 8, 8)).shape == (3, *geometry.window[2:])
    tile = fit_geometry((20, 30), (32, 32), "letterbox").within((40, 100), 7, 9)
    assert tile.uncanvas(torch.zeros(3, 32, 32)).shape == (3, 20, 30)


def test_mirroring_twice_is_nothing() -> None:
    geometry = fit_geometry((40, 100), (32, 32), "letterbox")
    assert geometry.flipped(True).flipped(True) == geometry
    assert geometry.flipped(False, True) == replace(geometry, vflip=True)


def test_several_images_are_drawn_on_one_canvas() -> None:
    left = Geometry((20, 20), (0, 0, 20, 20), (0, 0, 32, 16), (32, 32))
    right = Geometry((10, 30), (0, 10, 10, 20), (0, 16, 32, 16), (32, 32))
    one, two = noise(20, 20), noise(10, 30)
    canvas = torch.zeros(3, 32, 32, dtype=torch.uint8)
    left.draw(one, canvas)
    right.draw(two, canvas)
    assert torch.equal(canvas[:, :, :16], resize(one, (32, 16)))
    assert torch.equal(canvas[:, :, 16:], resize(two[:, :, 10:], (32, 16)))


def test_a_window_that_is_not_resized_has_rows_of_its_own() -> None:
    image = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8).permute(2, 0, 1)
    geometry = fit_geometry((32, 32), (32, 32), "stretch").within((64, 80), 5, 7)
    found = geometry.image(image)
    assert torch.equal(found, image[:, 5:37, 7:39])
    assert found.permute(1, 2, 0).is_contiguous(), "as resizing makes them: batches are put together without turning"
