"""Delta tables of images: written row by row from any data set, brought up to date, and read into local shards.

A table has the columns of `codec.schema` and, as the table property `cvpipe.index`, what shards have in index.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cvpipe.data.packed.codec import schema
from cvpipe.errors import CvpipeError, DataError, DependencyError

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "delta:"
PROPERTY = "cvpipe.index"
_CATALOG_NAME = re.compile(r"[^./\\:\s@]+(\.[^./\\:\s@]+){2}")
_FILES = (".csv", ".parquet", ".jsonl", ".json", ".yaml", ".yml", ".txt", ".xml", ".arrow")
_ROW_GROUP = 64
"""Rows of images that a reader holds in memory together."""
_TRIES = 5
_DELETED_TOGETHER = 500


class Part(NamedTuple):
    """One of the files of a table: its name, and its rows."""

    name: str
    rows: Iterator[dict[str, Any]]


class Table(Protocol):
    """What reading and writing needs of a table. `CatalogTable` in `packed.spark` is the other one."""

    name: str

    def identity(self) -> str:
        """A text that no other table has, and that says the version."""
        ...

    def exists(self) -> bool: ...

    def version(self) -> int: ...

    def index(self) -> dict[str, Any] | None:
        """The table property, or None where it has none."""
        ...

    def set_index(self, index: Mapping[str, Any]) -> None: ...

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of all rows."""
        ...

    def append(self, rows: pa.Table) -> None: ...

    def merge(self, rows: pa.Table) -> None:
        """Puts rows in the place of those with the same path, in one version."""
        ...

    def delete(self, paths: Sequence[str]) -> None: ...

    def parts(self) -> Iterator[Part]:
        """All rows with all columns, file by file, in an order that is the same for a version."""
        ...


def is_table(source: str) -> bool:
    """Whether a text names a Delta table: `delta:PATH`, a folder with a _delta_log, or catalog.schema.table."""
    if source.startswith(PREFIX):
        return True
    text, _ = split_version(source)
    path = Path(text)
    if (path / "_delta_log").is_dir():
        return True
    return bool(_CATALOG_NAME.fullmatch(text)) and not path.exists() and path.suffix.lower() not in _FILES


def split_version(source: str) -> tuple[str, int | None]:
    """`delta:PATH@7` -> (PATH, 7). Raises DataError where what stands behind the @ is no number."""
    text = source.removeprefix(PREFIX)
    path, mark, version = text.rpartition("@")
    if not mark or "/" in version or "\\" in version:
        return text, None
    if not version.isdecimal():
        raise DataError(f"{source}: found the version {version!r}, expected a number: delta:PATH@7.")
    return path, int(version)


def open_table(source: str) -> Table:
    """The table that a text names. Raises DataError, DependencyError."""
    text, version = split_version(source)
    if _CATALOG_NAME.fullmatch(text) and not Path(text).exists():
        from cvpipe.data.packed.spark import CatalogTable

        return CatalogTable(text, version)
    return DeltaFolder(text, version)


class DeltaFolder:
    """A table by its folder, through delta-rs. No Spark, no JVM.

    Args:
        version: left out: the newest.
    """

    def __init__(self, path: str, version: int | None = None) -> None:
        try:
            import deltalake
        except ImportError:
            raise DependencyError(
                "Delta tables need the package deltalake: pip install 'databricks-cv-pipeline[delta]'."
            ) from None
        self.name, self._version, self._delta = path, version, deltalake
        self._open: Any = None

    def exists(self) -> bool:
        return bool(self._delta.DeltaTable.is_deltatable(self.name))

    def version(self) -> int:
        return int(self._table().version())

    def identity(self) -> str:
        table = self._table()
        return f"{table.metadata().id} version {table.version()}"

    def index(self) -> dict[str, Any] | None:
        text = self._table().metadata().configuration.get(PROPERTY)
        return dict(json.loads(text)) if text else None

    def set_index(self, index: Mapping[str, Any]) -> None:
        text = json.dumps(index, allow_nan=False)
        if not self.exists():
            self._delta.DeltaTable.create(
                self.name,
                schema(),
                name="images",
                description="Images with annotations, written by cvpipe data prepare",
                configuration={PROPERTY: text},
                raise_if_key_not_exists=False,
            )
        elif self.index() != json.loads(text):
            self._table().alter.set_table_properties({PROPERTY: text}, raise_if_not_exists=False)
        self._open = None

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._dataset().to_table(columns=list(columns)).to_pylist()
        return found

    def append(self, rows: pa.Table) -> None:
        def work() -> None:
            self._delta.write_deltalake(self.name, rows, mode="append", writer_properties=self._properties())

        self._commit(work)

    def merge(self, rows: pa.Table) -> None:
        def work() -> None:
            merger = self._table().merge(
                rows, "t.path = s.path", source_alias="s", target_alias="t", writer_properties=self._properties()
            )
            merger.when_matched_update_all().when_not_matched_insert_all().execute()

        self._commit(work)

    def delete(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _DELETED_TOGETHER):
            names = ", ".join(sql_text(path) for path in paths[start : start + _DELETED_TOGETHER])
            self._commit(lambda names=names: self._table().delete(f"path IN ({names})"))

    def parts(self) -> Iterator[Part]:
        import pyarrow.dataset as ds

        def rows(fragment: Any) -> Iterator[dict[str, Any]]:
            options = ds.ParquetFragmentScanOptions(pre_buffer=False)
            for batch in fragment.to_batches(
                schema=dataset.schema, batch_size=_ROW_GROUP, fragment_scan_options=options, batch_readahead=1
            ):
                yield from batch.to_pylist()

        dataset = self._dataset()
        for fragment in sorted(dataset.get_fragments(), key=lambda fragment: str(fragment.path)):
            yield Part(str(fragment.path), rows(fragment))

    def _table(self) -> Any:
        if self._open is None:
            try:
                self._open = self._delta.DeltaTable(self.name, version=self._version)
            except self._delta.exceptions.TableNotFoundError:
                raise DataError(f"{self.name}: not a Delta table. Expected a folder with a _delta_log.") from None
            except self._delta.exceptions.DeltaError as error:
                which = "" if self._version is None else f" in version {self._version}"
                raise DataError(f"{self.name}: can't be opened{which}: {_first_line(error)}") from None
        return self._open

    def _dataset(self) -> Any:
        try:
            return self._table().to_pyarrow_dataset()
        except self._delta.exceptions.DeltaError as error:
            raise DataError(
                f"{self.name}: delta-rs can't read this table: {_first_line(error)}. On a cluster name it as "
                "catalog.schema.table, which Spark reads."
            ) from None

    def _properties(self) -> Any:
        # small row groups: a reader holds one in memory
        return self._delta.WriterProperties(max_row_group_size=_ROW_GROUP)

    def _commit(self, work: Any) -> None:
        """Another writer that was faster is no error: the table is read again, and the change made again."""
        self._open = None
        for attempt in range(_TRIES):
            try:
                work()
                break
            except self._delta.exceptions.CommitFailedError as error:
                if attempt == _TRIES - 1:
                    raise CvpipeError(f"{self.name}: {_TRIES} commits failed: {_first_line(error)}") from None
                self._open = None
        self._open = None


def sql_text(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def cache_name(table: Table) -> str:
    """Folder of a table's local shards: another one for each table and version."""
    digest = hashlib.sha256(table.identity().encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(table.name).name) or 'table'}-v{table.version()}-{digest}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
