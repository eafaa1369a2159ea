"""A bundle as an MLflow model with two flavors.

- python_function: column `image` (bytes, or base64 text) -> one record for each image. A thin adapter of Predictor.
- pytorch: `mlflow.pytorch.load_model` returns the nn.Module. That file is a pickle, because MLflow's format is one;
  cvpipe itself reads the safetensors of the bundle only.

MLflow imports this module by name when it loads a model (`loader_module`).
"""

from __future__ import annotations

import base64
import binascii
import inspect
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.bundle import Bundle, installed_version
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.types import Failure, Prediction

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature

FLAVOR_NAME = "cvpipe"
COLUMN = "image"
_EMPTY: dict[str, Any] = {"string": "", "double": 0.0, "int": 0}
_EMPTY |= {kind: [] for kind in ("list<string>", "list<double>", "list<list<double>>")}


def save_model(path: str, bundle: Bundle, mlflow_model: Model | None = None, **kwargs: Any) -> None:
    """Writes an MLflow model directory around a bundle. Called by `mlflow.models.Model.log`."""
    import mlflow.pytorch
    from mlflow.models import Model

    import cvpipe

    model = mlflow_model or Model()
    options: dict[str, Any] = {}
    if "serialization_format" in inspect.signature(mlflow.pytorch.save_model).parameters:
        options["serialization_format"] = "pickle"
    mlflow.pytorch.save_model(
        bundle.network(),
        path,
        mlflow_model=model,
        pip_requirements=requirements(bundle),
        code_paths=[str(Path(cvpipe.__file__).parent)],
        **options,
    )
    root = Path(path)
    shutil.copytree(bundle.path, root / "bundle")
    model.signature = signature(bundle)
    conf = model.flavors.pop("python_function")
    model.add_flavor(FLAVOR_NAME, data="bundle", code="code", format_version=bundle.info["format_version"])
    _add_pyfunc(model, conf)
    _save_example(input_example(), root, model)
    model.save(str(root / "MLmodel"))


def _add_pyfunc(model: Model, conf: dict[str, Any]) -> None:
    kept = {key: value for key, value in conf.items() if key in ("env", "python_version", "code")}
    model.add_flavor("python_function", **kept, loader_module="cvpipe.flavor", data="bundle")


def _save_example(example: pd.DataFrame, root: Path, model: Model) -> None:
    from mlflow.models.utils import _Example

    saved = _Example(example)
    saved.save(str(root))
    model.saved_input_example_info = saved.info


def requirements(bundle: Bundle) -> list[str]:
    """What serving must install, pinned to the versions that trained the model. cvpipe itself travels as code."""
    names = ["mlflow", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pandas", "pyarrow"]
    names += ["pillow", "pydantic", "pyyaml", "safetensors"]
    names += ["faster-coco-eval", *find_task(bundle.config.task).libraries(bundle.config)]
    versions = {name: installed_version(name).split("+")[0] for name in names}
    return [f"{name}=={version}" if version else name for name, version in versions.items()]


def signature(bundle: Bundle) -> ModelSignature:
    """Input `image`, params of the task, output columns of the task's records and `error`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    types: dict[str, Any] = {
        "string": DataType.string,
        "double": DataType.double,
        "int": DataType.long,
        "list<string>": Array(DataType.string),
        "list<double>": Array(DataType.double),
        "list<list<double>>": Array(Array(DataType.double)),
    }
    task = find_task(bundle.config.task)
    outputs = [ColSpec(types[kind], name) for name, kind in task.prediction.record_schema]
    kinds = {int: DataType.long, float: DataType.double, str: DataType.string, bool: DataType.boolean}
    params = [
        ParamSpec(name, kinds[kind], getattr(bundle.config.inference, name)) for name, kind in task.params.items()
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, COLUMN)]),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error")]),
        params=ParamSchema(params),
    )


def input_example() -> pd.DataFrame:
    """One small grey PNG, base64."""
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    return pd.DataFrame({COLUMN: [base64.b64encode(buffer.getvalue()).decode()]})


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> BundleModel:
    return BundleModel(Predictor(Bundle.load(path)))


class BundleModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """
        Args:
            model_input: a DataFrame with a column `image`, or a mapping or sequence of images: bytes or base64 text.
                Paths and URLs are not accepted: a request must not name files of the server.
            params: the task's, such as `{"top_k": 3}`.

        Returns:
            One row for each image: the task's columns and `error` (empty where the image was read). No NaN.
        """
        import pandas as pd

        images = [_decode_cell(cell) for cell in _column(model_input)]
        given = {name: value for name, value in (params or {}).items() if value is not None}
        answers = iter(self.predictor.predict([i for i in images if not isinstance(i, Failure)], **given))
        schema = self.predictor.task.prediction.record_schema
        rows = [_row(image if isinstance(image, Failure) else next(answers), schema) for image in images]
        return pd.DataFrame(rows, columns=[*(name for name, _ in schema), "error"])


def _column(model_input: Any) -> list[Any]:
    from cvpipe.errors import InputError

    if hasattr(model_input, "columns"):
        if COLUMN not in model_input.columns:
            raise InputError(f"expected a column {COLUMN!r}, found {list(model_input.columns)}")
        return list(model_input[COLUMN])
    if isinstance(model_input, dict):
        if COLUMN not in model_input:
            raise InputError(f"expected a key {COLUMN!r}, found {list(model_input)}")
        value = model_input[COLUMN]
        return [value] if isinstance(value, (str, bytes)) else list(value)
    return [model_input] if isinstance(model_input, (str, bytes)) else list(model_input)


def _decode_cell(cell: Any) -> bytes | Failure:
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if not isinstance(cell, str):
        return Failure(f"expected bytes or base64 text, found {type(cell).__name__}")
    text = cell.partition(",")[2] if cell.startswith("data:") else cell
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return Failure("expected an image as base64 text, found other text (paths and URLs are not read)")


def _row(answer: Prediction | Failure, schema: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {name: _EMPTY[kind] for name, kind in schema} | {"error": answer.reason}
    return answer.to_record() | {"error": ""}
