"""Keypoints: named points of each object."""

from __future__ import annotations

from cvpipe.models.catalog import KEYPOINTS
from cvpipe.predictions import KeypointPrediction
from cvpipe.tasks.keypoints.config import KeypointsConfig
from cvpipe.tasks.objects_task import object_task

TASK = object_task(
    "points",
    name="keypoints",
    summary="named points, a box and a class for each object in an image",
    config=KeypointsConfig,
    prediction=KeypointPrediction,
    models=KEYPOINTS,
)
