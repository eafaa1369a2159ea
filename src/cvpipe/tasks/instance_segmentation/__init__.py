"""Instance segmentation: a mask for each object."""

from __future__ import annotations

from cvpipe.models.catalog import INSTANCE
from cvpipe.predictions import InstancePrediction
from cvpipe.tasks.instance_segmentation.config import InstanceConfig
from cvpipe.tasks.objects_task import object_task

TASK = object_task(
    "masks",
    name="instance_segmentation",
    summary="a mask, a box and a class for each object in an image",
    config=InstanceConfig,
    prediction=InstancePrediction,
    models=INSTANCE,
)
