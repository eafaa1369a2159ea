"""Delta tables of images, with real Delta files: incremental, with versions, copied once into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packed_sets import TASKS, config_of, example, named, photo, photos, read

from cvpipe.data.packed import tables
from cvpipe.data.packed.changes import Prepared
from cvpipe.data.packed.delta import is_table, open_table, split_version
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.packed.tables import prepare_table
from cvpipe.data.store import read_bytes
from cvpipe.errors import DataError

pytest.importorskip("deltalake", reason="deltalake is not installed: pip install 'databricks-cv-pipeline[delta]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def store(config: Any, path: Path, shrink: Shrink | None = None, **options: Any) -> Prepared:
    table = open_table(f"delta:{path}")
    return prepare_table(config, read(config), table, shrink or Shrink(), path.with_name("bad_files.csv"), **options)


def versions(path: Path) -> int:
    return open_table(f"delta:{path}").version()


@pytest.mark.parametrize("task", TASKS)
def test_targets_and_bytes_of_every_task(task: str, tmp_path: Path) -> None:
    config = example(task, tmp_path / "data")
    store(config, tmp_path / "table")
    changed = {"data.train": f"delta:{tmp_path / 'table'}", "data.val": None, "data.test": None}
    files, table = read(config), read(config.replace(**changed))
    assert table.labels == files.labels
    for one, other in zip(files.all(), table.all(), strict=True):
        left = {Path(path).name: (read_bytes(path), i) for i, path in enumerate(one.paths)}
        right = {Path(path).name: (read_bytes(path), i) for i, path in enumerate(other.paths)}
        assert {name: data for name, (data, _) in left.items()} == {name: data for name, (data, _) in right.items()}
        for name, (_, i) in left.items():
            target = other.targets[right[name][1]]
            if hasattr(target, "classes"):
                assert target.load().tolist() == one.targets[i].load().tolist()
            elif hasattr(target, "mask"):
                assert target.label == one.targets[i].label
                assert (target.mask is None) == (one.targets[i].mask is None)
            else:
                assert repr(target) == repr(one.targets[i])


def test_incremental_with_versions(tmp_path: Path) -> None:
    config, path = photos(tmp_path / "in", 20), tmp_path / "table"
    first = store(config, path)
    assert first.changes.new == 20
    assert store(config, path).version == first.version, "nothing new, no new version"
    photos(tmp_path / "in", 4, first=20)
    victim = tmp_path / "in" / "a" / "000.png"
    photo(victim, 777)
    (tmp_path / "in" / "a" / "001.jpg").unlink()
    second = store(config, path)
    assert str(second.changes) == "4 new, 18 unchanged, 1 changed, 1 gone"
    now = read(config_of(f"delta:{path}"))
    files = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in (tmp_path / "in").rglob("*.*")}
    assert {name: read_bytes(p) for s in now.all() for name, p in zip(named(s), s.paths, strict=True)} == files
    old = read(config_of(f"delta:{path}@{first.version}"))
    assert sum(len(split) for split in old.all()) == 20
    assert {n for s in old.all() for n in named(s)} >= {"a/001.jpg"}
    for split in old.all():  # no image has changed its split
        later = next(s for s in now.all() if s.name == split.name)
        assert set(named(split)) - {"a/001.jpg"} <= set(named(later))
    assert [list(named(split)) for split in now.all()] == [sorted(named(split)) for split in now.all()]


def test_the_copy_is_made_once_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, path = photos(tmp_path / "in", 24), tmp_path / "table"
    store(config, path, commit_bytes=6000)
    source = config_of(f"delta:{path}", cache=str(tmp_path / "own"))
    real, calls = tables._copy_part, []

    def stops(*args: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_copy_part", stops)
        with pytest.raises(KeyboardInterrupt):
            read(source)
    (folder,) = (tmp_path / "own" / "tables").iterdir()
    done = {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")}
    assert done
    whole = read(source)
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert sum(len(split) for split in whole.all()) == 24
    capsys.readouterr()
    assert read(source).train == whole.train
    assert "copying" not in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_is_not_trained_from(tmp_path: Path) -> None:
    config, path = photos(tmp_path / "in", 24), tmp_path / "table"
    from cvpipe.data.packed.delta import DeltaFolder

    real, calls = DeltaFolder.append, []

    def stops(self: DeltaFolder, rows: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(rows))
        real(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeltaFolder, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            store(config, path, commit_bytes=6000)
    with pytest.raises(DataError, match="not all images are in the table"):
        read(config_of(f"delta:{path}"))
    found = store(config, path, commit_bytes=6000)
    assert (found.changes.unchanged, found.changes.new) == (sum(calls), 24 - sum(calls))
    assert sum(len(split) for split in read(config_of(f"delta:{path}")).all()) == 24


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Another commit comes between reading and writing: it is tried again."""
    config, path = photos(tmp_path / "in", 12), tmp_path / "table"
    store(config, path)
    one, two = open_table(f"delta:{path}"), open_table(f"delta:{path}")
    one.version(), two.version()
    one.delete(["a/000.png"])
    two.delete(["a/001.jpg"])
    assert len(open_table(f"delta:{path}").rows(["path"])) == 10


def test_names_with_quotes(tmp_path: Path) -> None:
    config = photos(tmp_path / "in", 12)
    photo(tmp_path / "in" / "a" / "it's.png", 5)
    store(config, tmp_path / "table")
    (tmp_path / "in" / "a" / "it's.png").unlink()
    assert store(config, tmp_path / "table").changes.gone == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    config = photos(tmp_path / "in", 12)
    write_deltalake(str(tmp_path / "foreign"), pa.table({"x": [1]}))
    with pytest.raises(DataError, match=r"a table of other data \(no property cvpipe\.index\)"):
        store(config, tmp_path / "foreign")
    with pytest.raises(DataError, match=r"no property cvpipe\.index, which says what its rows mean"):
        read(config_of(f"delta:{tmp_path / 'foreign'}"))
    with pytest.raises(DataError, match="not a Delta table"):
        read(config_of(f"delta:{tmp_path / 'nothing'}"))
    store(config, tmp_path / "table")
    with pytest.raises(DataError, match="holds its images otherwise"):
        store(config, tmp_path / "table", Shrink(max_side=8))
    with pytest.raises(DataError, match="in version 99"):
        read(config_of(f"delta:{tmp_path / 'table'}@99"))
    with pytest.raises(DataError, match="expected a number"):
        read(config_of(f"delta:{tmp_path / 'table'}@latest"))
    assert is_table(str(tmp_path / "table"))
    assert split_version("delta:/a@b/c") == ("/a@b/c", None)
