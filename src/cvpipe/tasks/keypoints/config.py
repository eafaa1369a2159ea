"""Settings of keypoints."""

from __future__ import annotations

from pydantic import Field

from cvpipe.tasks.objects_config import ObjectsConfig, ObjectsModelConfig


class KeypointsModelConfig(ObjectsModelConfig):
    """Which network, and where its weights come from."""

    name: str = Field("keypointrcnn", description="keypointrcnn (on `backbone`); vitpose or `hf/NAME-or-folder`")


class KeypointsConfig(ObjectsConfig):
    """Everything a keypoint run depends on."""

    task: str = Field("keypoints", description="what is learnt; `cvpipe tasks list` names them")
    model: KeypointsModelConfig = Field(default_factory=KeypointsModelConfig)
