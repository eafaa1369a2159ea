"""What is loaded from a run's directory is what was saved there, whatever happened in between."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cvpipe.errors import TrainingError
from cvpipe.training import checkpoint as checkpoint_module
from cvpipe.training.checkpoint import CheckpointStore, VerifiedCheckpointIO


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.full((4, 4), float(step))}}


def load(store: CheckpointStore, path: Path) -> dict[str, Any]:
    return VerifiedCheckpointIO(store).load_checkpoint(path)


def test_the_name_holds_step_and_hash(store: CheckpointStore) -> None:
    path = store.save_last(state(12), 12)
    assert re.fullmatch(r"last-000000012-[0-9a-f]{16}\.ckpt", path.name)
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.rpartition("-")[2])
    assert [p.name for p in store.folder.iterdir()] == [path.name], "nothing half written is left"
    assert store.last() == path
    assert load(store, path)["state_dict"]["w"].equal(torch.full((4, 4), 12.0))


def test_an_empty_store(store: CheckpointStore) -> None:
    assert (store.last(), store.best(), store.broken()) == (None, None, [])


def test_the_newest_two_are_kept(store: CheckpointStore) -> None:
    for step in (5, 9, 10, 101):
        store.save_last(state(step), step)
    assert sorted(p.name[:14] for p in store.folder.iterdir()) == ["last-000000010", "last-000000101"]
    newest = store.last()
    assert newest is not None
    assert load(store, newest)["global_step"] == 101


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "changed":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    else:
        path.write_bytes(data + b"\0")


@pytest.mark.parametrize("how", ["truncated", "empty", "changed", "longer"])
def test_a_newest_file_that_is_not_whole_is_skipped(store: CheckpointStore, how: str) -> None:
    older = store.save_last(state(1), 1)
    newest = store.save_last(state(2), 2)
    damage(newest, how)
    assert store.last() == older
    assert store.broken() == [newest]
    with pytest.raises(TrainingError, match="is not the file that was saved"):
        load(store, newest)
    damage(older, how)
    assert store.last() is None
    assert sorted(store.broken()) == sorted([older, newest])


def test_files_that_are_no_checkpoints_are_left_alone(store: CheckpointStore) -> None:
    path = store.save_last(state(1), 1)
    for name in ("notes.txt", "last-000000009-zz.ckpt", ".last.ckpt.77.88.tmp"):
        (store.folder / name).write_bytes(b"x")
    store.save_last(state(2), 2)
    store.save_last(state(3), 3)
    assert not path.exists()
    assert (store.folder / "notes.txt").exists()
    assert store.broken() == []


class Payload:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (f"{os.environ['CVPIPE_TEST_TARGET']}",)


def test_nothing_is_unpickled(store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made-by-a-pickle"
    monkeypatch.setenv("CVPIPE_TEST_TARGET", str(target))
    path = store.save_last({"global_step": 1, "payload": Payload()}, 1)
    with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
        load(store, path)
    assert not target.exists()
    # the same file does run code where pickles are trusted: the test above is about something
    torch.load(path, weights_only=False)
    assert target.exists()


def test_a_full_disk(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.save_last(state(1), 1)
    written = 0

    class FullDisk:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            nonlocal written
            written += len(data)
            if written > 500:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

        def flush(self) -> None:
            self.file.flush()

    hashing = checkpoint_module._HashingFile
    monkeypatch.setattr(checkpoint_module, "_HashingFile", lambda file: hashing(FullDisk(file)))
    for save in (lambda: store.save_last(state(2), 2), lambda: store.save_best({"w": torch.zeros(999)}, 2)):
        written = 0
        with pytest.raises(TrainingError) as caught:
            save()
        message = str(caught.value)
        assert "the checkpoint of step 2 could not be written" in message
        assert str(store.folder) in message
        assert "No space left on device" in message
        assert "--resume" in message
        assert caught.value.exit_code == 1
        assert written > 500
    assert [p.name for p in store.folder.iterdir()] == [before.name]
    assert store.last() == before
    assert load(store, before)["global_step"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full answers every write with ENOSPC: no simulated error class in between."""
    store.folder.mkdir()
    before = store.save_last(state(1), 1)
    link = store.folder.parent / "full"
    link.symlink_to("/dev/full")
    monkeypatch.setattr(checkpoint_module, "staging_path", lambda target: link)
    with pytest.raises(TrainingError, match="No space left on device"):
        store.save_last({"w": torch.zeros(100_000)}, 2)
    assert store.last() == before


def test_a_folder_that_cant_be_written(store: CheckpointStore) -> None:
    store.folder.parent.mkdir(exist_ok=True)
    store.folder.write_text("a file stands where the folder should be")
    with pytest.raises(TrainingError, match=re.escape(str(store.folder))):
        store.save_last(state(1), 1)


def test_best(store: CheckpointStore) -> None:
    first = store.save_best({"w": torch.ones(3), "n": torch.tensor(4)}, 10)
    assert first.name.startswith("best-000000010-")
    # a transposed tensor is not contiguous; safetensors would refuse it
    second = store.save_best({"w": torch.arange(6.0).reshape(2, 3).T}, 20)
    assert list(store.folder.iterdir()) == [second]
    best = store.best()
    assert best is not None
    assert best["w"].equal(torch.arange(6.0).reshape(2, 3).T)


def test_a_damaged_best_gives_way_to_the_one_before(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.save_best({"w": torch.ones(3)}, 1)
    kept = first.read_bytes()
    second = store.save_best({"w": torch.zeros(3)}, 2)
    first.write_bytes(kept)  # as if the process had been killed before it removed the old one
    damage(second, "truncated")
    best = store.best()
    assert best is not None
    assert best["w"].equal(torch.ones(3))
    assert store.broken() == [second]


def test_lightnings_side(store: CheckpointStore) -> None:
    plugin = VerifiedCheckpointIO(store)
    plugin.save_checkpoint(state(7), "the name is the store's business")
    path = store.last()
    assert path is not None
    assert plugin.load_checkpoint(path, map_location="cpu", weights_only=False)["global_step"] == 7
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert store.last() is None
