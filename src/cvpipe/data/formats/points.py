"""Lines between points, and which points swap in a mirror."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cvpipe.data.formats.rows import Pairs
from cvpipe.errors import DataError

# each names the left one: a word, a letter between separators, a capital at an end of a word (eyeL, legL1, LShoulder)
_LEFT = (
    (re.compile(r"left", re.IGNORECASE), "right"),
    (re.compile(r"(?<![A-Za-z0-9])l(?![A-Za-z])", re.IGNORECASE), "r"),
    (re.compile(r"(?<=[a-z0-9])L(?![a-z])"), "R"),
    (re.compile(r"(?<![A-Za-z0-9])L(?=[A-Z])"), "R"),
)


def pairs(values: Any, count: int, place: str, notes: list[str]) -> Pairs:
    """Pairs of points that count from 1 -> from 0.

    Files that plainly count from 0 (a 0 is there) are taken so, with a note. Raises DataError for anything else.
    """
    try:
        found = [(int(a), int(b)) for a, b in values]
    except (TypeError, ValueError):
        raise DataError(f"{place}: expected a list of pairs of points, found {values!r}.") from None
    first = 0 if any(0 in pair for pair in found) else 1
    if first == 0:
        notes.append(f"{place.rpartition(': ')[2]} counts points from 0, not from 1 as COCO does")
    wrong = [pair for pair in found if not all(first <= point < count + first for point in pair)]
    if wrong:
        raise DataError(f"{place}: the pair {list(wrong[0])} names no points. There are {count}, counted from {first}.")
    return tuple((a - first, b - first) for a, b in found)


def flip_pairs_from_names(names: Sequence[str]) -> Pairs:
    """The (left, right) pairs of names such as left_eye and right_eye, eyeL and eyeR, l_knee and r_knee."""
    position = {name: i for i, name in enumerate(names)}
    found = []
    for name in names:
        for left, right in _LEFT:
            other = _mirrored(name, left, right)
            if other != name and other in position:
                found.append((position[name], position[other]))
                break
    return tuple(found)


def _mirrored(name: str, left: re.Pattern[str], right: str) -> str:
    return left.sub(lambda match: _like(match[0], right), name)


def _like(word: str, other: str) -> str:
    """`other` in the case of `word`."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
