"""Training of the tasks with objects: the data module and the LightningModule they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch

from cvpipe.data.loader import Another, Batch, Loader, SampleTransform
from cvpipe.data.module import ImageDataModule
from cvpipe.data.spatial import SpatialTrain
from cvpipe.data.splits import Split, Splits
from cvpipe.data.targets import Objects
from cvpipe.data.tiles import image_size, tile_split, tile_views
from cvpipe.errors import ImageError
from cvpipe.metrics import coco
from cvpipe.models.detector_network import Detector
from cvpipe.models.detectors import Kind, build_detector
from cvpipe.predictions import DetectionPrediction
from cvpipe.tasks.base import TaskModule
from cvpipe.tasks.objects_config import ObjectsConfig
from cvpipe.tasks.objects_processor import ObjectsProcessor
from cvpipe.types import Labels, View
from cvpipe.utils.trees import Outputs, concatenate, map_tensors

MONITORS: dict[Kind, str] = {"boxes": "val/map", "masks": "val/mask_map", "points": "val/oks_map"}
_COMPARED: dict[Kind, tuple[coco.Kind, str]] = {
    "boxes": ("bbox", ""),
    "masks": ("segm", "mask_"),
    "points": ("keypoints", "oks_"),
}


class Seen(NamedTuple):
    """One item of validation: an image as the network sees it, or one view of it.

    Attributes:
        image: position in the val split.
        view, views: which view of how many; (0, 0) for the image as a whole.
        size: original (height, width) of the image.
    """

    image: int
    view: int
    views: int
    size: tuple[int, int]


class ObjectsDataModule(ImageDataModule):
    """Training batches with a list of ObjectTensors, validation batches with a list of `Seen`.

    With `inference.tile` training sees tiles beside whole images, as inference does, and validation sees all views of
    an image.
    """

    config: ObjectsConfig
    kind: ClassVar[Kind]

    def __init__(self, config: ObjectsConfig, splits: Splits) -> None:
        self.processor = ObjectsProcessor(config, splits.labels, self.kind)
        self.val_items = _val_items(config, splits.val)
        train, left_out = _with_tiles(config, splits.train)
        super().__init__(config, replace(splits, train=train), self.processor.preprocess, _as_list)
        if config.inference.tile:
            without = f", {left_out} more without objects left out" if left_out else ""
            self.notes.append(f"inference.tile: training sees {len(train)} tiles and images{without}")

    def train_transform(self) -> SampleTransform:
        data, labels = self.config.data, self.splits.labels
        return SpatialTrain(
            data.augment, data.image_size, data.resize, labels.flip_pairs, self.kind, len(labels.keypoints)
        )

    def val_transform(self) -> SampleTransform:
        return _SeenTransform(self.processor, self.config)

    def val_dataloader(self) -> Loader:
        return self._loader(self.val_items, self.val_transform(), train=False)


def _as_list(targets: list[Any]) -> list[Any]:
    return targets


class _SeenTransform:
    """What the Predictor does to an image, for one view; the target is its `Seen`."""

    def __init__(self, processor: ObjectsProcessor, config: ObjectsConfig) -> None:
        self.processor, self.config = processor, config

    def __call__(self, image: torch.Tensor, target: Any, seed: int, another: Another) -> tuple[torch.Tensor, Any]:
        position, view = target
        size = (int(image.shape[1]), int(image.shape[2]))
        views = _views(size, self.config)
        if not views:
            return self.processor.preprocess(image), Seen(position, 0, 0, size)
        top, left, height, width = views[view].window
        part = image[:, top : top + height, left : left + width]
        return self.processor.preprocess(part), Seen(position, view, len(views), size)


def _views(size: tuple[int, int], config: ObjectsConfig) -> list[View]:
    # mirrored copies would double the time of validation and change little
    return tile_views(size, config.inference.tile, config.inference.tile_overlap)


def _val_items(config: ObjectsConfig, val: Split) -> Split:
    """The split with a row for each view of each image; targets are (position in `val`, number of the view)."""
    counts = [max(1, len(_views(size, config))) for size in _sizes(config, val)]
    rows = [(position, view) for position, count in enumerate(counts) for view in range(count)]
    return Split(val.name, tuple(val.paths[position] for position, _ in rows), tuple(rows))


def _with_tiles(config: ObjectsConfig, train: Split) -> tuple[Split, int]:
    """The split with tiles beside whole images, and how many tiles without objects were left out."""
    inference = config.inference
    if not inference.tile:
        return train, 0
    sizes = _sizes(config, train)
    tiles, left_out = tile_split(train, sizes, inference.tile, inference.tile_overlap)
    large = train.select([i for i, size in enumerate(sizes) if _views(size, config)])
    groups = None if tiles.groups is None or large.groups is None else (*tiles.groups, *large.groups)
    return Split(train.name, (*tiles.paths, *large.paths), (*tiles.targets, *large.targets), groups), left_out


def _sizes(config: ObjectsConfig, split: Split) -> list[tuple[int, int]]:
    """(height, width) of each image, where it matters; (1, 1) without tiles, and for files that can't be read."""
    if not config.inference.tile:
        return [(1, 1)] * len(split)
    return [_size(path) for path in split.paths]


def _size(path: str) -> tuple[int, int]:
    try:
        return image_size(path)
    except ImageError:  # reported when it is decoded
        return 1, 1


class ObjectsModule(TaskModule):
    """A detector with its losses; validation compares what the Predictor would answer with the annotations."""

    config: ObjectsConfig
    kind: ClassVar[Kind]

    def __init__(self, config: ObjectsConfig, labels: Labels) -> None:
        network = build_detector(self.kind, config, labels, config.model.pretrained)
        super().__init__(config, network, network.head, MONITORS[self.kind])  # type: ignore[arg-type]
        self.notes.append(str(network.note))
        self.labels = labels
        self.processor = ObjectsProcessor(config, labels, self.kind)
        self._answers: dict[int, DetectionPrediction] = {}
        self._waiting: list[Outputs] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        parts: dict[str, torch.Tensor] = self.network.losses(batch.images, batch.targets)  # type: ignore[operator]
        for name, value in parts.items():
            self.log(f"train/{name}", value.detach(), on_step=False, on_epoch=True, batch_size=len(batch.indices))
        return torch.stack([value.float() for value in parts.values()]).sum()

    def _thaw(self) -> None:
        super()._thaw()
        model = self.config.model
        if isinstance(self.network, Detector):  # what the network itself keeps as it is stays so
            self.network.hold(model.frozen_stages, model.freeze_norm)

    def on_validation_epoch_start(self) -> None:
        self._answers, self._waiting = {}, []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch.indices) == 0:
            return
        outputs = map_tensors(torch.Tensor.cpu, self.network(batch.images))
        for row, seen in enumerate(batch.targets):
            one = map_tensors(lambda tensor, row=row: tensor[row : row + 1], outputs)  # type: ignore[misc]
            self._answer(one, seen)

    def _answer(self, outputs: Outputs, seen: Seen) -> None:
        """Views come in order, so that an image is complete with its last one. All above the score floor counts."""
        assert isinstance(outputs, dict)
        if not seen.views:
            (self._answers[seen.image],) = self.processor.postprocess(outputs, [seen.size], threshold=0.0)
            return
        if seen.view == 0:
            self._waiting = []
        self._waiting.append(outputs)
        if seen.view == seen.views - 1:
            together = concatenate(self._waiting)
            assert isinstance(together, dict)
            views = _views(seen.size, self.config)
            self._answers[seen.image] = self.processor.merge(together, views, seen.size, threshold=0.0)
            self._waiting = []

    def on_validation_epoch_end(self) -> None:
        if not self._answers:
            return
        val: Sequence[Objects] = self.trainer.datamodule.splits.val.targets  # type: ignore[attr-defined]
        positions = sorted(self._answers)
        answers, targets = [self._answers[i] for i in positions], [val[i] for i in positions]
        compared, prefix = _COMPARED[self.kind]
        sigmas = self.config.evaluation.oks_sigmas
        found = coco.coco_summary(answers, targets, compared, self.labels.classes, sigmas)
        # without any object in val there is nothing to find
        for name in ("map", "map_50"):
            self.log(f"val/{prefix}{name}", found.get(name, 0.0), batch_size=len(answers))
        self._answers = {}
