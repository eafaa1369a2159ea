"""Balance, freezing, kinds of networks, odd data: each trained for real."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import all_runs, client, history, usable, values, weights

import cvpipe
from cvpipe.bundle import Bundle
from cvpipe.config_file import parse_config
from cvpipe.errors import DataError
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.tasks.classification.model import ClassificationModule
from cvpipe.training.fit import seed_everything

pytestmark = pytest.mark.integration


# what the settings do


def _imbalanced(small: Path, digits: Path, folder: Path) -> Path:
    for label, count in (("0", 40), ("1", 4)):
        (folder / "train" / label).mkdir(parents=True)
        for path in sorted((digits / "train" / label).iterdir())[:count]:
            shutil.copy(path, folder / "train" / label)
        shutil.copytree(small / "val" / label, folder / "val" / label)
    return folder


@pytest.mark.parametrize("balance", ["none", "sampler", "weights"])
def test_class_balance(
    balance: str, small: Path, digits: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _imbalanced(small, digits, tmp_path / "data")
    seen: Counter[int] = Counter()
    used: list[Any] = []
    real = ClassificationModule.loss

    def loss(self: Any, batch: Any) -> torch.Tensor:
        seen.update(batch.targets.tolist())
        used.append(self.class_weights)
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    cvpipe.train(values(data, tmp_path / "run", class_balance=balance, epochs=3))
    assert seen.total() == 3 * 44
    rare = seen[1] / seen.total()
    if balance == "sampler":
        assert 0.35 < rare < 0.65
    else:
        assert rare == pytest.approx(4 / 44)
    if balance == "weights":
        assert used[0].tolist() == pytest.approx([44 / 2 / 40, 44 / 2 / 4])
    else:
        assert used == [None] * len(used)


def _initial(settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    config = parse_config(settings)
    task = find_task("classification")
    seed_everything(config.training.seed)
    module = task.module(config, task.load_data(config).labels)
    return module.network.state_dict(), module.head


def test_a_frozen_backbone(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    settings = values(small, tmp_path / "run", freeze="backbone", learning_rate=0.01)
    before, head = _initial(settings)
    assert any("running_mean" in key for key in before), "nothing to see without batch normalisation"
    changed = {key for key, value in weights(cvpipe.train(settings)).items() if not torch.equal(value, before[key])}
    assert changed == {f"{prefix}.{leaf}" for prefix in head for leaf in ("weight", "bias")}


def test_a_backbone_that_is_thawed(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    settings = values(
        small, tmp_path / "run", freeze="backbone", freeze_epochs=1, epochs=2, ema=0.0001, learning_rate=0.01
    )
    before, _ = _initial(settings)
    last = cvpipe.train(settings)
    checkpoints = sorted((last.run_dir / "checkpoints").glob("last-*.ckpt"))
    assert [path.name[:14] for path in checkpoints] == ["last-000000003", "last-000000006"]
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in checkpoints)
    body = [key for key in before if key.startswith("body.conv1") or "running_mean" in key]
    assert all(torch.equal(first[f"network.{key}"], before[key]) for key in body)
    assert all(not torch.equal(second[f"network.{key}"], before[key]) for key in body)


def test_many_settings_together(small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = values(
        small,
        tmp_path / "run",
        epochs=3,
        layer_decay=0.7,
        optimizer="sgd",
        schedule="one_cycle",
        ema=0.9,
        accumulate=2,
        label_smoothing=0.1,
        learning_rate=0.05,
    )
    settings["data"]["augment"] |= {"mixup": 0.3, "cutmix": 1.0, "rotate": 10, "erase": 0.2}
    settings["model"]["dropout"] = 0.3
    mixed: list[torch.Tensor] = []
    rates: list[list[float]] = []
    real = ClassificationModule._loss

    def loss(self: Any, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        if self.training:
            mixed.append(targets)
            rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return real(self, logits, targets, smoothing)

    monkeypatch.setattr(ClassificationModule, "_loss", loss)
    usable(cvpipe.train(settings), small)
    assert all(target.shape[1] == 10 for target in mixed)
    assert any(((target > 0.01) & (target < 0.99)).any() for target in mixed)
    assert all(torch.allclose(target.sum(1), torch.ones(len(target))) for target in mixed)
    lowest, highest = min(rates[0]), max(rates[0])
    assert lowest < 0.7**2 * highest, "lower layers learn slower"
    peaks = [max(step) for step in rates]
    top = peaks.index(max(peaks))
    assert 0 < top < len(peaks) - 1, "one_cycle rises and falls"
    assert peaks[-1] < peaks[top]


@pytest.mark.parametrize("wanted", [False, True])
def test_compile_is_off_unless_asked_for(
    wanted: bool, small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *args, **kwargs: calls.append(type(self).__name__))
    cvpipe.train(values(small, tmp_path / "run", **({"compile": True} if wanted else {})))
    assert calls == (["ClassificationNetwork"] if wanted else [])


# networks of other libraries


def test_torchvision(small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    settings = values(small, tmp_path / "run")
    settings["model"]["name"] = "torchvision/resnet18"
    usable(cvpipe.train(settings), small)


def test_transformers(small: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    settings = values(small, tmp_path / "run")
    settings["model"] |= {"name": f"hf/{folder}", "pretrained": True}
    result = cvpipe.train(settings)
    shutil.rmtree(folder)  # what is served must not need it any more
    usable(result, small)


# data


def test_bad_files_are_listed_and_left_out(small: Path, mlflow_uri: str, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data"
    shutil.copytree(small, data)
    victim = sorted((data / "train" / "3").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:40])
    (data / "val" / "4" / "notes.png").write_text("no image")
    settings = values(data, tmp_path / "run")
    with pytest.raises(DataError) as caught:
        cvpipe.train(settings)
    message = str(caught.value)
    assert "2 of 131 files can't be read as images, more than data.max_bad_fraction = 0.01 allows" in message
    report = tmp_path / "run" / "bad_files.csv"
    assert str(report) in message
    assert all_runs() == []
    assert list((tmp_path / "run").iterdir()) == [report]

    settings["data"]["max_bad_fraction"] = 0.02
    result = cvpipe.train(settings)  # into the same folder: no run stands in it
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["split"], row["path"]) for row in rows} == {
        ("train", str(victim)),
        ("val", str(data / "val" / "4" / "notes.png")),
    }
    assert all(row["reason"] for row in rows)
    assert "bad files" in capsys.readouterr().out
    assert "bad_files.csv" in {item.path for item in client().list_artifacts(result.run_id)}
    usable(result, small)


def test_a_single_folder_with_a_share_for_validation(small: Path, mlflow_uri: str, tmp_path: Path, capsys: Any) -> None:
    settings = values(small / "train", tmp_path / "run")
    settings["data"]["val"] = 0.25
    result = cvpipe.train(settings)
    out = capsys.readouterr().out
    assert "60 train, 20 val images" in out
    assert "val: 25% of train held out (stratified)" in out
    assert "val/accuracy" in result.metrics, "without a test split the evaluation is on val"


def _multi_label(small: Path, folder: Path) -> Path:
    """even, high (5 and above), round (0, 6, 8, 9); 1 and 3 have none."""
    lines = ["path,labels,split"]
    for path in sorted(small.rglob("*.png")):
        digit, split = int(path.parent.name), path.parent.parent.name
        names = [
            name
            for name, here in (("even", digit % 2 == 0), ("high", digit >= 5), ("round", digit in (0, 6, 8, 9)))
            if here
        ]
        lines.append(f"{path},{';'.join(names)},{split}")
    manifest = folder / "labels.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@pytest.mark.parametrize("extra", [{}, {"class_balance": "weights"}, {"class_balance": "sampler"}])
def test_multi_label_from_a_manifest(extra: Any, small: Path, mlflow_uri: str, tmp_path: Path) -> None:
    manifest = _multi_label(small, tmp_path)
    settings = values(manifest, tmp_path / "run", epochs=3, learning_rate=0.003, label_smoothing=0.05, **extra)
    settings["data"]["augment"]["mixup"] = 0.1
    result = cvpipe.train(settings)
    scores = [metric.value for metric in history(result, "val/map")]
    assert len(scores) == 3
    assert all(0 < score <= 1 for score in scores)
    assert set(result.metrics) >= {"test/map", "test/auroc", "test/micro_f1", "test/macro_f1"}
    bundle = Bundle.load(result.bundle)
    assert bundle.labels.classes == ("even", "high", "round")
    assert bundle.labels.multi_label
    answers = Predictor(bundle, device="cpu").predict(sorted((small / "test").rglob("*.png")), threshold=0.0)
    assert all(len(answer.labels) == 3 for answer in answers)  # type: ignore[union-attr]
    assert any(float(answer.scores.sum()) > 1.1 for answer in answers) or any(  # type: ignore[union-attr]
        float(answer.scores.sum()) < 0.9
        for answer in answers  # type: ignore[union-attr]
    )
