"""From the images of a data set to the rows that are stored of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvpipe.config import DataSource
from cvpipe.data.packed.codec import encode_target, mask_of
from cvpipe.data.packed.shrink import Shrink, scaled_map, scaled_target, whole
from cvpipe.data.splits import Split, Splits
from cvpipe.data.store import parse_cell, read_bytes
from cvpipe.errors import ImageError

THREADS = min(32, 4 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Item:
    """One image to be stored.

    Attributes:
        source: its address.
        path: below the data set's folder, with `/`.
        group: images of a group stay together; None: a group of its own.
        bytes, modified: size and time of change (nanoseconds) of the source file, 0 where it can't be read.
        annotation: changes with the target and with the file of its mask.
    """

    source: str
    path: str
    split: str
    group: str | None
    target: Any
    bytes: int
    modified: int
    annotation: str


def root_of(source: str | DataSource, splits: Splits) -> str:
    """The folder that the paths of a data set are told from: the one that was named, or what they have in common."""
    named = source.images if isinstance(source, DataSource) else source
    paths = [os.path.abspath(path) for split in splits.all() for path in split.paths]
    root = os.path.abspath(named)
    if os.path.isdir(root) and all(path.startswith(os.path.join(root, "")) for path in paths):
        return root
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def items_of(split: Split, root: str, classes: Sequence[str]) -> list[Item]:
    """The images of a split in its order. Asks the file system for the state of each file, in threads."""
    files = {*split.paths, *(mask for target in split.targets if (mask := mask_of(target)) is not None)}
    with ThreadPoolExecutor(THREADS) as pool:
        states = dict(zip(files, pool.map(state_of, files), strict=True))
    items = []
    for i, (path, target) in enumerate(zip(split.paths, split.targets, strict=True)):
        mask = mask_of(target)
        known = json.dumps([encode_target(target, classes), None if mask is None else states[mask]])
        group = split.groups[i] if split.groups else path
        items.append(
            Item(
                path,
                _plain(_name_of(path, root)),
                split.name,
                None if group == path else _plain(group),
                target,
                *states[path],
                hashlib.sha256(known.encode()).hexdigest()[:16],
            )
        )
    return items


def state_of(address: str) -> tuple[int, int]:
    """(bytes, time of change in nanoseconds) of the file at an address; zeros where there is none."""
    cell = parse_cell(address)
    try:
        found = os.stat(cell.file if cell else address)
    except (OSError, ValueError):
        return 0, 0
    return (found.st_size, found.st_mtime_ns)


def sha256_at(address: str) -> str:
    """Of the file at an address. Raises ImageError."""
    return hashlib.sha256(read_bytes(address)).hexdigest()


def make_row(item: Item, classes: Sequence[str], shrink: Shrink, max_pixels: int) -> dict[str, Any]:
    """Reads, decodes and packs an image. A broken one gives a row with `error` and no content."""
    row: dict[str, Any] = {
        "path": item.path,
        "split": item.split,
        "group": item.group,
        "source_bytes": item.bytes,
        "source_modified": item.modified,
        "annotation": item.annotation,
    }
    try:
        return row | _packed(item, classes, shrink, max_pixels)
    except ImageError as error:
        return row | encode_target(item.target, classes) | {"error": str(error)}


def _packed(item: Item, classes: Sequence[str], shrink: Shrink, max_pixels: int) -> dict[str, Any]:
    from PIL import Image

    from cvpipe.data.decode import decode, read_values

    data = read_bytes(item.source)
    pixels = decode(data, max_pixels)
    with Image.open(io.BytesIO(data)) as image:
        form, mode = image.format or "", image.mode
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    content, packed_form = shrink.encode(pixels, data, form)
    packed_size = shrink.size(size)
    geometry = whole(size, packed_size)
    target = item.target if packed_size == size else scaled_target(item.target, geometry)
    row = {
        "content": content,
        "width": packed_size[1],
        "height": packed_size[0],
        "mode": mode if content is data else "RGB",
        "format": packed_form,
        "bytes": len(content),
        "sha256": hashlib.sha256(data).hexdigest(),
    } | encode_target(target, classes)
    mask = mask_of(item.target)
    if mask is not None:
        values = read_values(mask)
        if values.shape[:2] != size:
            found = f"{values.shape[1]}x{values.shape[0]}"
            raise ImageError(f"{mask}: the mask has {found} pixels, its image {size[1]}x{size[0]}")
        row["mask"] = read_bytes(mask) if packed_size == size else scaled_map(values, geometry)
    return row


def load_decoders() -> None:
    """In one thread, before many decode: those that import a library at once get in each other's way."""
    import PIL.Image
    import torchvision.io  # noqa: F401

    PIL.Image.preinit()


def make_rows(
    items: Iterable[Item], classes: Sequence[str], shrink: Shrink, max_pixels: int
) -> Iterator[dict[str, Any]]:
    """The rows of items in their order, made in threads, no more than a few at a time in memory."""
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[Future[dict[str, Any]]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make_row, item, classes, shrink, max_pixels))
            if len(waiting) >= 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def unchanged(item: Item, row: Mapping[str, Any]) -> bool:
    """Whether a stored row is still what would be stored. A file that was only touched is told by its content."""
    if item.annotation != row["annotation"]:
        return False
    if (item.bytes, item.modified) == (row["source_bytes"], row["source_modified"]):
        return True
    if item.bytes != row["source_bytes"] or row["sha256"] is None:
        return False
    try:
        return bool(sha256_at(item.source) == row["sha256"])
    except ImageError:
        return False


def _name_of(path: str, root: str) -> str:
    cell = parse_cell(path)
    if cell is not None:
        return cell.name
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()


def _plain(text: str) -> str:
    # file names need not be UTF-8, columns of texts are
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
