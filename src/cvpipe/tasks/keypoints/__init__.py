"""Keypoints: named points of each object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvpipe.models.catalog import KEYPOINTS
from cvpipe.predictions import KeypointPrediction
from cvpipe.tasks.keypoints.config import KeypointsConfig
from cvpipe.tasks.objects_task import object_task

if TYPE_CHECKING:
    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Splits
    from cvpipe.tasks.base import TaskModule
    from cvpipe.types import Labels


def _data_module(config: KeypointsConfig, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.keypoints.data import KeypointsDataModule

    return KeypointsDataModule(config, splits)


def _module(config: KeypointsConfig, labels: Labels) -> TaskModule:
    from cvpipe.tasks.keypoints.model import KeypointsModule

    return KeypointsModule(config, labels)


TASK = object_task(
    "points",
    name="keypoints",
    summary="named points, a box and a class for each object in an image",
    config=KeypointsConfig,
    prediction=KeypointPrediction,
    data_module=_data_module,
    module=_module,
    models=KEYPOINTS,
)
