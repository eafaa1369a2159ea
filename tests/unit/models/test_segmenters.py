"""Segmentation networks: built by name, filled from where they should be, rebuilt offline, refused with a reason."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cvpipe.errors import DependencyError, ModelError
from cvpipe.models.fold import fold_batch_norm
from cvpipe.models.optim import build_optimizer
from cvpipe.models.segmenters import DECODERS, Segmenter, _check_divisible, build_segmenter
from cvpipe.models.sources import classifier
from cvpipe.models.weights import PACKAGES
from cvpipe.tasks.semantic_segmentation.config import SemanticConfig
from cvpipe.types import Labels

LABELS = Labels(("road", "car", "tree"))
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
SLIM = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}


def config(size: Any = 64, **model: Any) -> SemanticConfig:
    values = {"name": "fpn", "backbone": "test_resnet", "pretrained": False, **model}
    return SemanticConfig.model_validate(
        {"task": "semantic_segmentation", "model": values, "data": {"train": "x", "image_size": size}}
    )


def build(size: Any = 64, labels: Labels = LABELS, **model: Any) -> Segmenter:
    wanted = config(size, **model)
    torch.manual_seed(0)
    return build_segmenter(wanted, labels, wanted.model.pretrained)


def pixels(size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder(name: str) -> None:
    size = 128 if name == "pan" else 64  # it pools the last map three times
    network = build(size, name=name)
    logits = network(pixels(size))
    assert logits.dtype == torch.float32
    assert logits.shape[:2] == (2, 3)
    assert logits.shape[2] == logits.shape[3]
    assert size % logits.shape[2] == 0
    logits.square().mean().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if n.startswith("model.segmentation_head"))

    record = json.loads(json.dumps(network.architecture))
    again = build_segmenter(config(size, name=name), LABELS, False, record)
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.eval()(pixels(size)), network.eval()(pixels(size)))


def test_normalisation_is_inside() -> None:
    network = build(options=SLIM).eval()
    published = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (published.mean, published.std))
    with torch.inference_mode():
        expected = network.model((pixels() / 255 - mean) / std)
        assert torch.allclose(network(pixels()), expected, atol=1e-5)
        assert torch.equal(network(pixels()), network(pixels().float()))


def test_a_copy_and_folded_batch_norm_do_the_same() -> None:
    network = build(options=SLIM).eval()
    folded = fold_batch_norm(network, pixels())
    assert folded is not network
    with torch.inference_mode():
        expected = network(pixels())
        assert torch.allclose(folded(pixels()), expected, atol=1e-4)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(pixels()), expected)


@pytest.mark.skipif(find_spec(PACKAGES["efficientnet-lite0"].module) is None, reason="the weights are not installed")
def test_weights_of_a_package() -> None:
    network = build(backbone="tf_efficientnet_lite0", pretrained="package:efficientnet-lite0", options=SLIM)
    assert (
        network.note == "weights: 296 of 296 tensors from package:efficientnet-lite0 for the backbone; decoder: random"
    )
    whole = classifier(
        "tf_efficientnet_lite0", num_classes=7, image_size=(64, 64), pretrained="package:efficientnet-lite0"
    ).module
    features: Any = network.model.encoder.model
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        expected = whole.eval().forward_intermediates(image, intermediates_only=True)[-1]  # type: ignore[operator]
        assert torch.allclose(features.eval()(image)[-1], expected, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet", "convnext_atto"])
def test_weights_of_a_backbone_from_a_file(tmp_path: Path, backbone: str) -> None:
    whole = timm.create_model(backbone, num_classes=5).eval()
    save_file({f"body.{key}": value for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    network = build(backbone=backbone, pretrained=str(tmp_path / "w.safetensors"), options=SLIM)
    assert network.note.endswith("for the backbone; decoder: random")
    features: Any = network.model.encoder.model
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        assert torch.allclose(features.eval()(image)[-1], whole.forward_intermediates(image)[1][-1], atol=1e-4)


def test_weights_of_a_whole_network_for_other_classes(tmp_path: Path) -> None:
    source = build(labels=Labels(("a", "b", "c", "d", "e")), options=SLIM)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = build(pretrained=str(tmp_path / "w.safetensors"), options=SLIM)
    total = len(source.state_dict())
    assert network.note.startswith(f"weights: {total - 2} of {total} tensors from")
    for key, value in network.state_dict().items():
        if not key.startswith("model.segmentation_head"):
            assert torch.equal(value, source.state_dict()[key]), key


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as error:
        build(pretrained=str(tmp_path / "w.safetensors"), options=SLIM)
    assert "neither a whole fpn on test_resnet nor a test_resnet alone" in str(error.value)
    with pytest.raises(ModelError, match=r"found '/nowhere\.pth', expected true, false, a weights file"):
        build(pretrained="/nowhere.pth", options=SLIM)
    with pytest.raises(ModelError, match=r"model\.backbone is test_resnet\. Set model\.backbone=tf_efficientnet_lite0"):
        build(pretrained="package:efficientnet-lite0", options=SLIM)


@given(st.tuples(st.integers(8, 400), st.integers(8, 400)), st.sampled_from([8, 16, 32]))
def test_sizes_that_the_network_can_not_take(size: tuple[int, int], stride: int) -> None:
    wanted = config(list(size))
    if all(side % stride == 0 for side in size):
        _check_divisible(wanted, stride)
        return
    with pytest.raises(ModelError, match=r"data\.image_size") as error:
        _check_divisible(wanted, stride)
    named = str(error.value).partition("The nearest such size: ")[2].rstrip(".").split(" or ")
    for text in named:
        sides = json.loads(text)
        _check_divisible(config(sides), stride)
        assert all(abs(side - old) < stride for side, old in zip(sides, size, strict=True))


def test_the_size_is_checked_when_the_network_is_built() -> None:
    with pytest.raises(ModelError, match=r"data\.image_size: found \[64, 100\]; fpn on test_resnet .*\[64, 96\] or"):
        build([64, 100])
    parts = SemanticConfig.model_validate(
        {
            "task": "semantic_segmentation",
            "model": {"name": "fpn", "backbone": "test_resnet", "pretrained": False},
            "data": {"train": "x", "image_size": 64, "crop_size": 48},
        }
    )
    with pytest.raises(ModelError, match=r"data\.crop_size: found \[48, 48\]"):
        build_segmenter(parts, LABELS, False)
    with pytest.raises(ModelError, match=r"data\.image_size: pan on test_resnet can't take images of \[64, 64\]"):
        build(name="pan")
    assert build([50, 70], name="unet")(pixels()).shape == (2, 3, 64, 64), "unet takes any size"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "unetplus"}, "unknown segmentation network 'unetplus'. Did you mean 'unetplusplus'"),
        ({"backbone": "resnet5o"}, "model.backbone: unknown network 'resnet5o'. Did you mean"),
        ({"options": {"decoder_piramid_channels": 3}}, "Did you mean 'decoder_pyramid_channels'"),
        ({"backbone": "test_vit"}, "fpn on the backbone test_vit can't be built"),
        ({"name": "segformer", "options": {"depht": [1]}}, "model.options.depht: segformer has no such option"),
        ({"name": "segformer", "options": SEGFORMER, "pretrained": True}, "which are of one size"),
        ({"name": "segformer", "pretrained": "package:efficientnet-lite0"}, "holds weights of a timm network"),
    ],
)
def test_refused_with_a_reason(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        build(**model)
    assert message in str(error.value)


def test_one_class_is_none() -> None:
    with pytest.raises(ModelError, match="at least two classes, found car"):
        build(labels=Labels(("car",)))


@pytest.mark.parametrize(("library", "name"), [("segmentation_models_pytorch", "fpn"), ("transformers", "segformer")])
def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, library: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=r"pip install 'databricks-cv-pipeline\[models\]'"):
        build(name=name)


def test_segformer() -> None:
    network = build(name="segformer", options=SEGFORMER)
    assert network.note == "weights: random (model.pretrained is false)"
    assert network(pixels()).shape == (2, 3, 16, 16)
    assert network.last == ("model.decode_head.classifier",)
    record = json.loads(json.dumps(network.architecture))
    # nothing but the record decides: the options of the config are not read again
    again = build_segmenter(config(name="segformer"), LABELS, False, record)
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.eval()(pixels()), network.eval()(pixels()))


def test_segformer_from_a_folder(tmp_path: Path) -> None:
    source = build(name="segformer", options=SEGFORMER, labels=Labels(("a", "b", "c", "d")))
    source.model.save_pretrained(tmp_path)  # type: ignore[operator]
    network = build(name=f"hf/{tmp_path}", pretrained=True)
    assert network.note == f"weights: transformers {tmp_path}"
    own, theirs = network.state_dict(), source.state_dict()
    assert own["model.decode_head.classifier.weight"].shape[0] == 3
    same = [key for key in own if own[key].shape == theirs[key].shape and torch.equal(own[key], theirs[key])]
    assert {key for key in own if key not in same} <= {
        "model.decode_head.classifier.weight",
        "model.decode_head.classifier.bias",
    }


def test_dropout_acts_in_training_alone() -> None:
    network, plain = build(dropout=0.5, options=SLIM), build(dropout=0.0, options=SLIM)
    assert set(network.state_dict()) == set(plain.state_dict())
    seen: list[torch.Tensor] = []
    network.model.segmentation_head[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[index, union-attr]
    with torch.no_grad():
        network.train()(pixels(count=8))
        dropped = (seen[0].flatten(2) == 0).all(dim=2).float().mean()
        assert 0.3 < dropped < 0.7, "whole maps"
        plain.load_state_dict(network.state_dict())
        assert torch.equal(network.eval()(pixels()), plain.eval()(pixels()))


@pytest.mark.parametrize("model", [{"options": SLIM}, {"name": "segformer", "options": SEGFORMER}])
def test_layers_learn_slower_towards_the_input(model: dict[str, Any]) -> None:
    network = build(**model)
    training = config().training.model_copy(update={"layer_decay": 0.5})
    rate = {
        id(parameter): group["lr"]
        for group in build_optimizer(network, training, 1.0).param_groups
        for parameter in group["params"]
    }
    rates = {name: rate[id(parameter)] for name, parameter in network.named_parameters()}
    top = {name for name, value in rates.items() if value == 1.0}
    assert top == {name for name in rates if any(name.startswith(f"{head}.") for head in network.head)}
    encoder = [value for name, value in rates.items() if name not in top]
    assert encoder[0] == min(encoder)
    if network.head == ("model.decoder", "model.segmentation_head"):  # transformers does not define in forward order
        assert encoder == sorted(encoder)
    assert len(set(encoder)) > 3
