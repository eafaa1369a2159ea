"""Settings of instance segmentation."""

from __future__ import annotations

from pydantic import Field

from cvpipe.tasks.objects_config import ObjectsConfig, ObjectsModelConfig


class InstanceModelConfig(ObjectsModelConfig):
    """Which network, and where its weights come from."""

    name: str = Field("maskrcnn", description="maskrcnn (on `backbone`); mask2former or `hf/NAME-or-folder`")


class InstanceConfig(ObjectsConfig):
    """Everything an instance segmentation run depends on."""

    task: str = Field("instance_segmentation", description="what is learnt; `cvpipe tasks list` names them")
    model: InstanceModelConfig = Field(default_factory=InstanceModelConfig)
