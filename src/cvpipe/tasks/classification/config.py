"""Settings that classification adds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvpipe.config import AugmentConfig, Config, DataConfig, TrainingConfig


class ClassificationAugmentConfig(AugmentConfig):
    """Random changes to training images, made on uint8 pixels; mixup and cutmix on whole batches."""

    mixup: float = Field(0.0, ge=0, description="alpha of mixup (arXiv:1710.09412); 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix (arXiv:1905.04899); 0: off")


class ClassificationDataConfig(DataConfig):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    format: Literal["auto", "imagefolder", "manifest"] = Field(
        "auto", description="imagefolder (one folder a class), manifest (table of paths and labels), or auto"
    )
    augment: ClassificationAugmentConfig = Field(
        default_factory=ClassificationAugmentConfig, description="random changes to training images"
    )


class ClassificationTrainingConfig(TrainingConfig):
    """How the network is fitted."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_balance: Literal["none", "sampler", "weights"] = Field(
        "none", description="draw rare classes more often (sampler), or weigh them more in the loss (weights)"
    )


class ClassificationConfig(Config):
    """Everything a classification run depends on."""

    data: ClassificationDataConfig
    training: ClassificationTrainingConfig = Field(default_factory=ClassificationTrainingConfig)
