"""Anomaly detection: what good images never showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cvpipe.config import Config, DataSource
from cvpipe.models.catalog import ANOMALY
from cvpipe.predictions import AnomalyPrediction
from cvpipe.task import Processor, Task
from cvpipe.tasks.anomaly.config import AnomalyConfig
from cvpipe.types import Assessment, Failure, Labels, Prediction

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule


def _load_data(config: Config) -> Splits:
    from cvpipe.data.formats.mvtec import load_inspections

    return load_inspections(config)


def _load_split(source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    from cvpipe.data.formats.mvtec import load_inspection_split

    return load_inspection_split(source, config, labels, name)


def _data_module(config: Config, splits: Splits) -> ImageDataModule:
    from cvpipe.tasks.anomaly.data import AnomalyDataModule

    return AnomalyDataModule(cast(AnomalyConfig, config), splits)


def _module(config: Config, labels: Labels) -> TaskModule:
    from cvpipe.tasks.anomaly.model import AnomalyModule

    return AnomalyModule(cast(AnomalyConfig, config), labels)


def _network(config: Config, labels: Labels, architecture: Mapping[str, Any]) -> torch.nn.Module:
    from cvpipe.models.patchcore import build_patchcore

    return build_patchcore(config, pretrained=False, architecture=architecture)


def _processor(config: Config, labels: Labels) -> Processor:
    from cvpipe.tasks.anomaly.processor import AnomalyProcessor

    return AnomalyProcessor(config, labels)


def _assess(predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels) -> Assessment:
    from cvpipe.tasks.anomaly.assess import assess

    return assess(predictions, split, config, labels)


def _draw(image: PIL.Image.Image, what: Any, labels: Labels) -> PIL.Image.Image:
    from cvpipe.tasks.anomaly.pictures import annotated, with_heat

    return with_heat(image, what) if isinstance(what, AnomalyPrediction) else annotated(image, what)


def _example(folder: Path) -> dict[str, Any]:
    from cvpipe.tasks.anomaly.example import write_example

    return write_example(folder)


TASK = Task(
    name="anomaly",
    summary="good or not, and where not, learnt from good images alone",
    config=AnomalyConfig,
    prediction=AnomalyPrediction,
    load_data=_load_data,
    load_split=_load_split,
    data_module=_data_module,
    module=_module,
    network=_network,
    processor=_processor,
    assess=_assess,
    draw=_draw,
    params={"threshold": float},
    example=_example,
    models=ANOMALY,
)
