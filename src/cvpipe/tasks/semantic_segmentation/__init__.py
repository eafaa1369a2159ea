"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cvpipe.config import Config, DataSource
from cvpipe.models.catalog import SEMANTIC
from cvpipe.predictions import SegmentationPrediction
from cvpipe.task import Processor, Task
from cvpipe.tasks.semantic_segmentation.config import SemanticConfig
from cvpipe.types import Assessment, Failure, Labels, Prediction

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule


def _load_data(config: Config) -> Splits:
    from cvpipe.data.annotated import load_annotated

    return load_annotated(config, "class_map")


def _load_split(source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    from cvpipe.data.annotated import load_annotated_split

    return load_annotated_split(source, config, labels, name, "class_map")


def _data_module(config: Config, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.semantic_segmentation.data import SemanticDataModule

    return SemanticDataModule(cast(SemanticConfig, config), splits)


def _module(config: Config, labels: Labels) -> TaskModule:
    from cvpipe.tasks.semantic_segmentation.model import SemanticModule

    return SemanticModule(cast(SemanticConfig, config), labels)


def _network(config: Config, labels: Labels, architecture: Mapping[str, Any]) -> torch.nn.Module:
    from cvpipe.models.segmenters import build_segmenter

    return build_segmenter(cast(SemanticConfig, config), labels, pretrained=False, architecture=architecture)


def _processor(config: Config, labels: Labels) -> Processor:
    from cvpipe.tasks.semantic_segmentation.processor import SemanticProcessor

    return SemanticProcessor(config, labels)


def _assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    from cvpipe.tasks.semantic_segmentation.assess import assess

    return assess(predictions, split, config, labels)


def _draw(image: PIL.Image.Image, what: Any, labels: Labels) -> PIL.Image.Image:
    from cvpipe.tasks.semantic_segmentation.pictures import with_legend

    indices = what.mask if isinstance(what, SegmentationPrediction) else what.load()
    return with_legend(image, indices, labels.classes)


def _libraries(config: Config) -> Sequence[str]:
    from cvpipe.models.segmenters import DECODERS

    return ("segmentation-models-pytorch",) if config.model.name in DECODERS else ("transformers",)


def _example(folder: Path) -> dict[str, Any]:
    from cvpipe.tasks.semantic_segmentation.example import write_example

    return write_example(folder)


TASK = Task(
    name="semantic_segmentation",
    summary="a class for each pixel",
    config=SemanticConfig,
    prediction=SegmentationPrediction,
    load_data=_load_data,
    load_split=_load_split,
    data_module=_data_module,
    module=_module,
    network=_network,
    processor=_processor,
    assess=_assess,
    draw=_draw,
    params={},
    example=_example,
    libraries=_libraries,
    models=SEMANTIC,
)
