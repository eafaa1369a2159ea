"""Rows of class maps -> targets. Sizes of all masks are checked, values as far as time allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cvpipe.data.decode import read_values
from cvpipe.data.formats.files import Header, in_threads, read_header
from cvpipe.data.formats.objects import Built, make_split, size_text
from cvpipe.data.formats.rows import Map, MapRows
from cvpipe.data.splits import Problem
from cvpipe.data.targets import IGNORE, ClassMap
from cvpipe.errors import ImageError

PIXELS_READ = 500_000_000
"""Pixels of a split's masks whose values are checked before training: some seconds. Beyond that, masks at even
distances stand for the others."""

_VALUES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})
_COLOURS = frozenset({"RGB", "RGBA"})


class _Look(NamedTuple):
    """What one mask file says: its size, and why it can't be used."""

    pixels: int
    problem: str


def build_maps(rows: MapRows, name: str, classes: Sequence[str]) -> Built:
    """Checks every mask; those of other categories than `classes` are ignored in training and evaluation."""
    position = {label: index for index, label in enumerate(classes)}
    to_class = [position.get(label, IGNORE) for label in rows.categories]
    problems = list(rows.problems)
    tables: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}
    targets = []
    for found in rows.maps:
        if found.values not in tables:
            tables[found.values] = tuple((v, to_class[c] if c >= 0 else IGNORE) for v, c in found.values)
        targets.append(ClassMap(found.path, tables[found.values], rows.segments))

    jobs = [(picture.path, found.path, rows.segments) for picture, found in zip(rows.pictures, rows.maps, strict=True)]
    looks = list(in_threads(_look, jobs))
    reasons = [look.problem for look in looks]
    chosen = _choose([look.pixels for look in looks])
    present: list[tuple[int, ...]] = [
        tuple(sorted({c for _, c in target.classes} - {IGNORE})) if rows.segments else () for target in targets
    ]
    for i, (values, problem) in zip(
        chosen, in_threads(_values, [(rows.maps[i], rows.segments) for i in chosen]), strict=True
    ):
        reasons[i] = problem
        if not problem:
            table = dict(targets[i].classes)
            present[i] = tuple(sorted({table[value] for value in values} - {IGNORE}))
    for picture, found, reason in zip(rows.pictures, rows.maps, reasons, strict=True):
        if reason:
            problems.append(Problem(name, found.path, f"mask of {picture.name}", reason, dropped=True))
    kept = [i for i, reason in enumerate(reasons) if not reason]
    split = make_split(name, [rows.pictures[i] for i in kept], [targets[i] for i in kept])
    notes = list(rows.notes)
    if len(chosen) < len(looks):
        notes.append(f"values checked in {len(chosen)} of {len(looks)} {name} masks")
    if others := to_class.count(IGNORE):
        notes.append(f"pixels of {others} other classes are ignored (data.classes)")
    read = len(kept) + sum(problem.dropped for problem in problems)
    return Built(split, [present[i] for i in kept], problems, read, notes)


def _look(job: tuple[str, str, bool]) -> _Look:
    """The headers of an image and its mask, compared."""
    image_path, mask_path, segments = job
    mask = read_header(mask_path)
    if mask is None:
        return _Look(0, "the mask is no image file")
    pixels = mask.size[0] * mask.size[1]
    return _Look(pixels, _wrong_form(mask, segments) or _wrong_size(read_header(image_path), mask))


def _wrong_form(mask: Header, segments: bool) -> str:
    if mask.format in ("JPEG", "MPO"):
        return "a JPEG can't hold a mask: its compression changes the values. Use PNG"
    if segments and mask.mode not in _COLOURS:
        return f"mode {mask.mode}, expected an RGB image of segment numbers"
    if not segments and mask.mode not in _VALUES:
        return f"mode {mask.mode}: colours, expected values (8- or 16-bit grey or a palette)"
    return ""


def _wrong_size(image: Header | None, mask: Header) -> str:
    if image is None or image.size == mask.size:  # `verify` tells of broken images
        return ""
    turned = f", EXIF orientation {image.orientation}" if image.orientation != 1 else ""
    return f"the mask has {size_text(mask.size)} pixels, the image {size_text(image.size)} (upright{turned})"


def _choose(pixels: Sequence[int]) -> list[int]:
    """Positions of the masks whose values are read: all, or as many at even distances as `PIXELS_READ` allows."""
    usable = [i for i, count in enumerate(pixels) if count]
    share = min(1.0, PIXELS_READ / max(1, sum(pixels)))
    wanted = max(1, int(len(usable) * share)) if usable else 0
    return [usable[int(i * len(usable) / wanted)] for i in range(wanted)]


def _values(job: tuple[Map, bool]) -> tuple[list[int], str]:
    """The values in a mask, and what is wrong with it."""
    found, segments = job
    try:
        pixels = read_values(found.path)
    except ImageError as error:
        return [], str(error).removeprefix(f"{found.path}: ")
    if segments:
        pixels = pixels.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    if pixels.dtype.kind == "i" and pixels.min(initial=0) < 0:
        return [], f"a negative value: {pixels.min()}"
    seen = np.zeros(int(pixels.max(initial=0)) + 1, np.bool_)
    seen[pixels] = True
    values: list[int] = np.flatnonzero(seen).tolist()
    unknown = sorted(set(values) - {value for value, _ in found.values})
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        what = "segments that the annotations don't name" if segments else "values that name no class"
        hint = "" if segments else ". Name them in the file of classes, or set data.ignore_index"
        return values, f"{what}: {shown}{hint}"
    return values, ""
