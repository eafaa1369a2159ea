"""A bundle through MLflow and back: the same scores, whichever door it comes in by."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cvpipe.bundle import Bundle
from cvpipe.config import TrackingConfig
from cvpipe.errors import InputError, TrackingError
from cvpipe.predictor import Predictor
from cvpipe.tracking import LoggedModel, Tracker, register_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def logged(mlflow_template: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(tracking URI, run id, logged model), made once: the tests below only read."""
    import shutil

    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(TrackingConfig(tracking_uri=uri, system_metrics=False), "run")
        model = tracker.log_model(tiny_bundle, register_as="digits", alias="champion")
        tracker.finish()
    return uri, tracker.run_id, model


@pytest.fixture
def uri(logged: Any) -> str:
    import mlflow

    mlflow.set_tracking_uri(logged[0])
    mlflow.set_registry_uri(logged[0])
    return str(logged[0])


@pytest.fixture(scope="module")
def images(digits: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((digits / "test").rglob("*.png"))[::40]]


def scores_of(frame: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray[Any, Any]:
    rows = [
        dict(zip(labels, scores, strict=True)) for labels, scores in zip(frame["labels"], frame["scores"], strict=True)
    ]
    return np.array([[row[name] for name in classes] for row in rows])


def test_what_was_registered(logged: Any, uri: str) -> None:
    from mlflow import MlflowClient

    _, run_id, model = logged
    assert model == LoggedModel("models:/digits/1", "digits", "1")
    client = MlflowClient()
    assert client.get_model_version_by_alias("digits", "champion").version in (1, "1")
    assert client.get_model_version("digits", "1").run_id == run_id
    if hasattr(client, "search_logged_models"):
        run = client.get_run(run_id)
        found = client.search_logged_models([run.info.experiment_id])
        assert len(found) == 1
        assert found[0].source_run_id == run_id
        assert len(run.outputs.model_outputs) == 1


def test_python_function_gives_the_predictors_scores(uri: str, tiny_bundle: Bundle, images: list[bytes]) -> None:
    import mlflow

    classes = tiny_bundle.labels.classes
    expected = np.stack([p.scores for p in Predictor(tiny_bundle, device="cpu").predict(images)])
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    by_bytes = model.predict(pd.DataFrame({"image": images}), params={"top_k": 10})
    by_text = model.predict(
        pd.DataFrame({"image": [base64.b64encode(data).decode() for data in images]}), params={"top_k": 10}
    )
    for frame in (by_bytes, by_text):
        assert list(frame.columns) == ["label", "score", "labels", "scores", "error"]
        assert np.abs(scores_of(frame, classes) - expected).max() < 1e-5
        assert list(frame["label"]) == [classes[i] for i in expected.argmax(axis=1)]
        assert set(frame["error"]) == {""}
    assert len(set(by_bytes["label"])) > 1, "a model that always says the same would prove nothing"


def test_params(uri: str, images: list[bytes]) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model("models:/digits/1")
    frame = pd.DataFrame({"image": images[:2]})
    assert [len(labels) for labels in model.predict(frame)["labels"]] == [5, 5]
    assert [len(labels) for labels in model.predict(frame, params={"top_k": 2})["labels"]] == [2, 2]
    with pytest.raises(MlflowException, match="top_k"):
        model.predict(frame, params={"top_k": "many"})


def test_bad_rows_are_errors_of_their_own(uri: str, images: list[bytes], digits: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/digits/1")
    a_path = str(next((digits / "test").rglob("*.png")))
    cells = [
        images[0],
        "not base64!",
        a_path,
        "https://example.com/a.jpg",
        "file:///etc/passwd",
        base64.b64encode(b"no image").decode(),
        "",
        b"",
        "data:image/png;base64," + base64.b64encode(images[1]).decode(),
    ]
    frame = model.predict(pd.DataFrame({"image": cells}))
    assert len(frame) == len(cells)
    ok = [0, 8]
    for i, row in frame.iterrows():
        if i in ok:
            assert row["error"] == ""
            assert row["label"]
        else:
            assert row["error"], cells[int(str(i))]
            assert (row["label"], row["score"], list(row["labels"])) == ("", 0.0, [])
    assert "paths and URLs are not read" in frame["error"][1]
    assert "paths and URLs are not read" in frame["error"][3]
    assert "not an image" in frame["error"][5]
    assert not frame.isna().any().any()


def test_a_path_of_base64_letters_is_not_opened(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                images: list[bytes]) -> None:  # fmt: skip
    from cvpipe.flavor import BundleModel

    (tmp_path / "abcd").write_bytes(images[0])
    monkeypatch.chdir(tmp_path)
    (row,) = BundleModel(Predictor(tiny_bundle, device="cpu")).predict(["abcd"]).to_dict("records")
    assert "not an image" in row["error"]


def test_forms_of_input(tiny_bundle: Bundle, images: list[bytes]) -> None:
    from cvpipe.flavor import BundleModel

    model = BundleModel(Predictor(tiny_bundle, device="cpu"))
    expected = model.predict(pd.DataFrame({"image": images[:2]}))
    for given in ({"image": images[:2]}, images[:2], tuple(images[:2]), [memoryview(i) for i in images[:2]]):
        pd.testing.assert_frame_equal(model.predict(given), expected)
    assert len(model.predict(images[0])) == 1
    assert len(model.predict({"image": images[0]})) == 1
    assert list(model.predict([])) == list(expected)
    assert "found int" in model.predict([3])["error"][0]
    with pytest.raises(InputError, match=r"expected a column 'image', found \['x'\]"):
        model.predict(pd.DataFrame({"x": [1]}))
    with pytest.raises(InputError, match="expected a key 'image'"):
        model.predict({"x": [1]})


def test_pytorch_flavor_returns_the_module(uri: str, tiny_bundle: Bundle) -> None:
    import mlflow

    module = mlflow.pytorch.load_model("models:/digits@champion")
    assert isinstance(module, torch.nn.Module)
    assert not module.training
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(module(pixels), tiny_bundle.network()(pixels), atol=1e-6)


def test_predictor_from_the_registry(uri: str, logged: Any, tiny_bundle: Bundle, images: list[bytes]) -> None:
    expected = Predictor(tiny_bundle, device="cpu").predict(images)
    for name in ("models:/digits@champion", "models:/digits/1", f"runs:/{logged[1]}/model"):
        predictor = Predictor.load(name, device="cpu", tracking_uri=uri)
        assert predictor.bundle.uri == name
        assert predictor.bundle.version == ("" if name.startswith("runs") else "1")
        assert predictor.bundle.labels == tiny_bundle.labels
        for one, other in zip(predictor.predict(images), expected, strict=True):
            assert np.abs(one.scores - other.scores).max() < 1e-6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/digit@champion", "No model 'digit' is registered. Did you mean 'digits'? Registered models: digits."),
        ("models:/digits/7", "digits has the versions 1; @champion (version 1)."),
        ("models:/digits@best", "digits has the versions 1; @champion (version 1)."),
        ("runs:/0123456789abcdef0123456789abcdef/model", "not found in sqlite"),
    ],
)
def test_unknown_models_say_what_exists(uri: str, name: str, message: str) -> None:
    with pytest.raises(TrackingError) as caught:
        Bundle.load(name, tracking_uri=uri)
    assert str(caught.value).startswith(f"{name}: not found in {uri} (")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_empty_registry_says_so(mlflow_uri: str) -> None:
    with pytest.raises(TrackingError, match="The registry is empty"):
        Bundle.load("models:/digits@champion", tracking_uri=mlflow_uri)


def test_the_saved_model(uri: str, tiny_bundle: Bundle) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/digits/1"))
    model = mlflow.models.Model.load(str(folder))
    assert set(model.flavors) == {"python_function", "pytorch", "cvpipe"}
    assert model.flavors["python_function"]["loader_module"] == "cvpipe.flavor"
    signature = model.signature
    assert signature is not None
    assert [c.name for c in signature.inputs.inputs] == ["image"]
    assert [c.name for c in signature.outputs.inputs] == ["label", "score", "labels", "scores", "error"]
    assert {p.name: p.default for p in signature.params.params} == {"top_k": 5, "threshold": 0.5}
    example = model.load_input_example(str(folder))
    assert example is not None
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example)
    assert list(answer["error"]) == [""]
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in pins)
    assert not any("+" in line for line in pins), "local versions are in no registry"
    assert (folder / "code" / "cvpipe" / "predictor.py").is_file()
    assert not list((folder / "code").rglob("*.pyc"))
    assert Bundle.load(folder).info["sha256"] == tiny_bundle.info["sha256"]


def test_logging_without_registering_and_registering_later(mlflow_uri: str, tiny_bundle: Bundle) -> None:
    config = TrackingConfig(tracking_uri=mlflow_uri, system_metrics=False)
    tracker = Tracker(config, "run", tags={"a": "b"})
    tracker.log_params({"x": 1, "y": "z" * 900})
    tracker.log_metrics({"loss": 0.5}, step=3)
    logged = tracker.log_model(tiny_bundle)
    tracker.finish()
    assert logged.name is None
    assert Bundle.load(logged.uri, tracking_uri=mlflow_uri).labels == tiny_bundle.labels
    first = register_model(logged.uri, "later", "challenger", config)
    assert first == LoggedModel("models:/later/1", "later", "1")
    assert register_model(logged.uri, "later", "challenger", config).version == "2"
    assert Bundle.load("models:/later@challenger", tracking_uri=mlflow_uri).version == "2"

    again = Tracker(config, "other name", run_id=tracker.run_id)
    again.log_params({"x": 2, "w": 3})
    again.finish("FAILED")
    run = again.client.get_run(tracker.run_id)
    assert (run.data.params["x"], run.data.params["w"], len(run.data.params["y"])) == ("1", "3", 500)
    assert run.data.metrics["loss"] == 0.5
    assert run.info.status == "FAILED"
    assert run.data.tags["a"] == "b"
    with pytest.raises(TrackingError, match="could not be registered as later"):
        register_model("runs:/0123456789abcdef0123456789abcdef/model", "later", None, config)


def test_a_metric_twice_at_one_moment_does_not_spoil_the_model(
    mlflow_uri: str, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(TrackingConfig(tracking_uri=mlflow_uri, system_metrics=False), "run")
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    for value in (1.0, 2.0):
        tracker.log_metrics({"train/loss": value}, step=1)
    tracker.flush()
    monkeypatch.undo()
    tracker.log_model(tiny_bundle)
    tracker.finish()
    assert [m.value for m in tracker.client.get_metric_history(tracker.run_id, "train/loss")] == [2.0]


def test_a_server_that_does_not_answer(tiny_bundle: Bundle) -> None:
    import time

    config = TrackingConfig(tracking_uri="http://user:secret@127.0.0.1:9", system_metrics=False)
    start = time.monotonic()
    with pytest.raises(TrackingError, match="no MLflow server answers at http://127") as caught:
        Tracker(config, "run")
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)
    assert "tracking.tracking_uri=sqlite:///mlflow.db" in str(caught.value)
