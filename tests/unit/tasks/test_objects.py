"""What detection, instance segmentation and keypoints share: processor, data module, training module, task records."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cvpipe.bundle import Bundle
from cvpipe.config_file import load_config
from cvpipe.data.geometry import fit_geometry
from cvpipe.data.targets import decode_rle
from cvpipe.data.tiles import view_geometry
from cvpipe.errors import DataError
from cvpipe.metrics.coco import coco_summary
from cvpipe.models.detectors import Kind
from cvpipe.predictions import InstancePrediction, KeypointPrediction
from cvpipe.predictor import Predictor
from cvpipe.task import Task, find_task
from cvpipe.tasks.objects import ObjectsModule, Seen
from cvpipe.tasks.objects_config import ObjectsConfig
from cvpipe.tasks.objects_processor import ObjectsProcessor, paste_mask
from cvpipe.types import Labels, View

LABELS = Labels(("a", "b"), keypoints=("left", "right", "top"), skeleton=((0, 1),), flip_pairs=((0, 1),))
TASKS: dict[Kind, str] = {"boxes": "detection", "masks": "instance_segmentation", "points": "keypoints"}
SLOTS = 6


def processor(kind: Kind, size: tuple[int, int] = (64, 64), policy: str = "letterbox", **inference: Any) -> Any:
    data = {"train": "x", "image_size": list(size), "resize": policy}
    config = ObjectsConfig.model_validate({"data": data, "inference": inference})
    return ObjectsProcessor(config, LABELS, kind)


def slots(count: int = 1) -> dict[str, torch.Tensor]:
    """Empty outputs of a detector."""
    return {
        "boxes": torch.zeros(count, SLOTS, 4),
        "scores": torch.zeros(count, SLOTS),
        "labels": torch.zeros(count, SLOTS, dtype=torch.long),
    }


sizes = st.tuples(st.integers(20, 300), st.integers(20, 300))
policies = st.sampled_from(["letterbox", "stretch", "short_side"])


@given(sizes, sizes, policies, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_boxes_and_points_come_back(source: tuple[int, int], size: tuple[int, int], policy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    geometry = fit_geometry(source, size, policy)
    top, left, height, width = geometry.window
    corners = np.sort(rng.uniform(0, 1, (SLOTS, 2, 2)), axis=1) * [width, height] + [left, top]
    boxes = corners.reshape(SLOTS, 4).astype(np.float32)
    points = rng.uniform(0, 1, (SLOTS, 3, 2)).astype(np.float32) * [width, height] + [left, top]
    outputs = slots()
    outputs["boxes"][0] = torch.from_numpy(geometry.boxes(boxes))
    outputs["scores"][0] = torch.linspace(0.9, 0.4, SLOTS)
    outputs["labels"][0] = torch.from_numpy(rng.integers(0, 2, SLOTS))
    outputs["points"] = torch.full((1, SLOTS, 3, 3), 0.5)
    outputs["points"][0, ..., :2] = torch.from_numpy(geometry.points(points))
    (found,) = processor("points", size, policy).postprocess(outputs, [source])
    assert isinstance(found, KeypointPrediction)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(axis=1)
    if kept.all():
        np.testing.assert_allclose(found.boxes, boxes, atol=0.05)
        np.testing.assert_allclose(found.points[..., :2], points, atol=0.05)
        assert (found.points[..., 2] == 0.5).all()
        assert found.indices.tolist() == outputs["labels"][0].tolist()


def test_what_counts_as_found() -> None:
    outputs = slots()
    outputs["boxes"][0, :4] = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [0, 50, 9, 60]])
    outputs["scores"][0, :4] = torch.tensor([0.9, 0.3, 0.29, 0.0001])
    part = processor("boxes", threshold=0.3)
    assert part.postprocess(outputs, [(64, 64)])[0].scores.tolist() == pytest.approx([0.9, 0.3])
    assert len(part.postprocess(outputs, [(64, 64)], threshold=0.0)[0]) == 4, "slots that are not used are no objects"
    assert len(part.postprocess(outputs, [(64, 64)], threshold=0.5)[0]) == 1
    # the image takes the upper half of the canvas' middle; the last box lies in the grey below it
    (wide,) = part.postprocess(outputs, [(16, 64)], threshold=0.0)
    assert (wide.boxes[:, 2:] > wide.boxes[:, :2]).all()
    assert len(wide) == 1
    (none,) = part.postprocess(slots(), [(64, 64)])
    assert len(none) == 0
    assert none.to_record()["boxes"] == []


@given(sizes, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_whole_view_is_the_image(source: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = slots()
    first = torch.rand(SLOTS, 2, generator=generator) * 30
    outputs["boxes"][0] = torch.cat([first, first + 5 + torch.rand(SLOTS, 2, generator=generator) * 25], dim=1)
    outputs["scores"][0] = torch.linspace(0.9, 0.4, SLOTS)
    outputs["masks"] = torch.rand(1, SLOTS, 28, 28, generator=generator)
    part = processor("masks", nms=1.0)
    (plain,) = part.postprocess(outputs, [source])
    merged = part.merge(outputs, [View((0, 0, *source))], source)
    np.testing.assert_allclose(merged.boxes, plain.boxes, atol=1e-4)
    assert merged.masks == plain.masks


def test_views_of_one_object_become_one() -> None:
    """An object that the image, its mirror image and a tile show; masks and points are turned back."""
    size, box = (128, 128), np.array([[40.0, 30, 60, 56]], np.float32)
    views = [View((0, 0, 128, 128)), View((0, 0, 128, 128), hflip=True), View((20, 20, 64, 64), hflip=True)]
    outputs = slots(3) | {"masks": torch.zeros(3, SLOTS, 28, 28), "points": torch.zeros(3, SLOTS, 3, 3)}
    point = np.array([[[42.0, 31], [58, 40], [50, 30]]], np.float32)
    for row, view in enumerate(views):
        geometry = view_geometry(view, size, (64, 64), "letterbox")
        outputs["boxes"][row, 0] = torch.from_numpy(geometry.boxes(box)[0])
        outputs["scores"][row, 0] = [0.5, 0.9, 0.6][row]
        left_half = torch.arange(28) < 14
        outputs["masks"][row, 0] = (left_half.flip(0) if view.hflip else left_half).float()
        order = [1, 0, 2] if view.hflip else [0, 1, 2]
        outputs["points"][row, 0, :, :2] = torch.from_numpy(geometry.points(point)[0, order])
        outputs["points"][row, 0, :, 2] = torch.tensor([0.1, 0.2, 0.3])[order]
    found = processor("masks").merge(outputs, views, size)
    assert isinstance(found, InstancePrediction)
    assert found.scores.tolist() == pytest.approx([0.9])
    np.testing.assert_allclose(found.boxes, box, atol=1e-3)
    mask = decode_rle(found.masks[0])
    expected = np.zeros(size, np.uint8)
    expected[30:56, 40:50] = 1
    assert (mask != expected).sum() <= 26, "at most one column beside it"
    points = processor("points").merge(outputs, views, size).points
    np.testing.assert_allclose(points[0, :, :2], point[0], atol=1e-3)
    assert points[0, :, 2].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_views() -> None:
    assert processor("boxes").views((500, 500)) == []
    assert processor("boxes", tta=True).views((10, 20)) == [View((0, 0, 10, 20)), View((0, 0, 10, 20), True)]
    tiles = processor("boxes", tile=100, tile_overlap=0.2).views((100, 180))
    assert [view.window for view in tiles] == [(0, 0, 100, 180), (0, 0, 100, 100), (0, 80, 100, 100)]


def test_pasted_masks_are_nearly_those_of_torchvision() -> None:
    """Theirs rounds the box to whole pixels and stretches it by one, so that edges differ by about a pixel."""
    generator = torch.Generator().manual_seed(0)
    shared = []
    for _ in range(60):
        coarse = torch.rand(1, 1, 5, 5, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bicubic")[0, 0].clamp(0, 1)
        corner = torch.rand(2, generator=generator) * 60 - 10
        box = torch.cat([corner, corner + 25 + torch.rand(2, generator=generator) * 60])
        ours = paste_mask(smooth, box.numpy(), (90, 100))
        theirs = (paste_masks_in_image(smooth[None, None], box[None], (90, 100))[0, 0] >= 0.5).numpy()
        shared.append(np.logical_and(ours, theirs).sum() / np.logical_or(ours, theirs).sum())
    assert min(shared) > 0.7
    assert np.mean(shared) > 0.9


@given(sizes, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_full_mask_is_its_box(source: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(-20, 320, (2, 2)), axis=0)
    high += 1.5
    box = np.array([*low, *high], np.float32)
    found = paste_mask(torch.ones(28, 28), box, source)
    y, x = np.mgrid[: source[0], : source[1]] + 0.5
    inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    near = (np.abs(x[..., None] - box[[0, 2]]).min(-1) < 0.05) | (np.abs(y[..., None] - box[[1, 3]]).min(-1) < 0.05)
    # the last half cell fades out towards the corners
    corners = (x - box[0] < (high - low)[0] / 28) | (box[2] - x < (high - low)[0] / 28)
    corners &= (y - box[1] < (high - low)[1] / 28) | (box[3] - y < (high - low)[1] / 28)
    assert ((found == inside) | near | corners).all()


@pytest.mark.parametrize("policy", ["letterbox", "stretch", "short_side"])
def test_maps_over_the_canvas(policy: str) -> None:
    source, size = (100, 60), (64, 64)
    geometry = fit_geometry(source, size, policy)
    wanted = np.zeros(source, np.uint8)
    wanted[30:70, 10:40] = 1
    outputs = slots()
    outputs["boxes"][0, 0] = torch.from_numpy(geometry.boxes(np.array([[10, 30, 40, 70]], np.float32))[0])
    outputs["scores"][0, 0] = 0.9
    canvas = geometry.class_map(torch.from_numpy(wanted), 0).float()
    outputs["mask_maps"] = torch.zeros(1, SLOTS, 64, 64)
    outputs["mask_maps"][0, 0] = canvas
    (found,) = processor("masks", size, policy).postprocess(outputs, [source])
    mask = decode_rle(found.masks[0])
    assert np.logical_and(mask, wanted).sum() / np.logical_or(mask, wanted).sum() > 0.9


# --- training -----------------------------------------------------------------------------------------------------


class Run:
    """A task's example, its module after a few steps, and its data."""

    def __init__(self, kind: Kind, folder: Path, steps: int = 0, **changes: Any) -> None:
        self.task = find_task(TASKS[kind])
        self.file = folder / "example.yaml"
        self.file.write_text(yaml.safe_dump(self.task.example(folder / "data")))
        self.config: Any = load_config(self.file).replace(**changes)
        self.splits = self.task.load_data(self.config)
        torch.manual_seed(0)
        module = self.task.module(self.config, self.splits.labels)
        assert isinstance(module, ObjectsModule)
        self.module = module
        self.data: Any = self.task.data_module(self.config, self.splits)
        self.batch = next(iter(self.data.train_dataloader()))
        optimizer = self.module.configure_optimizers()["optimizer"]
        self.module.train()
        for _ in range(steps):
            optimizer.zero_grad()
            self.module.training_step(self.batch, 0).backward()
            optimizer.step()

    def validate(self) -> dict[str, float]:
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        (found,) = trainer.validate(self.module, datamodule=self.data, verbose=False)
        return dict(found)

    def predictor(self, folder: Path) -> Predictor:
        bundle = Bundle.create(folder / "bundle", self.config, self.splits.labels, self.module.network)
        return Predictor(Bundle.load(bundle.path), device="cpu")


COMPARED = {"boxes": ("bbox", "val/map"), "masks": ("segm", "val/mask_map"), "points": ("keypoints", "val/oks_map")}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("boxes", {}), ("boxes", {"inference.tile": 40}), ("masks", {}), ("points", {})],
    ids=["boxes", "tiles", "masks", "points"],
)
def test_validation_is_what_the_predictor_answers(kind: Kind, changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {"data.val": 0.3, "inference.score_floor": 0.001, **changes}
    run = Run(kind, tmp_path, steps=12 if kind == "boxes" else 20, **changes)
    found = run.validate()
    predictor = run.predictor(tmp_path)
    answers: Any = predictor.predict(run.splits.val.paths, **run.task.evaluation_params)
    compared, monitor = COMPARED[kind]
    expected = coco_summary(answers, run.splits.val.targets, compared, run.splits.labels.classes)  # type: ignore[arg-type]
    assert monitor == run.module.monitor
    assert found[monitor] == pytest.approx(expected["map"], abs=0.02)
    if kind == "boxes":
        assert found[monitor] > 0
    scores = np.concatenate([answer.scores for answer in answers])
    assert len(scores) > 5
    middle = float(np.median(scores))
    cut: Any = predictor.predict(run.splits.val.paths, threshold=middle)
    assert sum(len(answer) for answer in cut) == (scores >= np.float32(middle)).sum() < len(scores)
    usual: Any = predictor.predict(run.splits.val.paths)
    assert sum(len(answer) for answer in usual) == (scores >= run.config.inference.threshold).sum()


def test_training_with_tiles_sees_tiles_and_whole_images(tmp_path: Path) -> None:
    run = Run("boxes", tmp_path, **{"inference.tile": 40, "inference.tile_overlap": 0.0})
    images = len(run.splits.train)
    # a side of 64 makes two tiles; those without objects are left out in part
    assert 2 * images < len(run.data.splits.train) <= 5 * images
    assert sum(target in run.splits.train.targets for target in run.data.splits.train.targets) == images
    assert len(run.data.val_items) == 5 * len(run.splits.val)
    batch = next(iter(run.data.val_dataloader()))
    assert batch.targets[:5] == [Seen(0, view, 5, (64, 64)) for view in range(5)]
    assert batch.images.shape == (8, 3, 64, 64)


def test_a_broken_image_is_left_out_of_validation(tmp_path: Path) -> None:
    run = Run("boxes", tmp_path, steps=2, **{"inference.tile": 40})
    path = Path(run.splits.val.paths[1])
    path.write_bytes(path.read_bytes()[:100])
    run.data = run.task.data_module(run.config, run.splits)
    run.data.setup("validate")
    seen = [target.image for batch in run.data.val_dataloader() for target in batch.targets]
    assert set(seen) == set(range(len(run.splits.val))) - {1}
    assert np.isfinite(run.validate()["val/map"])


def test_the_loss_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    run = Run("masks", tmp_path)
    logged = {}
    run.module.log = lambda name, value, **_: logged.__setitem__(name, float(value))  # type: ignore[method-assign, assignment]
    torch.manual_seed(0)
    loss = run.module.loss(run.batch)
    assert set(logged) == {
        f"train/{name}"
        for name in ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    }
    assert float(loss.detach()) == pytest.approx(sum(logged.values()), rel=1e-5)


def test_thawing_leaves_held_stages_frozen(tmp_path: Path) -> None:
    run = Run(
        "boxes",
        tmp_path,
        **{"training.freeze": "backbone", "training.freeze_epochs": 1, "model.frozen_stages": 2},
    )
    parameters = dict(run.module.network.named_parameters())
    first, last, head = (
        "model.backbone.stages.net.conv1.0.weight",
        "model.backbone.stages.net.layer4.0.conv1.weight",
        "model.head.regression_head.bbox_reg.weight",
    )
    assert [parameters[key].requires_grad for key in (first, last, head)] == [False, False, True]
    run.module._thaw()
    assert [parameters[key].requires_grad for key in (first, last, head)] == [False, True, True]
    norms = {name: module.training for name, module in run.module.network.named_modules() if "bn1" in name}
    assert not norms["model.backbone.stages.net.bn1"]
    assert norms["model.backbone.stages.net.layer4.0.bn1"]


# --- the records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS.values())
def test_the_record(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    assert task.name == name
    again: Task = pickle.loads(pickle.dumps(task))
    assert again == task
    assert again.load_data is not task.load_data
    assert task.evaluation_params.keys() <= task.params.keys()
    assert {info.name for info in task.models} >= {task.config.model_fields["model"].default_factory().name}  # type: ignore[union-attr, call-arg, misc]
    config = task.config.model_validate({"data": "x", "model": {"name": "hf/x"}})
    assert task.libraries(config) == ("transformers",)
    assert task.libraries(task.config.model_validate({"data": "x"})) == ()


def test_records_are_made_without_torch() -> None:
    code = (
        "import sys, cvpipe.task; cvpipe.task.tasks(); print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_settings_are_checked() -> None:
    task = find_task("detection")
    with pytest.raises(ValueError, match="multiple of 32"):
        task.config.model_validate({"data": "x", "model": {"neck_channels": 100}})
    assert task.config.model_validate({"data": "x"}).inference.threshold == 0.3


@pytest.mark.parametrize("kind", TASKS)
def test_drawing(kind: Kind, tmp_path: Path) -> None:
    task = find_task(TASKS[kind])
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(task.example(tmp_path / "data")))
    splits = task.load_data(load_config(file))
    image = Image.open(splits.train.paths[0]).convert("RGB")
    target = splits.train.targets[0]
    annotated = task.draw(image, target, splits.labels)
    changed = (np.asarray(annotated) != np.asarray(image)).any(axis=2)
    x1, y1, _, y2 = target.boxes[0].round().astype(int)
    assert changed[y1:y2, x1].mean() > 0.9, "the left side of the first box"
    outputs = slots() | {"masks": torch.ones(1, SLOTS, 28, 28), "points": torch.full((1, SLOTS, 4, 3), 20.0)}
    outputs["boxes"][0, 0] = torch.tensor([10.0, 10, 30, 30])
    outputs["scores"][0, 0] = 0.8
    (found,) = task.processor(load_config(file), splits.labels).postprocess(outputs, [(64, 64)])
    drawn = np.asarray(task.draw(image, found, splits.labels)) != np.asarray(image)
    assert drawn.any(axis=2)[10:30, 10].mean() > 0.9
    inner = drawn.any(axis=2)[14:27, 14:27].mean()
    assert inner > 0.9 if kind == "masks" else inner < 0.6


def test_the_example_is_coco(tmp_path: Path) -> None:
    find_task("keypoints").example(tmp_path)
    document = json.loads((tmp_path / "objects.json").read_text())
    assert len(document["images"]) == 24
    for record in document["annotations"]:
        x, y, width, height = record["bbox"]
        assert 0 <= x <= x + width <= 64
        assert 0 <= y <= y + height <= 64
        points = np.reshape(record["keypoints"], (-1, 3))
        assert ((points[:, 0] >= x) & (points[:, 0] <= x + width)).all()


def test_one_object_networks_refuse_images_with_several(tmp_path: Path) -> None:
    run = Run("points", tmp_path)
    run.module.network.one_object = True  # type: ignore[assignment]
    several = sum(len(target) > 1 for target in run.splits.train.targets)
    with pytest.raises(DataError, match=rf"{several} images of train have several.*model.name=keypointrcnn"):
        run.validate()


def test_sigmas_of_keypoints(tmp_path: Path) -> None:
    run = Run("points", tmp_path)
    val, labels = run.splits.val, run.splits.labels
    # a tenth of an object's size beside where they should be
    found = [
        KeypointPrediction(
            labels.classes,
            boxes=target.boxes,
            scores=np.ones(len(target), np.float32),
            indices=target.labels,
            points=target.points + np.float32([0.1 * target.areas.mean() ** 0.5, 0, 0]),
        )
        for target in val.targets
    ]
    values = []
    for sigma in (0.02, 0.2):
        config = run.config.replace(**{"evaluation.bootstrap": 0, "evaluation.oks_sigmas": [sigma] * 4})
        values.append(run.task.assess(found, val, config, labels).metrics["oks_map"].value)
    assert values[0] < 0.1 < 0.8 < values[1]
    with pytest.raises(DataError, match=r"evaluation.oks_sigmas: found 3 values, expected one for each of the 4"):
        run.task.load_data(run.config.replace(**{"evaluation.oks_sigmas": [0.1] * 3}))
