"""Settings and transforms that tasks share whose targets move with the pixels: boxes, masks, points, class maps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cvpipe.config import Config, DataConfig, Fraction, InferenceConfig, ModelConfig, Section, Size


class SpatialModelConfig(ModelConfig):
    """Which network, and where its weights come from."""

    backbone: str = Field("resnet50", description="timm network that the features come from, where `name` takes one")
    options: dict[str, bool | int | float | str | list[int] | list[float]] = Field(
        default_factory=dict, description="further arguments of the network, as its library names them"
    )


class SpatialAugmentConfig(Section):
    """Random changes to training images; boxes, masks and points move with the pixels."""

    hflip: Fraction = Field(0.5, description="probability of a left-right flip (keypoints swap sides)")
    vflip: Fraction = Field(0.0, description="probability of an upside-down flip")
    scale: tuple[float, float] = Field(
        (0.8, 1.25),
        description="zoom, drawn from this range; above 1 a part of the image is seen, below it has borders",
    )
    color_jitter: Fraction = Field(0.2, description="largest change of brightness, contrast and saturation")
    mosaic: Fraction = Field(0.0, description="probability that four images are put together (arXiv:2004.10934)")
    copy_paste: Fraction = Field(
        0.0, description="probability that objects of another image are pasted in; needs masks (arXiv:2012.07177)"
    )

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("expected [low, high] with 0 < low <= high")
        return value


class SpatialDataConfig(DataConfig):
    """Where the images are and how they become tensors. `data: PATH` is short for `data: {train: PATH}`."""

    format: Literal["auto", "coco", "yolo", "voc", "masks", "panoptic", "mvtec", "manifest"] = Field(
        "auto", description="how the annotations are written; auto: found out"
    )
    image_size: Size = Field((512, 512), description="input size of the network: N or [height, width], pixels")
    resize: Literal["letterbox", "stretch", "short_side"] = Field(  # type: ignore[assignment]
        "letterbox", description="letterbox (pad with grey), stretch, or short_side (cut the long side)"
    )
    ignore_index: int | None = Field(None, description="value in masks that counts nowhere, such as 255")
    max_bad_annotations: Fraction = Field(
        0.01, description="annotations that can't be used and are left out, as a share; more: an error"
    )
    augment: SpatialAugmentConfig = Field(  # type: ignore[assignment]
        default_factory=SpatialAugmentConfig, description="random changes to training images"
    )


class SpatialInferenceConfig(InferenceConfig):
    """How the model is applied; travels with the model."""

    tile: int = Field(0, ge=0, description="side of the square tiles that large images are cut into, pixels; 0: off")
    tile_overlap: float = Field(0.2, ge=0, lt=1, description="share of a tile that the next one repeats")


class SpatialConfig(Config):
    """Everything a run depends on."""

    model: SpatialModelConfig = Field(default_factory=SpatialModelConfig)
    data: SpatialDataConfig
    inference: SpatialInferenceConfig = Field(default_factory=SpatialInferenceConfig)
