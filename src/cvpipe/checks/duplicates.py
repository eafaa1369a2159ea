"""Images that are in the data set more than once: copies, near copies, look-alikes; leaks between splits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.checks.findings import Finding, finding
from cvpipe.checks.pairs import Pairs, alike_pairs, near_pairs
from cvpipe.checks.places import Places, label_text

SIMILAR = 0.97
"""Product of feature directions from which images are shown as look-alikes."""
FLAT = 4.0
"""Standard deviation of grey values up to which an image has no content to compare, 0 to 255."""
LEAST_SIDE = 32
"""Short side from which images have enough detail to tell two pictures apart by a thumbnail, pixels."""


def find_copies(places: Places, bits: int) -> tuple[list[Finding], npt.NDArray[np.int64]]:
    """Exact and near duplicates, leaks, and copies whose labels differ.

    Returns:
        Findings, and for each image the number of its family: images that are the same picture share it.
    """
    exact = _families(places)
    findings = _exact(places, exact)
    leaked = {(item.path, item.split) for item in findings if item.check == "leakage"}
    firsts = _firsts(places, exact)
    contrast = places.scan.light[places.rows, 3]
    side = places.scan.sizes[places.rows].min(axis=1)
    chosen = np.array([p for p in firsts.values() if contrast[p] > FLAT and side[p] >= LEAST_SIDE], dtype=np.int64)
    chosen.sort()
    pairs = near_pairs(places.scan.thumbnails[places.rows[chosen]], bits)
    pairs = Pairs(chosen[pairs.late], chosen[pairs.early], pairs.values)
    # copies of one content in two splits are leaks already; their near copies are pairs of each
    findings += _near(places, pairs, exact, leaked)
    return findings, _joined(exact, pairs)


def _families(places: Places) -> npt.NDArray[np.int64]:
    """(n,) equal for images of equal content; files that can't be read are on their own."""
    digests = places.scan.digests[places.rows].copy()
    alone = np.flatnonzero(~places.readable)
    # not decoded: equal rubbish (empty files) is no picture
    digests[alone, 0], digests[alone, 1] = alone.astype(np.uint64), np.uint64(2**64 - 1)
    _, family = np.unique(digests, axis=0, return_inverse=True)
    return np.asarray(family).reshape(-1)


def _firsts(places: Places, family: npt.NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """(family, split) -> its first image."""
    found: dict[tuple[int, int], int] = {}
    for place in np.flatnonzero(places.readable).tolist():
        found.setdefault((int(family[place]), int(places.split[place])), place)
    return found


def _exact(places: Places, family: npt.NDArray[np.int64]) -> list[Finding]:
    members: dict[int, list[int]] = defaultdict(list)
    counts = np.bincount(family, minlength=1)
    for place in np.flatnonzero(counts[family] > 1).tolist():
        members[int(family[place])].append(place)
    found = []
    for group in members.values():
        first_in: dict[int, int] = {}
        keys = [_key(places, place) for place in group]
        for place, key in zip(group, keys, strict=True):
            split = int(places.split[place])
            name, path = places.name(place), places.path(place)
            if group[0] != place and int(places.split[group[0]]) != split and split not in first_in:
                other = places.name(group[0])
                same = "the same file" if places.path(group[0]) == path else "the same content"
                text = f"in {other} and {name}: {same} as {_short(places.path(group[0]))}"
                found.append(finding("leakage", name, path, text, value=1.0, related=places.path(group[0])))
            elif split in first_in:
                related = places.path(first_in[split])
                found.append(
                    finding("duplicate", name, path, f"same content as {_short(related)}", value=1.0, related=related)
                )
            first_in.setdefault(split, place)
            if key != keys[0]:
                labels = places.labels
                texts = [label_text(places.target(p), labels) if labels else "" for p in (group[0], place)]
                what = f"{texts[0]} there, {texts[1]} here" if all(texts) else "other annotations"
                related = places.path(group[0])
                text = f"same content as {_short(related)}, another label: {what}"
                found.append(finding("label_conflict", name, path, text, related=related))
    return found


def _key(places: Places, place: int) -> str:
    """A text that is the same for the same label."""
    target = places.target(place)
    if target is None:
        return ""
    file = getattr(target, "mask", None) or getattr(target, "path", None)
    if file is None:
        return repr(target)
    from cvpipe.utils.filesystem import sha256_of

    try:
        return f"{getattr(target, 'label', '')} {sha256_of(file)}"
    except OSError:  # reported where masks are read
        return str(file)


def _near(places: Places, pairs: Pairs, family: npt.NDArray[np.int64], leaked: set[tuple[str, str]]) -> list[Finding]:
    """One finding for each image and check: with the partner that it is most like."""
    best: dict[tuple[int, str], tuple[float, int]] = {}
    for late, early, value in zip(pairs.late.tolist(), pairs.early.tolist(), pairs.values.tolist(), strict=True):
        if family[late] == family[early]:
            continue
        check = "near_duplicate" if places.split[late] == places.split[early] else "leakage"
        if value > best.get((late, check), (0.0, 0))[0]:
            best[late, check] = (value, early)
    found = []
    for (late, check), (value, early) in sorted(best.items(), key=lambda item: (-item[1][0], item[0])):
        name, path, related = places.name(late), places.path(late), places.path(early)
        if (path, name) in leaked and check == "leakage":
            continue
        where = f"in {places.name(early)} and {name}: " if check == "leakage" else ""
        labels = places.labels
        texts = [label_text(places.target(p), labels) if labels else "" for p in (early, late)]
        differ = f"; labels differ: {texts[0]} there, {texts[1]} here" if texts[0] != texts[1] else ""
        text = f"{where}nearly the same as {_short(related)} (correlation {value:.3f}){differ}"
        found.append(finding(check, name, path, text, value=value, related=related))
    return found


def _joined(family: npt.NDArray[np.int64], pairs: Pairs) -> npt.NDArray[np.int64]:
    """Families with near copies put together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = int(family.max(initial=0)) + 1
    links = coo_matrix((np.ones(len(pairs.late)), (family[pairs.late], family[pairs.early])), shape=(count, count))
    _, component = connected_components(links, directed=False)
    return np.asarray(component[family], dtype=np.int64)


def find_similar(
    places: Places, chosen: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32], family: npt.NDArray[np.int64]
) -> list[Finding]:
    """Look-alikes that are not the same picture: bursts, frames of one video, the same thing twice.

    Args:
        chosen: (k,) images, ascending.
        vectors: (k, length) their feature directions.
        family: of all images, with near copies.
    """
    pairs = alike_pairs(vectors, SIMILAR)
    best: dict[int, tuple[bool, float, int]] = {}
    for late, early, value in zip(chosen[pairs.late], chosen[pairs.early], pairs.values, strict=True):
        if family[late] != family[early]:
            # a look-alike in another split says more than one in the same
            rank = (bool(places.split[late] != places.split[early]), float(value), int(early))
            best[int(late)] = max(best.get(int(late), (False, 0.0, 0)), rank)
    found = []
    for late, (across, value, early) in sorted(best.items(), key=lambda item: (not item[1][0], -item[1][1])):
        where = f"in {places.name(early)} and {places.name(late)}: " if across else ""
        text = f"{where}features like those of {_short(places.path(early))} (cosine {value:.3f})"
        severity: Any = "warning" if across else "info"
        found.append(
            finding(
                "similar",
                places.name(late),
                places.path(late),
                text,
                value=value,
                related=places.path(early),
                severity=severity,
            )
        )
    return found


def find_shared_groups(places: Places) -> list[Finding]:
    """Groups that stand in two splits: one finding for each image of the later one."""
    first: dict[str, int] = {}
    found = []
    for place in range(len(places)):
        group = places.group(place)
        if not group:
            continue
        other = first.setdefault(group, place)
        if places.split[other] != places.split[place] and group != places.path(place):
            text = f"group {group!r} is in {places.name(other)} and {places.name(place)}"
            found.append(finding("leakage", places.name(place), places.path(place), text, related=places.path(other)))
    return found


def _short(path: str) -> str:
    """The end of a path; the whole is in `related`."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])
