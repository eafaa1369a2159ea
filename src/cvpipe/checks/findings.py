"""What the checks find, how much of it is accepted, and the tables it is written to."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cvpipe.config import CheckLimits
from cvpipe.errors import DependencyError, InputError
from cvpipe.utils.filesystem import atomic_open

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Check(NamedTuple):
    """A check: what it is called in a report, how bad a finding is, and what shares are taken of."""

    title: str
    severity: Severity
    of: Literal["images", "annotations", "classes", "labels"]


CHECKS: dict[str, Check] = {
    "unreadable": Check("Files that can't be decoded", "error", "images"),
    "leakage": Check("Images that stand in two splits", "error", "images"),
    "label_conflict": Check("The same image with another label", "error", "images"),
    "duplicate": Check("Exact duplicates", "warning", "images"),
    "near_duplicate": Check("Near duplicates", "warning", "images"),
    "similar": Check("Images with nearly the same features", "info", "images"),
    "label_error": Check("Likely label errors", "warning", "labels"),
    "outlier": Check("Outliers", "info", "images"),
    "blank": Check("Blank images", "warning", "images"),
    "dark": Check("Very dark images", "warning", "images"),
    "bright": Check("Very bright images", "warning", "images"),
    "blurred": Check("Blurred images", "warning", "images"),
    "odd_size": Check("Unusual sizes", "info", "images"),
    "odd_aspect": Check("Unusual shapes", "info", "images"),
    "odd_mode": Check("Rare colour modes", "info", "images"),
    "missing_class": Check("Classes missing from a split", "warning", "classes"),
    "rare_class": Check("Classes with few examples", "info", "classes"),
    "annotation": Check("Annotations with other faults", "warning", "annotations"),
    "box_outside": Check("Boxes outside the image or over its border", "warning", "annotations"),
    "box_degenerate": Check("Boxes without area", "error", "annotations"),
    "box_tiny": Check("Tiny boxes", "warning", "annotations"),
    "box_aspect": Check("Very long, thin boxes", "info", "annotations"),
    "box_duplicate": Check("Boxes that lie on another one", "warning", "annotations"),
    "mask_values": Check("Masks with unknown values", "error", "images"),
    "empty_annotation": Check("Images without annotation", "info", "images"),
}
"""In the order in which they are shown. `check.limits` has a setting for each."""

COLUMNS = ("check", "severity", "split", "path", "annotation", "message", "value", "related")


class Finding(NamedTuple):
    """One thing that is wrong, or odd.

    Attributes:
        check: a key of CHECKS.
        severity: error, warning or info.
        split: train, val, test, or "" where the data set has none.
        path: the image; empty where the finding is about a class.
        annotation: which object of the image, or which class; empty where it is about the image.
        message: what was found.
        value: the number behind it, where there is one; the message says what it means.
        related: the other image of a pair.
    """

    check: str
    severity: Severity
    split: str
    path: str
    annotation: str
    message: str
    value: float | None = None
    related: str = ""


def finding(
    check: str,
    split: str,
    path: str,
    message: str,
    *,
    annotation: str = "",
    value: float | None = None,
    related: str = "",
    severity: Severity | None = None,
) -> Finding:
    """A Finding with the severity of its check, unless another one is given."""
    number = None if value is None else float(f"{value:.6g}")
    return Finding(check, severity or CHECKS[check].severity, split, path, annotation, message, number, related)


@dataclass(frozen=True)
class Exceeded:
    """A limit of the config that was exceeded."""

    check: str
    found: int
    total: int
    limit: float
    of: str

    def __str__(self) -> str:
        unit = "" if self.of == "labels" else f" {self.of}"
        share = f"{self.found / max(1, self.total):.1%} of {self.total:,}{unit}"
        accepted = f"{self.limit:g}" if self.limit >= 1 or self.limit == 0 else f"a share of {self.limit:g}"
        return f"{self.check}: {self.found:,} ({share}); check.limits.{self.check} accepts {accepted}"


def exceeded(findings: Sequence[Finding], limits: CheckLimits, totals: Mapping[str, int]) -> list[Exceeded]:
    """The limits that were exceeded. `totals`: how many images, annotations, classes and labels were looked at."""
    counts = Counter(item.check for item in findings)
    passed = []
    for name, check in CHECKS.items():
        limit: float | None = getattr(limits, name)
        total = totals.get(check.of, 0)
        if limit is not None and counts[name] > (limit * total if limit < 1 else limit):
            passed.append(Exceeded(name, counts[name], total, limit, check.of))
    return passed


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By check, then the worst first: errors before warnings, then as the checks gave them."""
    place = {name: i for i, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda item: (place[item.check], SEVERITIES.index(item.severity)))


def write_csv(findings: Sequence[Finding], path: Path) -> None:
    with atomic_open(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in item] for item in findings)


def write_jsonl(findings: Sequence[Finding], path: Path) -> None:
    """One JSON object a line."""
    with atomic_open(path) as file:
        file.writelines(json.dumps(item._asdict(), allow_nan=False) + "\n" for item in findings)


def check_delta(path: str) -> None:
    """Raises DependencyError where Delta tables can't be written, before time is spent on the check."""
    if find_spec("deltalake") is None:
        raise DependencyError(
            f"--delta {path} needs deltalake. Install it: pip install 'databricks-cv-pipeline[delta]', or leave "
            "--delta out: findings.csv has the same rows."
        )


def append_delta(findings: Sequence[Finding], path: str, source: str) -> None:
    """Appends the findings to a Delta table, with the time of the check and the data set; made where there is none.

    Raises:
        InputError: the table has other columns, or can't be written.
    """
    import pyarrow as pa
    from deltalake import write_deltalake
    from deltalake.exceptions import DeltaError, SchemaMismatchError

    now = datetime.now(timezone.utc)
    columns: dict[str, Any] = {name: [_text(item[i]) for item in findings] for i, name in enumerate(COLUMNS)}
    kinds = {"value": pa.float64()}
    table = pa.table(
        {
            "checked_at": pa.array([now] * len(findings), pa.timestamp("us", "UTC")),
            "source": pa.array([source] * len(findings), pa.string()),
            **{name: pa.array(column, kinds.get(name, pa.string())) for name, column in columns.items()},
        }
    )
    try:
        write_deltalake(path, table, mode="append")
    except (DeltaError, SchemaMismatchError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--delta {path}: the findings can't be written there ({reason}). Name an empty folder, or a table that "
            "an earlier check has made."
        ) from None


def _text(value: Any) -> Any:
    """File names with bytes that are no UTF-8, which Arrow refuses."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
