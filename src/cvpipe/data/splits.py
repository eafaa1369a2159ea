"""File names and targets of a data set, before any pixel is read; and the stable way of holding out a part."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cvpipe.types import Labels


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        name: train, val or test.
        paths: image files.
        targets: one target for each path; for classification a class index, or a tuple of them for multi-label.
        groups: one key for each path (the path itself: a group of its own), or None. Images of a group never stand in
            two splits.
    """

    name: str
    paths: tuple[str, ...]
    targets: tuple[Any, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: Sequence[int], name: str | None = None) -> Split:
        return Split(
            name=name or self.name,
            paths=tuple(self.paths[i] for i in positions),
            targets=tuple(self.targets[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions) if self.groups else None,
        )


@dataclass(frozen=True)
class BadFile:
    """A file that can't be used, and why."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Splits:
    """A data set: its splits, what its targets mean, how it was read."""

    train: Split
    val: Split
    test: Split | None
    labels: Labels
    format: str
    notes: tuple[str, ...] = ()
    bad: tuple[BadFile, ...] = field(default=())

    def all(self) -> list[Split]:
        return [split for split in (self.train, self.val, self.test) if split is not None]

    def without(self, bad: Sequence[BadFile]) -> Splits:
        """The same without these files, which are added to `bad`."""
        paths = {file.path for file in bad}

        def clean(split: Split) -> Split:
            return split.select([i for i, path in enumerate(split.paths) if path not in paths])

        return replace(
            self,
            train=clean(self.train),
            val=clean(self.val),
            test=clean(self.test) if self.test else None,
            bad=(*self.bad, *bad),
        )


def hold_out(split: Split, share: float, strata: Sequence[Hashable], keys: Sequence[str]) -> tuple[Split, Split]:
    """Splits off `share` of the images, stratified, whole groups only, the same on every machine.

    Within each stratum the units (groups, or single images) are put in the order of a hash of their key, and the
    first ones are held out. Neither folder nor file order matters.

    Args:
        strata: one class for each image; a group belongs to the stratum of its first image in key order.
        keys: one name for each image that does not depend on where the data set lies.

    Returns:
        (what is left, what was held out).
    """
    units: dict[str, list[int]] = defaultdict(list)
    for position in sorted(range(len(split)), key=lambda i: keys[i]):
        group = split.groups[position] if split.groups else split.paths[position]
        # a path would make the choice depend on where the data set lies
        units[f"image {keys[position]}" if group == split.paths[position] else f"group {group}"].append(position)
    by_stratum: dict[Hashable, list[str]] = defaultdict(list)
    for unit, positions in units.items():
        by_stratum[strata[positions[0]]].append(unit)
    held: set[int] = set()
    for members in by_stratum.values():
        total = sum(len(units[unit]) for unit in members)
        wanted = max(1, round(total * share))
        chosen: list[str] = []
        taken = 0
        ordered = sorted(members, key=_hash)
        for unit in ordered:
            size = len(units[unit])
            # a group that would overshoot by more than it would fall short stays in training
            if taken < wanted and taken + size - wanted <= wanted - taken:
                chosen.append(unit)
                taken += size
        if not chosen:
            chosen = [min(ordered, key=lambda unit: len(units[unit]))]
        if len(chosen) == len(members):
            chosen.pop()  # something to learn from stays in each stratum
        held.update(position for unit in chosen for position in units[unit])
    left = [i for i in range(len(split)) if i not in held]
    return split.select(left), split.select(sorted(held), name="val")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
