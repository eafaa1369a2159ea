"""Networks by name from three libraries, all with the same interface."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from cvpipe.config_file import parse_config
from cvpipe.errors import ModelError, TrainingError
from cvpipe.models import hub
from cvpipe.models.sources import Body, classifier
from cvpipe.models.weights import inside
from cvpipe.tasks.classification.model import ClassificationModule, ClassificationNetwork
from cvpipe.types import Labels


def build(name: str, classes: int = 5, size: int = 64, dropout: float = 0.0, **options: object) -> Body:
    return classifier(name, num_classes=classes, image_size=(size, size), dropout=dropout, **options)  # type: ignore[arg-type]


def check(body: Body, classes: int = 5, size: int = 64) -> None:
    """The shape of the output, and that `head` names the parameters that depend on the classes."""
    network = body.module.eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, classes)
    head = {name for name, _ in network.named_parameters() if inside(name, body.head)}
    ends = {name for name, p in network.named_parameters() if p.shape[0] == classes}
    assert ends
    assert ends <= head
    assert len(head) < len(list(network.parameters()))
    assert len(body.mean) == len(body.std) == 3
    assert body.note == "weights: random (model.pretrained is false)"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet18.a1_in1k"])
def test_timm(name: str) -> None:
    check(build(name, dropout=0.3))


def test_timm_vit_of_another_size() -> None:
    check(build("test_vit", size=96), size=96)
    check(build("vit_tiny_patch16_224", size=32), size=32)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_torchvision(name: str, dropout: float) -> None:
    body = build(f"torchvision/{name}", dropout=dropout)
    check(body)
    if dropout:
        assert any(m.p == dropout for m in body.module.modules() if isinstance(m, torch.nn.Dropout))


def test_torchvision_googlenet_has_one_output() -> None:
    body = build("torchvision/googlenet")
    body.module.train()
    assert isinstance(body.module(torch.zeros(2, 3, 64, 64)), torch.Tensor)
    check(body)


def test_torchvision_transformers_and_sizes() -> None:
    check(build("torchvision/vit_b_32", size=32), size=32)
    with pytest.raises(ModelError, match=r"takes square images, and data\.image_size is \[32, 64\]"):
        classifier("torchvision/vit_b_32", num_classes=2, image_size=(32, 64))
    with pytest.raises(ModelError, match="published weights for 224x224 pixels"):
        build("torchvision/vit_b_32", size=64, pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "unknown network 'resnet5O'. Did you mean 'resnet50'"),
        ("zzzzzz", "Names come from timm ("),
        ("resnet18.a9_in1k", "resnet18 has no weights 'a9_in1k'. Did you mean 'a"),
        ("torchvision/resnet5O", "unknown torchvision network 'resnet5O'. Did you mean 'resnet50'"),
        ("fasterrcnn_resnet50_fpn", "unknown network"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(name)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


# transformers, from a folder


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf") / "tiny-vit"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        num_labels=7,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).half().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    )
    return folder


@pytest.mark.parametrize("size", [64, 96])
def test_hf_folder(vit_folder: Path, size: int) -> None:
    body = build(f"hf/{vit_folder}", size=size)
    check(body, size=size)
    assert (body.mean, body.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_hf_weights_come_along_and_are_32_bit(vit_folder: Path) -> None:
    one, other = (build(f"hf/{vit_folder}", pretrained=True) for _ in range(2))
    random = build(f"hf/{vit_folder}")
    key = next(key for key in one.module.state_dict() if "query.weight" in key or "q_proj.weight" in key)
    assert torch.equal(one.module.state_dict()[key], other.module.state_dict()[key])
    assert not torch.equal(one.module.state_dict()[key], random.module.state_dict()[key])
    assert {p.dtype for p in one.module.parameters()} == {torch.float32}
    assert one.note == f"weights: transformers {vit_folder}"
    assert one.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("size", [64, 96])
def test_hf_is_rebuilt_from_its_record_without_the_folder(vit_folder: Path, size: int) -> None:
    import json

    first = build(f"hf/{vit_folder}", size=size, pretrained=True)
    record = json.loads(json.dumps(first.architecture))
    again = build("hf/this/is-gone", size=size, architecture=record)
    again.module.load_state_dict(first.module.state_dict())
    assert (again.mean, again.std, again.head) == (first.mean, first.std, first.head)
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(again.module.eval()(pixels), first.module.eval()(pixels))


# no network


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every connection is refused, and nothing is cached."""
    import socket

    import huggingface_hub.constants

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "hf/google/no-such-vit"])
def test_without_network_the_message_names_the_ways_out_at_once(no_network: None, name: str) -> None:
    import huggingface_hub.constants

    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        build(name, pretrained=True)
    assert time.monotonic() - start < 30
    text = str(caught.value)
    assert f"the published weights of {name} could not be downloaded" in text
    ways = [line for line in text.splitlines() if line.startswith("  - ")]
    assert len(ways) >= 3
    if not name.startswith("hf/"):
        assert "model.pretrained=false" in ways[0]
    else:
        assert "model.name=hf/FOLDER" in ways[0]
    assert any("package:efficientnet-lite0" in way for way in ways)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False, "the setting is put back"


def test_a_proxy_is_trusted_to_connect(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub._answers("https://huggingface.co")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub._answers("https://huggingface.co")


def test_a_network_without_published_weights() -> None:
    with pytest.raises(ModelError, match=r"no published weights for .*\. Set model\.pretrained=false"):
        build("resnet200", pretrained=True)


# the network that is trained and saved


def test_normalisation_is_inside_the_network() -> None:
    body = build("test_resnet", size=32)
    network = ClassificationNetwork(body).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (body.mean, body.std))
    with torch.inference_mode():
        expected = body.module((pixels.float() / 255 - mean) / std)
        assert torch.allclose(network(pixels), expected, atol=1e-5)
        assert torch.equal(network(pixels), network(pixels.float()))
    assert {"mean", "std"} <= set(network.state_dict())


def module(**training: object) -> ClassificationModule:
    config = parse_config({
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"train": "x", "image_size": 32},
        "training": training,
    })  # fmt: skip
    return ClassificationModule(config, Labels(("a", "b")))  # type: ignore[arg-type]


def test_freezing_leaves_the_head_and_thawing_gives_all_back() -> None:
    frozen = module(freeze="backbone", freeze_epochs=2)
    trained = {n for n, p in frozen.network.named_parameters() if p.requires_grad}
    assert trained
    assert all(inside(n, frozen.head) for n in trained)
    frozen.train()
    frozen.on_train_batch_start(None, 0)
    norms = [m for m in frozen.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms), "statistics of frozen layers don't move"
    frozen._thaw()
    assert all(p.requires_grad for p in frozen.network.parameters())
    assert all(m.training for m in norms)


def test_nothing_is_frozen_without_being_asked() -> None:
    assert all(p.requires_grad for p in module().network.parameters())


def test_freezing_a_network_without_a_head_is_refused() -> None:
    plain = module()
    plain.head = ("nothing",)
    with pytest.raises(TrainingError, match="leaves nothing to train"):
        plain._freeze()
