"""Batch inference in one process: formats, failures, settings, going on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvpipe.bundle import Bundle
from cvpipe.config_file import parse_config
from cvpipe.errors import ConfigError, DataError, InputError
from cvpipe.inference.batch_inference import BatchResult, predict
from cvpipe.predictor import Predictor
from cvpipe.types import Failure

KEYS = ["path", "label", "score", "labels", "scores", "error", "model_uri", "model_version"]


@pytest.fixture
def photos(tmp_path: Path, digits: Path) -> Path:
    """Ten images, and a broken one in the middle of the order."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((digits / "test").rglob("*.png"))[::30][:10]):
        shutil.copy(path, folder / f"{number}.png")
    (folder / "4b.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> Predictor:
    return Predictor(tiny_bundle, device="cpu", batch_size=4)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        values: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
        return values
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                **row,
                "score": float(row["score"]) if row["score"] else None,
                "label": row["label"] or None,
                "error": row["error"] or None,
                "labels": json.loads(row["labels"]) if row["labels"] else None,
                "scores": json.loads(row["scores"]) if row["scores"] else None,
            }
            for row in csv.DictReader(file)
        ]


def rounded(records: Any) -> list[dict[str, Any]]:
    """What other images stand in the batch moves scores by some 1e-8."""
    assert records
    return [
        {
            **record,
            "score": record["score"] and pytest.approx(record["score"], abs=1e-6),
            "scores": record["scores"] and pytest.approx(record["scores"], abs=1e-6),
        }
        for record in records
    ]


class Stopping(Predictor):
    """Ctrl-C after some answers."""

    stop_after = 5

    def stream(self, images: Any, **params: Any) -> Any:
        for count, answer in enumerate(super().stream(images, **params)):
            if count == self.stop_after:
                raise KeyboardInterrupt
            yield answer


@pytest.fixture
def interrupted(photos: Path, tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """The output path of a run that was stopped after five of eleven images, each in a part of its own."""
    output = tmp_path / "out" / "p.json"
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(tiny_bundle, device="cpu"), photos, output, save_every=0)
    assert not output.exists()
    return output


def parts(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.parts").glob("part-*"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".JSON"])
def test_formats_hold_the_same(suffix: str, photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    expected = predict(predictor, photos).records
    output = tmp_path / "new" / f"predictions{suffix}"
    result = predict(predictor, photos, output)
    moved = output.rename(output.with_suffix(suffix.lower()))
    assert read(moved) == list(expected or ())
    assert (result.images, result.failed, result.resumed, result.output) == (11, 1, 0, output)
    assert os.listdir(output.parent) == [moved.name]


def test_records(photos: Path, predictor: Predictor) -> None:
    result = predict(predictor, photos, params={"top_k": 2})
    assert result.output is None
    assert result.records is not None
    assert [record["path"] for record in result.records] == sorted(str(p) for p in photos.iterdir())
    assert all(list(record) == KEYS for record in result.records)
    broken = next(record for record in result.records if record["path"].endswith("4b.png"))
    assert broken["error"] == "not an image file (no known format)"
    assert [broken[key] for key in ("label", "score", "labels", "scores")] == [None] * 4
    good = result.records[0]
    answer = predictor.predict([good["path"]], top_k=2)[0]
    assert not isinstance(answer, Failure)
    expected = {**answer.to_record(), "error": None, "model_uri": predictor.bundle.uri, "model_version": ""}
    assert [good] == rounded([{"path": good["path"], **expected}])
    assert len(good["labels"]) == 2
    assert result.reasons == (f"1 x not an image file (no known format) (such as {broken['path']})",)


def test_duplicates_and_missing_images(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    (photos / "list.txt").write_text("0.png\ngone.png\n0.png\n")
    result = predict(predictor, photos / "list.txt", tmp_path / "p.jsonl")
    records = read(tmp_path / "p.jsonl")
    assert [record["path"] for record in records] == ["0.png", "gone.png"]
    assert records[1]["error"] == "can't read the file: No such file or directory"
    assert result.notes == ("1 repeated paths: one record for each path",)


def test_file_name_that_is_not_utf8(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(photos / "0.png", photos / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for suffix in (".json", ".csv", ".parquet"):
        predict(predictor, photos, tmp_path / f"p{suffix}")
        found = [record for record in read(tmp_path / f"p{suffix}") if "caf" in record["path"]]
        assert [(Path(record["path"]).name, record["error"]) for record in found] == [("caf\\udce9.png", None)]


def test_a_number_that_json_does_not_have_is_a_failure(
    photos: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = predictor.stream

    def spoiled(images: Any, **params: Any) -> Iterator[Any]:
        for count, answer in enumerate(stream(images, **params)):
            yield replace(answer, scores=answer.scores * float("nan")) if count == 0 else answer  # type: ignore[type-var]

    monkeypatch.setattr(predictor, "stream", spoiled)
    result = predict(predictor, photos, tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    assert "NaN" not in text
    assert result.failed == 2
    assert json.loads(text)[0]["error"] == "the prediction holds a number that is not finite"


def test_output_that_can_not_be(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"found the ending '\.txt', expected one of \.json, \.jsonl, \.csv, \.parq"):
        predict(predictor, photos, tmp_path / "p.txt")
    with pytest.raises(InputError, match="found no ending"):
        predict(predictor, photos, tmp_path / "p")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(InputError, match="a folder of this name"):
        predict(predictor, photos, tmp_path / "d.json")
    with pytest.raises(DataError):
        predict(predictor, tmp_path / "nowhere", tmp_path / "p.json")
    assert not list(tmp_path.glob("p*.parts"))


def test_existing_output_is_kept_unless_asked(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    output = tmp_path / "p.json"
    output.write_text("precious")
    with pytest.raises(InputError, match=r"exists already\. Replace it with --overwrite"):
        predict(predictor, photos, output)
    assert output.read_text() == "precious"
    for options in ({"overwrite": True}, {"restart": True}):
        output.write_text("old")
        predict(predictor, photos, output, **options)  # type: ignore[arg-type]
        assert len(read(output)) == 11


def test_unknown_parameter(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(InputError, match="Did you mean 'top_k'"):
        predict(predictor, photos, tmp_path / "p.json", params={"topk": 3})


def test_config_sets_what_it_names(photos: Path, tiny_bundle: Bundle, tiny_values: dict[str, Any]) -> None:
    named = parse_config({**tiny_values, "inference": {"top_k": 3, "batch_size": 2}})
    for model in (tiny_bundle, tiny_bundle.path, Predictor(tiny_bundle, device="cpu")):
        records = predict(model, photos, config=named).records
        assert records is not None
        assert len(records[0]["labels"]) == 3
    unnamed = predict(tiny_bundle, photos, config=parse_config(tiny_values)).records
    assert unnamed is not None
    assert len(unnamed[0]["labels"]) == tiny_bundle.config.inference.top_k
    with pytest.raises(ConfigError, match=r"task: found 'other', and .* is a model for 'classification'"):
        predict(tiny_bundle, photos, config=named.model_copy(update={"task": "other"}))


def test_goes_on_where_it_stopped(interrupted: Path, photos: Path, predictor: Predictor) -> None:
    assert len(parts(interrupted)) == 5
    result = predict(predictor, photos, interrupted)
    # 4b.png was among the five; what failed is tried again
    assert (result.images, result.resumed, result.failed) == (11, 5, 1)
    assert read(interrupted) == rounded(predict(predictor, photos).records)
    assert os.listdir(interrupted.parent) == [interrupted.name]


def test_failed_images_are_tried_again(
    photos: Path, tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Stopping(tiny_bundle, device="cpu")
    model.stop_after = 8
    output = tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, output, save_every=0)
    assert "stopped: 8 of 11 images are saved. The same command goes on from there." in capsys.readouterr().out
    shutil.copy(photos / "0.png", photos / "4b.png")
    result = predict(tiny_bundle, photos, output)
    assert (result.resumed, result.failed, result.images) == (7, 0, 11)
    assert [record["path"] for record in read(output)] == sorted(str(p) for p in photos.iterdir())


def test_images_that_came_and_went(interrupted: Path, photos: Path, predictor: Predictor) -> None:
    (photos / "1.png").unlink()
    shutil.copy(photos / "0.png", photos / "0a.png")
    result = predict(predictor, photos, interrupted)
    assert (result.images, result.resumed) == (11, 4)
    assert read(interrupted) == rounded(predict(predictor, photos).records)


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"score": 0', '"score": 1'),
        lambda text: "[1, 2]\n" + text,
        lambda text: text.splitlines()[0],
    ],
    ids=["torn", "empty", "changed", "longer", "no checksum"],
)
def test_broken_part_is_done_again(
    harm: Callable[[str], str], interrupted: Path, photos: Path, predictor: Predictor
) -> None:
    part = parts(interrupted)[1]
    part.write_text(harm(part.read_text()))
    (part.parent / "part-x.jsonl").write_text("{")
    result = predict(predictor, photos, interrupted)
    assert result.resumed == 4
    assert read(interrupted) == rounded(predict(predictor, photos).records)


def test_another_model_or_setting_is_refused(
    interrupted: Path, photos: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    with pytest.raises(InputError, match=r"settings: was .*'top_k': 5.*now .*'top_k': 2.*--restart"):
        predict(tiny_bundle, photos, interrupted, params={"top_k": 2})
    moved = replace(tiny_bundle, version="2")
    with pytest.raises(InputError, match="model_version: was '', now '2'"):
        predict(moved, photos, interrupted)
    changed = replace(tiny_bundle, info={**tiny_bundle.info, "sha256": {"weights.safetensors": "other"}})
    with pytest.raises(InputError, match="weights: was"):
        predict(changed, photos, interrupted)
    assert len(parts(interrupted)) == 5
    result = predict(moved, photos, interrupted, restart=True, batch_size=3)
    assert (result.resumed, result.images) == (0, 11)
    assert {record["model_version"] for record in read(interrupted)} == {"2"}


def test_restart_forgets_parts_of_the_same_model(interrupted: Path, photos: Path, predictor: Predictor) -> None:
    assert predict(predictor, photos, interrupted, restart=True).resumed == 0


def test_overwrite_goes_on_too(interrupted: Path, photos: Path, predictor: Predictor) -> None:
    interrupted.write_text("old")
    assert predict(predictor, photos, interrupted, overwrite=True).resumed == 5


def test_terminate_saves_as_ctrl_c_does(photos: Path, tmp_path: Path, tiny_bundle: Bundle) -> None:
    class Terminated(Predictor):
        def stream(self, images: Any, **params: Any) -> Any:
            for count, answer in enumerate(super().stream(images, **params)):
                if count == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(5)
                yield answer

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        predict(Terminated(tiny_bundle, device="cpu"), photos, tmp_path / "p.json")
    assert signal.getsignal(signal.SIGTERM) == before
    assert predict(tiny_bundle, photos, tmp_path / "p.json").resumed == 6


def test_runs_in_a_thread(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    results: list[BatchResult] = []
    thread = threading.Thread(target=lambda: results.append(predict(predictor, photos, tmp_path / "p.json")))
    thread.start()
    thread.join()
    assert results[0].images == 11


def test_other_threads_keep_their_share_of_the_cpu(photos: Path, predictor: Predictor) -> None:
    import torch

    counts: list[int] = []

    def ask() -> None:
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()

    ask()
    predictor.predict(sorted(photos.iterdir()))
    ask()
    assert counts == [torch.get_num_threads()] * 2


def test_result_shows_itself(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    result = predict(predictor, photos, tmp_path / "p.json")
    assert list(result.to_dict()) == ["output", "images", "failed", "images_per_second"]
    assert json.loads(json.dumps(result.to_dict()))["images"] == 11
    assert str(result).startswith("11 images, 1 failed, ")
    assert "<table>" in result._repr_html_()
    assert "0.png" in predict(predictor, photos)._repr_html_()
