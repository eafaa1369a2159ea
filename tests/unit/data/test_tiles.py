"""Tiles cover an image, what is found in them becomes one answer, and training sees them as images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data.geometry import fit_geometry
from cvpipe.data.loader import ImageDataset
from cvpipe.data.spatial import SpatialEval
from cvpipe.data.splits import Split
from cvpipe.data.targets import NO_OBJECTS, ClassMap, Objects, Tiled
from cvpipe.data.tiles import (
    image_size,
    merge_boxes,
    merge_maps,
    points_back,
    tile_split,
    tile_views,
    view_geometry,
    windows,
)
from cvpipe.errors import ImageError
from cvpipe.types import View

CANVAS = (64, 64)
policies = st.sampled_from(["letterbox", "stretch"])
Arrays = tuple[list[Any], list[Any], list[Any]]


def objects(boxes: Any) -> Objects:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1)
    return Objects(array, np.zeros(len(array), np.int64), np.zeros(len(array), bool), areas)


# views


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.integers(1, 90), st.floats(0, 0.95))
def test_tiles_cover_every_pixel_and_nothing_else(size: Any, tile: int, overlap: float) -> None:
    found = windows(size, tile, overlap)
    assume(len(found) < 3000)
    seen = np.zeros(size, int)
    for top, left, height, width in found:
        assert top >= 0
        assert left >= 0
        assert (height, width) == (min(tile, size[0]), min(tile, size[1]))
        assert top + height <= size[0]
        assert left + width <= size[1]
        seen[top : top + height, left : left + width] += 1
    assert seen.min() == 1 or overlap > 0 or any(side % tile for side in size)
    assert seen.min() >= 1
    assert len(set(found)) == len(found)
    for start, side in ((0, 0), (1, 1)):
        starts = sorted({window[start] for window in found})
        length = min(tile, size[side])
        for one, other in pairwise(starts):
            assert one + length - other >= np.floor(tile * overlap) - 1e-9
        assert starts[-1] + length == size[side]


@given(st.tuples(st.integers(1, 200), st.integers(1, 200)), st.integers(0, 90), st.booleans(), st.booleans())
def test_views(size: Any, tile: int, tta: bool, whole: bool) -> None:
    found = tile_views(size, tile, 0.25, tta, whole)
    everything = View((0, 0, *size))
    tiled = 0 < tile < max(size)
    if not tiled:
        assert found == ([everything, View(everything.window, True)] if tta else [])
        return
    plain = [view for view in found if not view.hflip]
    assert [view.window for view in plain] == [everything.window] * whole + windows(size, tile, 0.25)
    assert [view for view in found if view.hflip] == ([View(view.window, True) for view in plain] if tta else [])


def test_a_side_shorter_than_a_tile() -> None:
    assert windows((30, 100), 40, 0.0) == [(0, 0, 30, 40), (0, 40, 30, 40), (0, 60, 30, 40)]


@settings(max_examples=80)
@given(
    st.tuples(st.integers(4, 70), st.integers(4, 70)),
    st.sampled_from(["letterbox", "stretch", "short_side"]),
    st.data(),
)
def test_the_geometry_of_a_view_is_what_the_predictor_does_to_it(size: Any, policy: str, data: st.DataObject) -> None:
    """Cut out, mirror, fit: the pixels of the canvas."""
    top, left = data.draw(st.integers(0, size[0] - 2)), data.draw(st.integers(0, size[1] - 2))
    window = (top, left, data.draw(st.integers(2, size[0] - top)), data.draw(st.integers(2, size[1] - left)))
    view = View(window, data.draw(st.booleans()))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    part = image[:, top : top + window[2], left : left + window[3]]
    part = part.flip([-1]) if view.hflip else part
    canvas = (33, 50)
    expected = fit_geometry((window[2], window[3]), canvas, policy).image(part)
    found = view_geometry(view, size, canvas, policy).image(image)
    assert int((found.int() - expected.int()).abs().max()) <= 1


# boxes


def found_in(boxes: Any, labels: Any, views: Any, size: Any, policy: str, least: float = 0.3) -> Arrays:
    """What a perfect detector finds: the part of each object that a view shows, and how sure it is of it."""
    columns: Arrays = ([], [], [])
    for view in views:
        top, left, height, width = view.window
        low = np.maximum(boxes[:, :2], [left, top])
        high = np.minimum(boxes[:, 2:], [left + width, top + height])
        shown = np.clip(high - low, 0, None).prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        rows = np.flatnonzero(shown >= least)
        clipped = np.concatenate([low, high], axis=1)[rows].astype(np.float32)
        columns[0].append(view_geometry(view, size, CANVAS, policy).boxes(clipped))
        columns[1].append(shown[rows].astype(np.float32) * 0.9)
        columns[2].append(labels[rows])
    return columns


@settings(max_examples=60)
@given(st.integers(0, 2**31), policies, st.booleans(), st.booleans())
def test_merged_boxes_are_those_of_the_image(seed: int, policy: str, tta: bool, whole: bool) -> None:
    """For objects that are smaller than the overlap and don't lie in each other."""
    rng = np.random.default_rng(seed)
    size, tile, overlap = (int(rng.integers(60, 260)), int(rng.integers(60, 260))), 64, 0.4
    boxes = []
    for y in range(0, size[0] - 24, 26):
        for x in range(0, size[1] - 24, 26):
            if rng.random() < 0.5:
                w, h = rng.uniform(8, 24, 2)
                a, b = x + rng.uniform(0, 24 - w), y + rng.uniform(0, 24 - h)
                boxes.append([a, b, a + w, b + h])
    array = np.array(boxes, np.float32).reshape(-1, 4)
    labels = rng.integers(0, 3, len(array))
    views = tile_views(size, tile, overlap, tta, whole) or [View((0, 0, *size))]
    columns = found_in(array, labels, views, size, policy)
    merged = merge_boxes(*columns, views, size, CANVAS, policy)
    assert len(merged) == len(array)
    distances = np.abs(merged.boxes[:, None] - array[None]).max(axis=2, initial=0)
    nearest = [int(row.argmin()) for row in distances]
    assert sorted(nearest) == list(range(len(array)))
    assert all(row.min() < 0.05 for row in distances)
    assert merged.labels.tolist() == [labels[i] for i in nearest]
    assert (np.diff(merged.scores) <= 0).all()
    for row in range(len(merged)):
        view, position = int(merged.views[row]), int(merged.rows[row])
        geometry = view_geometry(views[view], size, CANVAS, policy)
        np.testing.assert_allclose(geometry.boxes_back(columns[0][view])[position], merged.boxes[row], atol=1e-3)
        assert columns[1][view][position] == merged.scores[row]


def two(first: Any, second: Any, scores: Any, labels: Any = (0, 0), iou: float = 0.9) -> list[list[int]]:
    """Which (view, row) are left of two boxes found in two tiles side by side, in pixels of the image."""
    size, views = (64, 110), [View((0, 0, 64, 64)), View((0, 46, 64, 64))]
    boxes = [
        view_geometry(view, size, CANVAS, "stretch").boxes(np.array([box], np.float32))
        for view, box in zip(views, (first, second), strict=True)
    ]
    merged = merge_boxes(
        boxes, [np.array([s]) for s in scores], [np.array([c]) for c in labels], views, size, CANVAS, "stretch", iou
    )
    return sorted(merged.views.tolist())


def test_a_cut_box_gives_way_to_a_fuller_one() -> None:
    piece, fuller = [50, 10, 64, 30], [50, 10, 84, 30]
    assert two(piece, fuller, (0.9, 0.6)) == [1], "even where it is more certain"
    assert two(piece, fuller, (0.9, 0.4)) == [0, 1], "not for one that is hardly believed in"
    assert two(piece, fuller, (0.9, 0.6), labels=(0, 1)) == [0, 1], "not for another class"
    assert two([50, 10, 62, 30], fuller, (0.9, 0.6)) == [1], "two pixels from the border are none"
    assert two([48, 10, 58, 30], [48, 10, 84, 30], (0.9, 0.6)) == [0, 1], "not cut: it ends of its own accord"
    assert two([50, 10, 64, 30], [70, 10, 90, 30], (0.9, 0.9)) == [0, 1], "elsewhere"
    # both are cut, the larger one stays: x 46..64 is seen by both
    assert two([20, 10, 64, 30], [46, 10, 60, 30], (0.5, 0.9)) == [0]


def test_the_border_of_the_image_cuts_nothing() -> None:
    size = (64, 110)
    views = [View((0, 0, 64, 64)), View((0, 0, *size))]
    boxes = [np.array([[0, 0, 20, 10]], np.float32), np.array([[0, 0, 30, 20]], np.float32)]
    on_canvas = [view_geometry(v, size, CANVAS, "stretch").boxes(b) for v, b in zip(views, boxes, strict=True)]
    score, label = [np.array([0.9])] * 2, [np.array([0])] * 2
    assert len(merge_boxes(on_canvas, score, label, views, size, CANVAS, "stretch")) == 2


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 40), st.floats(0.1, 0.9))
def test_one_view_is_torchvisions_suppression(seed: int, count: int, iou: float) -> None:
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 14, (count, 2))], axis=1).astype(np.float32)
    scores, labels = rng.permutation(count).astype(np.float32) + 1, rng.integers(0, 3, count)
    keep = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), iou).numpy()
    found = merge_boxes([boxes], [scores], [labels], [View((0, 0, 64, 64))], CANVAS, CANVAS, "stretch", iou)
    assert found.rows.tolist() == keep.tolist()
    np.testing.assert_allclose(found.boxes, boxes[keep], atol=1e-4)
    few = merge_boxes(
        [boxes], [scores], [labels], [View((0, 0, 64, 64))], CANVAS, CANVAS, "stretch", iou, least_score=5, limit=3
    )
    assert few.rows.tolist() == [row for row in keep.tolist() if scores[row] > 5][:3]


def test_nothing_found_and_much_found() -> None:
    size = (200, 300)
    views = tile_views(size, 64, 0.2)
    none = [np.zeros((0, 4), np.float32)] * len(views), [np.zeros(0)] * len(views), [np.zeros(0, int)] * len(views)
    found = merge_boxes(*none, views, size, CANVAS, "letterbox")
    assert (len(found), found.boxes.shape, found.boxes.dtype) == (0, (0, 4), np.float32)
    assert len(merge_boxes([], [], [], [], size, CANVAS, "letterbox")) == 0
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (len(views), 300, 2))
    boxes = list(np.concatenate([corners, corners + 4], axis=2).astype(np.float32))
    scores, labels = list(rng.random((len(views), 300))), list(rng.integers(0, 2, (len(views), 300)))
    found = merge_boxes(boxes, scores, labels, views, size, CANVAS, "letterbox")
    assert 500 < len(found) < 300 * len(views)
    assert {found.boxes.dtype, found.scores.dtype} == {np.dtype(np.float32)}
    assert {found.labels.dtype, found.views.dtype, found.rows.dtype} == {np.dtype(np.int64)}


@given(st.booleans(), policies)
def test_points_of_a_mirrored_view_swap_back(hflip: bool, policy: str) -> None:
    size = (40, 100)
    geometry = view_geometry(View((5, 30, 30, 45), hflip), size, CANVAS, policy)
    points = np.array([[[40, 10, 0.9], [50, 10, 0.8], [60, 20, 0.7]]], np.float32)
    seen = points.copy()
    seen[..., :2] = geometry.points(points[..., :2])
    if hflip:  # the network calls left what is left on its canvas
        seen = seen[:, [1, 0, 2]]
    np.testing.assert_allclose(points_back(seen, geometry, ((0, 1),)), points, atol=1e-3)


# maps


@settings(max_examples=60)
@given(st.tuples(st.integers(20, 150), st.integers(20, 150)), policies, st.booleans(), st.booleans(), st.floats(0, 0.6))
def test_merged_maps_are_those_of_the_image(size: Any, policy: str, tta: bool, whole: bool, overlap: float) -> None:
    """A ramp and a constant, seen through views at the size of the canvas, come together again."""
    canvas = (48, 48)
    views = tile_views(size, 48, overlap, tta, whole) or [View((0, 0, *size))]
    y, x = np.meshgrid(np.arange(48) + 0.5, np.arange(48) + 0.5, indexing="ij")
    pixels = np.stack([x, y], axis=-1).astype(np.float32)

    def seen(view: View) -> torch.Tensor:
        ramp = torch.from_numpy(view_geometry(view, size, canvas, policy).back(pixels)).permute(2, 0, 1)
        return torch.cat([ramp, torch.ones(1, 48, 48)])

    merged = merge_maps((seen(view) for view in views), views, size, canvas, policy)
    assert merged.shape == (3, *size)
    assert merged.dtype == torch.float32
    expected = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    # at the rim, interpolation repeats the outermost cell: up to half a canvas pixel of a view
    rim = 1 + max(max(size) / 48, 1)
    np.testing.assert_allclose(merged[0], expected[1], atol=rim)
    np.testing.assert_allclose(merged[1], expected[0], atol=rim)
    inner = np.s_[4 : size[0] - 4, 4 : size[1] - 4]
    if not whole and min(size) >= 48:
        np.testing.assert_allclose(merged[0].numpy()[inner], expected[1][inner], atol=0.01)
        np.testing.assert_allclose(merged[1].numpy()[inner], expected[0][inner], atol=0.01)
    np.testing.assert_allclose(merged[2], 1, atol=1e-5)


def test_borders_of_tiles_count_less() -> None:
    views = [View((0, 0, 10, 20)), View((0, 10, 10, 20))]
    merged = merge_maps([torch.zeros(1, 5, 5), torch.ones(1, 5, 5)], views, (10, 30), (5, 5), "stretch")[0]
    assert (merged[:, :10] == 0).all()
    assert (merged[:, 20:] == 1).all()
    between = merged[5, 10:20]
    assert (between.diff() > 0).all()
    np.testing.assert_allclose(between, between.flip(0).neg() + 1, atol=1e-6)


def test_views_that_leave_something_out() -> None:
    with pytest.raises(ValueError, match="don't cover"):
        merge_maps([torch.zeros(1, 4, 4)], [View((0, 0, 10, 9))], (10, 10), (4, 4), "stretch")
    with pytest.raises(ValueError, match="don't cover"):
        merge_maps([], [], (10, 10), (4, 4), "stretch")


# training


def test_a_split_of_tiles() -> None:
    known = objects([[10, 10, 30, 30], [60, 60, 80, 80], [155, 20, 170, 40]])
    split = Split("train", ("a", "b", "c"), (known, objects([[0, 0, 9, 9]]), NO_OBJECTS), ("g", "h", "i"))
    sizes = [(100, 200), (50, 50), (100, 200)]
    found, left_out = tile_split(split, sizes, 64, 0.2, empty_share=0)
    tiles = [t.window for t, path in zip(found.targets, found.paths, strict=True) if path == "a"]
    expected = []
    for top, left, height, width in windows((100, 200), 64, 0.2):
        low = np.maximum(known.boxes[:, :2], [left, top])
        high = np.minimum(known.boxes[:, 2:], [left + width, top + height])
        if (np.clip(high - low, 0, None).prod(axis=1) >= 0.1 * known.areas).any():
            expected.append((top, left, height, width))
    assert tiles == expected
    assert found.groups == tuple({"a": "g", "b": "h", "c": "i"}[path] for path in found.paths)
    assert found.targets[found.paths.index("b")] is split.targets[1], "small images stay as they are"
    assert "c" not in found.paths
    every, none = tile_split(split, sizes, 64, 0.2, empty_share=1)
    assert none == 0
    assert len(every) == 2 * len(windows((100, 200), 64, 0.2)) + 1
    assert len(every) == len(found) + left_out


@given(st.floats(0, 0.95), st.integers(1, 5))
def test_the_share_of_tiles_without_objects(share: float, filled: int) -> None:
    boxes = [[8 + 16 * i, 8, 12 + 16 * i, 12] for i in range(filled)]
    split = Split("train", ("a",), (objects(boxes),))
    found, left_out = tile_split(split, [(160, 160)], 16, 0.0, share)
    empty = len(found) - filled
    assert empty + left_out == 100 - filled
    assert empty <= share * len(found) + 1e-9
    assert left_out == 0 or (empty + 1) > share * (len(found) + 1) - 1e-6, "as many as are allowed"
    assert found.targets[0].window == tile_split(split, [(160, 160)], 16, 0.0, share)[0].targets[0].window


def test_every_object_is_whole_in_some_tile_or_larger_than_the_overlap() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 280, (50, 2))
    boxes = np.concatenate([corners, corners + 12], axis=1)
    found, _ = tile_split(Split("train", ("a",), (objects(boxes),)), [(300, 300)], 64, 0.2, 0)
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    whole = 0
    for target in found.targets:
        assert isinstance(target, Tiled)
        _, tensors = SpatialEval((64, 64), "stretch")(image, target, 0, lambda _: None)
        assert len(tensors.labels)
        whole += int((tensors.boxes[:, 2:] - tensors.boxes[:, :2] == 12).all(dim=1).sum())
    assert whole >= 50


def test_tiles_of_class_maps_are_all_kept_and_go_through_the_loader(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (40, 90)).astype(np.uint8)
    Image.fromarray(values * 200).save(tmp_path / "image.png")
    Image.fromarray(values).save(tmp_path / "map.png")
    target = ClassMap(str(tmp_path / "map.png"), ((0, 0), (1, 1)))
    split = Split("train", (str(tmp_path / "image.png"),), (target,))
    found, left_out = tile_split(split, [image_size(split.paths[0])], 32, 0.0, 0)
    assert left_out == 0
    assert len(found) == 6
    dataset = ImageDataset(found, SpatialEval((32, 32), "stretch", (), "classes"), 0, 10**6, replace=True)
    for position in range(6):
        pixels, classes, _, bad = dataset[(0, 0, position)]
        assert pixels is not None
        assert bad == []
        assert torch.equal(pixels[0] == 200, classes == 1)


def test_the_size_of_an_image_is_that_of_its_upright_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert image_size(tmp_path / "turned.jpg") == (40, 30)
    assert image_size(tmp_path / "plain.png") == (30, 40)
    (tmp_path / "broken.png").write_bytes(b"x")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            image_size(tmp_path / name)
