"""The same image gets the same scores from validation, Predictor, python_function and the batch command."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import cvpipe
from cvpipe.bundle import Bundle
from cvpipe.config import TrackingConfig
from cvpipe.data.splits import Split, Splits
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.tracking import Tracker

pytestmark = pytest.mark.integration

TOLERANCE = 1e-5


def _photo(digits: Path, index: int, size: tuple[int, int]) -> Image.Image:
    """Scanned digits side by side: something that no flip or rotation leaves as it is."""
    paths = sorted((digits / "test").rglob("*.png"))[index::37][:6]
    canvas = Image.new("RGB", (24, 16))
    for i, path in enumerate(paths):
        tint = np.array(Image.open(path).convert("RGB")) * np.array([1.0, 0.4 + 0.1 * i, 0.9 - 0.1 * i])
        canvas.paste(Image.fromarray(tint.astype(np.uint8)), (8 * (i % 3), 8 * (i // 3)))
    return canvas.resize(size)


@pytest.fixture(scope="module")
def images(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("odd")
    made: dict[str, Path] = {}

    def save(name: str, image: Image.Image, **options: Any) -> None:
        made[name] = folder / name
        image.save(made[name], **options)

    exif = Image.Exif()
    exif[0x0112] = 6
    save("rotated.jpg", _photo(digits, 0, (96, 60)), exif=exif, quality=95)
    save("grey.jpg", _photo(digits, 1, (64, 64)).convert("L"), quality=90)
    rgba = _photo(digits, 2, (50, 50))
    rgba.putalpha(_photo(digits, 3, (50, 50)).convert("L"))
    save("alpha.png", rgba)
    save("wide.jpg", _photo(digits, 4, (300, 40)), quality=90)
    save("tall.png", _photo(digits, 5, (33, 211)))
    save("small.png", _photo(digits, 6, (9, 9)))
    save("cmyk.jpg", _photo(digits, 7, (80, 70)).convert("CMYK"))
    deep = np.asarray(_photo(digits, 8, (70, 90)).convert("L")).astype(np.uint16) * 257
    save("deep.png", Image.fromarray(deep))
    save("exact.png", _photo(digits, 9, (32, 32)))
    # large enough to be decoded at an eighth of its size
    save("large.jpg", _photo(digits, 10, (1403, 1001)), exif=exif, quality=92)
    return made


@pytest.fixture(scope="module", params=["crop", "stretch", "letterbox"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = tiny_bundle.config.replace(**{"data.resize": request.param})
    folder = tmp_path_factory.mktemp("parity") / "bundle"
    return Bundle.create(folder, config, tiny_bundle.labels, tiny_bundle.network())


@pytest.fixture(scope="module")
def validation(bundle: Bundle, images: dict[str, Path]) -> np.ndarray[Any, Any]:
    """(images, classes): what the validation loop computes for these files."""
    config = bundle.config.replace(**{"training.batch_size": 4})
    task = find_task(config.task)
    paths = tuple(str(path) for path in images.values())
    split = Split("val", paths, tuple(i % 10 for i in range(len(paths))))
    module = task.module(config, bundle.labels)
    module.network.load_state_dict(bundle.network().state_dict())
    module.eval()
    rows = []
    data = task.data_module(config, Splits(split, split, None, bundle.labels, "list"))
    with torch.inference_mode():
        for batch in data.val_dataloader():
            assert not batch.bad
            rows.append(module.network(batch.images).softmax(1).numpy())
    return np.concatenate(rows)


def test_the_images_differ(validation: np.ndarray[Any, Any]) -> None:
    distances = np.abs(validation[:, None] - validation[None]).max(axis=2)
    assert (distances[~np.eye(len(validation), dtype=bool)] > 100 * TOLERANCE).all()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_predictor(batch_size: int, bundle: Bundle, images: dict[str, Path], validation: np.ndarray[Any, Any]) -> None:
    predictor = Predictor(Bundle.load(bundle.path), device="cpu", batch_size=batch_size)
    for form in (list(images.values()), [path.read_bytes() for path in images.values()]):
        found = np.stack([answer.scores for answer in predictor.predict(form)])  # type: ignore[union-attr]
        for name, difference in zip(images, np.abs(found - validation).max(axis=1), strict=True):
            assert difference < TOLERANCE, name


def test_predictor_on_pillow_images(bundle: Bundle, images: dict[str, Path], validation: np.ndarray[Any, Any]) -> None:
    # JPEG decoders of Pillow and torchvision may differ by a step of brightness; lossless files may not
    predictor = Predictor(bundle, device="cpu")
    for position, (name, path) in enumerate(images.items()):
        if path.suffix == ".png":
            (answer,) = predictor.predict(Image.open(io.BytesIO(path.read_bytes())))
            assert np.abs(answer.scores - validation[position]).max() < TOLERANCE, name  # type: ignore[union-attr]


def test_python_function(
    bundle: Bundle,
    images: dict[str, Path],
    validation: np.ndarray[Any, Any],
    mlflow_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(TrackingConfig(tracking_uri=uri, system_metrics=False), "parity")
    logged = tracker.log_model(bundle)
    tracker.finish()
    model = mlflow.pyfunc.load_model(logged.uri)
    data = [path.read_bytes() for path in images.values()]
    for cells in (data, [base64.b64encode(one).decode() for one in data]):
        frame = model.predict(pd.DataFrame({"image": cells}), params={"top_k": 10})
        assert list(frame["error"]) == [""] * len(images)
        found = by_class(bundle, frame.to_dict("records"))
        assert np.abs(found - validation).max() < TOLERANCE


def by_class(bundle: Bundle, records: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    rows = [dict(zip(record["labels"], record["scores"], strict=True)) for record in records]
    return np.array([[row[name] for name in bundle.labels.classes] for row in rows])


def test_batch_command(
    bundle: Bundle, images: dict[str, Path], validation: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    output = tmp_path / "predictions.json"
    result = cvpipe.predict(bundle.path, list(images.values()), output, params={"top_k": 10}, device="cpu")
    assert (result.images, result.failed) == (len(images), 0)
    records = json.loads(output.read_text())
    assert [record["path"] for record in records] == [str(path) for path in images.values()]
    found = by_class(bundle, records)
    for name, difference in zip(images, np.abs(found - validation).max(axis=1), strict=True):
        assert difference < TOLERANCE, name
