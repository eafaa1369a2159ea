"""Folders that keep receiving files: half-written ones wait, arrived ones come in, once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from packed_sets import config_of, named, photo, photos, read

from cvpipe.data import prepare as module
from cvpipe.data.prepare import ingest, watch
from cvpipe.data.watch import StableFiles, local_path, micro_batches


def test_a_file_is_whole_when_it_looks_the_same_twice(tmp_path: Path) -> None:
    config, files = photos(tmp_path / "in", 8), StableFiles()
    assert files.look(read(config)) == set()
    growing = tmp_path / "in" / "a" / "000.png"
    growing.write_bytes(growing.read_bytes() + b"more")
    photo(tmp_path / "in" / "a" / "100.png", 100)
    assert {Path(path).name for path in files.look(read(config))} == {
        f"{i:03d}.{'jpg' if i % 2 else 'png'}" for i in range(1, 8)
    }
    assert len(files.look(read(config))) == 9


def test_files_come_in_as_they_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each pause something happens to the folder; what is half written is left for later."""
    folder, out = tmp_path / "in", tmp_path / "out"
    config = photos(folder, 12)
    half = folder / "b" / "200.jpg"
    photo(half, 200)
    whole = half.read_bytes()
    half.unlink()
    seen: list[int] = []

    def pause(_: float) -> None:
        seen.append(len(stored()))
        if len(seen) == 2:
            half.write_bytes(whole[:100])
        elif len(seen) == 3:
            half.write_bytes(whole)
        elif len(seen) == 4:
            photo(folder / "a" / "300.png", 300)

    def stored() -> dict[str, Any]:
        if not (out / "index.json").exists():
            return {}
        return {name: target for split in read(config_of(out)).all() for name, target in named(split).items()}

    monkeypatch.setattr(module.time, "sleep", pause)
    assert watch(config, str(out), 1, looks=7) == 14
    assert seen == [0, 12, 12, 12, 13, 14]
    assert {"b/200.jpg", "a/300.png"} <= set(stored())
    assert read(config_of(out)).bad == ()


def test_a_folder_that_is_not_ready_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)

    def fill(_: float) -> None:
        if not (folder / "b").exists():
            photos(folder, 12)

    monkeypatch.setattr(module.time, "sleep", fill)
    assert watch(config_of(folder), str(tmp_path / "out"), 1, looks=2) == 0
    assert watch(config_of(folder), str(tmp_path / "out"), 1, looks=2) == 12


def test_real_time(tmp_path: Path) -> None:
    """A thread writes a file in pieces while the folder is watched."""
    folder, out = tmp_path / "in", tmp_path / "out"
    config = photos(folder, 12)
    photo(tmp_path / "late.png", 50, (60, 60))
    data = (tmp_path / "late.png").read_bytes()

    def write() -> None:
        with (folder / "a" / "late.png").open("wb") as file:
            for start in range(0, len(data), len(data) // 8):
                file.write(data[start : start + len(data) // 8])
                file.flush()
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert watch(config, str(out), 0.4, looks=8) == 13
    writer.join()
    shards = read(config_of(out))
    assert shards.bad == ()
    assert sum(len(split) for split in shards.all()) == 13


def test_micro_batches_take_their_files(tmp_path: Path) -> None:
    """What `foreachBatch` is called with: a frame with a column of paths."""
    folder, out = tmp_path / "in", tmp_path / "out"
    config = photos(folder, 12)

    class Frame:
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def select(self, name: str) -> Frame:
            assert name == "path"
            return self

        def collect(self) -> list[dict[str, str]]:
            return [{"path": path} for path in self.paths]

    take = micro_batches(lambda paths: ingest(config, str(out), paths))
    files = sorted(path.absolute().as_uri() for path in folder.rglob("*.*"))
    take(Frame(files[:8]), 0)
    assert sum(len(split) for split in read(config_of(out)).all()) == 8
    take(Frame([]), 1)
    take(Frame(files[8:]), 2)
    take(Frame(files), 3)
    assert {name for split in read(config_of(out)).all() for name in named(split)} == {
        "/".join(file.split("/")[-2:]) for file in files
    }


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a%20b/c.jpg", "/a b/c.jpg"),
        ("file:/a/c.jpg", "/a/c.jpg"),
        ("dbfs:/Volumes/main/x/y/a%20b.jpg", "/Volumes/main/x/y/a b.jpg"),
        ("dbfs:/data/a.jpg", "/dbfs/data/a.jpg"),
        ("/Volumes/main/x/y/a%20b.jpg", "/Volumes/main/x/y/a%20b.jpg"),
    ],
)
def test_paths_of_spark(uri: str, path: str) -> None:
    assert local_path(uri) == path
