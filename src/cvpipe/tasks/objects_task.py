"""The task record that the tasks with objects share. Imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cvpipe.config import Config, DataSource
from cvpipe.errors import DataError, few
from cvpipe.predictions import DetectionPrediction
from cvpipe.task import Processor, Task
from cvpipe.tasks.objects_config import ObjectsConfig
from cvpipe.types import Assessment, Failure, Labels, ModelInfo, Prediction

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule

Kind = Literal["boxes", "masks", "points"]


@dataclass(frozen=True)
class Of:
    """A function of a kind and further arguments, as a function of the further arguments.

    Workers get the task pickled, and compare it with their own: `functools.partial` is equal to itself alone.
    """

    function: Callable[..., Any]
    kind: Kind

    def __call__(self, *arguments: Any) -> Any:
        return self.function(self.kind, *arguments)


def object_task(
    kind: Kind,
    *,
    name: str,
    summary: str,
    config: type[ObjectsConfig],
    prediction: type[DetectionPrediction],
    data_module: Callable[..., ImageDataModule],
    module: Callable[..., TaskModule],
    models: tuple[ModelInfo, ...],
) -> Task:
    """A task whose targets are `Objects`.

    Args:
        kind: what is learnt of each object: its box, its mask or its points.
    """
    return Task(
        name=name,
        summary=summary,
        config=config,
        prediction=prediction,
        load_data=Of(_load_data, kind),
        load_split=Of(_load_split, kind),
        data_module=data_module,
        module=module,
        network=Of(_network, kind),
        processor=Of(_processor, kind),
        assess=Of(_assess, kind),
        draw=_draw,
        params={"threshold": float},
        example=Of(_example, kind),
        # average precision needs the whole curve, down to the network's own floor
        evaluation_params={"threshold": 0.0},
        libraries=_libraries,
        models=models,
    )


def _load_data(kind: Kind, config: Config) -> Splits:
    from cvpipe.data.annotated import load_annotated

    splits = load_annotated(config, kind)
    sigmas = getattr(config.evaluation, "oks_sigmas", None)
    if sigmas is not None and len(sigmas) != len(splits.labels.keypoints):
        raise DataError(
            f"{config.where('evaluation.oks_sigmas')}: found {len(sigmas)} values, expected one for each of the "
            f"{len(splits.labels.keypoints)} keypoints: {few(splits.labels.keypoints)}."
        )
    return splits


def _load_split(kind: Kind, source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    from cvpipe.data.annotated import load_annotated_split

    return load_annotated_split(source, config, labels, name, kind)


def _network(kind: Kind, config: ObjectsConfig, labels: Labels, architecture: Mapping[str, Any]) -> torch.nn.Module:
    from cvpipe.models.detectors import build_detector

    return build_detector(kind, config, labels, False, architecture)


def _processor(kind: Kind, config: ObjectsConfig, labels: Labels) -> Processor:
    from cvpipe.tasks.objects_processor import ObjectsProcessor

    return ObjectsProcessor(config, labels, kind)


def _assess(
    kind: Kind, predictions: Sequence[Prediction | Failure], split: Split, config: Config, labels: Labels
) -> Assessment:
    from cvpipe.metrics.objects import assess_objects

    assert isinstance(config, ObjectsConfig)
    return assess_objects(predictions, split, config, kind, labels, config.evaluation.oks_sigmas)


def _draw(image: PIL.Image.Image, what: Any, labels: Labels) -> PIL.Image.Image:
    from cvpipe.tasks.objects_processor import draw_objects

    drawn: PIL.Image.Image = draw_objects(image, what, labels)
    return drawn


def _libraries(config: Config) -> Sequence[str]:
    from cvpipe.tasks.objects_config import TRANSFORMERS_MODELS

    name = config.model.name
    return ("transformers",) if name.startswith("hf/") or name in TRANSFORMERS_MODELS else ()


def _example(kind: Kind, folder: Path) -> dict[str, Any]:
    from cvpipe.tasks.objects_example import write_example

    return write_example(kind, folder)
