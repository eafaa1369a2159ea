"""Image classification, single-label and multi-label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cvpipe.config import Config, DataSource
from cvpipe.models.catalog import CLASSIFIERS
from cvpipe.predictions import ClassificationPrediction
from cvpipe.task import Processor, Task
from cvpipe.tasks.classification.config import ClassificationConfig
from cvpipe.types import Assessment, Failure, Labels, Prediction

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule


def _load_data(config: Config) -> Splits:
    from cvpipe.data.sources import load_classification

    return load_classification(config)


def _load_split(source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    from cvpipe.data.sources import load_one

    return load_one(source, config, labels, name)


def _data_module(config: Config, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.classification.data import ClassificationDataModule

    return ClassificationDataModule(cast(ClassificationConfig, config), splits)


def _module(config: Config, labels: Labels) -> TaskModule:
    from cvpipe.tasks.classification.model import ClassificationModule

    return ClassificationModule(cast(ClassificationConfig, config), labels)


def _network(config: Config, labels: Labels, architecture: Mapping[str, Any]) -> torch.nn.Module:
    from cvpipe.tasks.classification.model import build_network

    return build_network(config, labels, pretrained=False, architecture=architecture)


def _processor(config: Config, labels: Labels) -> Processor:
    from cvpipe.tasks.classification.utils import ClassificationProcessor

    return ClassificationProcessor(config, labels)


def _assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    from cvpipe.tasks.classification.metrics import assess

    return assess(predictions, split, config)


def _draw(image: PIL.Image.Image, what: Any, labels: Labels) -> PIL.Image.Image:
    from cvpipe.draw import banner

    if isinstance(what, ClassificationPrediction):
        return banner(image, str(what))
    members = what if isinstance(what, tuple) else (what,)
    return banner(image, ", ".join(labels.classes[c] for c in members))


def _libraries(config: Config) -> Sequence[str]:
    return ("transformers",) if config.model.name.startswith("hf/") else ()


def _example(folder: Path) -> dict[str, Any]:
    from cvpipe.tasks.classification.utils import write_example

    return write_example(folder)


TASK = Task(
    name="classification",
    summary="one class (or, with a `labels` column, any number of classes) for an image",
    config=ClassificationConfig,
    prediction=ClassificationPrediction,
    load_data=_load_data,
    load_split=_load_split,
    data_module=_data_module,
    module=_module,
    network=_network,
    processor=_processor,
    assess=_assess,
    draw=_draw,
    params={"top_k": int, "threshold": float},
    example=_example,
    libraries=_libraries,
    models=CLASSIFIERS,
)
