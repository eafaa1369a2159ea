"""Detectors from transformers: built tiny and offline, compared with calling transformers directly."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvpipe.data.targets import ObjectTensors
from cvpipe.errors import DataError, DependencyError, InputError, ModelError
from cvpipe.models import hf_network, hf_presets
from cvpipe.models.detectors_hf import build_hf_detector, published_weights
from cvpipe.models.fold import fold_batch_norm
from cvpipe.models.hf_boxes import relative_boxes
from cvpipe.models.hf_network import HfNetwork
from cvpipe.models.weights import inside
from cvpipe.tasks.spatial import SpatialConfig
from cvpipe.types import Labels
from cvpipe.utils.trees import largest_difference

transformers = pytest.importorskip("transformers")
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

TRANSFORMER: dict[str, Any] = {
    "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip
REAL_TIME = TRANSFORMER | {"encoder_hidden_dim": 32, "num_queries": 20, "num_denoising": 10}
OPTIONS: dict[str, dict[str, Any]] = {
    "rtdetr_v2": REAL_TIME | {
        "backbone_embedding_size": 8, "backbone_hidden_sizes": [8, 16, 24, 32], "backbone_depths": [1, 1, 1, 1],
    },
    "d_fine": REAL_TIME | {
        "decoder_n_points": [2, 2, 2], "backbone_stem_channels": [3, 8, 8],
        "backbone_stage_in_channels": [8, 16, 16, 16], "backbone_stage_mid_channels": [8, 8, 8, 8],
        "backbone_stage_out_channels": [16, 16, 16, 16], "backbone_stage_num_blocks": [1, 1, 1, 1],
        "backbone_stage_numb_of_layers": [1, 1, 1, 1],
    },
    "detr": TRANSFORMER | {
        "d_model": 64, "encoder_layers": 1, "num_queries": 10, "dropout": 0.0, "auxiliary_loss": True,
    },
    "mask2former": {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32,
        "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 4, "num_queries": 10,
        "train_num_points": 256, "backbone_embed_dim": 8, "backbone_depths": [1, 1, 1, 1],
        "backbone_num_heads": [1, 1, 2, 2], "backbone_window_size": 4, "backbone_drop_path_rate": 0,
    },
    "vitpose": {"backbone_hidden_size": 32, "backbone_num_hidden_layers": 2, "backbone_num_attention_heads": 4},
}  # fmt: skip
KINDS = {"rtdetr_v2": "boxes", "d_fine": "boxes", "detr": "boxes", "mask2former": "masks", "vitpose": "points"}
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(name == "d_fine" and VERSION < (4, 52), reason="older transformers"))
    for name in OPTIONS
]
CLASSES = ("cat", "dog", "bird")


def config(name: str, size: Any = 64, options: dict[str, Any] | None = None, **model: Any) -> SpatialConfig:
    if name == "detr":
        model.setdefault("backbone", "test_resnet")
    model["options"] = OPTIONS.get(name, {}) if options is None else options
    return SpatialConfig.model_validate({
        "model": {"name": name, "pretrained": False, **model},
        "data": {"train": "x", "image_size": size},
    })  # fmt: skip


def labels(kind: str, classes: int = 3) -> Labels:
    if kind == "points":
        return Labels(("animal",), keypoints=("nose", "left_eye", "right_eye"), flip_pairs=((1, 2),))
    return Labels((*CLASSES, "fish", "bear")[:classes])


def build(name: str, classes: int = 3, pretrained: bool | str = False, size: Any = 64, **model: Any) -> HfNetwork:
    kind = KINDS.get(name, model.pop("kind", "boxes"))
    torch.manual_seed(0)
    return build_hf_detector(kind, config(name, size, **model), labels(kind, classes), pretrained)


def targets(kind: str, images: int = 2, objects: int = 2, seed: int = 0) -> list[ObjectTensors]:
    """Rectangles, as boxes and masks, or points."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(images):
        count = min(objects, 1) if kind == "points" else objects
        corners = rng.integers(2, 30, (count, 2))
        boxes = torch.tensor(np.hstack([corners, corners + rng.integers(12, 30, (count, 2))]), dtype=torch.float32)
        masks = torch.zeros(count, 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        points = torch.tensor(rng.uniform(8, 56, (count, 3, 3)), dtype=torch.float32)
        points[..., 2] = torch.tensor(rng.integers(1, 3, (count, 3)))
        found.append(
            ObjectTensors(
                boxes,
                torch.tensor(rng.integers(0, 1 if kind == "points" else 3, count)),
                torch.zeros(count, dtype=torch.bool),
                masks if kind == "masks" else None,
                points if kind == "points" else None,
            )
        )
    return found


def pictures(count: int = 2, size: tuple[int, int] = (64, 64), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def total(network: HfNetwork, images: torch.Tensor, what: list[ObjectTensors], seed: int = 0) -> torch.Tensor:
    """The loss; queries to denoise and points to compare are drawn at random."""
    torch.manual_seed(seed)
    return torch.stack(list(network.losses(images, what).values())).sum()


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], HfNetwork]:
    """Networks by name, each built once: give them back as they were."""
    made: dict[str, HfNetwork] = {}

    def get(name: str) -> HfNetwork:
        if name not in made:
            made[name] = build(name)
        return made[name].eval()

    return get


# what comes out


@pytest.mark.parametrize("name", NAMES)
def test_the_answer(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network = tiny(name)
    with torch.inference_mode():
        found = network(pictures())
        assert torch.equal(network(pictures().float())["boxes"], found["boxes"])
    slots = found["scores"].shape[1]
    shapes = {"boxes": (2, slots, 4), "scores": (2, slots), "labels": (2, slots)}
    shapes |= {"mask_maps": (2, slots, 16, 16)} if KINDS[name] == "masks" else {}
    shapes |= {"points": (2, slots, 3, 3)} if KINDS[name] == "points" else {}
    assert {key: tuple(value.shape) for key, value in found.items()} == shapes
    assert {key: value.dtype for key, value in found.items() if key != "labels"} == dict.fromkeys(
        shapes.keys() - {"labels"}, torch.float32
    )
    assert found["labels"].dtype == torch.int64
    assert 0 <= int(found["labels"].min()) <= int(found["labels"].max()) < network.classes
    assert torch.equal(found["scores"], found["scores"].sort(dim=1, descending=True).values)
    for key in {"scores", "mask_maps"} & shapes.keys():
        assert 0 <= float(found[key].min()) <= float(found[key].max()) <= 1
    assert network.note == "weights: random (model.pretrained is false)"


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_is_inside(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network, images = tiny(name), pictures()
    plain = name in ("rtdetr_v2", "d_fine")
    mean, std = ([0.0] * 3, [1.0] * 3) if plain else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(network.pixels(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_rebuilt_from_its_record(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network = copy.deepcopy(tiny(name))
    with torch.no_grad():
        for parameter in network.parameters():  # layers that start alike differ once they are trained
            parameter.add_(0.02 * torch.randn_like(parameter))
    record = json.loads(json.dumps(network.architecture))
    gone = config("hf/this/is-gone") if name != "detr" else config(name)
    again = build_hf_detector(KINDS[name], gone, labels(KINDS[name]), True, record)
    again.load_state_dict(copy.deepcopy(network.state_dict()))
    with torch.inference_mode():
        first, second = network(pictures()), again.eval()(pictures())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (again.head, again.architecture) == (network.head, network.architecture)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_holds_what_depends_on_the_classes(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network = tiny(name)
    names = [key for key, _ in network.named_parameters()]
    head = {key for key in names if inside(key, network.head)}
    assert 0 < len(head) < len(names)
    assert all(any(inside(key, (prefix,)) for key in network.state_dict()) for prefix in network.head)
    if KINDS[name] != "points":
        other = build(name, classes=5)
        own = network.state_dict()
        changed = {key for key, value in other.state_dict().items() if own[key].shape != value.shape}
        assert changed
        assert all(inside(key, network.head) for key in changed)


def test_sizes_are_those_of_the_papers() -> None:
    millions = {"rtdetr_v2": 20, "d_fine": 10, "detr": 41, "mask2former": 47, "vitpose": 86}
    if VERSION < (5, 0):
        pytest.skip("older transformers can't build all of them without memory")
    for name, expected in millions.items():
        preset = hf_presets.PRESETS[name]
        settings = hf_presets.preset_config(config(name, options={}, backbone="resnet50"), preset)
        settings.num_labels = 80
        model = {"mask2former": transformers.Mask2FormerForUniversalSegmentation,
                 "vitpose": transformers.VitPoseForPoseEstimation}.get(name)  # fmt: skip
        with torch.device("meta"):
            found = transformers.AutoModelForObjectDetection.from_config(settings) if model is None else model(settings)
        assert sum(p.numel() for p in found.parameters()) / 1e6 == pytest.approx(expected, rel=0.04), name


# losses


@pytest.mark.parametrize("name", ["rtdetr_v2", NAMES[1], "detr", "mask2former"])
def test_the_loss_is_the_librarys(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network, what, images = copy.deepcopy(tiny(name)).train(), targets(KINDS[name]), pictures()
    model = type(network.body)(network.body.config)
    if VERSION < (5, 18) and name in ("rtdetr_v2", "d_fine"):
        network.body.config.num_denoising = 0  # see ExactLoss
    if name == "mask2former" and hasattr(model.model.pixel_level_module.encoder, "swin"):
        model.model.pixel_level_module.encoder.swin.layernorm = torch.nn.Identity()
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if "FrozenBatchNorm" in type(child).__name__:
                setattr(parent, key, torch.nn.BatchNorm2d(len(child.weight)))
    model.load_state_dict(copy.deepcopy(network.body.state_dict()))
    mine = total(network, images, what)
    torch.manual_seed(0)
    pixels = network.pixels(images)
    if KINDS[name] == "masks":
        known = {"mask_labels": [t.masks.float() for t in what], "class_labels": [t.labels for t in what]}  # type: ignore[union-attr]
    else:
        known = {"labels": [{"class_labels": t.labels, "boxes": relative_boxes(t.boxes, (64, 64))} for t in what]}  # type: ignore[dict-item]
    theirs = model.train()(pixel_values=pixels, **known).loss
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize(("version", "counted"), [((5, 17), [4]), ((5, 18), [10])])
def test_denoising_queries_are_kept_out_of_the_last_layers_loss(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], counted: list[int]
) -> None:
    seen: list[int] = []

    def function(logits: torch.Tensor, labels: Any, device: Any, pred_boxes: torch.Tensor, **others: Any) -> None:
        assert (logits.dtype, pred_boxes.dtype, others["more"][0].dtype) == (torch.float32,) * 3
        assert not torch.is_autocast_enabled("cpu")
        assert logits.shape[1] == pred_boxes.shape[1]
        assert bool((logits[:, -4:] == 1).all())
        seen.append(logits.shape[1])

    monkeypatch.setattr(hf_network, "transformers_version", lambda: version)
    logits = torch.cat([torch.zeros(2, 6, 3), torch.ones(2, 4, 3)], dim=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        # up to 5.17 the library counts all that it is given; from 5.18 on it splits them itself
        hf_network.ExactLoss(function)(
            logits, [], "cpu", torch.zeros(2, 10, 4).bfloat16(), more=(torch.zeros(1).bfloat16(),),
            denoising_meta_values={"dn_num_split": [6, 4]},
        )  # fmt: skip
    assert seen == counted


@pytest.mark.parametrize("name", NAMES)
def test_crowd_objects_do_not_count(tiny: Callable[[str], HfNetwork], name: str) -> None:
    network, what, more = tiny(name), targets(KINDS[name]), targets(KINDS[name], seed=1)
    both = [ObjectTensors(*(None if a is None else torch.cat([a, b]) for a, b in zip(one, other, strict=True)))  # type: ignore[arg-type]
            for one, other in zip(what, more, strict=True)]  # fmt: skip
    crowd = [t._replace(crowd=torch.arange(len(t.labels)) >= len(w.labels)) for t, w in zip(both, what, strict=True)]
    assert total(network, pictures(), crowd).item() == total(network, pictures(), what).item()
    if KINDS[name] != "points":
        assert total(network, pictures(), both).item() != total(network, pictures(), what).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_losses_and_gradients_are_finite_with_and_without_objects(
    tiny: Callable[[str], HfNetwork], name: str, precision: torch.dtype | None
) -> None:
    network, kind = copy.deepcopy(tiny(name)), KINDS[name]
    for objects in ([2, 2], [2, 0], [0, 0]):
        what = [targets(kind, 1, count)[0] for count in objects]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            # validation comes in between: what it leaves in caches may not stop training
            with torch.inference_mode():
                assert all(v.dtype != torch.bfloat16 for v in network.eval()(pictures()).values())
                assert total(network, pictures(), what).isfinite()
            loss = total(network.train(), pictures(), what)
        assert loss.dtype == torch.float32
        loss.backward()
        gradients = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
        idle = [key for key, gradient in gradients.items() if gradient is None]
        assert not idle, "distributed training waits for the gradient of every parameter"
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
        network.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_is_learnt(name: str) -> None:
    # D-FINE without the queries to denoise, which are others at each step: their loss hides what is learnt
    exact = name == "d_fine"
    options = OPTIONS[name] | ({"num_denoising": 0} if exact else {})
    network, what = build(name, options=options).train(), targets(KINDS[name])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3 if exact else 3e-3)
    course = []
    for step in range(30):
        optimizer.zero_grad()
        loss = total(network, pictures(), what, seed=step)
        loss.backward()
        optimizer.step()
        course.append(float(loss.detach()))
    assert np.mean(course[-3:]) < 0.7 * np.mean(course[:3]), course


def test_what_a_loss_can_not_count() -> None:
    network = build("vitpose")
    with pytest.raises(DataError, match=r"an image has 2\. Cut the objects out"):
        network.losses(pictures(1), [ObjectTensors(*(torch.cat([a, a]) if a is not None else None for a in t))  # type: ignore[arg-type]
                                     for t in targets("points", 1)])  # fmt: skip
    assert network.one_object
    with pytest.raises(DataError, match="the annotations have none"):
        network.losses(pictures(1), targets("boxes", 1))
    with pytest.raises(DataError, match="learns from masks, and the annotations have none"):
        build("mask2former").losses(pictures(1), targets("boxes", 1))


def test_batch_norm_is_folded(tiny: Callable[[str], HfNetwork]) -> None:
    network = copy.deepcopy(tiny("rtdetr_v2"))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    folded = fold_batch_norm(network, pictures(1))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        # not the boxes that were chosen: of nearly equal scores either may come first
        difference, scale = largest_difference(network.dense_outputs(pictures(1)), folded.dense_outputs(pictures(1)))
    assert difference < 1e-3 * scale


# published weights, from a folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers writes them, of networks whose layers all differ."""
    found = {}
    for name in ("rtdetr_v2", "mask2former", "vitpose"):
        network = build(name)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        found[name] = tmp_path_factory.mktemp("hf") / name
        network.body.save_pretrained(found[name])
        values = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        kind = {"rtdetr_v2": "RTDetr", "mask2former": "Mask2Former", "vitpose": "VitPose"}[name]
        (found[name] / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": f"{kind}ImageProcessor", **values})
        )
    return found


@pytest.mark.parametrize("name", ["rtdetr_v2", "mask2former", "vitpose"])
def test_a_folder_comes_with_its_weights(folders: dict[str, Path], name: str) -> None:
    kind = KINDS[name]
    network = build(f"hf/{folders[name]}", kind=kind, pretrained=True).eval()
    assert network.note == f"weights: transformers {folders[name]}"
    assert torch.allclose(network.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]) * 255)
    model = type(network.body).from_pretrained(folders[name]).eval()
    with torch.inference_mode():
        dense = network.dense_outputs(pictures())
        direct = model(pixel_values=network.pixels(pictures()))
    if name == "vitpose":
        assert torch.equal(dense, direct.heatmaps)
    elif name == "mask2former":
        assert torch.equal(dense["masks"], direct.masks_queries_logits)
    else:
        assert torch.equal(dense["logits"], direct.enc_outputs_class)
    record = json.loads(json.dumps(network.architecture))
    again = build_hf_detector(kind, config("hf/gone"), labels(kind), True, record)
    again.load_state_dict(copy.deepcopy(network.state_dict()))
    with torch.inference_mode():
        one, other = network(pictures()), again.eval()(pictures())
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["rtdetr_v2", "mask2former"])
def test_other_classes_get_new_layers(folders: dict[str, Path], name: str) -> None:
    network = build(f"hf/{folders[name]}", classes=5, kind=KINDS[name], pretrained=True)
    before = build(f"hf/{folders[name]}", kind=KINDS[name], pretrained=True).state_dict()
    kept = {key for key, value in network.state_dict().items() if torch.equal(value, before[key])}
    assert {key for key in before if not inside(key, network.head)} <= kept
    assert "new ones in the last layers" in network.note
    if name == "rtdetr_v2":
        biases = [p for key, p in network.named_parameters() if "class_embed" in key and key.endswith("bias")]
        assert len(biases) == 2
        assert all(torch.allclose(bias.sigmoid(), torch.tensor(0.01)) for bias in biases)
        assert any("bbox_embed" in key for key in kept), "boxes depend on no class"


def test_the_backbones_norms_learn_from_random_weights_only(folders: dict[str, Path]) -> None:
    def norms(network: HfNetwork) -> set[str]:
        return {
            type(m).__name__ for key, m in network.named_modules() if "backbone" in key and "Norm2d" in str(type(m))
        }

    folder = f"hf/{folders['rtdetr_v2']}"
    assert norms(build(folder)) == norms(build("rtdetr_v2")) == norms(build("detr")) == {"BatchNorm2d"}
    assert norms(build(folder, pretrained=True)) == {"RTDetrV2FrozenBatchNorm2d"}
    assert norms(build("rtdetr_v2", options=OPTIONS["rtdetr_v2"] | {"freeze_backbone_batch_norms": True})) == {
        "RTDetrV2FrozenBatchNorm2d"
    }
    scales = [m.weight for m in build("rtdetr_v2").modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(bool((scale == 1).all()) for scale in scales)


def test_vitposes_positions_are_fitted_to_the_image_size(folders: dict[str, Path]) -> None:
    folder, key = f"hf/{folders['vitpose']}", "body.backbone.embeddings.position_embeddings"
    small = build(folder, kind="points", pretrained=True).state_dict()
    network = build(folder, kind="points", pretrained=True, size=[96, 128])
    large = network.state_dict()
    assert large[key].shape == (1, 6 * 8 + 1, 32)
    assert torch.equal(large[key][:, 0], small[key][:, 0])
    assert torch.allclose(large[key][:, 1:].mean(dim=1), small[key][:, 1:].mean(dim=1), atol=0.01)
    assert all(torch.equal(large[name], small[name]) for name in small if name != key)
    with torch.inference_mode():
        assert network.dense_outputs(pictures(size=(96, 128))).shape == (2, 3, 24, 32)


def test_weights_from_a_file(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = build(f"hf/{folders['rtdetr_v2']}", pretrained=True)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.clone().contiguous() for key, value in source.state_dict().items()}, path)
    same = build("rtdetr_v2", pretrained=str(path))
    known, found = source.state_dict(), same.state_dict()
    assert all(torch.equal(found[key], known[key]) for key in known if key not in ("mean", "std"))
    assert str(path) in same.note
    other = build("rtdetr_v2", classes=5, pretrained=str(path))
    found = other.state_dict()
    depends = [key for key in known if found[key].shape != known[key].shape]
    assert all(torch.equal(found[key], known[key]) for key in known if key not in (*depends, "mean", "std"))
    assert all(torch.allclose(found[key].sigmoid(), torch.tensor(0.01)) for key in depends if key.endswith("bias"))
    with pytest.raises(ModelError, match=r"are of another network(.|\n)*and set model\.name=hf/FOLDER"):
        build("rtdetr_v2", pretrained=str(path), options=OPTIONS["rtdetr_v2"] | {"decoder_layers": 3})


def test_any_detector_of_the_library_can_be_loaded(tmp_path: Path) -> None:
    settings = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, image_size=[64, 64],
        num_detection_tokens=6, use_mid_position_embeddings=False, num_labels=4,
    )  # fmt: skip
    transformers.YolosForObjectDetection(settings).save_pretrained(tmp_path / "yolos")
    network = build(f"hf/{tmp_path / 'yolos'}", pretrained=True).eval()
    with torch.inference_mode():
        assert network(pictures())["boxes"].shape == (2, 6, 4)
    assert {"ce", "bbox", "giou"} == set(network.train().losses(pictures(), targets("boxes")))


# what can't be


@pytest.mark.parametrize(
    ("name", "kind", "changes", "message"),
    [
        ("rtdetr", "boxes", {}, "unknown network 'rtdetr'. Did you mean 'rtdetr_v2'"),
        ("rtdetr_v2", "boxes", {"options": {"num_query": 5}}, "no option 'num_query'. Did you mean 'num_queries'"),
        ("rtdetr_v2", "boxes", {"options": {"backbone_depth": [1]}}, "Did you mean 'backbone_depths'"),
        ("rtdetr_v2", "boxes", {"options": {"num_labels": 5}}, "no option 'num_labels'"),
        pytest.param(
            "rtdetr_v2",
            "boxes",
            {"options": {"d_model": "big"}},
            "can't be built with these",
            marks=pytest.mark.skipif(VERSION < (5, 0), reason="older transformers takes any value"),
        ),
        ("rtdetr_v2", "boxes", {"backbone": "resnet18"}, "has a backbone of its own, and takes no timm network"),
        ("detr", "boxes", {"backbone": "resnet5O"}, "unknown network 'resnet5O'. Did you mean 'resnet50'"),
        ("detr", "boxes", {"options": {"backbone_depths": [1]}}, "can't take backbone_depths: the backbone is a timm"),
        ("detr", "boxes", {"backbone": "resnet18", "pretrained": True}, "has published weights on resnet50, and"),
        ("detr", "boxes", {"dropout": 0.5}, "detr has no dropout before its last layer. Set model.options.dropout"),
        ("rtdetr_v2", "boxes", {"size": 80}, "found [80, 80], and rtdetr_v2 takes sides that are multiples of 32"),
        ("rtdetr_v2", "boxes", {"options": {}}, "picks its 300 queries from 84 places at that size. Set"),
        ("vitpose", "points", {"size": [64, 40]}, "multiples of 16 and at least twice that"),
        ("rtdetr_v2", "masks", {}, "rtdetr_v2 finds boxes, and the task needs masks. Take mask2former or maskrcnn"),
        ("mask2former", "boxes", {}, "mask2former finds masks, and the task needs boxes. Take rtdetr_v2"),
        ("vitpose", "boxes", {}, "vitpose finds points, and the task needs boxes"),
    ],
)
def test_refusals(name: str, kind: str, changes: dict[str, Any], message: str) -> None:
    made = config(name, **changes)
    with pytest.raises(ModelError) as caught:
        build_hf_detector(kind, made, labels(kind), made.model.pretrained)
    assert message in str(caught.value)


def test_refused_labels() -> None:
    for found, message in (
        (Labels(("cat", "dog"), keypoints=("nose",)), r"knows one class of objects, and the data has 2 \(cat, dog\)"),
        (Labels(("cat",)), "needs the names of the points"),
    ):
        with pytest.raises(ModelError, match=message):
            build_hf_detector("points", config("vitpose"), found, False)


def test_checkpoints_that_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = f"hf/{folders['rtdetr_v2']}"
    with pytest.raises(ModelError, match=r"published weights of .* do not fit: model\."):
        build(folder, pretrained=True, options={"encoder_ffn_dim": 48})
    with pytest.raises(ModelError, match="no option 'num_query'"):
        build(folder, pretrained=True, options={"num_query": 3})
    assert build(folder, pretrained=True, options={"num_queries": 7}).body.config.num_queries == 7
    classifier = tmp_path / "vit"
    transformers.ViTConfig(hidden_size=32).save_pretrained(classifier)
    with pytest.raises(ModelError, match="is a 'vit', expected a detector of boxes"):
        build(f"hf/{classifier}", pretrained=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "detr_of_tomorrow"}')
    with pytest.raises(DependencyError, match=r"'detr_of_tomorrow', which transformers .* does not know. Upgrade"):
        build(f"hf/{tmp_path / 'new'}", pretrained=True)


def test_weights_that_run_code_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((folders["rtdetr_v2"] / "config.json").read_text())
    torch.save(build("rtdetr_v2").body.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"could not be downloaded .*model\.safetensors"):
        build(f"hf/{folder}", pretrained=True)


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = hf_presets.Preset(config="NotThereConfig", since="9.1", published="a/b", licence="mit")
    monkeypatch.setitem(hf_presets.PRESETS, "d_fine", preset)
    with pytest.raises(DependencyError, match=r"d_fine needs transformers 9\.1 or newer, found \d"):
        build("d_fine")


@pytest.mark.parametrize("name", ["rtdetr_v2", "vitpose", "hf/nobody/no-such-detector"])
def test_without_network_the_message_names_the_ways_out(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    import huggingface_hub.constants

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        build(name, pretrained=True, options={})
    assert time.monotonic() - start < 30
    text = str(caught.value)
    assert "could not be downloaded" in text
    assert published_weights(config(name, options={})) in text
    ways = [line for line in text.splitlines() if line.startswith("  - ")]
    assert len(ways) >= (2 if name.startswith("hf/") else 3)
    assert not any("package:" in way for way in ways), "no package carries a detector"
    assert ("model.pretrained=false" in text) == (not name.startswith("hf/"))


def test_published_weights_have_a_licence() -> None:
    for name, preset in hf_presets.PRESETS.items():
        assert published_weights(config(name, options={})) == preset.published
        assert preset.licence in ("apache-2.0", "mit", "unknown")
    assert published_weights(config("hf/some/model")) == "some/model"
    assert published_weights(config("fcos")) is None
