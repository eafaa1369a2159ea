"""Limits, and the tables that findings are written to."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.checks import findings as module
from cvpipe.checks.findings import CHECKS, COLUMNS, append_delta, exceeded, finding, in_order, write_csv, write_jsonl
from cvpipe.config import CheckLimits
from cvpipe.errors import DependencyError, InputError

FOUND = [
    finding("outlier", "val", "a b.jpg", "far, 'away'", value=0.123456789),
    finding("leakage", "val", 'q"uote.jpg', "in two\nlines", related="x.jpg"),
    finding("annotation", "train", "a.json", "mended", annotation="annotation 3"),
    finding("annotation", "train", "a.json", "left out", annotation="annotation 4", severity="error"),
]


def test_each_check_has_a_limit() -> None:
    assert set(CheckLimits.model_fields) == set(CHECKS)
    for name, info in CheckLimits.model_fields.items():
        unit = {"labels": "images or boxes"}.get(CHECKS[name].of, CHECKS[name].of)
        assert f"of the {unit}" in (info.description or ""), name


@given(st.integers(0, 50), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 60), st.floats(0, 0.999)))
def test_a_limit_is_a_number_or_a_share(count: int, total: int, limit: float | None) -> None:
    found = [finding("blurred", "", f"{i}.jpg", "") for i in range(count)]
    passed = exceeded(found, CheckLimits(blurred=limit), {"images": total})
    most = float("inf") if limit is None else limit * total if limit < 1 else limit
    assert bool(passed) == (count > most)


def test_the_default_limits() -> None:
    for name in ("unreadable", "leakage", "label_conflict"):
        (passed,) = exceeded([finding(name, "", "a.jpg", "")], CheckLimits(), {"images": 200})
        assert str(passed) == f"{name}: 1 (0.5% of 200 images); check.limits.{name} accepts 0"
    rest = [
        finding(name, "", "a.jpg", "") for name in CHECKS if name not in ("unreadable", "leakage", "label_conflict")
    ]
    assert exceeded(rest, CheckLimits(), {"images": 1, "annotations": 1, "classes": 1, "labels": 1}) == []


def test_tables_are_read_back(tmp_path: Path) -> None:
    ordered = in_order(FOUND)
    assert [item.message for item in ordered] == ["in two\nlines", "far, 'away'", "left out", "mended"]
    write_csv(ordered, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row) for row in rows] == [COLUMNS] * 4
    assert [row["message"] for row in rows] == [item.message for item in ordered]
    write_jsonl(ordered, tmp_path / "f.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert lines == [item._asdict() for item in ordered]
    assert lines[1]["value"] == 0.123457


def test_a_delta_table_collects_checks(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed")
    path = str(tmp_path / "table")
    append_delta(FOUND, path, "set")
    append_delta(FOUND[:1], path, "set")
    append_delta([], path, "set")
    rows = deltalake.DeltaTable(path).to_pyarrow_table().to_pylist()
    assert len(rows) == 5
    assert {row["source"] for row in rows} == {"set"}
    assert len({row["checked_at"] for row in rows}) == 2
    deltalake.write_deltalake(str(tmp_path / "other"), deltalake.DeltaTable(path).to_pyarrow_table().select(["path"]))
    with pytest.raises(InputError, match="can't be written"):
        append_delta(FOUND, str(tmp_path / "other"), "set")


def test_without_deltalake_it_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'databricks-cv-pipeline\[delta\]'"):
        module.check_delta("x")
