"""Two processes never write the same output; a lock left behind does not stand in the way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvpipe.errors import InputError
from cvpipe.inference.lock import Lock


def foreign(path: Path, beat: int = 0) -> None:
    path.write_text(json.dumps({"pid": 1, "started": 1.0, "host": "elsewhere", "id": "x", "beat": beat}))


def test_second_one_is_refused_while_the_first_works(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "lock.json"
    with Lock(path):
        with pytest.raises(InputError, match=f"Another process .*process {os.getpid()} on {socket.gethostname()}"):
            Lock(path).__enter__()
        assert path.exists()
    assert not path.exists()
    with Lock(path):
        pass


def test_process_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    code = (
        "import os, pathlib, sys; from cvpipe.inference.lock import Lock;"
        "Lock(pathlib.Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, env=dict(os.environ), timeout=60)
    assert path.exists()
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_process_id_that_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"pid": os.getpid(), "started": 1.0, "host": socket.gethostname(), "id": "x"}))
    with Lock(path):
        pass


def test_silent_lock_of_another_machine_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    foreign(path)
    with Lock(path, patience=0.2):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_living_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    foreign(path)
    beating = threading.Timer(0.3, foreign, [path, 1])
    beating.start()
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        Lock(path, patience=5).__enter__()
    beating.join()
    assert path.exists()


def test_released_while_being_watched(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    foreign(path)
    release = threading.Timer(0.3, path.unlink)
    release.start()
    with Lock(path, patience=30):
        pass
    release.join()


def test_lock_that_another_took_over_is_noticed_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with Lock(path, beat=0.05) as lock:
        lock.check()
        foreign(path)
        end = time.monotonic() + 10
        while not lock.lost and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(InputError, match="taken over by another process: process 1 on elsewhere"):
            lock.check()
    assert path.exists()


def test_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with Lock(path, beat=0.02):
        end = time.monotonic() + 10
        while json.loads(path.read_text())["beat"] < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert json.loads(path.read_text())["beat"] >= 2


def test_unreadable_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text("")
    with Lock(path, patience=0.2):
        pass
