"""Keeps two processes from writing the same output, also from two machines that share a Volume."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from cvpipe.errors import InputError
from cvpipe.utils.console import say
from cvpipe.utils.filesystem import write_text

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""A lock of another machine that stays unchanged this long was left behind by a process that is gone."""


class Lock:
    """A file that says who works here, rewritten every few seconds while they do.

    On the same machine a process that is gone is seen at once. For another machine, nothing but time tells: its lock
    is watched, by its content alone, because the clocks of two machines differ.

    Raises:
        InputError: on entering, where another process is at work.
    """

    def __init__(self, path: Path, beat: float = BEAT_SECONDS, patience: float = PATIENCE_SECONDS) -> None:
        self.path, self.beat, self.patience = path, beat, patience
        self._id = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self.lost = False

    def __enter__(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._take():
            self._wait_or_refuse()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError where another process has taken the lock over (this one was asleep for long)."""
        if self.lost:
            raise InputError(f"{self.path} was taken over by another process: {_describe(_read(self.path))}.")

    def _take(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self._content(0))
        return True

    def _content(self, count: int) -> str:
        return json.dumps(
            {
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "host": socket.gethostname(),
                "id": self._id,
                "beat": count,
            }
        )

    def _keep(self) -> None:
        count = 0
        while not self._stop.wait(self.beat):
            count += 1
            try:
                if _read(self.path).get("id") != self._id:
                    self.lost = True
                    return
                write_text(self.path, self._content(count))
            except OSError:
                # a Volume that does not answer for a moment; the next beat tries again
                continue

    def _wait_or_refuse(self) -> None:
        """Returns once the other's lock is gone; raises where the other process lives."""
        found = _read(self.path)
        if found.get("host") == socket.gethostname():
            if found.get("started") == _started(int(found["pid"])):
                self._refuse(found)
        else:
            say(f"{self.path}: {_describe(found)} worked here; watching for {self.patience:g}s whether it still does")
            end = time.monotonic() + self.patience
            while time.monotonic() < end:
                time.sleep(min(1.0, self.patience / 5))
                if not self.path.exists():
                    return
                if _read(self.path) != found:
                    self._refuse(_read(self.path))
        if _read(self.path) == found:
            self.path.unlink(missing_ok=True)

    def _refuse(self, found: dict[str, Any]) -> None:
        raise InputError(
            f"Another process writes this output: {_describe(found)}. Wait for it, stop it, or choose another output. "
            f"(Its lock is {self.path}.)"
        )


def _read(path: Path) -> dict[str, Any]:
    """The content of a lock; an empty dict where there is none, or where it is being written just now."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _describe(found: dict[str, Any]) -> str:
    return f"process {found.get('pid', 'unknown')} on {found.get('host', 'an unknown machine')}"


def _started(pid: int) -> float:
    """When a process started, or 0 where there is none: a process id is used again, id and start together are not."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0
