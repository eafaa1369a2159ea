"""MLflow: runs, metrics, models, registry. The differences between MLflow 2.21 and 3.x end here."""

from __future__ import annotations

import inspect
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cvpipe.config import TrackingConfig
from cvpipe.errors import ModelError, TrackingError
from cvpipe.utils.console import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from cvpipe.bundle import Bundle

DEFAULT_URI = "sqlite:///mlflow.db"
MODEL_NAME = "model"
_FLUSH_SECONDS = 5.0
_RETRY_SECONDS = 60.0
_PARAM_LENGTH = 500
_DESCRIPTION = ("bundle.json", "config.yaml")


@dataclass(frozen=True)
class LoggedModel:
    """Where a logged model is found.

    Attributes:
        uri: `models:/NAME/VERSION` where it was registered, else `models:/m-…` (MLflow 3) or `runs:/…` (2.x).
        name, version: of the registry, or None.
    """

    uri: str
    name: str | None = None
    version: str | None = None


def resolve_uris(config: TrackingConfig | None = None) -> tuple[str, str]:
    """(tracking URI, registry URI): the config, else MLflow's environment variables, else Databricks, else SQLite."""
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ
    tracking = (config and config.tracking_uri) or os.environ.get("MLFLOW_TRACKING_URI")
    tracking = tracking or ("databricks" if on_databricks else DEFAULT_URI)
    registry = (config and config.registry_uri) or os.environ.get("MLFLOW_REGISTRY_URI")
    registry = registry or ("databricks-uc" if tracking.startswith("databricks") else tracking)
    return tracking, registry


def check_reachable(uri: str) -> None:
    """Raises TrackingError at once where a server does not answer (MLflow itself tries for minutes)."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=5).close()
    except OSError as error:
        raise TrackingError(
            f"tracking.tracking_uri: no MLflow server answers at {_without_secrets(uri)} ({error}). Start it, correct "
            f"the address, or track in a local file: tracking.tracking_uri={DEFAULT_URI}"
        ) from None


def _artifact_location(tracking_uri: str) -> str | None:
    """For a SQLite file the folder beside it (MLflow would take ./mlruns, wherever that is); else the server's own."""
    path = tracking_uri.removeprefix("sqlite:///")
    if path == tracking_uri or not path or path.startswith(":"):
        return None
    return (Path(path).absolute().parent / "mlartifacts").as_uri()


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    # only then: urllib would turn sqlite:////folder into sqlite://folder
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


@cache
def _client(tracking: str, registry: str) -> MlflowClient:
    from mlflow import MlflowClient

    _quiet()
    return MlflowClient(tracking_uri=tracking, registry_uri=registry)


def _point_mlflow(tracking: str, registry: str) -> None:
    """Sets MLflow's own URIs.

    MLflow exports the registry to the environment as well. There it would win over the `tracking_uri` of the next call
    in this process, as if the user had named it: the variable is put back.
    """
    import mlflow

    before = os.environ.get("MLFLOW_REGISTRY_URI")
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registry)
    if before is None:
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
    else:
        os.environ["MLFLOW_REGISTRY_URI"] = before


def _quiet() -> None:
    """MLflow's and alembic's notes on migrations and defaults would drown our own lines."""
    import logging

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)


class Tracker:
    """One MLflow run. Metrics are collected and sent every few seconds, so that a training step never waits.

    Args:
        config: the tracking settings.
        run_name: name of a new run.
        run_id: an earlier run to go on with.
        tags: tags of a new run.
    """

    def __init__(
        self, config: TrackingConfig, run_name: str, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        from mlflow.exceptions import MlflowException

        self.config = config
        self.tracking_uri, self.registry_uri = resolve_uris(config)
        check_reachable(self.tracking_uri)
        check_reachable(self.registry_uri)
        try:
            _point_mlflow(self.tracking_uri, self.registry_uri)
            self.client = _client(self.tracking_uri, self.registry_uri)
            if run_id is None:
                experiment = self.client.get_experiment_by_name(config.experiment)
                self.experiment_id = (
                    experiment.experiment_id
                    if experiment
                    else self.client.create_experiment(config.experiment, _artifact_location(self.tracking_uri))
                )
                run = self.client.create_run(
                    self.experiment_id, run_name=config.run_name or run_name, tags=dict(tags or {})
                )
            else:
                run = self.client.get_run(run_id)
                self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            raise TrackingError(f"tracking: MLflow at {_without_secrets(self.tracking_uri)}: {error}") from error
        self.experiment_id = run.info.experiment_id
        self.run_id: str = run.info.run_id
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()
        self._pause = _FLUSH_SECONDS
        self._monitor: Any = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters of the run. Values that stand already (a resumed run) are left alone."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), 100):
            self.client.log_batch(self.run_id, params=fresh[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self._flushed > self._pause:
            try:
                self.flush()
                self._pause = _FLUSH_SECONDS
            except TrackingError as error:
                # a server that is away for a while must not end a training of hours: the metrics wait
                if self._pause != _RETRY_SECONDS:
                    warn(f"{error} Metrics are kept and sent later.")
                self._pause, self._flushed = _RETRY_SECONDS, time.monotonic()

    def flush(self) -> None:
        """Sends the metrics that wait. Raises TrackingError; they are kept then."""
        # MLflow 3 refuses the model of a run that has a metric twice at one step and millisecond: the later one counts
        waiting = list({(m.key, m.step, m.timestamp): m for m in self._waiting}.values())
        for start in range(0, len(waiting), 1000):
            with self._explained():
                self.client.log_batch(self.run_id, metrics=waiting[start : start + 1000])
        self._waiting = []
        self._flushed = time.monotonic()

    def log_dataset(self, name: str, source: str, digest: str, context: str, profile: str, schema: str) -> None:
        """A data set as an input of the run (mlflow.data)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", source, schema=schema, profile=profile)
        tag = InputTag("mlflow.data.context", context)
        with self._explained():
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        with self._explained():
            self.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)

    def start_system_metrics(self) -> None:
        """CPU, memory, disk, network and GPU use in the background."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        takes_uri = "tracking_uri" in inspect.signature(SystemMetricsMonitor).parameters
        options: dict[str, Any] = {"tracking_uri": self.tracking_uri} if takes_uri else {}
        build: Any = SystemMetricsMonitor
        self._monitor = build(self.run_id, resume_logging=True, **options)
        self._monitor.start()

    def log_model(self, bundle: Bundle, register_as: str | None = None, alias: str | None = None) -> LoggedModel:
        """Logs a bundle as the run's one model, and registers it where a name is given."""
        from mlflow.models import Model

        from cvpipe import flavor

        where: dict[str, Any] = {"artifact_path": MODEL_NAME}
        if "model_id" in inspect.signature(Model.log).parameters:
            # MLflow 3 would put the model into the default experiment, because no run is active in its sense
            params = self.client.get_run(self.run_id).data.params
            model = self.client.create_logged_model(self.experiment_id, MODEL_NAME, self.run_id, params=params)
            where = {"name": MODEL_NAME, "artifact_path": None, "model_id": model.model_id}
        with self._explained():
            info = Model.log(
                flavor=flavor, run_id=self.run_id, registered_model_name=register_as, bundle=bundle, **where
            )
        if register_as is None:
            return LoggedModel(uri=info.model_uri)
        version = str(info.registered_model_version)
        if alias:
            self.client.set_registered_model_alias(register_as, alias, version)
        return LoggedModel(f"models:/{register_as}/{version}", register_as, version)

    def finish(self, status: str = "FINISHED") -> None:
        """Sends what waits and closes the run: FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        try:
            self.flush()
            with self._explained():
                self.client.set_terminated(self.run_id, status)
        except TrackingError as error:
            if status == "FINISHED":
                raise
            warn(str(error))  # what went wrong before is the error to show

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns MLflow's errors into ours."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = (str(error).splitlines() or ["no reason given"])[0][:300]
            raise TrackingError(
                f"MLflow at {_without_secrets(self.tracking_uri)} can't be written to: {reason} What was trained is in "
                "the run's directory; the same command with --resume goes on from there."
            ) from error


def register_model(source: str, name: str, alias: str | None, config: TrackingConfig | None = None) -> LoggedModel:
    """Registers a logged model (`runs:/…` or `models:/m-…`) under a name and sets an alias.

    Raises:
        ModelError: it is a model of cvpipe, and its config does not accept its licences.
        TrackingError: the model or the registry is not there.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from cvpipe.config_file import load_config
    from cvpipe.models.catalog import check_bundle

    tracking, registry = resolve_uris(config)
    try:
        files = bundle_files(source, tracking, registry)
    except TrackingError as error:
        raise TrackingError(f"{source} could not be registered as {name}: {error}") from None
    if files is not None:
        try:
            check_bundle(load_config(files[1]), json.loads(files[0].read_text("utf-8")))
        except ModelError as error:
            raise ModelError(f"{source} is not registered as {name}. {error}") from None
    _point_mlflow(tracking, registry)
    try:
        version = str(mlflow.register_model(source, name).version)
        if alias:
            _client(tracking, registry).set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise TrackingError(f"{source} could not be registered as {name}: {error}") from None
    return LoggedModel(f"models:/{name}/{version}", name, version)


def download_model(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> str:
    """The local folder of a model. Raises TrackingError with the versions and aliases that exist."""
    import mlflow
    from mlflow.exceptions import MlflowException

    config = TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri)
    tracking, registry = resolve_uris(config)
    check_reachable(tracking)
    check_reachable(registry)
    _quiet()
    _point_mlflow(tracking, registry)
    try:
        return str(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        hint = _what_exists(uri, tracking, registry)
        reason = str(error).splitlines()[0]
        raise TrackingError(f"{uri}: not found in {_without_secrets(registry)} ({reason}).{hint}") from None


def bundle_files(
    uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> tuple[Path, Path] | None:
    """bundle.json and config.yaml of a model, without its weights; None for a model that cvpipe did not make.

    Raises TrackingError where there is no such model.
    """
    from mlflow.exceptions import MlflowException

    servers = resolve_uris(TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri))
    for server in set(servers):
        check_reachable(server)
    root = uri.rstrip("/")
    try:
        if root.startswith("models:/m-"):  # MLflow takes no path below the id of a model that is not registered
            root = _client(*servers).get_logged_model(root.removeprefix("models:/")).artifact_location.rstrip("/")
        found = [download_model(f"{root}/bundle/{name}", tracking_uri, registry_uri) for name in _DESCRIPTION]
    except (TrackingError, MlflowException):
        # the whole model tells one that is not there from one that is not ours
        folder = Path(download_model(uri, tracking_uri, registry_uri)) / "bundle"
        found = [str(folder / name) for name in _DESCRIPTION]
    bundle_json, config_yaml = map(Path, found)
    return (bundle_json, config_yaml) if bundle_json.is_file() and config_yaml.is_file() else None


def model_version(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> str:
    """The registry version behind `models:/NAME/VERSION` or `models:/NAME@ALIAS`, else an empty string."""
    rest = uri.removeprefix("models:/").strip("/")
    if uri.startswith("runs:/"):
        return ""
    if "@" in rest:
        name, _, alias = rest.partition("@")
        tracking, registry = resolve_uris(TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri))
        return str(_client(tracking, registry).get_model_version_by_alias(name, alias).version)
    name, _, version = rest.partition("/")
    return version if version.isdigit() else ""


def _what_exists(uri: str, tracking: str, registry: str) -> str:
    """A sentence on what could have been meant, for a URI that was not found."""
    from mlflow.exceptions import MlflowException

    from cvpipe.errors import did_you_mean

    if not uri.startswith("models:/"):
        return ""
    name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
    client = _client(tracking, registry)
    try:
        versions: Sequence[Any] = client.search_model_versions(f"name='{name}'")
        if versions:
            model = client.get_registered_model(name)
            aliases = ", ".join(f"@{a} (version {v})" for a, v in sorted(model.aliases.items())) or "no alias"
            return f" {name} has the versions {', '.join(sorted(str(v.version) for v in versions))}; {aliases}."
        names = [model.name for model in client.search_registered_models(max_results=100)]
    except MlflowException:
        return ""
    known = f" Registered models: {', '.join(names)}." if names else " The registry is empty."
    return f" No model {name!r} is registered.{did_you_mean(name, names)}{known}"


def run_of(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> str | None:
    """The run that made a model (`runs:/…`, a registered version, or a logged model), or None. Raises TrackingError."""
    from mlflow.exceptions import MlflowException

    if uri.startswith("runs:/"):
        return uri.removeprefix("runs:/").strip("/").partition("/")[0]
    tracking, registry = resolve_uris(TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri))
    client = _client(tracking, registry)
    name = uri.removeprefix("models:/").strip("/").partition("@")[0].partition("/")[0]
    try:
        if version := model_version(uri, tracking_uri, registry_uri):
            return client.get_model_version(name, version).run_id or None
        if name.startswith("m-") and hasattr(client, "get_logged_model"):  # MLflow 3
            return client.get_logged_model(name).source_run_id or None
    except MlflowException as error:
        raise TrackingError(f"{uri}: its run was not found ({str(error).splitlines()[0]}).") from None
    return None


def log_evaluation(
    run_id: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    folder: str,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> None:
    """Adds metrics, and files in an artifact folder, to a finished run. Raises TrackingError."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    tracking, registry = resolve_uris(TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri))
    client = _client(tracking, registry)
    now = int(time.time() * 1000)
    try:
        client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
        for file in files:
            client.log_artifact(run_id, str(file), folder)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"run {run_id}: {str(error).splitlines()[0]}") from None
