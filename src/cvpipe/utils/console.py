"""What commands print: facts, tables, progress. On a terminal a bar, elsewhere plain lines.

Everything goes to stdout, or to stderr where stdout belongs to `--json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

_stream: TextIO | None = None


def stream() -> TextIO:
    return _stream or sys.stdout


@contextmanager
def on_stderr() -> Iterator[None]:
    """Inside the block everything is printed to stderr."""
    global _stream
    before, _stream = _stream, sys.stderr
    try:
        yield
    finally:
        _stream = before


def say(text: str = "") -> None:
    print(text, file=stream(), flush=True)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def facts(pairs: Mapping[str, object]) -> None:
    """Aligned `name  value` lines."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        say(f"  {name:<{width}}  {value}")


def table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows with equal keys under a header line; numbers to the right."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    right = [all(isinstance(row[column], (int, float)) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  " + "  ".join(padded).rstrip()

    say(line(columns))
    for row in cells:
        say(line(row))


def duration(seconds: float) -> str:
    """4.2s, 3m05s, 2h07m, 3d04h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


class Progress:
    """Counts work done, with rate and time left.

    On a terminal one line that is redrawn; elsewhere a line every `every` seconds.

    Args:
        label: what is being done.
        total: amount of work, or None where it is not known.
        unit: name of one piece, plural.
        done: what was finished before (a resumed job); it does not count for the rate.
    """

    def __init__(self, label: str, total: int | None, unit: str = "images", done: int = 0, every: float = 10.0) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = self._before = done
        self._start = self._shown = time.monotonic()
        self._live = stream().isatty()
        self._note = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=stream(), flush=True)

    @property
    def rate(self) -> float:
        """Pieces a second since the start."""
        return (self.done - self._before) / max(1e-9, time.monotonic() - self._start)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self._note = note
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._live else self.every):
            self._shown = now
            self._show()

    def line(self) -> str:
        parts = [f"{self.label} {self.done}{f'/{self.total}' if self.total else ''} {self.unit}"]
        parts.append(f"{self.rate:.1f} {self.unit}/s")
        if self.total and self.rate > 0:
            parts.append(f"ETA {duration((self.total - self.done) / self.rate)}")
        return ", ".join(parts + ([self._note] if self._note else []))

    def _show(self) -> None:
        if self._live:
            share = self.done / self.total if self.total else 0.0
            bar = f"[{'#' * int(24 * share):<24}] " if self.total else ""
            print(f"\r\x1b[K{bar}{self.line()}", end="", file=stream(), flush=True)
        else:
            say(self.line())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


Row = dict[str, Any]
