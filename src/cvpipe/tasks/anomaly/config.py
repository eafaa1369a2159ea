"""Settings that anomaly detection adds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cvpipe.config import Config, DataConfig, Fraction, InferenceConfig, ModelConfig, Section, Size, TrainingConfig

_GRADIENTS = (
    *("epochs", "learning_rate", "optimizer", "weight_decay", "schedule", "warmup", "gradient_clip", "accumulate"),
    *("ema", "freeze", "freeze_epochs", "layer_decay", "early_stopping", "validate_every"),
)
"""Settings of fits that go by gradients."""


class AnomalyModelConfig(ModelConfig):
    """Which network, and where its weights come from."""

    name: str = Field("patchcore", description="patchcore (arXiv:2106.08265): a memory of what good images show")
    backbone: str = Field("resnet50", description="timm network that the features come from")
    strides: tuple[int, ...] = Field(
        (8, 16), min_length=1, description="which feature maps of the backbone: pixels between their places"
    )
    bank_share: Fraction = Field(0.1, gt=0, description="share of the patches that is remembered")
    bank_size: int = Field(10_000, ge=1, description="most patches that are remembered")
    max_patches: int = Field(
        100_000, ge=1, description="most patches to choose from, evenly from all images; 4 bytes a channel each"
    )
    neighbours: int = Field(
        9, ge=0, description="remembered patches that weigh an image's score (the paper's equation 7); 0: off"
    )
    top_share: Fraction = Field(
        0.0, description="share of an image's places whose mean is its score, not weighed; 0: the worst place alone"
    )
    normalize: bool = Field(
        False,
        description="compare directions of features, not lengths: where good images differ in brightness and contrast",
    )
    equalize: bool = Field(
        False, description="bring each image to the same brightness and contrast first: where light and exposure vary"
    )
    blur: float = Field(4.0, ge=0, le=64, description="smoothing of the heat map: standard deviation, pixels")

    @model_validator(mode="after")
    def _no_last_layer(self) -> AnomalyModelConfig:
        if self.dropout:
            raise ValueError("dropout: patchcore has no last layer to put it before. Leave it out")
        return self


class AnomalyAugmentConfig(Section):
    """What is remembered beside the images themselves, for things that come in any of these ways."""

    hflip: bool = Field(False, description="their left-right mirror images too")
    vflip: bool = Field(False, description="upside-down copies too")


class AnomalyDataConfig(DataConfig):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    format: Literal["auto", "mvtec"] = Field(
        "auto", description="mvtec: train/good, test/good, test/DEFECT, ground_truth/DEFECT"
    )
    image_size: Size = Field((256, 256), description="input size of the network: N or [height, width], pixels")
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="stretch, or letterbox (pad with grey, which is not looked at)"
    )
    max_bad_annotations: Fraction = Field(
        0.01, description="masks that can't be used and are left out, as a share; more: an error"
    )
    augment: AnomalyAugmentConfig = Field(  # type: ignore[assignment]
        default_factory=AnomalyAugmentConfig, description="what is remembered beside the images themselves"
    )


class AnomalyTrainingConfig(TrainingConfig):
    """How the memory is filled: one pass over the images, without gradients."""

    epochs: int = Field(1, ge=1, description="always 1: the images are looked at once")
    threshold_quantile: float = Field(
        0.95,
        gt=0,
        le=1,
        description="share of the good validation images that shall count as good; where val has defects, the "
        "threshold is the one with the best F1 instead",
    )
    pixel_quantile: float = Field(
        0.995,
        gt=0,
        le=1,
        description="share of the pixels of good validation images that shall count as good; where val has masks of "
        "defects, the best F1 instead",
    )

    @model_validator(mode="after")
    def _nothing_for_gradients(self) -> AnomalyTrainingConfig:
        fields = type(self).model_fields
        changed = [key for key in _GRADIENTS if getattr(self, key) != fields[key].default]
        if changed:
            raise ValueError(
                f"{', '.join(changed)}: no effect on a fit without gradients. Leave out, or set to the default: "
                + ", ".join(f"{key}={fields[key].default}" for key in changed)
            )
        return self


class AnomalyInferenceConfig(InferenceConfig):
    """How the model is applied; travels with the model."""

    threshold: float = Field(
        0.0, ge=0, description="score from which an image counts as anomalous; 0: the one found in validation"
    )


class AnomalyConfig(Config):
    """Everything an anomaly detection run depends on."""

    model: AnomalyModelConfig = Field(default_factory=AnomalyModelConfig)
    data: AnomalyDataConfig
    training: AnomalyTrainingConfig = Field(default_factory=AnomalyTrainingConfig)
    inference: AnomalyInferenceConfig = Field(default_factory=AnomalyInferenceConfig)
