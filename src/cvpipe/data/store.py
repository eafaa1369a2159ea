"""Where encoded images lie. `read_bytes` is the only way to the bytes that an image's address names."""

from __future__ import annotations

from pathlib import Path

from cvpipe.errors import ImageError


def read_bytes(address: str | Path) -> bytes:
    """The encoded image at an address: the path of a file.

    Raises:
        ImageError: it can't be read.
    """
    try:
        return Path(address).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"can't read the file: {getattr(error, 'strerror', None) or error}") from None
