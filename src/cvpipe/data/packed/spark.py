"""A Delta table of the catalog, through the Spark session of a notebook or job. The only code here that knows Spark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvpipe.data.packed.codec import schema
from cvpipe.data.packed.delta import PROPERTY, Part, sql_text
from cvpipe.errors import DataError, DependencyError

if TYPE_CHECKING:
    import pyarrow as pa

_VIEW = "cvpipe_rows"


class CatalogTable:
    """catalog.schema.table.

    Args:
        version: left out: the newest.
        format: of the table, where it is made.
    """

    def __init__(self, name: str, version: int | None = None, format: str = "delta") -> None:  # noqa: A002
        self.name, self._version, self._format = name, version, format
        self._spark = _session(name)

    def exists(self) -> bool:
        return bool(self._spark.catalog.tableExists(self.name))

    def version(self) -> int:
        if self._version is not None or self._format != "delta":
            return self._version or 0
        return int(self._spark.sql(f"DESCRIBE HISTORY {self._quoted} LIMIT 1").collect()[0]["version"])

    def identity(self) -> str:
        return f"{self.name} version {self.version()}"

    def index(self) -> dict[str, Any] | None:
        found = self._spark.sql(f"SHOW TBLPROPERTIES {self._quoted}").collect()
        text = next((row["value"] for row in found if row["key"] == PROPERTY), None)
        return dict(json.loads(text)) if text else None

    def set_index(self, index: Mapping[str, Any]) -> None:
        if not self.exists():
            empty = self._frame(schema().empty_table())
            empty.write.format(self._format).saveAsTable(self.name)
        text = json.dumps(index, allow_nan=False)
        if self.index() != json.loads(text):
            escaped = text.replace("\\", "\\\\").replace("'", "\\'")
            self._spark.sql(f"ALTER TABLE {self._quoted} SET TBLPROPERTIES ('{PROPERTY}' = '{escaped}')")

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [row.asDict(recursive=True) for row in self._read().select(*columns).toLocalIterator()]

    def append(self, rows: pa.Table) -> None:
        self._frame(rows).write.format(self._format).mode("append").saveAsTable(self.name)

    def merge(self, rows: pa.Table) -> None:
        self._frame(rows).createOrReplaceTempView(_VIEW)
        self._spark.sql(
            f"MERGE INTO {self._quoted} t USING {_VIEW} s ON t.path = s.path "
            "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )

    def delete(self, paths: Sequence[str]) -> None:
        names = ", ".join(sql_text(path) for path in paths)
        self._spark.sql(f"DELETE FROM {self._quoted} WHERE path IN ({names})")

    def parts(self) -> Iterator[Part]:
        """One part: rows come to the driver in the order of their paths, a partition at a time."""

        def rows() -> Iterator[dict[str, Any]]:
            frame = self._read().orderBy("split", "path")
            for row in frame.toLocalIterator():
                values = row.asDict(recursive=True)
                for name in ("content", "mask"):
                    values[name] = None if values[name] is None else bytes(values[name])
                yield values

        yield Part(self.name, rows())

    @property
    def _quoted(self) -> str:
        return ".".join(f"`{part}`" for part in self.name.split("."))

    def _read(self) -> Any:
        if not self.exists():
            raise DataError(f"{self.name}: no such table in the catalog.")
        if self._version is None:
            return self._spark.table(self.name)
        return self._spark.sql(f"SELECT * FROM {self._quoted} VERSION AS OF {self._version}")

    def _frame(self, rows: pa.Table) -> Any:
        # rows of plain values: a session of Spark 3.5 takes no Arrow tables, and pandas would change lists and nulls
        from pyspark.sql.pandas.types import from_arrow_schema

        return self._spark.createDataFrame(
            [tuple(row.values()) for row in rows.to_pylist()], schema=from_arrow_schema(rows.schema)
        )


def _session(name: str) -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise DependencyError(
            f"{name} is no file or folder here, and a table of the catalog needs a Spark session: pyspark is not "
            "installed. Correct the path, run this on a cluster, or name the folder of the table: delta:PATH."
        ) from None
    session = SparkSession.getActiveSession()
    if session is None:
        raise DataError(
            f"{name} is no file or folder here, and a table of the catalog needs a Spark session, and there is none. "
            "Correct the path, run this in a notebook or job on a cluster, or name the folder of the table: delta:PATH."
        )
    return session
