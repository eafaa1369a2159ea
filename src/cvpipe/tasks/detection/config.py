"""Settings of object detection."""

from __future__ import annotations

from pydantic import Field

from cvpipe.tasks.objects_config import ObjectsConfig, ObjectsModelConfig


class DetectionModelConfig(ObjectsModelConfig):
    """Which network, and where its weights come from."""

    name: str = Field(
        "fcos",
        description="fcos, retinanet, fasterrcnn or ssdlite (on `backbone`); rtdetr_v2, d_fine, detr or "
        "`hf/NAME-or-folder`",
    )


class DetectionConfig(ObjectsConfig):
    """Everything a detection run depends on."""

    task: str = Field("detection", description="what is learnt; `cvpipe tasks list` names them")
    model: DetectionModelConfig = Field(default_factory=DetectionModelConfig)
