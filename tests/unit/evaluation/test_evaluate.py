"""Evaluation end to end with a small network: files, numbers, failures, MLflow."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvpipe.bundle import Bundle
from cvpipe.data.splits import Split
from cvpipe.errors import BundleError, CvpipeError, DataError, InputError
from cvpipe.evaluation.evaluate import Evaluation, evaluate, evaluate_split, labelled_split
from cvpipe.predictor import Predictor
from cvpipe.types import Interval


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder with three images of each digit."""
    root = tmp_path_factory.mktemp("few") / "few digits"
    for folder in sorted((digits / "test").iterdir()):
        (root / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:3]:
            shutil.copy(path, root / folder.name)
    return root


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> Predictor:
    return Predictor(tiny_bundle, device="cpu")


@pytest.fixture
def run_dir(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A run's folder with a copy of the model in it."""
    shutil.copytree(tiny_bundle.path, tmp_path / "run" / "bundle")
    return tmp_path / "run"


def few_of(root: Path) -> Split:
    paths = sorted(str(p) for p in root.rglob("*.png"))
    return Split("test", tuple(paths), tuple(int(Path(p).parent.name) for p in paths))


def read_csv(found: Evaluation) -> list[dict[str, str]]:
    with (found.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_three_files_with_the_same_numbers(predictor: Predictor, few: Path, tmp_path: Path) -> None:
    found = evaluate(predictor, few, output_dir=tmp_path / "out")
    assert sorted(p.name for p in found.folder.iterdir()) == ["metrics.json", "predictions.csv", "report.html"]
    saved = json.loads((found.folder / "metrics.json").read_text("utf-8"))
    assert saved["metrics"] == found.records()
    assert next(iter(saved["metrics"])) == "test/accuracy"
    assert set(saved["metrics"]["test/accuracy"]) == {"value", "low", "high"}
    assert (saved["images"], saved["failures"], saved["split"]) == (30, 0, "test")
    assert saved["images_per_second"] > 0
    assert 0 < saved["latency_ms"]["p50"] <= saved["latency_ms"]["p95"]

    rows = read_csv(found)
    assert list(rows[0]) == ["path", "target", "label", "score", "error"]
    right = sum(row["target"] == row["label"] for row in rows)
    assert right / 30 == pytest.approx(found.metrics["test/accuracy"].value)
    assert all(Path(row["path"]).parent.name == row["target"] for row in rows)


def test_the_report_stands_alone(predictor: Predictor, few: Path, tmp_path: Path) -> None:
    page = evaluate(predictor, few, output_dir=tmp_path).report.read_text("utf-8")
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert page.count("data:image/svg+xml") == 3
    assert page.count("data:image/jpeg") >= 1  # a briefly fitted network makes mistakes
    titles = [*re.findall(r"<h2>(.*?)</h2>", page)]
    assert {"Metrics", "Confusion matrix", "Calibration", "Classes", "Most confident mistakes"} <= set(titles)


def test_failures_are_counted_named_and_in_no_metric(
    predictor: Predictor, few: Path, tmp_path: Path, capsys: Any
) -> None:
    root = shutil.copytree(few, tmp_path / "broken")
    (root / "3" / "broken.png").write_bytes(b"not an image")
    found = evaluate(predictor, root, output_dir=tmp_path / "out")
    assert (found.images, found.failures) == (31, 1)
    whole = evaluate(predictor, few, output_dir=tmp_path / "whole")
    assert found.metrics == whole.metrics
    assert "not an image file" in found.report.read_text("utf-8")
    (bad,) = [row for row in read_csv(found) if row["error"]]
    assert (Path(bad["path"]).name, bad["target"], bad["label"]) == ("broken.png", "3", "")
    captured = capsys.readouterr()
    assert "1 of 31 images gave no prediction" in captured.err
    assert "test/accuracy" in captured.out


def test_nothing_but_failures_is_an_error_after_the_files(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "data" / "0").mkdir(parents=True)
    (tmp_path / "data" / "0" / "a.png").write_bytes(b"")
    with pytest.raises(CvpipeError, match=r"none of the 1 images gave a prediction.*predictions\.csv") as caught:
        evaluate(predictor, tmp_path / "data", output_dir=tmp_path / "out")
    assert caught.value.exit_code == 1
    assert "the file is empty" in (tmp_path / "out" / "predictions.csv").read_text("utf-8")
    assert (tmp_path / "out" / "report.html").is_file()


def test_own_data_go_next_to_the_bundle_and_into_it(run_dir: Path) -> None:
    found = evaluate(run_dir, device="cpu", batch_size=64)
    assert found.folder == run_dir / "evaluation"
    assert found.images == 364
    assert Bundle.load(run_dir).metrics == found.records()


def test_other_data_leave_the_bundle_and_its_report_alone(run_dir: Path, few: Path) -> None:
    found = evaluate(run_dir / "bundle", few, device="cpu")
    assert found.folder == run_dir / "evaluation-few-digits"
    assert Bundle.load(run_dir).metrics == {}


def test_a_split_fills_in_missing_metrics_only(run_dir: Path, few: Path) -> None:
    split = few_of(few)
    first = evaluate(Bundle.load(run_dir), split, device="cpu")
    assert Bundle.load(run_dir).metrics == first.records()
    evaluate(Bundle.load(run_dir), split.select(range(5)), device="cpu")
    assert Bundle.load(run_dir).metrics == first.records()


def test_a_model_elsewhere_gets_a_folder_in_the_working_directory(
    predictor: Predictor, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate(predictor, few).folder == Path("evaluation-few-digits") / "model"


def test_the_name_of_the_split_is_the_prefix(predictor: Predictor, digits: Path, tmp_path: Path) -> None:
    found = evaluate(predictor, split="val", output_dir=tmp_path)
    assert found.images == 181
    assert all(name.startswith("val/") for name in found.metrics)


def test_val_stands_in_where_there_is_no_test_split(
    tiny_bundle: Bundle, digits: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in ("train", "val"):
        shutil.copytree(digits / name, tmp_path / "data" / name)
    config = tiny_bundle.config.replace(**{"data.train": str(tmp_path / "data")})
    bundle = Bundle(tiny_bundle.path, config, tiny_bundle.labels, tiny_bundle.uri)
    split, source = labelled_split(bundle, None, "test")
    assert (split.name, len(split)) == ("val", 181)
    assert source.endswith("(val)")
    assert "has no test split: evaluating on val" in capsys.readouterr().out


def test_classes_that_changed_since_training(tiny_bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    for digit in ("1", "2"):
        shutil.copytree(digits / "test" / digit, tmp_path / "data" / digit)
    config = tiny_bundle.config.replace(**{"data.train": str(tmp_path / "data")})
    with pytest.raises(DataError, match="no longer those of the model"):
        labelled_split(Bundle(tiny_bundle.path, config, tiny_bundle.labels, "x"), None, "test")


def test_data_that_are_gone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    config = tiny_bundle.config.replace(**{"data.train": str(tmp_path / "gone")})
    with pytest.raises(DataError, match=r"own config: .*does not exist.*name other data"):
        labelled_split(Bundle(tiny_bundle.path, config, tiny_bundle.labels, "x"), None, "test")


def test_bad_input(predictor: Predictor, few: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'tests', expected one of train, val, test"):
        evaluate(predictor, few, split="tests")
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(predictor, Split("test", (), ()), output_dir=tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        evaluate(tmp_path / "nowhere", few)
    (tmp_path / "odd" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd" / "cat" / "a.png")
    with pytest.raises(DataError, match="classes that the model does not know: 'cat'"):
        evaluate(predictor, tmp_path / "odd")


def test_file_names_that_are_not_utf8(predictor: Predictor, few: Path, tmp_path: Path) -> None:
    name = str(tmp_path / "a\udcff.png")
    try:
        shutil.copy(next((few / "1").iterdir()), name)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 names only")
    found = evaluate_split(predictor, Split("test", (name,), (2,)), tmp_path / "out")
    assert b"a\xff.png,2," in (found.folder / "predictions.csv").read_bytes()


def test_multi_label(tiny_bundle: Bundle, few: Path, tmp_path: Path) -> None:
    from cvpipe.task import find_task
    from cvpipe.types import Labels

    labels = Labels(tiny_bundle.labels.classes, multi_label=True)
    network = find_task("classification").module(tiny_bundle.config, labels).network
    bundle = Bundle.create(tmp_path / "multi", tiny_bundle.config, labels, network)
    paths = few_of(few).paths
    lines = ["path,labels", *(f"{path},{i % 3};{3 + i % 5}" for i, path in enumerate(paths))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines), "utf-8")
    found = evaluate(bundle, tmp_path / "manifest.csv", device="cpu", output_dir=tmp_path / "out")
    assert {"test/map", "test/auroc", "test/calibration_error"} <= set(found.metrics)
    assert read_csv(found)[0]["target"] == "0;3"


def test_an_evaluation_as_text_json_and_notebook_table(tmp_path: Path) -> None:
    found = Evaluation(
        metrics={"test/accuracy": Interval(0.5, 0.25, 0.75), "test/log_loss": Interval(1.0)},
        images=4,
        failures=1,
        images_per_second=10.0,
        latency_ms={},
        report=tmp_path / "report.html",
        folder=tmp_path,
        headline=("test/accuracy",),
    )
    assert str(found).splitlines() == [
        "test/accuracy 0.5000 [0.2500, 0.7500]",
        f"4 images, 1 without a prediction; report: {tmp_path / 'report.html'}",
    ]
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["metrics"] == {"test/accuracy": 0.5, "test/log_loss": 1.0}
    assert values["intervals"] == {"test/accuracy": [0.25, 0.75]}
    assert "<td>0.5000</td><td>0.2500 to 0.7500</td>" in found._repr_html_()


def test_results_go_to_the_run_that_made_the_model(
    tiny_bundle: Bundle, few: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    from mlflow import MlflowClient

    from cvpipe.config import TrackingConfig
    from cvpipe.tracking import Tracker, run_of

    tracker = Tracker(TrackingConfig(tracking_uri=mlflow_uri), "evaluated")
    logged = tracker.log_model(tiny_bundle, "digits", "champion")
    tracker.finish()
    client = MlflowClient(mlflow_uri)

    silent = evaluate("models:/digits@champion", few, device="cpu", tracking_uri=mlflow_uri, log_to_run=False)
    assert silent.folder == Path("evaluation-few-digits") / "digits-champion"
    assert client.get_run(tracker.run_id).data.metrics == {}

    found = evaluate("models:/digits@champion", few, device="cpu", tracking_uri=mlflow_uri, output_dir=tmp_path / "out")
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == found.metrics["test/accuracy"].value
    names = {file.path for file in client.list_artifacts(tracker.run_id, "evaluation-few-digits")}
    assert names == {"evaluation-few-digits/report.html", "evaluation-few-digits/metrics.json"}

    assert run_of(logged.uri, mlflow_uri) == tracker.run_id
    assert run_of(f"runs:/{tracker.run_id}/model", mlflow_uri) == tracker.run_id
    source = client.get_model_version("digits", "1").source
    if source.startswith("models:/m-"):
        assert run_of(source, mlflow_uri) == tracker.run_id


def test_a_server_that_refuses_costs_a_warning(
    predictor: Predictor, few: Path, tmp_path: Path, mlflow_uri: str, capsys: Any
) -> None:
    from dataclasses import replace

    stranger = Predictor.__new__(Predictor)
    stranger.__dict__ = {**predictor.__dict__, "bundle": replace(predictor.bundle, uri="runs:/0123456789abcdef/model")}
    found = evaluate(stranger, few, output_dir=tmp_path / "out", tracking_uri=mlflow_uri)
    assert found.report.is_file()
    assert "the evaluation was not logged to MLflow" in capsys.readouterr().err
