"""What a task plug-in is, and how tasks are found by name.

A task is a folder in `cvpipe/tasks/`, or any package that names a `Task` in the entry point group `cvpipe.tasks`.
The core knows tasks only through this record. Building one imports neither torch nor Lightning: the callables import
what they need when they are called.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cvpipe.config import Config, DataSource
from cvpipe.errors import ConfigError, did_you_mean
from cvpipe.types import Assessment, Failure, Labels, ModelInfo, Prediction, View

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Split, Splits
    from cvpipe.tasks.base import TaskModule

ENTRY_POINT_GROUP = "cvpipe.tasks"


class Processor(Protocol):
    """What stands on both sides of the network, the same in training, evaluation, batch and serving."""

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, height, width) uint8 RGB of any size -> (3, h, w) uint8 RGB of the network's size."""
        ...

    def views(self, size: tuple[int, int]) -> Sequence[View]:
        """The parts of an image of that (height, width) that go through the network one by one.

        Empty for the usual case: the image as a whole. Else `merge` makes one prediction of what was found in them.
        """
        ...

    @property
    def postprocess(self) -> Callable[..., Sequence[Prediction]]:
        """(outputs, sizes, **params): the network's raw outputs for a batch, the original (height, width) of each
        image, and the task's `params` -> a prediction for each image. Outputs are a tensor, or a dict of tensors
        whose first dimension is the image."""
        ...

    @property
    def merge(self) -> Callable[..., Prediction]:
        """(outputs, views, size, **params): the raw outputs for the views of one image, what the views show, the
        image's (height, width), and the task's `params` -> its prediction."""
        ...


def _no_libraries(config: Config) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Task:
    """A kind of computer vision problem.

    Attributes:
        name: what stands behind `task:` in a config.
        summary: one line for `cvpipe tasks list`.
        config: the schema of its settings, a module-level subclass of `Config`.
        prediction: what the model says about one image.
        load_data: reads file names and labels (no pixels); raises DataError.
        load_split: reads one labelled data set for evaluation with a trained model's own labels. Takes the source, the
            model's config, its labels and the split's name; raises DataError.
        data_module: feeds the network while training.
        module: a `cvpipe.tasks.base.TaskModule`; its `network` ends up in the bundle.
        network: the network with random weights, to be filled from a bundle. Takes config, labels and the
            architecture record that the trained network carried. Input (N, 3, h, w) uint8.
        processor: builds the pre- and postprocessing.
        assess: metrics, plots and worst cases from predictions and targets. Takes predictions, the split, the config,
            the model's labels.
        draw: (Pillow image, prediction or target, labels) -> a Pillow image with it drawn in.
        params: keyword arguments of `postprocess` that a caller may set for one call, with their types.
        example: writes a tiny data set below a folder and returns a config that trains on it in seconds.
        evaluation_params: `params` that evaluation sets, such as a threshold low enough for a precision-recall curve.
        libraries: distributions beyond cvpipe's core that a model of this config needs where it is served.
        models: the networks that it can train, for `cvpipe tasks models` and the check of licences; exact names before
            patterns. Left out: the licence is looked up by the network's name alone.
    """

    name: str
    summary: str
    config: type[Config]
    prediction: type[Prediction]
    load_data: Callable[[Config], Splits]
    load_split: Callable[[str | DataSource, Config, Labels, str], Split]
    data_module: Callable[[Config, Splits], ImageDataModule]
    module: Callable[[Config, Labels], TaskModule]
    network: Callable[[Config, Labels, Mapping[str, Any]], torch.nn.Module]
    processor: Callable[[Config, Labels], Processor]
    assess: Callable[[Sequence[Prediction | Failure], Split, Config, Labels], Assessment]
    draw: Callable[[PIL.Image.Image, Any, Labels], PIL.Image.Image]
    params: Mapping[str, type]
    example: Callable[[Path], dict[str, Any]]
    evaluation_params: Mapping[str, Any] = field(default_factory=dict)
    libraries: Callable[[Config], Sequence[str]] = field(default=_no_libraries)
    models: tuple[ModelInfo, ...] = ()


@cache
def tasks() -> dict[str, Task]:
    """All tasks that can be found, by name. Built-in ones first; an entry point may not take a built-in's name."""
    import cvpipe.tasks

    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(cvpipe.tasks.__path__):
        if module.ispkg:
            task = import_module(f"cvpipe.tasks.{module.name}").TASK
            found[task.name] = task
    for point in entry_points(group=ENTRY_POINT_GROUP):
        task = point.load()
        if not isinstance(task, Task):
            raise ConfigError([f"entry point {point.name} ({point.value}): expected a cvpipe.Task, found {task!r}."])
        if task.name in found:
            raise ConfigError([f"entry point {point.name} ({point.value}): the task {task.name!r} exists already."])
        found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """The task of that name. Raises ConfigError with the closest names."""
    known = tasks()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError([f"task: unknown task {name!r}.{hint} Known tasks: {', '.join(sorted(known))}."])
    return known[name]
