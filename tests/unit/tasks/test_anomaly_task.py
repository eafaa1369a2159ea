"""Anomaly detection: the fit without gradients, also when it is stopped; thresholds; how answers are judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvpipe.bundle import Bundle
from cvpipe.config_file import parse_config
from cvpipe.data.decode import read_image
from cvpipe.data.formats.mvtec import read_mask
from cvpipe.data.targets import Inspection
from cvpipe.draw import open_image
from cvpipe.errors import ConfigError, DataError, ImageError
from cvpipe.predictions import AnomalyPrediction
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.tasks.anomaly.assess import assess, at_size
from cvpipe.tasks.anomaly.data import FittedInspection
from cvpipe.tasks.anomaly.example import write_example
from cvpipe.tasks.anomaly.processor import AnomalyProcessor
from cvpipe.training.callbacks import CheckpointWriter, Interrupted
from cvpipe.training.fit import FitResult, FitSettings, fit
from cvpipe.training.run_dir import RunDir
from cvpipe.types import Failure, Labels

TASK = find_task("anomaly")
LABELS = Labels(("good", "anomalous"))


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_example(tmp_path_factory.mktemp("example"))


def settings(values: Mapping[str, Any], **changes: Any) -> Any:
    config = parse_config(dict(values))
    return config.replace(**{"training.device": "cpu", "evaluation.bootstrap": 20, **changes})


def fitted(config: Any, folder: Path) -> FitResult:
    run = RunDir(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    splits = TASK.load_data(config)
    return fit(config, TASK, splits, run, FitSettings(4, 1, 0.001), lambda metrics, step: None)


@pytest.fixture(scope="module")
def result(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return fitted(settings(values), tmp_path_factory.mktemp("run"))


def test_a_fit_fills_the_memory(result: FitResult, values: dict[str, Any]) -> None:
    bundle = Bundle.load(result.bundle.path)
    rows, dimensions = bundle.architecture["bank"]
    # 12 images of 16x16 places, a tenth of them
    assert rows == round(0.1 * 12 * 256)
    state = bundle.network().state_dict()
    assert state["bank"].shape == (rows, dimensions)
    assert state["threshold"] > 0
    assert state["pixel_threshold"] > 0
    assert result.monitor == "val/image_auroc"
    assert result.best_score > 0.9
    assert result.images_per_second > 0
    assert [sorted(epoch) for epoch in result.history] == [["epoch", "val/image_auroc", "val/threshold"]]


def test_answers_find_the_defects(result: FitResult, values: dict[str, Any]) -> None:
    splits = TASK.load_data(settings(values))
    assert splits.test is not None
    answers = Predictor(result.bundle, device="cpu").predict(list(splits.test.paths))
    found = assess(answers, splits.test, settings(values), LABELS)
    assert found.metrics["image_auroc"].value > 0.9
    assert found.metrics["pixel_auroc"].value > 0.9
    assert {"pro", "f1", "best_f1", "image_ap", "false_alarm_rate", "pixel_f1"} <= set(found.metrics)
    assert found.metrics["pixel_f1"].value > 0.5, "the pixel threshold was found on masks of val"
    assert [row["kind"] for row in found.tables["Kinds of defects"]] == ["good", "spot"]


def test_a_stopped_fit_goes_on_to_the_same_memory(
    result: FitResult, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = CheckpointWriter.on_train_batch_end

    def stop(self: CheckpointWriter, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen.append(len(batch.indices))
        if len(seen) == 2:
            self.stop.set()
        plain(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(CheckpointWriter, "on_train_batch_end", stop)
    with pytest.raises(Interrupted):
        fitted(settings(values), tmp_path)
    assert len(seen) == 2
    again = fitted(settings(values), tmp_path)
    assert sum(seen) == 12, "no image is looked at twice"
    one, other = (Bundle.load(each.bundle.path).network().state_dict() for each in (result, again))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_without_defects_in_val(values: dict[str, Any], tmp_path: Path) -> None:
    root = Path(values["data"]["train"])
    for part in ("train", "test", "ground_truth"):
        (tmp_path / part).symlink_to(root / part)
    quantiles = {"training.threshold_quantile": 1.0, "training.pixel_quantile": 0.9}
    config = settings(values, **{"data.train": str(tmp_path), **quantiles})
    found = fitted(config, tmp_path / "run")
    assert found.monitor == "val/minus_score"
    assert found.best_score < 0
    splits = TASK.load_data(config)
    answers = Predictor(found.bundle, device="cpu").predict(list(splits.val.paths))
    assert not any(answer.is_anomalous for answer in answers if isinstance(answer, AnomalyPrediction))
    metrics = assess(answers, splits.val, config, LABELS).metrics
    assert {name: value.value for name, value in metrics.items()} == {"false_alarm_rate": 0.0}
    heat = np.concatenate([answer.heat.ravel() for answer in answers if isinstance(answer, AnomalyPrediction)])
    own = next(answer.threshold for answer in answers if isinstance(answer, AnomalyPrediction))
    assert (heat < own).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 3), ("ema", 0.9), ("freeze", "backbone"), ("learning_rate", "auto"), ("early_stopping", 2)],
)
def test_settings_of_gradients_are_refused(values: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}: no effect on a fit without gradients"):
        parse_config({**values, "training": {key: value}})


def test_the_threshold_of_a_call(result: FitResult, values: dict[str, Any]) -> None:
    predictor = Predictor(result.bundle, device="cpu")
    path = TASK.load_data(settings(values)).val.paths[0]
    (own,) = predictor.predict([path])
    (low,) = predictor.predict([path], threshold=1e-6)
    assert isinstance(own, AnomalyPrediction)
    assert isinstance(low, AnomalyPrediction)
    assert own.threshold == pytest.approx(float(Bundle.load(result.bundle.path).network().state_dict()["threshold"]))
    assert low.threshold == 1e-6
    assert low.is_anomalous


def test_masks_move_with_the_image(values: dict[str, Any]) -> None:
    config = settings(values, **{"data.resize": "letterbox", "data.image_size": [64, 128]})
    splits = TASK.load_data(config)
    for batch in TASK.data_module(config, splits).val_dataloader():
        assert batch.targets.masks.shape == (len(batch.indices), 64, 128)
        for index, anomalous, mask in zip(batch.indices, *batch.targets, strict=True):
            target = splits.val.targets[int(index)]
            assert bool(anomalous) is not target.is_good
            assert (mask[:, :32] == 255).all()
            assert (mask[:, 96:] == 255).all()
            expected = read_mask(target.mask) if target.mask else np.zeros((64, 64), bool)
            assert (mask[:, 32:96].numpy() == expected).all()
    unknown = FittedInspection((32, 32), "stretch")(torch.zeros(3, 9, 9, dtype=torch.uint8), Inspection("x"), 0, _none)
    assert (unknown[1][1] == 255).all()
    spot = next(target for target in splits.val.targets if target.mask)
    with pytest.raises(ImageError, match="the mask has 64x64 pixels, its image 9x8"):
        FittedInspection((32, 32), "stretch")(torch.zeros(3, 8, 9, dtype=torch.uint8), spot, 0, _none)


def _none(number: int) -> None:
    return None


def test_heat_comes_back_to_the_image(values: dict[str, Any]) -> None:
    config = settings(values, **{"data.resize": "letterbox"})
    processor = AnomalyProcessor(config, LABELS)
    heat = torch.zeros(1, 64, 64)
    heat[0, 16:48, :8] = 1  # the left edge of an image twice as wide as it is high
    outputs = {"score": torch.ones(1), "heat": heat, "threshold": torch.ones(1)}
    (found,) = processor.postprocess(outputs, [(50, 100)])
    assert found.heat.shape == (32, 64)
    full = at_size(found.heat, found.size)
    assert full.shape == (50, 100)
    assert (full[:, :10] > 0.9).all()
    assert (full[:, 20:] == 0).all()


def test_a_mirrored_view_is_turned_back(result: FitResult, values: dict[str, Any]) -> None:
    config = settings(values, **{"inference.tta": True})
    processor = AnomalyProcessor(config, LABELS)
    image = read_image(TASK.load_data(config).val.paths[-1])
    views = processor.views((64, 64))
    assert [view.hflip for view in views] == [False, True]
    network = result.bundle.network()
    with torch.inference_mode():
        outputs = network(torch.stack([image, image.flip(2)]))
    merged = processor.merge(outputs, views, (64, 64))
    one, other = outputs["heat"].numpy()
    np.testing.assert_allclose(merged.heat, (one + other[:, ::-1]) / 2, rtol=1e-5)


def answer(score: float, heat: Any = None) -> AnomalyPrediction:
    return AnomalyPrediction(score, 1.0, np.zeros((8, 8), np.float32) if heat is None else heat, (64, 64))


def test_mistakes_are_shown_worst_first(values: dict[str, Any]) -> None:
    split = TASK.load_data(settings(values)).val
    scores = iter([1.2, 1.9, 0.1, 0.2, 0.3, 0.4])
    others = iter([0.9, 0.2, 3.0, 4.0, 5.0, 6.0])
    answers = [answer(next(scores) if target.is_good else next(others)) for target in split.targets]
    found = assess(answers, split, settings(values), LABELS)
    captions = [caption.partition(": ")[2] for _, caption in found.gallery]
    assert [text.partition(",")[0].partition(":")[0] for text in captions] == ["false alarm", "missed"] * 2
    assert [text.split()[-4] for text in captions] == ["1.90", "0.20", "1.20", "0.90"]
    for text in found.figures.values():
        assert text.startswith("<svg")


def test_masks_of_another_size_are_named(values: dict[str, Any]) -> None:
    split = TASK.load_data(settings(values)).val
    wrong = [AnomalyPrediction(1.0, 1.0, np.zeros((8, 8), np.float32), (60, 64)) for _ in split.paths]
    with pytest.raises(DataError, match=r"the mask has 64x64 pixels, and its image .* has 64x60"):
        assess(wrong, split, settings(values), LABELS)


def test_failures_count_nowhere(values: dict[str, Any]) -> None:
    split = TASK.load_data(settings(values)).val
    found = assess([Failure("broken")] * len(split), split, settings(values), LABELS)
    assert found.metrics == {}
    assert list(found.tables) == ["Images without a prediction (in no metric)"]


def test_drawing(values: dict[str, Any]) -> None:
    split = TASK.load_data(settings(values)).val
    for path, target in zip(split.paths, split.targets, strict=True):
        image = open_image(path)
        for what in (target, answer(2.0, np.full((4, 4), 2.0, np.float32))):
            drawn = TASK.draw(image, what, LABELS)
            assert drawn.size == image.size
            assert np.asarray(drawn).tobytes() != np.asarray(image).tobytes()
