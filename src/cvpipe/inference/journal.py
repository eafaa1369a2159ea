"""What a batch run has done so far: whole small files, so that an interrupted run goes on.

    predictions.json.parts/
      header.json            model, settings: what the records depend on
      lock.json              who works here
      part-000000.jsonl      records of some images, then a line with their SHA-256

Each file is written whole and renamed into place. A part whose last line does not fit is ignored, and its images
are predicted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cvpipe.errors import InputError
from cvpipe.inference.sinks import Record
from cvpipe.utils.filesystem import write_json, write_text

MISSING = -1


class Journal:
    """The parts folder of one output.

    Args:
        folder: `OUTPUT.parts`.
        header: what the records depend on; parts of another header are refused.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder, self.header = folder, header
        self._next = 0
        # in input order parts are read once each; after new images came in between, a few take turns
        self._part = lru_cache(maxsize=8)(self._read_part)

    def open(self, restart: bool) -> None:
        """Makes the folder ready: an earlier run's parts stay where they fit.

        Raises:
            InputError: the parts come from another model or other settings, and `restart` was not asked for.
        """
        path = self.folder / "header.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            found = None
        if found is not None and found != self.header and not restart:
            changed = [key for key in self.header if found.get(key) != self.header[key]]
            was = "; ".join(f"{key}: was {found.get(key)!r}, now {self.header[key]!r}" for key in changed)
            raise InputError(
                f"{self.folder} holds the unfinished work of a run with another model or other settings ({was}). "
                "Run with the same ones to go on, or start from the first image with --restart."
            )
        if found != self.header or restart:
            self._clear()
            write_json(path, self.header)
        numbers = [_number(part) for part in self._parts()]
        self._next = max(numbers, default=-1) + 1

    def load(self, paths: Sequence[str]) -> list[int]:
        """For each path the number of the part that holds its record, or MISSING.

        An image that failed counts as missing: what kept it from being read may be over.
        """
        position = {path: i for i, path in enumerate(paths)}
        part_of = [MISSING] * len(paths)
        for file in self._parts():
            number = _number(file)
            for path, record in self._read_part(number).items():
                if path in position:
                    part_of[position[path]] = MISSING if record["error"] else number
        return part_of

    def write(self, lines: Iterable[str]) -> int:
        """Saves records, one JSON text each, as a new part and returns its number."""
        body = "".join(f"{line}\n" for line in lines)
        number = self._next
        write_text(self._file(number), body + json.dumps({"sha256": _digest(body)}) + "\n")
        self._next += 1
        return number

    def records(self, paths: Sequence[str], part_of: Sequence[int]) -> Iterator[Record]:
        """The records of the paths, in their order."""
        for path, number in zip(paths, part_of, strict=True):
            yield self._part(number)[path]

    def remove(self) -> None:
        """Forgets everything, the header first: what is left after a crash here is not taken for unfinished work."""
        (self.folder / "header.json").unlink(missing_ok=True)
        self._clear()

    def _clear(self) -> None:
        for part in self._parts():
            part.unlink(missing_ok=True)
        # what a killed process had begun to write
        for staged in self.folder.glob(".*.tmp"):
            staged.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.jsonl"), key=_number)

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"

    def _read_part(self, number: int) -> dict[str, Record]:
        """Path -> record; empty for a part that is broken."""
        try:
            text = self._file(number).read_text("utf-8")
            body, _, last = text.rstrip("\n").rpartition("\n")
            if body and json.loads(last)["sha256"] == _digest(body + "\n"):
                return {record["path"]: record for record in map(json.loads, body.split("\n"))}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {}


def _number(part: Path) -> int:
    digits = part.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
