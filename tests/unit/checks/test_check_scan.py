"""The pass over the files: what was seen is used again, and only then when nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from planted import pieces, scanned, write

from cvpipe.checks import scan as scan_module
from cvpipe.checks.look import Look, look_at
from cvpipe.checks.scan import in_processes


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [write(image, tmp_path / f"data/{i}.jpg") for i, image in enumerate(pieces()[:5])]


def test_columns_are_what_was_seen(files: list[str], tmp_path: Path) -> None:
    Path(files[2]).write_bytes(b"no picture")
    found = scanned(files, tmp_path / "scan", "plain")
    assert found.fresh == len(found) == 5
    assert found.paths == files
    for row, look in enumerate(look_at(files, "plain")):
        assert found.reasons[row] == look.reason
        assert found.digests[row].tobytes() == look.digest
        assert found.thumbnails[row].tobytes() == (look.thumbnail or bytes(1024))
        assert found.features[row].tobytes() == (look.features or bytes(768))
        assert found.sizes[row].tolist() == [look.width, look.height]
        assert np.allclose(found.light[row], [look.low, look.mean, look.high, look.contrast, look.sharpness])
    assert found.readable.tolist() == [True, True, False, True, True]


def test_only_what_changed_is_looked_at_again(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(paths: list[str], kind: str, max_pixels: int) -> list[Look]:
        seen.extend(paths)
        return look_at(paths, kind, max_pixels)

    monkeypatch.setattr(scan_module, "look_at", noted)
    first = scanned(files, tmp_path / "scan")
    again = scanned(files[::-1], tmp_path / "scan")
    assert seen == files
    assert again.fresh == 0
    assert again.digests.tolist() == first.digests[::-1].tolist()

    write(pieces()[9], Path(files[1]))
    os.utime(files[3], (1, 1))
    Path(files[0]).unlink()
    seen.clear()
    changed = scanned(files, tmp_path / "scan")
    assert seen == [files[0], files[1], files[3]]
    assert "No such file" in changed.reasons[0]
    assert changed.digests[1].tolist() != first.digests[1].tolist()
    assert changed.digests[2:].tolist() == first.digests[2:].tolist()
    # other features are other results; a missing file is looked for each time
    seen.clear()
    assert scanned(files, tmp_path / "scan", "plain").fresh == 5
    assert scanned(files, tmp_path / "scan").fresh == 1


def test_an_interruption_keeps_what_was_seen(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK", 1)

    def stops(paths: list[str], kind: str, max_pixels: int) -> list[Look]:
        if paths == [files[3]]:
            raise KeyboardInterrupt
        return look_at(paths, kind, max_pixels)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "look_at", stops)
        with pytest.raises(KeyboardInterrupt):
            scanned(files, tmp_path / "scan")
    assert scanned(files, tmp_path / "scan").fresh == 2


def test_a_broken_part_is_not_trusted(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = scanned(files, tmp_path / "scan")
    (part,) = (tmp_path / "scan").glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-50])
    again = scanned(files, tmp_path / "scan")
    assert again.fresh == 5
    assert again.digests.tolist() == first.digests.tolist()
    assert "can't be read" in capsys.readouterr().err


def test_parts_without_use_go(files: list[str], tmp_path: Path) -> None:
    scanned(files, tmp_path / "scan")
    for i, path in enumerate(files):
        write(pieces()[20 + i], Path(path))
    scanned(files, tmp_path / "scan")
    assert len(list((tmp_path / "scan").glob("part-*.parquet"))) == 1


def test_in_order_without_processes() -> None:
    found = [pair for chunk in in_processes(_double, range(7), 0, 3) for pair in zip(*chunk, strict=True)]
    assert found == [(i, 2 * i) for i in range(7)]


def _double(items: list[int]) -> list[int]:
    return [2 * item for item in items]
