"""Config-driven training, evaluation, inference and monitoring of computer vision models on Databricks.

    import cvpipe
    result = cvpipe.train("configs/classification_digits.yaml")
    cvpipe.Predictor.load(result.bundle).predict(["a.jpg", "b.jpg"])

Names are imported when they are first used: `import cvpipe` itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cvpipe.bundle import Bundle
    from cvpipe.config import Config
    from cvpipe.config_file import load_config, parse_config
    from cvpipe.errors import CvpipeError
    from cvpipe.evaluation.evaluate import Evaluation, evaluate
    from cvpipe.inference.batch_inference import BatchResult, predict
    from cvpipe.predictor import Predictor
    from cvpipe.task import Task
    from cvpipe.training.train import TrainResult, train

_HOMES = {
    "Bundle": "cvpipe.bundle",
    "Config": "cvpipe.config",
    "load_config": "cvpipe.config_file",
    "parse_config": "cvpipe.config_file",
    "CvpipeError": "cvpipe.errors",
    "Evaluation": "cvpipe.evaluation.evaluate",
    "evaluate": "cvpipe.evaluation.evaluate",
    "BatchResult": "cvpipe.inference.batch_inference",
    "predict": "cvpipe.inference.batch_inference",
    "Predictor": "cvpipe.predictor",
    "Task": "cvpipe.task",
    "TrainResult": "cvpipe.training.train",
    "train": "cvpipe.training.train",
}

__all__ = [
    "Bundle",
    "Config",
    "load_config",
    "parse_config",
    "CvpipeError",
    "Evaluation",
    "evaluate",
    "BatchResult",
    "predict",
    "Predictor",
    "Task",
    "TrainResult",
    "train",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cvpipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
