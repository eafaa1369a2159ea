"""The bundle: the directory that is the model. Everything inference needs is inside, as text and safetensors.

bundle.json           format version, task, licences, library versions, SHA-256 of each file
config.yaml           the full config the model was trained with
classes.json          what the outputs mean
architecture.json     what the network needs beyond the config to be built offline
weights.safetensors   all parameters and buffers
metrics.json          metrics of the evaluation, once it was made
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.config import Config
from cvpipe.errors import BundleError
from cvpipe.types import Labels
from cvpipe.utils.filesystem import atomic_path, sha256_of, write_json, write_text

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
_HASHED = ("config.yaml", "classes.json", "architecture.json", "weights.safetensors")


@dataclass(frozen=True)
class Bundle:
    """A trained model on disk.

    Attributes:
        path: the directory.
        config: the config it was trained with.
        labels: class names and kind of labels.
        uri: where it was loaded from, as the user named it.
        version: registry version, or an empty string where it does not come from a registry.
        info: the content of bundle.json.
    """

    path: Path
    config: Config
    labels: Labels
    uri: str
    version: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, path: str | Path, config: Config, labels: Labels, network: torch.nn.Module) -> Bundle:
        """Writes a bundle. `bundle.json` comes last: a directory without it is not a bundle."""
        from safetensors.torch import save_file

        from cvpipe.config_file import dump_config
        from cvpipe.models.catalog import record_of

        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for stale in ("bundle.json", "metrics.json"):
            (path / stale).unlink(missing_ok=True)
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
        with atomic_path(path / "weights.safetensors") as staged:
            save_file(tensors, staged)
        write_text(path / "config.yaml", dump_config(config))
        write_json(path / "classes.json", labels.to_dict())
        write_json(path / "architecture.json", getattr(network, "architecture", {}))
        info = {
            "format_version": FORMAT_VERSION,
            "task": config.task,
            "licenses": record_of(config),
            "versions": library_versions(),
            "sha256": {name: sha256_of(path / name) for name in _HASHED},
        }
        write_json(path / "bundle.json", info)
        return cls(path, config, labels, str(path), info=info)

    @classmethod
    def load(cls, source: str | Path, tracking_uri: str | None = None, registry_uri: str | None = None) -> Bundle:
        """Opens a bundle directory, a run's directory, `runs:/RUN_ID/model`, `models:/NAME/VERSION` or
        `models:/NAME@ALIAS`.

        Raises:
            BundleError: not a bundle, made by a newer cvpipe, or a file in it was changed.
            TrackingError: the URI can't be resolved.
        """
        source = str(source)
        version = ""
        if source.startswith(("models:/", "runs:/")):
            from cvpipe.tracking import download_model, model_version

            folder = Path(download_model(source, tracking_uri, registry_uri))
            version = model_version(source, tracking_uri, registry_uri)
        else:
            folder = Path(source)
        path = next((p for p in (folder, folder / "bundle") if (p / "bundle.json").is_file()), None)
        if path is None:
            state = "exists and holds no bundle.json" if folder.is_dir() else "does not exist"
            if folder.is_file():
                state = "is a file"
            raise BundleError(
                f"{source}: {state if folder == Path(source) else 'the model holds no bundle'}. Expected a bundle "
                "directory (`cvpipe train` writes one), models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/model."
            )
        return cls._open(path, source, version)

    @classmethod
    def _open(cls, path: Path, uri: str, version: str) -> Bundle:
        from cvpipe.config_file import load_config

        try:
            info = json.loads((path / "bundle.json").read_text("utf-8"))
            hashes = dict(info["sha256"])
            newer = int(info["format_version"]) > FORMAT_VERSION
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{uri}: bundle.json can't be read ({error!r}). Copy the model again.") from None
        if newer:
            raise BundleError(
                f"{uri}: bundle format {info['format_version']}, this cvpipe reads up to {FORMAT_VERSION}. "
                "Upgrade: pip install -U databricks-cv-pipeline"
            )
        for name, expected in hashes.items():
            if not (path / name).is_file() or sha256_of(path / name) != expected:
                raise BundleError(f"{uri}: {name} is not the file that was saved with the model. Copy the model again.")
        labels = Labels.from_dict(json.loads((path / "classes.json").read_text("utf-8")))
        return cls(path, load_config(path / "config.yaml"), labels, uri, version, info)

    @property
    def architecture(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.path / "architecture.json").read_text("utf-8"))
        return record

    @property
    def metrics(self) -> dict[str, Any]:
        """What evaluation found, or an empty dict."""
        path = self.path / "metrics.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return found

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.path / "metrics.json", metrics)

    def network(self) -> torch.nn.Module:
        """The network with its weights, in evaluation mode, on the CPU."""
        from safetensors.torch import load_file

        from cvpipe.task import find_task

        network = find_task(self.config.task).network(self.config, self.labels, self.architecture)
        network.load_state_dict(load_file(self.path / "weights.safetensors"))
        return network.eval()

    def _repr_html_(self) -> str:
        from cvpipe.utils.notebook import table

        rows = [
            {"": "model", " ": self.config.model.name},
            {"": "task", " ": self.config.task},
            {"": "classes", " ": ", ".join(self.labels.classes)},
            {"": "from", " ": f"{self.uri} {f'(version {self.version})' if self.version else ''}"},
        ]
        rows += [{"": name, " ": f"{value['value']:.4f}"} for name, value in self.metrics.items()]
        return table(rows)


def library_versions() -> dict[str, str]:
    """Versions of what the model was made with."""
    import platform

    from cvpipe import __version__

    names = ("torch", "torchvision", "lightning", "timm", "transformers", "mlflow", "numpy", "pillow")
    found = {name: installed_version(name) for name in names}
    own = {"cvpipe": __version__, "python": platform.python_version()}
    return own | {name: version for name, version in found.items() if version}


def installed_version(distribution: str) -> str:
    """Its version, or an empty string where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
