"""Boxes and masks: what the readers complain about, and what they accept but people should see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.checks.findings import Finding, Severity, finding
from cvpipe.checks.places import Places
from cvpipe.data.splits import Problem
from cvpipe.errors import ImageError

TINY = 3.0
"""Side of a box at the network's size below which nothing can be learnt from it, pixels."""
THIN = 20.0
SAME_BOX = 0.95
"""Intersection over union from which two boxes are the same."""

_REASONS = (
    ("box reaches", "box_outside"),
    ("box outside", "box_outside"),
    ("box without area", "box_degenerate"),
    ("box with a number that is not finite", "box_degenerate"),
    ("values that name no class", "mask_values"),
    ("segments that the annotations don't name", "mask_values"),
)


def find_problems(problems: Sequence[Problem]) -> list[Finding]:
    """What the readers found, one finding each: an error where the annotation is left out of training."""
    found = []
    for problem in problems:
        check = next((name for start, name in _REASONS if problem.reason.startswith(start)), "annotation")
        severity: Severity = "error" if problem.dropped else "warning"
        outcome = "left out of training" if problem.dropped else "kept after a correction"
        found.append(
            finding(
                check,
                problem.split,
                problem.file,
                f"{problem.reason} ({outcome})",
                annotation=problem.annotation,
                severity=severity,
            )
        )
    return found


def find_odd_boxes(places: Places, canvas: tuple[int, int]) -> list[Finding]:
    """Tiny, very thin and repeated boxes, and images without any.

    Args:
        canvas: (height, width) of the network's input.
    """
    found: list[Finding] = []
    for place in range(len(places)):
        target = places.target(place)
        boxes = getattr(target, "boxes", None)
        if boxes is None:
            return found
        split, path = places.name(place), places.path(place)
        if not len(boxes):
            found.append(finding("empty_annotation", split, path, "no object"))
            continue
        single = np.flatnonzero(~target.crowd)
        width, height = places.scan.sizes[int(places.rows[place])].tolist()
        sides = boxes[single, 2:] - boxes[single, :2]
        names = [str(target.ids[i]) if target.ids else f"box {i}" for i in single]
        if width and height:
            scale = min(canvas[0] / height, canvas[1] / width)
            for i in np.flatnonzero(sides.min(axis=1) * scale < TINY):
                text = (
                    f"{sides[i][0]:.1f}x{sides[i][1]:.1f} pixels: {sides[i].min() * scale:.1f} at the network's "
                    f"{canvas[1]}x{canvas[0]}"
                )
                value = float(sides[i].min() * scale)
                found.append(finding("box_tiny", split, path, text, annotation=names[i], value=value))
        ratio = sides.max(axis=1) / np.maximum(sides.min(axis=1), 1e-6)
        for i in np.flatnonzero(ratio > THIN):
            text = f"{sides[i][0]:.1f}x{sides[i][1]:.1f} pixels: {ratio[i]:.0f} times as long as wide"
            found.append(finding("box_aspect", split, path, text, annotation=names[i], value=float(ratio[i])))
        found += _repeated(places, split, path, target, single, names)
    return found


def _repeated(places: Places, split: str, path: str, target: Any, single: Any, names: Sequence[str]) -> list[Finding]:
    assert places.labels is not None
    overlap = overlaps(target.boxes[single])
    labels = [places.labels.classes[int(target.labels[i])] for i in single]
    found = []
    for late, early in zip(*np.nonzero(np.tril(overlap >= SAME_BOX, -1)), strict=True):
        same = labels[late] == labels[early]
        what = f"both {labels[late]}" if same else f"{labels[early]} there, {labels[late]} here"
        text = f"lies on {names[early]} (IoU {overlap[late, early]:.2f}), {what}"
        value = float(overlap[late, early])
        found.append(finding("box_duplicate", split, path, text, annotation=names[late], value=value))
    return found


def overlaps(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, 4) x1 y1 x2 y2 -> (n, n) intersection over union."""
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = areas[:, None] + areas[None, :] - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0), dtype=np.float32)


class MaskLook(NamedTuple):
    """What a class map holds.

    Attributes:
        reason: why it can't be read, or empty.
        pixels: class index -> pixels; those that count nowhere are left out.
        unknown: values that name no class -> pixels.
    """

    reason: str
    pixels: dict[int, int]
    unknown: dict[int, int]


def look_at_masks(targets: Sequence[Any]) -> list[MaskLook]:
    """Reads class maps. Runs in worker processes."""
    return [_look_at_mask(target) for target in targets]


def _look_at_mask(target: Any) -> MaskLook:
    from cvpipe.data.targets import IGNORE

    try:
        values, counts = np.unique(target.values(), return_counts=True)
    except ImageError as error:
        return MaskLook(str(error), {}, {})
    names = dict(target.classes)
    pixels: Counter[int] = Counter()
    unknown: dict[int, int] = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in names:
            unknown[value] = count
        elif names[value] != IGNORE:
            pixels[names[value]] += count
    return MaskLook("", dict(pixels), unknown)


def find_odd_masks(places: Places, chosen: Sequence[int], looks: Sequence[MaskLook]) -> list[Finding]:
    found = []
    for place, look in zip(chosen, looks, strict=True):
        split, path, mask = places.name(place), places.path(place), str(places.target(place))
        if look.reason:
            found.append(finding("mask_values", split, path, f"the mask can't be read: {look.reason}", related=mask))
        elif look.unknown:
            shown = ", ".join(f"{value} ({count} pixels)" for value, count in list(look.unknown.items())[:5])
            found.append(
                finding(
                    "mask_values",
                    split,
                    path,
                    f"values that name no class: {shown}",
                    value=len(look.unknown),
                    related=mask,
                )
            )
        elif not look.pixels:
            found.append(finding("empty_annotation", split, path, "no pixel of any class", related=mask))
    return found


def pixel_counts(places: Places, chosen: Sequence[int], looks: Sequence[MaskLook]) -> dict[str, dict[str, int]]:
    """Split -> class -> pixels."""
    assert places.labels is not None
    counts: dict[str, Counter[str]] = {split.name: Counter() for split in places.splits}
    for place, look in zip(chosen, looks, strict=True):
        for index, number in look.pixels.items():
            counts[places.name(place)][places.labels.classes[index]] += number
    return {name: dict(count) for name, count in counts.items()}
