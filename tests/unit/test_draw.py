from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvpipe import draw
from cvpipe.errors import ImageError

GREY = Image.new("RGB", (64, 48), (100, 100, 100))


def changed(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return (np.asarray(picture) != np.asarray(GREY)).any(axis=2)


def test_boxes_are_where_they_should_be() -> None:
    where = changed(draw.boxes(GREY, np.array([[10.0, 20.0, 40.0, 30.0]]), [1], [""]))
    rows, columns = np.nonzero(where)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 30, 10, 40)
    assert not where[25, 20], "only the outline"
    captioned = changed(draw.boxes(GREY, np.array([[10.0, 20.0, 40.0, 30.0]]), [1], ["cat 0.9"]))
    assert captioned[:19].any()


def test_boxes_of_any_kind_can_be_drawn() -> None:
    odd = np.array([[5.0, 5.0, 5.0, 5.0], [-10.0, -10.0, 500.0, 500.0], [30.0, 30.0, 20.0, 20.0]])
    assert draw.boxes(GREY, odd, [0, 1, 2], ["", "a", "b"]).size == GREY.size
    assert not changed(draw.boxes(GREY, np.zeros((0, 4)), [], [])).any()


def test_masks_and_class_maps_tint_their_pixels() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[5:9, 7:20] = 1
    assert (changed(draw.masks(GREY, [mask], [3])) == mask.astype(bool)).all()
    classes = np.where(mask, 4, 255).astype(np.uint8)
    assert (changed(draw.class_map(GREY, classes)) == mask.astype(bool)).all()


def test_points_below_the_least_value_are_left_out() -> None:
    points = np.array([[[10.0, 10.0, 1.0], [50.0, 40.0, 1.0], [30.0, 5.0, 0.0]]])
    where = changed(draw.points(GREY, points, [(0, 1), (1, 2)]))
    assert where[10, 10]
    assert where[40, 50]
    assert where[25, 30], "the line between two points that are seen"
    assert not where[5, 30]
    assert not where[22, 40], "no line to a point that is not seen"


def test_heat_starts_at_half_of_the_threshold() -> None:
    values = np.array([[0.0, 0.4], [1.0, 3.0]], np.float32)
    picture = np.asarray(draw.heat(GREY, np.kron(values, np.ones((24, 32), np.float32)), 1.0))
    assert tuple(picture[5, 5]) == tuple(picture[5, 60]) == (100, 100, 100)
    assert picture[40, 5, 0] > 100
    assert picture[40, 5, 1] > picture[40, 60, 1], "yellow at the threshold, red above it"


def test_banner_and_neighbours() -> None:
    assert changed(draw.banner(GREY, "cat 0.97"))[:8].any()
    assert draw.beside(GREY, GREY).size == (64 * 2 + 4, 48)
    assert len({draw.color_of(i) for i in range(50)}) == 50


def test_a_broken_file_is_an_image_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError):
        draw.open_image(str(tmp_path / "a.png"))
