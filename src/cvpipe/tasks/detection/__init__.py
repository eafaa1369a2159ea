"""Object detection: boxes with classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvpipe.models.catalog import DETECTORS
from cvpipe.predictions import DetectionPrediction
from cvpipe.tasks.detection.config import DetectionConfig
from cvpipe.tasks.objects_task import object_task

if TYPE_CHECKING:
    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Splits
    from cvpipe.tasks.base import TaskModule
    from cvpipe.types import Labels


def _data_module(config: DetectionConfig, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.detection.data import DetectionDataModule

    return DetectionDataModule(config, splits)


def _module(config: DetectionConfig, labels: Labels) -> TaskModule:
    from cvpipe.tasks.detection.model import DetectionModule

    return DetectionModule(config, labels)


TASK = object_task(
    "boxes",
    name="detection",
    summary="a box and a class for each object in an image",
    config=DetectionConfig,
    prediction=DetectionPrediction,
    data_module=_data_module,
    module=_module,
    models=DETECTORS,
)
