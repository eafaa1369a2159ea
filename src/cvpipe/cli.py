"""The command line. Each verb imports what it needs when it is called; `cvpipe --help` loads nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cvpipe import __version__, cli_data, cli_tasks
from cvpipe.cli_common import ConfigOption, Device, Json, ModelUri, Overrides, TrackingUri, answer
from cvpipe.errors import CvpipeError
from cvpipe.utils.console import facts, say, table

app = typer.Typer(
    name="cvpipe",
    help="Train, evaluate and apply computer vision models, on a laptop and on Databricks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tasks_app = typer.Typer(help="List tasks and networks, or start a task of your own.", no_args_is_help=True)
config_app = typer.Typer(help="Check a config, or list all settings.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(config_app, name="config")
app.add_typer(cli_data.app, name="data")


@app.command()
def train(
    config: ConfigOption,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model: check the data, fit, evaluate, log to MLflow, register."""

    def work() -> dict[str, Any]:
        from cvpipe.training.train import train as run_training

        return run_training(config, overrides or (), resume=resume).to_dict()

    answer(work, as_json)


@app.command()
def evaluate(
    model_uri: ModelUri,
    data: Annotated[str | None, typer.Option(help="Folder, manifest or demo:NAME; left out: the model's own.")] = None,
    split: Annotated[str, typer.Option(help="Which split of it: train, val or test.")] = "test",
    output_dir: Annotated[Path | None, typer.Option(help="Where the report goes.")] = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Measure a model on labelled images: metrics with intervals, plots, an HTML report."""

    def work() -> dict[str, Any]:
        from cvpipe.evaluation.evaluate import evaluate as run_evaluation

        return run_evaluation(
            model_uri,
            data,
            split=split,
            output_dir=output_dir,
            device=device,
            batch_size=batch_size,
            tracking_uri=tracking_uri,
        ).to_dict()

    answer(work, as_json)


@app.command()
def register(
    model_uri: ModelUri,
    name: Annotated[str, typer.Option(help="Registered model; in Unity Catalog catalog.schema.name.")],
    alias: Annotated[str | None, typer.Option(help="Alias to set on the new version.")] = None,
    tracking_uri: TrackingUri = None,
    registry_uri: Annotated[str | None, typer.Option(help="MLflow registry.")] = None,
    as_json: Json = False,
) -> None:
    """Register a logged model under a name."""

    def work() -> dict[str, Any]:
        from cvpipe.config import TrackingConfig
        from cvpipe.tracking import register_model

        tracking = TrackingConfig(tracking_uri=tracking_uri, registry_uri=registry_uri)
        model = register_model(model_uri, name, alias, tracking)
        say(f"registered {model.uri}" + (f", alias {alias}" if alias else ""))
        return {"model_uri": model.uri, "name": model.name, "version": model.version}

    answer(work, as_json)


@app.command()
def predict(
    model_uri: ModelUri,
    input_dir: Annotated[str, typer.Option("--input-dir", "-i", help="Folder, glob, manifest, list or image.")],
    output_file: Annotated[Path, typer.Option("--output-file", "-o", help=".json, .jsonl, .csv or .parquet.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings for tracking and inference.")] = None,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes in an answer.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Multi-label: least score.")] = None,
    save_images: Annotated[Path | None, typer.Option(metavar="DIR", help="Save annotated images there.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run has done.")] = False,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Apply a model to many images. The same command again goes on where it stopped."""

    def work() -> dict[str, Any]:
        from cvpipe.config_file import load_config
        from cvpipe.inference.batch_inference import predict as run_prediction

        params = {name: value for name, value in (("top_k", top_k), ("threshold", threshold)) if value is not None}
        return run_prediction(
            model_uri,
            input_dir,
            output_file,
            config=load_config(config, overrides or ()) if config else None,
            device=device,
            batch_size=batch_size,
            params=params,
            save_images=save_images,
            overwrite=overwrite,
            restart=restart,
            tracking_uri=tracking_uri,
        ).to_dict()

    answer(work, as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Train, evaluate, register and predict on scanned digits, in about two minutes, offline."""

    def work() -> dict[str, Any]:
        from cvpipe.demo import run_demo

        return run_demo(folder)

    answer(work, as_json)


@tasks_app.command("list")
def tasks_list() -> None:
    """The tasks that can be found."""
    from cvpipe.task import tasks

    table([{"task": task.name, "what it learns": task.summary} for task in tasks().values()])


@tasks_app.command("models")
def tasks_models(
    task: Annotated[str | None, typer.Argument(help="Left out: all tasks.")] = None,
    pattern: Annotated[str, typer.Option("--filter", metavar="PATTERN", help="Names, such as 'convnext*'.")] = "",
    as_json: Json = False,
) -> None:
    """The networks of a task, with the licences of their code and their published weights."""
    answer(lambda: cli_tasks.models(task, pattern), as_json)


@tasks_app.command("new")
def tasks_new(
    name: Annotated[str, typer.Argument(help="snake_case, such as depth_estimation.")],
    folder: Annotated[Path, typer.Option(help="A checkout of cvpipe.")] = Path(),
    package: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a package of its own instead.")] = None,
    as_json: Json = False,
) -> None:
    """Write a new task that trains at once, with a config, a test and a page, for you to change."""
    answer(lambda: cli_tasks.new(name, folder, package), as_json)


@config_app.command("check")
def config_check(config: Annotated[Path, typer.Argument()], overrides: Overrides = None, as_json: Json = False) -> None:
    """Validate a config and print it with all settings filled in."""

    def work() -> dict[str, Any]:
        import yaml

        from cvpipe.config_file import load_config

        values = load_config(config, overrides or ()).to_dict()
        say(yaml.safe_dump(values, sort_keys=False).rstrip())
        return values

    answer(work, as_json)


@config_app.command("reference")
def config_reference(task: Annotated[str, typer.Argument()] = "classification") -> None:
    """All settings of a task, as Markdown."""
    from cvpipe.config_reference import reference
    from cvpipe.task import find_task

    say(reference(find_task(task).config).rstrip())


def _version(value: bool) -> None:
    if value:
        facts({"cvpipe": __version__, "python": sys.version.split()[0]})
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def run(argv: Sequence[str]) -> int:
    """Runs a command and returns its exit code: 0 done, 1 the work failed, 2 bad input, 130 interrupted."""
    try:
        # typer handles its own usage errors (newer versions carry a click of their own) and ends with SystemExit
        app(list(argv), prog_name="cvpipe")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CvpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
