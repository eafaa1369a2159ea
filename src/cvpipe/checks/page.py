"""The report of a check: one HTML file with a picture for each finding that has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.checks.findings import CHECKS, Exceeded, Finding
from cvpipe.checks.places import Places
from cvpipe.report import Report

if TYPE_CHECKING:
    import PIL.Image

_TABLE_ROWS = 200
_SIDE = 320
_NO_PICTURE = frozenset({"unreadable", "missing_class", "rare_class", "annotation"})
_LIGHT = ("5th percentile", "mean", "99th percentile", "contrast", "sharpness")


def build_report(
    title: str,
    findings: Sequence[Finding],
    over: Sequence[Exceeded],
    places: Places,
    counts: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, object],
    gallery: int,
) -> Report:
    """All that was found, the worst first.

    Args:
        findings: in the order of CHECKS.
        counts: split -> class -> number.
        facts: how the check was made.
        gallery: pictures of each check.
    """
    report = Report(title, "what cvpipe data check found")
    by_severity = Counter(item.severity for item in findings)
    report.tiles(
        [
            ("verdict", "too much" if over else "within limits", f"{len(over)} limits exceeded"),
            ("images", f"{len(places):,}", ", ".join(f"{s.name or 'all'} {len(s):,}" for s in places.splits)),
            *(
                (f"{name}s" if name != "info" else "notes", f"{by_severity[name]:,}", "")
                for name in ("error", "warning", "info")
            ),
        ]
    )
    for item in over:
        report.warning(str(item))
    report.facts(facts)
    counted = Counter(item.check for item in findings)
    report.table(
        "What was found",
        [{"check": CHECKS[name].title, "name": name, "found": counted[name]} for name in CHECKS if counted[name]],
    )
    _add_classes(report, counts)
    report.table("Images", image_statistics(places))
    by_path = {(places.name(i), places.path(i)): i for i in range(len(places))} if gallery else {}
    for name, check in CHECKS.items():
        items = [item for item in findings if item.check == name]
        if not items:
            continue
        report.table(f"{check.title} ({len(items):,})", [_row(item) for item in items[:_TABLE_ROWS]])
        if len(items) > _TABLE_ROWS:
            report.text(f"The first {_TABLE_ROWS} of {len(items):,}. All are in findings.csv.")
        if name not in _NO_PICTURE and gallery:
            pictures = [_picture(item, places, by_path) for item in items[:gallery]]
            shown = [picture for picture in pictures if picture is not None]
            if shown:
                report.gallery(f"{check.title}: pictures", shown, wide=True)
    return report


def image_statistics(places: Places) -> list[dict[str, Any]]:
    """Sizes, formats, modes, orientations and light, one row each."""
    chosen = np.flatnonzero(places.readable)
    if not len(chosen):
        return []
    rows = places.rows[chosen]
    scan = places.scan
    found: list[dict[str, Any]] = []
    sizes, light = scan.sizes[rows], scan.light[rows]
    columns: list[tuple[str, Any]] = [("width", sizes[:, 0]), ("height", sizes[:, 1])]
    columns += [(f"brightness, {name}" if i < 3 else name, light[:, i]) for i, name in enumerate(_LIGHT)]
    for name, values in columns:
        low, middle, high = np.percentile(values, (0, 50, 100))
        found.append({"what": name, "values": f"{low:.4g} to {high:.4g}, median {middle:.4g}"})
    formats = Counter(scan.formats[row] or "other" for row in rows)
    modes = Counter(scan.modes[row] or "other" for row in rows)
    turns = Counter(int(scan.orientations[row]) for row in rows)
    for name, counter in (("format", formats), ("colour mode", modes), ("EXIF orientation", turns)):
        found.append({"what": name, "values": ", ".join(f"{key} {number:,}" for key, number in counter.most_common(8))})
    return found


def _add_classes(report: Report, counts: Mapping[str, Mapping[str, int]]) -> None:
    names = list(dict.fromkeys(name for count in counts.values() for name in count))
    rows: list[dict[str, Any]] = [
        {"class": name, **{split or "all": count.get(name, 0) for split, count in counts.items()}} for name in names
    ]
    if rows:
        report.table("Classes", sorted(rows, key=lambda row: -sum(v for k, v in row.items() if k != "class")))


def _row(item: Finding) -> dict[str, Any]:
    return {
        "severity": item.severity,
        "split": item.split,
        "file": item.path,
        "annotation": item.annotation,
        "what": item.message,
    }


def _picture(
    item: Finding, places: Places, by_path: Mapping[tuple[str, str], int]
) -> tuple[PIL.Image.Image, str] | None:
    """(picture, caption): an image, two side by side, or one with the box in question drawn in."""
    from cvpipe import draw
    from cvpipe.errors import ImageError

    place = by_path.get((item.split, item.path))
    if place is None:
        return None
    try:
        image = draw.open_image(item.path)
        other = draw.open_image(item.related) if item.related and not _is_mask(item) else None
    except ImageError:
        return None
    target = places.target(place)
    ids = [str(name) for name in getattr(target, "ids", ())]
    if places.labels is not None and item.annotation in ids:
        position = ids.index(item.annotation)
        label = int(target.labels[position])
        image = draw.boxes(image, target.boxes[[position]], [label], [places.labels.classes[label]])
    image.thumbnail((_SIDE, _SIDE))
    if other is not None:
        other.thumbnail((_SIDE, _SIDE))
        image = draw.beside(other, image)
    return image, f"{item.split} {'/'.join(Path(item.path).parts[-2:])}: {item.message}"


def _is_mask(item: Finding) -> bool:
    return item.check in ("mask_values", "empty_annotation")
