"""Planted copies, near copies and leaks: all are found, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from planted import SIDE, pieces, places_of, write

from cvpipe.checks.duplicates import find_copies, find_shared_groups
from cvpipe.checks.findings import Finding
from cvpipe.checks.places import Places
from cvpipe.data.splits import Split
from cvpipe.types import Labels

LABELS = Labels(("a", "b"))
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((SIDE * 2 // 3, SIDE * 2 // 3), Image.Resampling.BILINEAR),
    "larger": lambda image: image.resize((SIDE * 3, SIDE * 3), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "grey": lambda image: image.convert("L"),
    "noise": lambda image: Image.fromarray(
        np.clip(np.asarray(image) + np.random.default_rng(0).normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    ),
}


def by_path(found: list[Finding], check: str) -> dict[str, str]:
    return {Path(item.path).name: Path(item.related).name for item in found if item.check == check}


def test_exact_copies_leaks_and_conflicts(tmp_path: Path) -> None:
    paths = [write(image, tmp_path / f"{i:02d}.jpg") for i, image in enumerate(pieces()[:12])]
    copies = {name: str(tmp_path / name) for name in ("copy.jpg", "leak.jpg", "conflict.jpg", "both.jpg")}
    for name, source in (("copy.jpg", 0), ("leak.jpg", 1), ("conflict.jpg", 2), ("both.jpg", 1)):
        shutil.copy(paths[source], copies[name])
    train = [(path, 0) for path in paths[:8]] + [(copies["copy.jpg"], 0), (copies["conflict.jpg"], 1)]
    val = [(path, 0) for path in paths[8:]] + [(copies["leak.jpg"], 0), (copies["both.jpg"], 0)]
    found, families = find_copies(places_of({"val": val, "train": train}, tmp_path / "scan", LABELS, "none"), 10)
    assert by_path(found, "duplicate") == {"copy.jpg": "00.jpg", "conflict.jpg": "02.jpg", "both.jpg": "leak.jpg"}
    assert by_path(found, "leakage") == {"leak.jpg": "01.jpg"}
    assert by_path(found, "label_conflict") == {"conflict.jpg": "02.jpg"}
    assert len(found) == 5
    # train comes first, whatever the order was
    assert families[0] == families[8]
    assert len(np.unique(families)) == 12


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change: str, tmp_path: Path) -> None:
    """Different pieces, each with a changed copy in val: recall and precision."""
    originals = [write(image, tmp_path / f"train/{i:02d}.jpg") for i, image in enumerate(pieces())]
    changed = [write(CHANGES[change](image), tmp_path / f"val/{i:02d}.jpg", 60) for i, image in enumerate(pieces())]
    places = places_of(
        {"train": [(p, 0) for p in originals], "val": [(p, 0) for p in changed]}, tmp_path / "scan", LABELS, "none"
    )
    found, _ = find_copies(places, 10)
    leaks = by_path(found, "leakage")
    right = {name for name, related in leaks.items() if name == related}
    assert len(pieces()) > 35
    assert len(right) >= 0.9 * len(pieces()), sorted({Path(p).name for p in changed} - right)
    assert len(right) >= 0.95 * len(leaks)
    assert not by_path(found, "duplicate")
    assert len(by_path(found, "near_duplicate")) <= 2


def test_one_file_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    path = write(pieces()[0], tmp_path / "a.jpg")
    other = write(pieces()[1], tmp_path / "b.jpg")
    found, _ = find_copies(
        places_of({"train": [(path, 0), (other, 0)], "test": [(path, 0)]}, tmp_path / "s", LABELS, "none"), 10
    )
    assert [(item.check, item.split, item.path) for item in found] == [("leakage", "test", path)]
    assert "the same file" in found[0].message


def test_what_shows_nothing_is_no_near_copy(tmp_path: Path) -> None:
    """Blank images and files that can't be decoded have equal hashes; only equal content makes them copies."""
    rows = []
    for i in range(6):
        rows.append((write(Image.new("RGB", (64, 64), (40 * i, 90, 90)), tmp_path / f"{i}.png"), 0))
        broken = tmp_path / f"broken{i}.jpg"
        broken.write_bytes(b"")
        rows.append((str(broken), 0))
    found, families = find_copies(places_of({"train": rows}, tmp_path / "s", LABELS, "none"), 10)
    assert found == []
    assert len(np.unique(families)) == 12


def test_groups_in_two_splits(tmp_path: Path) -> None:
    paths = [write(image, tmp_path / f"{i}.jpg") for i, image in enumerate(pieces()[:4])]
    scan = places_of({"train": [(p, 0) for p in paths]}, tmp_path / "s", LABELS, "none").scan
    train = Split("train", tuple(paths[:2]), (0, 0), groups=("anna", paths[1]))
    val = Split("val", tuple(paths[2:]), (0, 0), groups=("anna", "berta"))
    (item,) = find_shared_groups(Places.of([train, val], scan, LABELS))
    assert (item.check, item.split, item.path, item.related) == ("leakage", "val", paths[2], paths[0])
