"""Instance segmentation: a mask for each object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvpipe.models.catalog import INSTANCE
from cvpipe.predictions import InstancePrediction
from cvpipe.tasks.instance_segmentation.config import InstanceConfig
from cvpipe.tasks.objects_task import object_task

if TYPE_CHECKING:
    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Splits
    from cvpipe.tasks.base import TaskModule
    from cvpipe.types import Labels


def _data_module(config: InstanceConfig, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.instance_segmentation.data import InstanceSegmentationDataModule

    return InstanceSegmentationDataModule(config, splits)


def _module(config: InstanceConfig, labels: Labels) -> TaskModule:
    from cvpipe.tasks.instance_segmentation.model import InstanceSegmentationModule

    return InstanceSegmentationModule(config, labels)


TASK = object_task(
    "masks",
    name="instance_segmentation",
    summary="a mask, a box and a class for each object in an image",
    config=InstanceConfig,
    prediction=InstancePrediction,
    data_module=_data_module,
    module=_module,
    models=INSTANCE,
)
