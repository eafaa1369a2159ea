"""Folders that keep receiving files: which of them are whole, and Auto Loader's micro-batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from cvpipe.data.packed.changes import Prepared
from cvpipe.data.packed.codec import mask_of
from cvpipe.data.packed.rows import state_of
from cvpipe.data.splits import Splits


class StableFiles:
    """Tells files that are being written from whole ones: a whole one looks the same two times in a row."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, int], ...]] = {}

    def look(self, splits: Splits) -> set[str]:
        """The images that have not changed since the last look, nor have their masks. At the first look none."""
        now = {
            path: tuple(state_of(file) for file in (path, mask_of(target)) if file is not None)
            for split in splits.all()
            for path, target in zip(split.paths, split.targets, strict=True)
        }
        stable = {path for path, state in now.items() if self._seen.get(path) == state}
        self._seen = now
        return stable


def micro_batches(ingest: Callable[[set[str]], Prepared | None]) -> Callable[[Any, int], None]:
    """A function for Spark's `foreachBatch`: takes micro-batches of files, as Auto Loader finds them, into a data set.

        stream = spark.readStream.format("cloudFiles").option("cloudFiles.format", "binaryFile").load(FOLDER)
        stream.select("path").writeStream.foreachBatch(micro_batches(ingest)).option(...).start()

    Args:
        ingest: takes the paths of the files that have arrived; see `cvpipe.data.prepare.ingest`.
    """

    def take(batch: Any, batch_id: int) -> None:
        paths = {local_path(row["path"]) for row in batch.select("path").collect()}
        if paths:
            ingest(paths)

    return take


def local_path(uri: str) -> str:
    """`file:///a%20b.jpg`, `dbfs:/Volumes/…`, `/Volumes/…` -> the path that Python opens."""
    parts = urlsplit(uri)
    if parts.scheme == "dbfs":
        path = unquote(parts.path)
        return path if path.startswith("/Volumes/") else f"/dbfs{path}"
    return unquote(parts.path) if parts.scheme == "file" else uri


def matching(splits: Splits, paths: Iterable[str]) -> set[str]:
    """The images of a data set, as it names them, that lie at these paths."""
    wanted = {os.path.realpath(path) for path in paths}
    return {path for split in splits.all() for path in split.paths if os.path.realpath(path) in wanted}
