"""Settings that semantic segmentation adds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cvpipe.config import Fraction, Size, TrainingConfig
from cvpipe.tasks.spatial import SpatialConfig, SpatialDataConfig, SpatialModelConfig


class SemanticModelConfig(SpatialModelConfig):
    """Which network, and where its weights come from."""

    name: str = Field(
        "fpn",
        description="decoder on `backbone`: unet, unetplusplus, manet, linknet, fpn, pspnet, pan, deeplabv3, "
        "deeplabv3plus, upernet or segformer_decoder; or segformer, or `hf/NAME-or-folder`",
    )
    dropout: Fraction = Field(0.1, description="dropout of whole feature maps before the last layer")


class SemanticDataConfig(SpatialDataConfig):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    resize: Literal["letterbox", "stretch"] = Field(
        "letterbox", description="letterbox (pad with grey) or stretch; each pixel of the image gets a class"
    )
    crop_size: Size | None = Field(
        None,
        description="size of the random parts that training sees, cut out at the scale of `image_size`, pixels; left "
        "out: image_size",
    )

    @model_validator(mode="after")
    def _parts_need_one_scale(self) -> SemanticDataConfig:
        if self.crop_size is not None and self.resize == "stretch":
            raise ValueError("crop_size needs resize: letterbox, which scales height and width alike")
        return self


class SemanticTrainingConfig(TrainingConfig):
    """How the network is fitted."""

    loss: Literal["cross_entropy", "focal", "ce_dice", "ce_lovasz"] = Field(
        "cross_entropy",
        description="cross_entropy, focal (arXiv:1708.02002), or cross-entropy with Dice (arXiv:1606.04797) or with "
        "Lovász-softmax (arXiv:1705.08790)",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: pixels of rare classes count more, by 1 / ln(1.02 + share) (arXiv:1606.02147)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")


class SemanticConfig(SpatialConfig):
    """Everything a semantic segmentation run depends on."""

    model: SemanticModelConfig = Field(default_factory=SemanticModelConfig)
    data: SemanticDataConfig
    training: SemanticTrainingConfig = Field(default_factory=SemanticTrainingConfig)
