"""Settings that the tasks with objects share: detection, instance segmentation, keypoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cvpipe.config import EvaluationConfig, Fraction
from cvpipe.tasks.spatial import SpatialConfig, SpatialInferenceConfig, SpatialModelConfig


class ObjectsModelConfig(SpatialModelConfig):
    """Which network, and where its weights come from."""

    neck_channels: int = Field(
        128, ge=32, multiple_of=32, description="channels of the feature pyramid; torchvision's recipes have 256"
    )
    head_convs: int | None = Field(
        None, ge=1, le=16, description="convolutions of a head (boxes, masks, points); left out: 4 (points: 8)"
    )
    head_channels: int | None = Field(
        None,
        ge=8,
        description="channels of the mask or keypoint head of an R-CNN, a quarter of its box head; left out: 256 "
        "(points: 512)",
    )
    anchor_scale: float | None = Field(
        None,
        gt=0,
        description="side of the smallest anchors, in strides of their level; left out: 4 (R-CNN: 8) where the short "
        "side of the image has 800 pixels, in proportion below, at least half of it; ssdlite: 3; fcos has none",
    )
    frozen_stages: int = Field(0, ge=0, description="stages of the backbone, from the input on, that stay as they are")
    freeze_norm: bool = Field(
        False,
        description="keep the backbone's batch normalisation as it is: right for pretrained ones and small batches",
    )


class ObjectsInferenceConfig(SpatialInferenceConfig):
    """How the model is applied; travels with the model."""

    threshold: Fraction = Field(0.3, description="score from which an object is in the answer")
    max_detections: int = Field(100, ge=1, description="most objects in one image (or tile)")
    score_floor: Fraction = Field(
        0.05, description="score below which the network forgets a box; evaluation sees all above it"
    )
    nms: Fraction = Field(
        0.5, description="overlap (IoU) from which the weaker of two boxes of a class is dropped; detr-like: none"
    )


class ObjectsEvaluationConfig(EvaluationConfig):
    """What `cvpipe evaluate`, and the end of training, report."""

    oks_sigmas: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        description="keypoints: how exactly each point can be placed, as a share of the object's size; left out: "
        "COCO's for 17 points, else 0.05",
    )


class ObjectsConfig(SpatialConfig):
    """Everything a run depends on."""

    evaluation: ObjectsEvaluationConfig = Field(default_factory=ObjectsEvaluationConfig)

    model: ObjectsModelConfig = Field(default_factory=ObjectsModelConfig)
    inference: ObjectsInferenceConfig = Field(default_factory=ObjectsInferenceConfig)


TRANSFORMERS_MODELS = ("rtdetr_v2", "d_fine", "detr", "mask2former", "vitpose")
"""Values of `model.name` whose network comes from transformers."""
