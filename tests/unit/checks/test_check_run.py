"""The whole check on small data sets with planted faults."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from planted import pieces, write

from cvpipe.checks.check import check
from cvpipe.errors import DependencyError, InputError

QUICK = ("check.features=plain", "check.workers=0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes; in val a copy, a near copy and a broken file; some odd images in train."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    for i, image in enumerate(pieces()[:30]):
        split = "train" if i < 20 else "val"
        write(image, root / split / ("house" if i % 2 else "flower") / f"{i:02d}.jpg")
    shutil.copy(root / "train/house/01.jpg", root / "val/house/leak.jpg")
    write(Image.open(root / "train/flower/02.jpg").resize((80, 80)), root / "val/flower/near.jpg", 50)
    shutil.copy(root / "train/house/03.jpg", root / "train/flower/conflict.jpg")
    broken = root / "val/house/broken.jpg"
    broken.write_bytes((root / "train/house/05.jpg").read_bytes()[:1500])
    write(Image.new("RGB", (105, 105), (90, 90, 90)), root / "train/house/blank.jpg")
    write(pieces()[31].point(lambda value: value // 10), root / "train/house/dark.jpg")
    write(pieces()[32].point(lambda value: 240 + value // 18), root / "train/house/bright.jpg")
    write(pieces()[33].filter(ImageFilter.GaussianBlur(8)), root / "train/house/blurred.jpg")
    write(pieces()[34].resize((1000, 60)), root / "train/house/wide.jpg")
    (root / "train/house/notes.txt").write_text("no image")
    return root


def test_every_planted_fault_is_found(folder: Path) -> None:
    result = check(str(folder), QUICK)
    found: dict[str, set[str]] = {}
    for item in result.findings:
        found.setdefault(item.check, set()).add(Path(item.path).name)
    assert found["unreadable"] == {"broken.jpg", "notes.txt"}
    assert found["leakage"] == {"leak.jpg", "near.jpg"}
    assert found["label_conflict"] == {"conflict.jpg"} or found["label_conflict"] == {"03.jpg"}
    assert found["blank"] == {"blank.jpg"}
    assert found["dark"] == {"dark.jpg"}
    assert found["bright"] == {"bright.jpg"}
    assert "blurred.jpg" in found["blurred"]
    assert found["odd_aspect"] == {"wide.jpg"}
    assert {item.check for item in result.exceeded} == {"unreadable", "leakage", "label_conflict"}
    assert not result.passed
    assert result.totals["images"] == 40

    with (result.folder / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (result.folder / "findings.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == len(result.findings)
    record = json.loads((result.folder / "check.json").read_text())
    assert record["findings"] == dict(Counter(row["check"] for row in rows))
    page = (result.folder / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") >= 8
    assert "<script" not in page
    assert "leak.jpg" in page


def test_the_second_time_only_what_changed_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(str(folder), QUICK)
    capsys.readouterr()
    for name in ("val/house/leak.jpg", "val/flower/near.jpg", "val/house/broken.jpg", "train/flower/conflict.jpg"):
        (folder / name).unlink()
    (folder / "train/house/notes.txt").unlink()
    result = check(str(folder), QUICK)
    assert result.passed
    printed = capsys.readouterr().out
    assert "files read" not in printed
    assert printed.rstrip().splitlines()[-1].startswith("next: ")


def test_limits_of_the_user_decide(folder: Path) -> None:
    accepted = [f"check.limits.{name}=null" for name in ("unreadable", "leakage", "label_conflict")]
    assert check(str(folder), [*QUICK, *accepted, "check.gallery=0"]).passed
    (passed,) = check(str(folder), [*QUICK, *accepted, "check.limits.blank=0", "check.gallery=0"]).exceeded
    assert str(passed).startswith("blank: 1 ")


def test_images_alone(folder: Path) -> None:
    for path in folder.rglob("*.txt"):
        path.unlink()
    flat = folder.parent / "flat"
    flat.mkdir()
    for path in folder.rglob("*.jpg"):
        shutil.move(path, flat / path.name)
    result = check(str(flat), QUICK)
    assert result.task is None
    found = {item.check for item in result.findings}
    assert {"unreadable", "duplicate", "near_duplicate", "blank"} <= found
    assert not found & {"leakage", "label_conflict", "label_error", "missing_class"}


def test_scenes_with_boxes_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extra = ("check.crops=true", "check.gallery=2")
    result = check("demo:scenes", [*QUICK, *extra], task="detection", output_dir=tmp_path / "out")
    assert result.totals["annotations"] > 300
    assert 0.9 * result.totals["annotations"] <= result.totals["labels"] <= result.totals["annotations"]
    assert not [item for item in result.findings if item.check in ("box_outside", "box_degenerate", "unreadable")]


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "checks" / "set").mkdir(parents=True)
    (folder.parent / "checks" / "set" / "check.json").write_text('{"source": "another"}')
    with pytest.raises(InputError, match="holds the check of another"):
        check(str(folder), QUICK)
    import cvpipe.checks.check as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pretrained"):
        check(str(folder), ("check.features=network",), output_dir=folder.parent / "out")
