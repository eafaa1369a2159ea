"""File names and targets of a data set, before any pixel is read; and the stable way of holding out a part."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cvpipe.config import Config
from cvpipe.errors import DataError, few
from cvpipe.types import Labels

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
"""What the folders of a split may be called, in lower case."""
DEFAULT_VAL = 0.2


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


class BadFile(NamedTuple):
    """A file that can't be used, and why."""

    # travels in batches, and Lightning refuses to move those with frozen dataclasses in them

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """Something wrong with an annotation, and what became of it.

    Attributes:
        split: train, val or test.
        file: where the annotation stands.
        annotation: which one it is, such as `annotation 17`, `image 5` or `line 3`.
        reason: what is wrong with it.
        dropped: True where it was left out, False where it was mended and kept.
    """

    split: str
    file: str
    annotation: str
    reason: str
    dropped: bool


@dataclass(frozen=True)
class Splits:
    """A data set: its splits, what its targets mean, how it was read.

    Attributes:
        bad: files that can't be used.
        problems: what is wrong with annotations.
        annotations: how many were read, those that can't be used included; 0 where targets are no annotations.
        held_out: whether val was held out of train; False where the source or the config names it.
    """

    train: Split
    val: Split
    test: Split | None
    labels: Labels
    format: str
    notes: tuple[str, ...] = ()
    bad: tuple[BadFile, ...] = field(default=())
    problems: tuple[Problem, ...] = ()
    annotations: int = 0
    held_out: bool = False

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


def hold_out_val(config: Config, train: Split, strata: Sequence[Hashable]) -> tuple[Split, Split, str]:
    """Splits off what `data.val` says, or a fifth.

    Returns:
        (training split, validation split, a line that says so).

    Raises:
        DataError: no share, or too few images.
    """
    share = val_share(config)
    left, held = hold_out(train, share, strata, stable_keys(train.paths))
    if not len(held):
        raise DataError(
            f"{config.where('data.train')}: {len(train)} images are too few to hold out a validation split. Name one: "
            "data.val=PATH."
        )
    by_group = ", whole groups" if train.groups else ""
    return left, held, f"val: {share:.0%} of train held out (stratified{by_group})"


def val_share(config: Config) -> float:
    """The share of train to hold out. Raises DataError where `data.val` is a number and no share."""
    share = config.data.val if isinstance(config.data.val, float) else DEFAULT_VAL
    if not 0 < share < 1:
        raise DataError(f"{config.where('data.val')}: found {share}, expected a share between 0 and 1 or a path.")
    return share


def stable_keys(paths: Sequence[str]) -> list[str]:
    """Names that do not depend on where the data set lies: the paths below their common folder."""
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, common) for path in absolute]


def rarest(present: Sequence[Collection[Any]], none: Any) -> list[Any]:
    """For each image the rarest of its classes, `none` where it has none: most sets of classes are unique."""
    counts = Counter(label for labels in present for label in labels)
    return [min(labels, key=lambda label: (counts[label], label), default=none) for labels in present]


def check_num_classes(config: Config, classes: Sequence[str]) -> None:
    """Raises DataError where `model.num_classes` is another number."""
    wanted = config.model.num_classes
    if wanted is not None and wanted != len(classes):
        raise DataError(
            f"{config.where('model.num_classes')}: found {wanted}, and the data has {len(classes)} classes: "
            f"{few(classes)}. Leave num_classes out, or correct it."
        )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
