"""Every image of a data set as the checks see it: its file, split, group, label and what was seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvpipe.checks.scan import Scan
from cvpipe.data.splits import Split
from cvpipe.types import Labels

ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Places:
    """The images of all splits, one row each, train first.

    Attributes:
        splits: the data, in the order train, val, test.
        split: (n,) position in `splits`.
        rows: (n,) position in the scan.
        scan: what was seen of the files.
        labels: what targets mean; None where there are none.
    """

    splits: tuple[Split, ...]
    split: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    scan: Scan
    labels: Labels | None

    @classmethod
    def of(cls, splits: Sequence[Split], scan: Scan, labels: Labels | None) -> Places:
        ordered = in_order(splits)
        row_of = {path: row for row, path in enumerate(scan.paths)}
        return cls(
            splits=ordered,
            split=np.repeat(np.arange(len(ordered)), [len(split) for split in ordered]),
            rows=np.array([row_of[path] for split in ordered for path in split.paths], dtype=np.int64),
            scan=scan,
            labels=labels,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
        """The split of an image."""
        return self.splits[int(self.split[place])].name

    def path(self, place: int) -> str:
        return self.scan.paths[int(self.rows[place])]

    def target(self, place: int) -> Any:
        """What is known about an image; None where the data set has no labels."""
        split = self.splits[int(self.split[place])]
        return split.targets[place - self._start(place)] if self.labels is not None else None

    def group(self, place: int) -> str:
        split = self.splits[int(self.split[place])]
        return split.groups[place - self._start(place)] if split.groups else ""

    def _start(self, place: int) -> int:
        return sum(len(split) for split in self.splits[: int(self.split[place])])

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(n,)"""
        found: npt.NDArray[np.bool_] = self.scan.readable[self.rows]
        return found


def in_order(splits: Sequence[Split]) -> tuple[Split, ...]:
    return tuple(sorted(splits, key=lambda split: ORDER.index(split.name) if split.name in ORDER else -1))


def label_text(target: Any, labels: Labels) -> str:
    """The class or classes of a target, for people; empty for targets that are no classes."""
    if isinstance(target, (int, np.integer)):
        return labels.classes[int(target)]
    if isinstance(target, tuple) and all(isinstance(item, (int, np.integer)) for item in target):
        return ", ".join(labels.classes[int(item)] for item in target) or "no class"
    return ""
