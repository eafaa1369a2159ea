"""Object detection: boxes with classes."""

from __future__ import annotations

from cvpipe.models.catalog import DETECTORS
from cvpipe.predictions import DetectionPrediction
from cvpipe.tasks.detection.config import DetectionConfig
from cvpipe.tasks.objects_task import object_task

TASK = object_task(
    "boxes",
    name="detection",
    summary="a box and a class for each object in an image",
    config=DetectionConfig,
    prediction=DetectionPrediction,
    models=DETECTORS,
)
