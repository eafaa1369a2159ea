"""Writes records to one file: JSON, JSON lines, CSV or Parquet, whole or not at all, a batch of records at a time."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.errors import InputError
from cvpipe.types import Prediction, arrow_schema
from cvpipe.utils.filesystem import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]
_ROW_GROUP = 16_384


def columns(prediction: type[Prediction]) -> tuple[str, ...]:
    """The keys of every record, in order."""
    return ("path", *(name for name, _ in prediction.record_schema), "error", "model_uri", "model_version")


def check_suffix(output: Path) -> None:
    """Raises InputError for a file whose ending names no format."""
    if output.suffix.lower() not in _WRITERS:
        found = f"the ending {output.suffix!r}" if output.suffix else "no ending"
        raise InputError(f"output {output}: found {found}, expected one of {', '.join(_WRITERS)}.")
    if output.is_dir():
        raise InputError(f"output {output}: a folder of this name exists. Name a file.")


def write_records(output: Path, records: Iterable[Record], prediction: type[Prediction]) -> None:
    """Writes the records in the format that the file's ending names. The file is complete or absent.

    Records with equal keys (`columns`). A missing value is null in JSON and Parquet and an empty cell in CSV; lists
    are JSON text in CSV.
    """
    with atomic_path(output) as staged:
        _WRITERS[output.suffix.lower()](staged, records, prediction)


def to_json(record: Record) -> str:
    """One line. Raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(record, allow_nan=False)


def _write_json(path: Path, records: Iterable[Record], prediction: type[Prediction]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for position, record in enumerate(records):
            file.write(("," if position else "") + "\n" + to_json(record))
        file.write("\n]\n")


def _write_jsonl(path: Path, records: Iterable[Record], prediction: type[Prediction]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_json(record) + "\n" for record in records)


def _write_csv(path: Path, records: Iterable[Record], prediction: type[Prediction]) -> None:
    names = columns(prediction)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_cell(record[name]) for name in names] for record in records)


def _cell(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, (list, dict)) else value


def _write_parquet(path: Path, records: Iterable[Record], prediction: type[Prediction]) -> None:
    import pyarrow.parquet as pq

    schema: pa.Schema = arrow_schema(prediction)
    with pq.ParquetWriter(path, schema) as writer:
        for group in _groups(records):
            writer.write_table(_table(group, schema))


def _table(records: list[Record], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(records, schema=schema)


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    source = iter(records)
    while group := list(itertools.islice(source, _ROW_GROUP)):
        yield group


_WRITERS: dict[str, Callable[[Path, Iterable[Record], type[Prediction]], None]] = {
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
