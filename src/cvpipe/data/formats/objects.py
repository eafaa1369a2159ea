"""Rows of objects -> targets. What can't be used is left out, and every such thing is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.data.formats.files import Header, read_headers
from cvpipe.data.formats.rows import Found, Kind, ObjectRows, Picture
from cvpipe.data.formats.shapes import read_shape
from cvpipe.data.splits import Problem, Split
from cvpipe.data.targets import Objects

TOLERANCE = 0.01
"""Pixels that a box may reach over the border without a word: what rounding to six digits gives."""

Doubles = npt.NDArray[np.float64]


class Built(NamedTuple):
    """A split with targets.

    Attributes:
        present: the classes in each image.
        problems: of the rows and of what was checked here.
        annotations: how many were read, those that can't be used included.
        notes: for the start-up lines.
    """

    split: Split
    present: list[tuple[int, ...]]
    problems: list[Problem]
    annotations: int
    notes: list[str]


class _Checked(NamedTuple):
    """Found objects, cleaned, still in file order."""

    rows: list[int]
    boxes: Doubles
    areas: list[float]
    masks: list[Any]
    points: list[npt.NDArray[np.float32]]


def build_objects(rows: ObjectRows, name: str, kind: Kind, classes: Sequence[str]) -> Built:
    """Checks every object and gathers them by image. Objects of other classes are left out and counted."""
    position = {label: index for index, label in enumerate(classes)}
    to_class = np.array([position.get(label, -1) for label in rows.categories] or [-1])
    problems = list(rows.problems)

    def report(row: Found, reason: str, dropped: bool) -> None:
        file = rows.pictures[row.picture].source or rows.file
        problems.append(Problem(name, file, f"{rows.called} {row.id}", reason, dropped))

    headers = read_headers([p.path for p in rows.pictures]) if rows.headers is None else rows.headers
    sizes, refused = _check_sizes(rows, headers, name, problems)
    found = [row for row in rows.found if to_class[row.category] >= 0]
    good = []
    for row in found:
        if row.picture in refused:
            report(row, "its image was left out", dropped=True)
        else:
            good.append(row)
    checked = _check(good, sizes, kind, len(rows.keypoints), report)
    kept = [good[i] for i in checked.rows]
    pictures = np.array([row.picture for row in kept], dtype=np.int64)
    labels = to_class[np.array([row.category for row in kept], dtype=np.int64)]
    order = np.argsort(pictures, kind="stable")
    ends = np.searchsorted(pictures[order], np.arange(len(rows.pictures) + 1))
    crowd = np.array([row.crowd for row in kept], dtype=np.bool_)
    boxes, areas = checked.boxes.astype(np.float32), np.array(checked.areas, dtype=np.float32)
    points = (
        np.stack(checked.points) if checked.points else np.zeros((0, len(rows.keypoints), 3), np.float32)
    )  # (n, K, 3)
    images = [i for i in range(len(rows.pictures)) if i not in refused]
    targets = []
    for image in images:
        members = order[ends[image] : ends[image + 1]]
        targets.append(
            Objects(
                boxes=boxes[members].reshape(-1, 4),
                labels=labels[members],
                crowd=crowd[members],
                areas=areas[members],
                masks=tuple(checked.masks[i] for i in members) if kind == "masks" else None,
                points=points[members] if kind == "points" else None,
                ids=tuple(kept[i].id for i in members),
            )
        )
    split = make_split(name, [rows.pictures[i] for i in images], targets)
    present = [tuple(np.unique(target.labels).tolist()) for target in targets]
    read = len(kept) + sum(problem.dropped for problem in problems)
    others = len(rows.found) - len(found)
    notes = [f"{others} {name} objects of other classes left out (data.classes)"] if others else []
    return Built(split, present, problems, read, [*rows.notes, *notes])


def make_split(name: str, pictures: Sequence[Picture], targets: Sequence[Any]) -> Split:
    groups = tuple(p.group or p.path for p in pictures) if any(p.group for p in pictures) else None
    return Split(name, tuple(p.path for p in pictures), tuple(targets), groups)


def _check_sizes(
    rows: ObjectRows, headers: Sequence[Header | None], name: str, problems: list[Problem]
) -> tuple[Doubles, set[int]]:
    """(pictures, 2) height and width of the upright images (infinite where the file is broken, which `verify` tells),
    and the positions of pictures whose annotations belong to another size."""
    sizes = np.full((len(rows.pictures), 2), np.inf)
    refused: set[int] = set()
    for i, (picture, header) in enumerate(zip(rows.pictures, headers, strict=True)):
        said = picture.size if picture.size and min(picture.size) > 0 else None
        size = header.size if header else said
        if size is not None:
            sizes[i] = size
        if header is None or said is None or said == header.size:
            continue
        file = picture.source or rows.file
        claim = f"the annotations say {said[1]}x{said[0]} pixels, the upright image has {size_text(header.size)}"
        if said == header.size[::-1]:
            turned = f" (EXIF orientation {header.orientation})" if header.orientation != 1 else ""
            reason = f"{claim}{turned}: coordinates are taken to be those of the upright image"
            problems.append(Problem(name, file, picture.name, reason, dropped=False))
        else:
            refused.add(i)
            problems.append(Problem(name, file, picture.name, f"{claim}: {picture.path}", dropped=True))
    return sizes, refused


def size_text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _check(found: list[Found], sizes: Doubles, kind: Kind, keypoints: int, report: Any) -> _Checked:
    raw = np.array([row.box for row in found], dtype=np.float64).reshape(-1, 4)
    limits = sizes[np.array([row.picture for row in found], dtype=np.int64)]
    right, bottom = limits[:, 1], limits[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        finite: Any = np.isfinite(raw.astype(np.float32)).all(axis=1)
        empty = ~((raw[:, 2] > raw[:, 0]) & (raw[:, 3] > raw[:, 1]))
        outside = (raw[:, 2] <= 0) | (raw[:, 3] <= 0) | (raw[:, 0] >= right) | (raw[:, 1] >= bottom)
        inside = np.stack([right, bottom, right, bottom], axis=1)
        boxes = np.clip(raw, 0, inside)
        over = np.abs(boxes - raw).max(axis=1, initial=0.0)
        # thinner than the numbers that hold it
        small = boxes.astype(np.float32)
        thin = (small[:, 2] <= small[:, 0]) | (small[:, 3] <= small[:, 1])
    suspect: Any = np.asarray(~finite | empty | outside | (over > TOLERANCE) | thin)
    checked = _Checked([], boxes, [], [], [])
    for i, row in enumerate(found):
        notes = []
        if suspect[i]:
            text = _box_text(raw[i])
            if not finite[i]:
                report(row, f"box with a number that is not finite: {text}", dropped=True)
                continue
            if empty[i]:
                report(row, f"box without area: {text}", dropped=True)
                continue
            image = size_text((int(bottom[i]), int(right[i]))) if np.isfinite(right[i]) else "?"
            if outside[i]:
                report(row, f"box outside the image ({image}): {text}", dropped=True)
                continue
            if thin[i]:
                report(row, f"box without area inside the image ({image}): {text}", dropped=True)
                continue
            notes.append(f"box reaches {over[i]:.4g} pixels over the border ({image}) and is cut: {text}")
        area = _number(row.area)
        if kind == "masks":
            shape = read_shape(row.mask, _pixels(limits[i], row.mask))
            if shape.mask is None:
                report(row, shape.problem, dropped=True)
                continue
            if shape.problem:
                notes.append(f"{shape.problem}: left out, the object has others")
            area = area or shape.area
            checked.masks.append(shape.mask)
        elif kind == "points":
            points, problem = _read_points(row.points, keypoints, limits[i])
            if points is None:
                report(row, problem, dropped=True)
                continue
            if problem:
                notes.append(problem)
            checked.points.append(points)
        for note in notes:
            report(row, note, dropped=False)
        checked.rows.append(i)
        checked.areas.append(area or float((raw[i, 2] - raw[i, 0]) * (raw[i, 3] - raw[i, 1])))
    return checked._replace(boxes=boxes[checked.rows].reshape(-1, 4))


def _pixels(limit: Doubles, mask: Any) -> tuple[int, int]:
    """The image's size; that of the mask where the file is broken."""
    if np.isfinite(limit).all():
        return int(limit[0]), int(limit[1])
    size = mask.get("size") if isinstance(mask, dict) else None
    return (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else (0, 0)


def _number(value: Any) -> float:
    """A usable area, or 0."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value) and value > 0
    return float(value) if ok else 0.0


def _read_points(values: Any, count: int, limit: Doubles) -> tuple[npt.NDArray[np.float32] | None, str]:
    """(points, 3) x, y, visibility, or None with the reason; and what was mended."""
    if values is None:
        return None, "no keypoints"
    try:
        points = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError):
        return None, "keypoints is not a list of numbers"
    if points.ndim != 1 or len(points) != 3 * count:
        return None, f"keypoints has {points.size} numbers, expected {3 * count} (x, y, visibility of {count} points)"
    points = points.reshape(count, 3)
    seen = points[:, 2] != 0
    if not np.isfinite(points[seen]).all():
        return None, "keypoints has a number that is not finite"
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        return None, f"visibility of a keypoint is 0, 1 or 2, found {_unknown(points[:, 2])}"
    points[~seen] = 0
    x, y = points[:, 0], points[:, 1]
    away = (x < -TOLERANCE) | (y < -TOLERANCE) | (x > limit[1] + TOLERANCE) | (y > limit[0] + TOLERANCE)
    note = ""
    if away.any():
        points[away] = 0
        note = f"{int(away.sum())} keypoints outside the image: taken as not annotated"
    return points.astype(np.float32), note


def _unknown(values: Doubles) -> str:
    return ", ".join(f"{value:g}" for value in np.unique(values[~np.isin(values, (0, 1, 2))])[:3])


def _box_text(box: Doubles) -> str:
    x1, y1, x2, y2 = box
    return f"x {x1:g}, y {y1:g}, width {x2 - x1:g}, height {y2 - y1:g}"
