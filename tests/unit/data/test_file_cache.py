"""The local copy of files on slow mounts: each is read from there once; broken copies are noticed."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from cvpipe.data import cache as module
from cvpipe.data.cache import FileCache, cache_in_use, use_cache
from cvpipe.data.store import read_bytes
from cvpipe.data.verify import check_file


class Mount:
    """Counts how often each file of a folder is read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: Counter[str] = Counter()
        real = Path.read_bytes

        def counted(path: Path) -> bytes:
            if path.is_relative_to(folder):
                self.reads[path.name] += 1
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", counted)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "mount").mkdir()
    for i in range(10):
        (tmp_path / "mount" / f"{i}.bin").write_bytes(os.urandom(1000) + bytes([i]))
    return [str(tmp_path / "mount" / f"{i}.bin") for i in range(10)]


def test_each_file_is_read_once(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Path(file).read_bytes() for file in files]
    mount = Mount(tmp_path / "mount", monkeypatch)
    cache = FileCache(tmp_path / "cache", 10**6)
    for _ in range(3):
        assert [cache.read(file) for file in files] == wanted
    assert FileCache(tmp_path / "cache", 10**6).read(files[3]) == wanted[3]
    assert set(mount.reads.values()) == {1}


def test_addresses_come_through_the_cache_that_is_in_use(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(tmp_path / "mount", monkeypatch)
    try:
        use_cache(str(tmp_path / "cache"), 1)
        assert cache_in_use() is cache_in_use()
        read_bytes(files[0])
        read_bytes(files[0])
        assert mount.reads["0.bin"] == 1
    finally:
        use_cache(None, 1)
    assert cache_in_use() is None
    read_bytes(files[0])
    assert mount.reads["0.bin"] == 2


def test_when_it_is_full_the_rest_is_read_from_the_mount(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(tmp_path / "mount", monkeypatch)
    cache = FileCache(tmp_path / "cache", 4500)
    for _ in range(3):
        for file in files:
            assert cache.read(file)[-1] == int(Path(file).stem)
    stored = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) <= 4500
    assert sorted(mount.reads.values()) == [1] * len(stored) + [3] * (10 - len(stored))
    assert len(stored) == 4
    assert capsys.readouterr().err.count("is full") == 1


def test_a_broken_copy_is_replaced(tmp_path: Path, files: list[str]) -> None:
    cache = FileCache(tmp_path / "cache", 10**6)
    wanted = cache.read(files[0])
    (copy,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    whole = copy.read_bytes()
    for broken in (b"", whole[:10], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"\0" * len(whole)):
        copy.write_bytes(broken)
        assert cache.read(files[0]) == wanted
        assert copy.read_bytes() == whole


def test_a_file_that_has_changed_is_noticed_when_files_are_checked(tmp_path: Path, files: list[str]) -> None:
    try:
        use_cache(str(tmp_path / "cache"), 1)
        read_bytes(files[0])
        Path(files[0]).write_bytes(b"new")
        check_file(files[0])
        assert read_bytes(files[0]) == b"new"
    finally:
        use_cache(None, 1)


def test_what_lies_in_the_cache_is_not_copied_again(tmp_path: Path) -> None:
    inside = tmp_path / "cache" / "shards" / "x.bin"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"x")
    FileCache(tmp_path / "cache", 10**6).read(str(inside))
    assert not (tmp_path / "cache" / "files").exists()


def test_a_disk_that_refuses_costs_a_warning(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", refuse)
    cache = FileCache(tmp_path / "cache", 10**6)
    assert [len(cache.read(file)) for file in files] == [1001] * 10
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def _read_all(cache: str, files: list[str]) -> int:
    found = FileCache(cache, 10**6)
    return sum(found.read(file)[-1] for _ in range(20) for file in files)


def test_processes_share_it(tmp_path: Path, files: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        jobs = [pool.submit(_read_all, str(tmp_path / "cache"), files) for _ in range(3)]
        assert [job.result() for job in jobs] == [20 * 45] * 3
    stored = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(stored) == 10, "no half-written copy is left"


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileCache(tmp_path / "cache", 10**6).read(str(tmp_path / "no.jpg"))
