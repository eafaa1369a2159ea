"""Semantic segmentation: what training sees, the losses, from logits to class maps and back, how answers are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from cvpipe.config_file import parse_config
from cvpipe.data.geometry import fit_geometry
from cvpipe.data.splits import Split, Splits
from cvpipe.data.targets import IGNORE, ClassMap
from cvpipe.errors import ConfigError, DataError
from cvpipe.predictions import SegmentationPrediction
from cvpipe.task import find_task
from cvpipe.tasks.semantic_segmentation import processor as processing
from cvpipe.tasks.semantic_segmentation.assess import assess
from cvpipe.tasks.semantic_segmentation.data import RandomParts, SemanticDataModule, count_pixels, stack_maps
from cvpipe.tasks.semantic_segmentation.example import write_example
from cvpipe.tasks.semantic_segmentation.losses import (
    balanced_weights,
    build_loss,
    dice,
    focal,
    lovasz_softmax,
)
from cvpipe.tasks.semantic_segmentation.model import MeanIou, SemanticModule
from cvpipe.tasks.semantic_segmentation.pictures import compared, with_legend
from cvpipe.tasks.semantic_segmentation.processor import SemanticProcessor
from cvpipe.types import Failure, Labels

LABELS = Labels(("ground", "disc", "bar"))
KINDS = ["cross_entropy", "focal", "ce_dice", "ce_lovasz"]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_example(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def splits(values: dict[str, Any]) -> Splits:
    return find_task("semantic_segmentation").load_data(parse_config(values))


def settings(values: dict[str, Any], **changes: Any) -> Any:
    config = parse_config(values)
    return config.replace(**changes) if changes else config


def batch_of(seed: int, classes: int = 3, side: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, classes, side, side) logits and (2, side, side) classes, some of them IGNORE."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (2, side, side), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    return torch.randn(2, classes, side, side, generator=generator), target


class TestLosses:
    def test_cross_entropy(self) -> None:
        logits, target = batch_of(0)
        weights = torch.tensor([1.0, 2.0, 5.0])
        expected = F.cross_entropy(logits, target, weight=weights, ignore_index=IGNORE, label_smoothing=0.1)
        assert torch.allclose(build_loss("cross_entropy", weights, 0.1)(logits, target), expected)

    @given(st.integers(0, 10_000))
    def test_dice_as_it_is_written(self, seed: int) -> None:
        logits, target = batch_of(seed, classes=4)
        valid = target != IGNORE
        scores = logits.softmax(dim=1)
        terms = []
        for c in target[valid].unique():
            p, truth = scores[:, c][valid], (target[valid] == c).float()
            terms.append(1 - 2 * (p * truth).sum() / ((p**2).sum() + (truth**2).sum()))
        assert torch.allclose(dice(logits, target), torch.stack(terms).mean(), atol=1e-6)

    @given(st.integers(0, 10_000))
    def test_lovasz_as_its_authors_have_it(self, seed: int) -> None:
        from segmentation_models_pytorch.losses import LovaszLoss

        logits, target = batch_of(seed, classes=4)
        expected = LovaszLoss("multiclass", ignore_index=IGNORE)(logits, target)
        assert torch.allclose(lovasz_softmax(logits, target), expected, atol=1e-6)

    def test_lovasz_of_hard_answers_is_one_minus_the_mean_iou(self) -> None:
        _, target = batch_of(3)
        found = torch.randint(0, 3, target.shape, generator=torch.Generator().manual_seed(4))
        score = MeanIou(3)
        score.update(found, target)
        hard = F.one_hot(found, 3).movedim(-1, 1) * 1000.0
        assert float(lovasz_softmax(hard, target)) == pytest.approx(1 - float(score.compute()), abs=1e-6)

    @given(st.integers(0, 10_000))
    def test_focal_as_it_is_written(self, seed: int) -> None:
        logits, target = batch_of(seed)
        weights = torch.tensor([1.0, 3.0, 0.5])
        valid = target != IGNORE
        p = logits.softmax(dim=1).movedim(1, -1)[valid].gather(1, target[valid][:, None])[:, 0]
        w = weights[target[valid]]
        expected = (w * (1 - p) ** 2 * -p.log()).sum() / w.sum()
        assert torch.allclose(focal(logits, target, weights), expected, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_ignored_pixels_get_no_gradient_and_change_nothing(self, kind: str) -> None:
        logits, target = batch_of(1)
        loss = build_loss(kind, None, 0.0)
        logits.requires_grad_()
        value = loss(logits, target)
        value.backward()
        assert logits.grad is not None
        ignored = (target == IGNORE)[:, None].expand_as(logits)
        assert not logits.grad[ignored].any()
        assert logits.grad[~ignored].any()
        other = torch.where(ignored, torch.randn_like(logits) * 9, logits.detach())
        assert torch.allclose(loss(other, target), value.detach(), atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_without_any_class(self, kind: str) -> None:
        logits = torch.randn(1, 3, 4, 4, requires_grad=True)
        value = build_loss(kind, None, 0.0)(logits, torch.full((1, 4, 4), IGNORE))
        value.backward()
        assert float(value.detach()) == 0
        assert logits.grad is not None
        assert not logits.grad.any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_right_answer_costs_nothing(self, kind: str) -> None:
        _, target = batch_of(2)
        right = F.one_hot(target.where(target != IGNORE, 0), 3).movedim(-1, 1) * 50.0
        loss = build_loss(kind, None, 0.0)
        assert float(loss(right, target)) == pytest.approx(0, abs=1e-5)
        assert float(loss(-right, target)) > 0.5

    def test_balanced_weights(self) -> None:
        pixels = torch.tensor([700, 290, 10, 0])
        weights = balanced_weights(pixels)
        assert weights[0] < weights[1] < weights[2] < weights[3] < 60
        assert float((weights * pixels).sum() / pixels.sum()) == pytest.approx(1, abs=1e-5)
        ratio = np.log(1.02 + 0.7) / np.log(1.02 + 0.01)
        assert float(weights[2] / weights[0]) == pytest.approx(ratio, rel=1e-4)


class TestData:
    def test_a_batch(self, values: dict[str, Any], splits: Splits) -> None:
        config = settings(values, **{"data.crop_size": [32, 64]})
        data = SemanticDataModule(config, splits)
        train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
        assert train.images.shape == (8, 3, 32, 64)
        assert train.targets.shape == (8, 32, 64)
        assert val.images.shape == (8, 3, 64, 64)
        assert train.targets.dtype == val.targets.dtype == torch.int64
        assert set(val.targets.unique().tolist()) == {0, 1, 2}
        assert stack_maps([]).shape == (0, 0, 0)

    @given(
        seed=st.integers(0, 2**40),
        size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
        crop=st.sampled_from([None, [32, 32], [64, 32]]),
    )
    def test_classes_stay_on_their_pixels(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, size: tuple[int, int], crop: Any
    ) -> None:
        folder = tmp_path_factory.mktemp("map")
        classes = np.zeros(size, np.uint8)
        classes[: size[0] // 2, size[1] // 3 :] = 1
        classes[size[0] // 2 :, : size[1] // 2] = 2
        Image.fromarray(classes).save(folder / "m.png")
        levels = torch.tensor([0, 200, 255], dtype=torch.uint8)  # the border's grey, 114, is none of them
        image = levels[torch.from_numpy(classes).long()].expand(3, *size).contiguous()
        data = parse_config(
            {
                "task": "semantic_segmentation",
                "data": {
                    "train": "x",
                    "image_size": 64,
                    "crop_size": crop,
                    "augment": {"scale": [0.5, 2], "vflip": 0.5, "color_jitter": 0},
                },
            }
        ).data
        target = ClassMap(str(folder / "m.png"), ((0, 0), (1, 1), (2, 2)))
        pixels, found = RandomParts(data)(image, target, seed, lambda _: None)  # type: ignore[arg-type]
        assert pixels.shape[1:] == found.shape == tuple(crop or (64, 64))
        # bilinear resizing mixes levels at a border: what is not mixed must have the class of its level
        for index, level in enumerate(levels.tolist()):
            certain = found[(pixels == level).all(dim=0) & (found != IGNORE)]
            if level != 200:  # 200 can be a mixture of 0 and 255
                assert (certain == index).all()
        assert (pixels[:, found == IGNORE] == 114).all()

    def test_parts_are_cut_out_as_large_as_in_use(self, tmp_path: Path, values: dict[str, Any]) -> None:
        rng = np.random.default_rng(0)
        classes = rng.integers(0, 3, (96, 128)).astype(np.uint8)
        Image.fromarray(classes).save(tmp_path / "m.png")
        image = torch.from_numpy(rng.integers(0, 256, (3, 96, 128)).astype(np.uint8))
        data = settings(
            values,
            **{
                "data.image_size": [96, 128],
                "data.crop_size": [32, 64],
                "data.augment.scale": [1, 1],
                "data.augment.hflip": 0,
            },
        ).data
        target = ClassMap(str(tmp_path / "m.png"), ((0, 0), (1, 1), (2, 2)))
        places = set()
        for seed in range(8):
            pixels, found = RandomParts(data)(image, target, seed, lambda _: None)  # type: ignore[arg-type]
            (place,) = [
                (top, left)
                for top in range(65)
                for left in range(65)
                if torch.equal(image[:, top : top + 32, left : left + 64], pixels)
            ]
            assert np.array_equal(found.numpy(), classes[place[0] : place[0] + 32, place[1] : place[1] + 64])
            places.add(place)
        assert len(places) > 4

    def test_counted_pixels(self, tmp_path: Path) -> None:
        maps = []
        for number, rows in enumerate((1, 3)):
            mask = np.full((4, 5), 7, np.uint8)
            mask[:rows] = 9
            Image.fromarray(mask).save(tmp_path / f"{number}.png")
            maps.append(ClassMap(str(tmp_path / f"{number}.png"), ((7, 1), (9, 0), (3, 2))))
        split = Split("train", ("a", "b", "c"), (*maps, ClassMap(str(tmp_path / "none.png"), ((7, 1),))))
        assert count_pixels(split, 3).tolist() == [20, 20, 0]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"resize": "short_side"}, "letterbox"),
            ({"resize": "stretch", "crop_size": 64}, "crop_size needs resize: letterbox"),
        ],
    )
    def test_settings_that_can_not_work(self, data: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as error:
            parse_config({"task": "semantic_segmentation", "data": {"train": "x", **data}})
        assert message in str(error.value)


def processor(image_size: Any, **inference: Any) -> SemanticProcessor:
    config = parse_config(
        {
            "task": "semantic_segmentation",
            "data": {"train": "x", "image_size": image_size, "resize": inference.pop("resize", "letterbox")},
            "inference": inference,
        }
    )
    return SemanticProcessor(config, LABELS)


def blocks(size: tuple[int, int], cell: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width) of large random blocks of three classes."""
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    coarse = rng.integers(0, 3, (size[0] // cell + 1, size[1] // cell + 1)).astype(np.uint8)
    return np.kron(coarse, np.ones((cell, cell), np.uint8))[: size[0], : size[1]]


class TestProcessor:
    @pytest.mark.parametrize("resize", ["letterbox", "stretch"])
    @pytest.mark.parametrize("size", [(64, 96), (128, 96), (33, 57), (96, 96)])
    def test_there_and_back(self, size: tuple[int, int], resize: str) -> None:
        process = processor([64, 96], resize=resize)
        truth = blocks(size, 16)
        geometry = fit_geometry(size, (64, 96), resize)
        canvas = geometry.class_map(torch.from_numpy(truth), 0).long()
        logits = F.one_hot(canvas, 3).movedim(-1, 0)[None] * 8.0
        (found,) = process.postprocess(logits, [size])
        assert found.mask.shape == size
        agrees = (found.mask == truth).mean()
        if geometry.scale == (1, 1):
            assert agrees == 1
        assert agrees > 0.93, "all but the borders of the blocks"
        assert 0.9 < found.confidence <= 1

    def test_coarse_logits_are_enlarged_as_the_loss_does_it(self) -> None:
        process = processor([64, 96])
        logits = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        whole = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
        first, second = process.postprocess(logits, [(64, 96), (50, 96)])
        assert np.array_equal(first.mask, whole[0].argmax(dim=0).numpy())
        assert np.array_equal(second.mask, whole[1, :, 7:57].argmax(dim=0).numpy())
        assert first.confidence == pytest.approx(float(whole[0].softmax(dim=0).amax(dim=0).mean()), abs=1e-5)
        assert first.shares.sum() == pytest.approx(1)

    def test_a_large_image_gets_its_scores_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        process = processor([64, 96], tile=48)
        logits = torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        logits[:, 1] = logits[:, 0]  # of equal scores the first class is the answer
        size = (90, 70)

        def answers() -> list[SegmentationPrediction]:
            views = process.views(size)
            return [
                *process.postprocess(logits, [size] * 4),
                process.merge(logits[:1].repeat(len(views), 1, 1, 1), views, size),
            ]

        whole = answers()
        monkeypatch.setattr(processing, "_MOST_VALUES", 1)
        for one, other in zip(whole, answers(), strict=True):
            assert np.array_equal(one.mask, other.mask)
            assert 1 not in one.mask
            assert one.confidence == pytest.approx(other.confidence, abs=1e-5)

    @pytest.mark.parametrize("tta", [False, True])
    def test_tiles_and_mirror_images_give_the_whole(self, tta: bool) -> None:
        process = processor([64, 64], tile=64, tile_overlap=0.25, tta=tta)
        size = (100, 150)
        truth = blocks(size, 10)
        views = process.views(size)
        assert len(views) == (2 if tta else 1) * 2 * 3
        parts = []
        for view in views:
            top, left, height, width = view.window
            part = torch.from_numpy(truth[top : top + height, left : left + width].copy())
            part = part.flip([-1]) if view.hflip else part
            canvas = fit_geometry((height, width), (64, 64), "letterbox").class_map(part, 0).long()
            parts.append(F.one_hot(canvas, 3).movedim(-1, 0) * 8.0)
        found = process.merge(torch.stack(parts), views, size)
        assert np.array_equal(found.mask, truth)
        assert processor([64, 64]).views(size) == []

    def test_preprocess(self) -> None:
        image = torch.randint(0, 256, (3, 50, 96), dtype=torch.uint8)
        ready = processor([64, 96]).preprocess(image)
        assert ready.shape == (3, 64, 96)
        assert torch.equal(ready[:, 7:57], image)
        assert (ready[:, :7] == 114).all()


class TestModule:
    def test_it_learns_and_watches_the_mean_iou(self, values: dict[str, Any], splits: Splits) -> None:
        from lightning.pytorch import Trainer

        config = settings(
            values,
            **{"training.loss": "ce_dice", "training.class_weights": "balanced", "training.label_smoothing": 0.05},
        )
        torch.manual_seed(0)
        module = SemanticModule(config, splits.labels)
        assert module.notes == ["weights: random (model.pretrained is false)"]
        data = SemanticDataModule(config, splits)
        batch = next(iter(data.train_dataloader()))
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.003)
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0], losses
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        (found,) = trainer.validate(module, datamodule=data, verbose=False)
        assert module.class_weights is not None
        assert torch.equal(module.class_weights, balanced_weights(count_pixels(splits.train, 3)))

        metric = MulticlassJaccardIndex(3, average="none", ignore_index=IGNORE)
        module.eval()
        with torch.inference_mode():
            for part in data.val_dataloader():
                metric.update(module._logits(part).argmax(dim=1), part.targets)
        assert found["val/miou"] == pytest.approx(float(metric.compute().mean()), abs=1e-5)
        assert np.isfinite(found["val/loss"])

    @given(st.integers(0, 10_000))
    def test_mean_iou_is_that_of_the_evaluation(self, seed: int) -> None:
        from cvpipe.metrics.segmentation import Counter, statistics_of

        generator = torch.Generator().manual_seed(seed)
        score, counter = MeanIou(5), Counter(5)
        for _ in range(2):
            _, target = batch_of(seed, classes=4)
            found = torch.randint(0, 3, target.shape, generator=generator)
            score.update(found, target)
            for one, other in zip(target.numpy(), found.numpy(), strict=True):
                counter.add(one.astype(np.uint8), other.astype(np.uint8))
        expected = statistics_of(counter.counts())(np.ones((1, 4)))["miou"][0]
        assert float(score.compute()) == pytest.approx(expected, abs=1e-6)

    def test_nothing_to_judge(self) -> None:
        score = MeanIou(3)
        score.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), IGNORE))
        assert float(score.compute()) == 0


def answer(indices: Any) -> SegmentationPrediction:
    return SegmentationPrediction.of(LABELS.classes, np.asarray(indices, np.uint8), 0.9)


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Split, list[Any]]:
    """Four images with class maps; the answers to them are right, half wrong, missing, and right where it counts."""
    paths, targets = [], []
    truth = blocks((24, 32))
    for number in range(4):
        Image.fromarray(np.full((24, 32, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        own = truth.copy()
        if number == 3:
            own[:5] = 250
        Image.fromarray(own).save(tmp_path / f"{number}_mask.png")
        paths.append(str(tmp_path / f"{number}.png"))
        targets.append(ClassMap(str(tmp_path / f"{number}_mask.png"), ((0, 0), (1, 1), (2, 2))))
    half = truth.copy()
    half[12:] = (half[12:] + 1) % 3
    careless = truth.copy()
    careless[:5] = 0
    return Split("test", tuple(paths), tuple(targets)), [answer(truth), answer(half), Failure("why"), answer(careless)]


class TestAssess:
    @pytest.fixture
    def config(self) -> Any:
        return parse_config({"task": "semantic_segmentation", "data": "x", "evaluation": {"bootstrap": 50}})

    def test_all_of_it(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        split, answers = judged
        found = assess(answers, split, config, LABELS)
        assert found.headline == ("miou", "dice", "boundary_f1", "pixel_accuracy")
        for metric in found.metrics.values():
            assert metric.low is not None
            assert metric.high is not None
            assert 0 <= metric.low <= metric.value <= metric.high <= 1
        valid = 24 * 32 * 3 - 5 * 32
        assert found.metrics["pixel_accuracy"].value == pytest.approx(1 - 12 * 32 / valid)
        assert [row["class"] for row in found.tables["Classes"]] == list(LABELS.classes)
        assert found.tables["Images without a prediction (in no metric)"][0]["reason"] == "why"
        assert all(svg.startswith("<svg") for svg in found.figures.values())
        ((picture, caption),) = found.gallery
        assert caption.startswith("1.png: mean IoU")
        assert picture.size == (32 * 2 + 4, 24)

    def test_right_answers_have_no_gallery(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        split, answers = judged
        found = assess([answers[0], answers[3]], split.select([0, 3]), config, LABELS)
        assert found.metrics["miou"].value == found.metrics["boundary_f1"].value == 1
        assert found.gallery == []
        assert list(found.figures) == ["Confusion matrix (% of the true class)"]

    def test_only_failures(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        found = assess([Failure("x")] * 4, judged[0], config, LABELS)
        assert found.metrics == {}
        assert found.headline == ()

    def test_all_is_ignored(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        split, answers = judged
        nothing = Split("test", split.paths[:1], (ClassMap(split.targets[0].path, ()),))
        found = assess(answers[:1], nothing, config, LABELS)
        assert found.metrics == {}
        assert found.gallery == []

    def test_a_map_that_can_not_be_read(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        split, answers = judged
        Path(split.targets[1].path).write_bytes(b"no image")
        with pytest.raises(DataError) as error:
            assess(answers, split, config, LABELS)
        assert split.targets[1].path in str(error.value)
        assert split.paths[1] in str(error.value)

    def test_a_map_of_another_size(self, judged: tuple[Split, list[Any]], config: Any) -> None:
        split, answers = judged
        Image.fromarray(np.zeros((10, 11), np.uint8)).save(split.targets[0].path)
        with pytest.raises(DataError, match=r"has 11x10 pixels, and its image .* has 32x24"):
            assess(answers, split, config, LABELS)


class TestPictures:
    def test_a_legend_of_the_classes_that_occur(self, splits: Splits) -> None:
        image = Image.open(splits.val.paths[0]).convert("RGB")
        task = find_task("semantic_segmentation")
        drawn = task.draw(image, splits.val.targets[0], splits.labels)
        truth = splits.val.targets[0].load()
        assert drawn.width == image.width
        assert drawn.height > image.height
        assert task.draw(image, answer(truth), splits.labels).tobytes() == drawn.tobytes()
        alone = with_legend(image, np.zeros_like(truth), LABELS.classes)
        assert alone.height < drawn.height or len(np.unique(truth)) == 1

    def test_large_images_are_made_small(self) -> None:
        image = Image.new("RGB", (2000, 1000))
        classes = np.zeros((1000, 2000), np.uint8)
        assert compared(image, classes, classes).size == (480 * 2 + 4, 240)
