"""A table of the catalog through a real local Spark. Delta itself is not there: plain tables, no merge, no versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cvpipe.config_file import parse_config
from cvpipe.data.packed.codec import schema
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.packed.tables import copy_to_shards, prepare_table
from cvpipe.data.prepare import ingest
from cvpipe.data.prepared import read_splits
from cvpipe.data.store import read_bytes
from cvpipe.data.watch import micro_batches
from cvpipe.errors import DataError
from cvpipe.task import find_task

pytestmark = pytest.mark.integration
sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'databricks-cv-pipeline[spark]'")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("spark")
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    for name, value in (
        ("spark.driver.host", "127.0.0.1"),
        ("spark.driver.bindAddress", "127.0.0.1"),
        ("spark.sql.warehouse.dir", str(folder / "warehouse")),
        ("spark.sql.shuffle.partitions", "1"),
    ):
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def photos(folder: Path, count: int) -> dict[str, Any]:
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(path)
    return {"task": "classification", "data": {"train": str(folder), "image_size": 16}}


def test_rows_go_in_and_come_out(spark: Any, tmp_path: Path) -> None:
    from cvpipe.data.packed.spark import CatalogTable

    config = parse_config(photos(tmp_path / "in", 12))
    splits = read_splits(find_task("classification"), config)
    table = CatalogTable("spark_catalog.default.images", format="parquet")
    assert not table.exists()
    first = prepare_table(config, splits, table, Shrink(), tmp_path / "bad.csv", commit_bytes=1000)
    assert first.changes.new == 12
    columns = [field.name for field in schema()]
    stored = pa.Table.from_pylist(sorted(table.rows(columns), key=lambda row: row["path"]), schema=schema())
    assert stored.num_rows == 12
    again = prepare_table(config, splits, table, Shrink(), tmp_path / "bad.csv")
    assert again.changes.unchanged == 12
    folder = copy_to_shards(table, tmp_path / "cache")
    packed = read_splits(find_task("classification"), config.replace(**{"data.train": str(folder)}))
    assert packed.labels == splits.labels
    assert {Path(path).name: read_bytes(path) for split in packed.all() for path in split.paths} == {
        Path(path).name: read_bytes(path) for split in splits.all() for path in split.paths
    }


def test_a_stream_of_files(spark: Any, tmp_path: Path) -> None:
    """Spark's own file stream in the place of Auto Loader: the same `foreachBatch`."""
    folder, out = tmp_path / "in", tmp_path / "out"
    config = parse_config(photos(folder, 12))
    take = micro_batches(lambda paths: ingest(config, str(out), paths))

    def run() -> None:
        files = spark.readStream.format("binaryFile").option("recursiveFileLookup", "true")
        files = files.schema("path string, modificationTime timestamp, length long, content binary")
        stream = files.load(str(folder)).select("path").writeStream.foreachBatch(take)
        stream.option("checkpointLocation", str(tmp_path / "state")).trigger(
            availableNow=True
        ).start().awaitTermination()

    def stored() -> int:
        packed = read_splits(find_task("classification"), config.replace(**{"data.train": str(out)}))
        return sum(len(split) for split in packed.all())

    run()
    assert stored() == 12
    photos(folder, 15)
    run()
    assert stored() == 15


def test_without_a_session_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql.SparkSession, "getActiveSession", lambda: None)
    config = parse_config({"task": "classification", "data": {"train": "main.vision.images"}})
    with pytest.raises(DataError, match="needs a Spark session, and there is none"):
        read_splits(find_task("classification"), config)
