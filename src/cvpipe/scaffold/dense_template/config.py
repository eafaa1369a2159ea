"""Settings of the dense template. Each field's description is its documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvpipe.config import Config, DataConfig, Fraction, Section, Size, TrainingConfig
from cvpipe.tasks.spatial import SpatialModelConfig

NAME = "dense_template"
"""What stands behind `task:` in a config."""
CLOSE = 1.25
"""A value counts as right where it is off by less than this factor (Eigen et al., 2014, arXiv:1406.2283)."""


class DenseTemplateModelConfig(SpatialModelConfig):
    """Which network, and where its weights come from."""

    # REPLACE: one name for each network that model.py can build
    name: Literal["pyramid"] = Field("pyramid", description="a small feature pyramid on `backbone`")


class DenseTemplateAugmentConfig(Section):
    """Random changes to training images."""

    hflip: Fraction = Field(0.5, description="probability of a left-right flip; the map is mirrored, too")
    brightness: Fraction = Field(0.2, description="largest change of brightness; the map stays as it is")


class DenseTemplateDataConfig(DataConfig):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    format: Literal["auto", "maps"] = Field(
        "auto", description="maps: a folder with `images/` and `maps/`, or a mapping with `images` and `masks`"
    )
    # REPLACE: what the numbers in the files of your targets mean
    unit: float = Field(0.001, gt=0, description="what a 1 in a map stands for, such as 0.001 m; 0 is `not known`")
    image_size: Size = Field((256, 256), description="input size of the network: N or [height, width], pixels")
    resize: Literal["letterbox", "stretch"] = Field("letterbox", description="letterbox (pad with grey) or stretch")
    augment: DenseTemplateAugmentConfig = Field(  # type: ignore[assignment]
        default_factory=DenseTemplateAugmentConfig, description="random changes to training images"
    )


class DenseTemplateTrainingConfig(TrainingConfig):
    """How the network is fitted."""

    beta: float = Field(0.1, gt=0, description="error from which the loss grows linearly instead of squared")


class DenseTemplateConfig(Config):
    """Everything a run of the dense template depends on."""

    task: str = Field(NAME, description="what is learnt")
    model: DenseTemplateModelConfig = Field(default_factory=DenseTemplateModelConfig)
    data: DenseTemplateDataConfig
    training: DenseTemplateTrainingConfig = Field(default_factory=DenseTemplateTrainingConfig)
