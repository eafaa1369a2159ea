"""Dense template: one value for each pixel, such as a depth in metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cvpipe.config import Config, DataSource
from cvpipe.scaffold.dense_template.config import NAME, DenseTemplateConfig
from cvpipe.scaffold.dense_template.prediction import DenseTemplatePrediction
from cvpipe.task import Processor, Task
from cvpipe.types import Assessment, Failure, Labels, ModelInfo, Prediction

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule

# Each function imports what it needs when it is called: listing the tasks must not load torch. They stand at module
# level, because loader processes get the task pickled.


def _load_data(config: Config) -> Splits:
    from cvpipe.scaffold.dense_template.data import load_data

    return load_data(cast(DenseTemplateConfig, config))


def _load_split(source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    from cvpipe.scaffold.dense_template.data import load_split

    return load_split(source, cast(DenseTemplateConfig, config), name)


def _data_module(config: Config, splits: Splits) -> ImageDataModule:
    from cvpipe.scaffold.dense_template.data import DenseTemplateDataModule

    return DenseTemplateDataModule(cast(DenseTemplateConfig, config), splits)


def _module(config: Config, labels: Labels) -> TaskModule:
    from cvpipe.scaffold.dense_template.model import DenseTemplateModule

    return DenseTemplateModule(cast(DenseTemplateConfig, config))


def _network(config: Config, labels: Labels, architecture: Mapping[str, Any]) -> torch.nn.Module:
    from cvpipe.scaffold.dense_template.model import build_network

    return build_network(cast(DenseTemplateConfig, config), pretrained=False)


def _processor(config: Config, labels: Labels) -> Processor:
    from cvpipe.scaffold.dense_template.utils import DenseTemplateProcessor

    return DenseTemplateProcessor(cast(DenseTemplateConfig, config))


def _assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    from cvpipe.scaffold.dense_template.metrics import assess

    return assess(predictions, split, cast(DenseTemplateConfig, config))


def _draw(image: PIL.Image.Image, what: Any, labels: Labels) -> PIL.Image.Image:
    from cvpipe.scaffold.dense_template.utils import draw

    return draw(image, what)


def _example(folder: Path) -> dict[str, Any]:
    from cvpipe.scaffold.dense_template.utils import example

    return example(folder)


TASK = Task(
    name=NAME,
    summary="a value for each pixel, such as a depth in metres",
    config=DenseTemplateConfig,
    prediction=DenseTemplatePrediction,
    load_data=_load_data,
    load_split=_load_split,
    data_module=_data_module,
    module=_module,
    network=_network,
    processor=_processor,
    assess=_assess,
    draw=_draw,
    # REPLACE: what a caller may set for one call; each is also a setting in `inference` and an argument of postprocess
    params={},
    example=_example,
    # REPLACE: the networks and the licences of their code; `backbone`: published weights are those of model.backbone
    models=(ModelInfo("pyramid", "databricks-cv-pipeline", "mit", "backbone"),),
)
