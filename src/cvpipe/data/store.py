"""Where encoded images lie. `read_bytes` is the only way to the bytes that an image's address names.

An address is a text. Either the path of a file, or one cell of a packed shard:

    FILE.arrow::ROW/NAME          the image in that row (counted from 0)
    FILE.arrow::ROW:mask/NAME     its mask, as an encoded image too

NAME is the path that the image had in its source. Nothing is looked up by it: it makes the end of an address read like
the end of a path, in reports, messages and digests.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cvpipe.errors import ImageError

_MARK = ".arrow::"
_CELL = re.compile(r"(\d+)(?::(\w+))?(?:/(.*))?", re.S)


class Cell(NamedTuple):
    """One value in a packed shard.

    Attributes:
        file: the shard.
        row: counted from 0.
        column: `content` or `mask`.
        name: path of the image in its source, or "".
    """

    file: str
    row: int
    column: str = "content"
    name: str = ""

    @property
    def address(self) -> str:
        column = "" if self.column == "content" else f":{self.column}"
        return f"{self.file}::{self.row}{column}/{self.name}"


def parse_cell(address: str | Path) -> Cell | None:
    """What an address says, or None where it is the path of a file."""
    text = str(address)
    place = text.find(_MARK)
    if place < 0:
        return None
    end = place + len(_MARK)
    found = _CELL.fullmatch(text, end)
    return Cell(text[: end - 2], int(found[1]), found[2] or "content", found[3] or "") if found else None


def read_bytes(address: str | Path) -> bytes:
    """The encoded image at an address. Files come through the local cache where one is in use (see `data.cache`).

    Raises:
        ImageError: it can't be read.
    """
    cell = parse_cell(address)
    if cell is not None:
        from cvpipe.data.packed.shards import read_cell

        return read_cell(cell.file, cell.row, cell.column)
    from cvpipe.data.cache import cache_in_use

    cache = cache_in_use()
    try:
        return cache.read(str(address)) if cache else Path(address).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"can't read the file: {getattr(error, 'strerror', None) or error}") from None


def refresh(address: str | Path) -> None:
    """Makes the local cache forget a file that has changed since it was copied."""
    from cvpipe.data.cache import cache_in_use

    cache = cache_in_use()
    if cache is not None and parse_cell(address) is None:
        cache.refresh(str(address))


def open_bytes(address: str | Path) -> BinaryIO:
    """The encoded image at an address as a file open for reading, to look at its first and last bytes.

    Raises:
        ImageError: a cell of a shard can't be read.
        OSError: a file can't be opened.
    """
    if parse_cell(address) is not None:
        return io.BytesIO(read_bytes(address))
    return Path(address).open("rb")
