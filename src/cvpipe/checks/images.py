"""Single images: files that can't be decoded, very dark, bright, blank, blurred, of unusual size, shape or mode."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.checks.findings import Finding, finding
from cvpipe.checks.pairs import loneliness
from cvpipe.checks.places import Places

BLANK = 2.0
"""Standard deviation of grey values, 0 to 255, up to which an image shows nothing."""
DARK = 40.0
"""99th percentile of grey values below which an image is very dark: only a hundredth of it is lighter."""
BRIGHT = 235.0
"""5th percentile of grey values above which an image is very bright: only a twentieth of it is darker."""
BLURRED = 0.05
"""Sharpness (see `look.Look`) below which an image has no sharp edge."""
_LEAST_SIDE = 64  # pixels; smaller images are never judged to be blurred
_SIZE_FACTOR = 4.0
_ASPECT = 3.0
_RARE = 0.05
_FAR_OUT = 3.0


def find_unreadable(places: Places) -> list[Finding]:
    found = []
    for place in np.flatnonzero(~places.readable).tolist():
        reason = places.scan.reasons[int(places.rows[place])]
        found.append(finding("unreadable", places.name(place), places.path(place), reason))
    return found


def find_odd_light(places: Places) -> list[Finding]:
    """Blank, very dark, very bright and blurred images, each under one of these names; the worst first."""
    light = places.scan.light[places.rows]
    low, _, high, contrast, sharpness = light.T
    side = places.scan.sizes[places.rows].min(axis=1)
    ok = places.readable
    blank = ok & (contrast <= BLANK)
    dark = ok & ~blank & (high < DARK)
    bright = ok & ~blank & (low > BRIGHT)
    blurred = ok & ~blank & ~dark & ~bright & (side >= _LEAST_SIDE) & (sharpness < BLURRED)
    kinds: tuple[tuple[str, Any, Any, str], ...] = (
        ("blank", blank, contrast, "one colour: standard deviation of grey values {:.1f} of 255"),
        ("dark", dark, high, "99 % of it is darker than {:.0f} of 255"),
        ("bright", bright, -low, "95 % of it is brighter than {:.0f} of 255"),
        ("blurred", blurred, sharpness, "no sharp edge: sharpness {:.3f}"),
    )
    found = []
    for check, mask, badness, text in kinds:
        for place in sorted(np.flatnonzero(mask).tolist(), key=lambda p: float(badness[p])):
            value = abs(float(badness[place]))
            found.append(finding(check, places.name(place), places.path(place), text.format(value), value=value))
    return found


def find_odd_forms(places: Places) -> list[Finding]:
    """Sizes and shapes far from the median, and colour modes that few images have."""
    chosen = np.flatnonzero(places.readable)
    if not len(chosen):
        return []
    sizes = places.scan.sizes[places.rows[chosen]].astype(np.float64)
    side, aspect = np.sqrt(sizes.prod(axis=1)), sizes[:, 0] / sizes[:, 1]
    found = []
    for check, values, factor, what in (
        ("odd_size", side, _SIZE_FACTOR, "sides"),
        ("odd_aspect", aspect, _ASPECT, "ratio of width to height"),
    ):
        median = float(np.median(values))
        ratio = np.maximum(values / median, median / values)
        for i in sorted(np.flatnonzero(ratio > factor).tolist(), key=lambda i: -float(ratio[i])):
            (width, height), place = sizes[i].astype(int), int(chosen[i])
            middle = f"{median:.0f} pixels" if check == "odd_size" else f"{median:.2f}"
            text = f"{width}x{height} pixels: {what} {ratio[i]:.1f} times off the median ({middle})"
            found.append(finding(check, places.name(place), places.path(place), text, value=float(ratio[i])))
    modes = [places.scan.modes[int(places.rows[place])] for place in chosen]
    counts = Counter(modes)
    usual = counts.most_common(1)[0][0]
    for place, mode in zip(chosen.tolist(), modes, strict=True):
        if counts[mode] < _RARE * len(chosen):
            text = f"mode {mode}, as {counts[mode]} of {len(chosen)} images; most are {usual}"
            found.append(finding("odd_mode", places.name(place), places.path(place), text))
    return found


def find_outliers(places: Places, chosen: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]) -> list[Finding]:
    """Images whose nearest others are far: beyond the third quartile by three times the quartiles' distance (Tukey).

    Args:
        chosen: (k,) images.
        vectors: (k, length) their feature directions.
    """
    if len(chosen) < 20:
        return []
    alone = loneliness(vectors)
    first, third = np.percentile(alone, (25, 75))
    limit = third + _FAR_OUT * (third - first)
    found = []
    for i in sorted(np.flatnonzero(alone > limit).tolist(), key=lambda i: -float(alone[i])):
        place = int(chosen[i])
        text = f"cosine distance {alone[i]:.2f} to the 5 nearest images, for three quarters it is under {third:.2f}"
        found.append(finding("outlier", places.name(place), places.path(place), text, value=float(alone[i])))
    return found
