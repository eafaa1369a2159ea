"""`cvpipe data …`: look at data, prepare it, measure how fast it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cvpipe.cli_common import Json, Overrides, answer

app = typer.Typer(help="Check a data set, prepare it for training, measure loading.", no_args_is_help=True)


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="CONFIG|PATH", help="Config, folder, manifest or demo:NAME.")],
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="What the labels are for; left out: found out.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where results go; left out: checks/NAME.")] = None,
    delta: Annotated[str | None, typer.Option(metavar="PATH", help="Delta table to append the findings to.")] = None,
    as_json: Json = False,
) -> None:
    """Look for broken files, duplicates, leaks between splits, odd boxes and wrong labels."""

    def work() -> dict[str, Any]:
        from cvpipe.checks.check import check as run_check

        return run_check(data, overrides or (), task=task, output_dir=output_dir, delta=delta).to_dict()

    if not answer(work, as_json)["passed"]:
        raise typer.Exit(1)


@app.command()
def prepare(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file that names the data.")] = None,
    overrides: Overrides = None,
    to: Annotated[str | None, typer.Option(help="Folder for shards, delta:PATH or catalog.schema.table.")] = None,
    max_side: Annotated[int | None, typer.Option(min=8, help="Long side of images at most, pixels.")] = None,
    short_side: Annotated[int | None, typer.Option(min=8, help="Short side of images at most, pixels.")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Encode JPEGs anew at this quality.")] = None,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="Make JPEGs of other formats too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Take files in as they arrive, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option(help="With --watch: time from look to look.")] = "30s",
    verify: Annotated[str | None, typer.Option(metavar="DIR", help="Compare shards with their checksums.")] = None,
    as_json: Json = False,
) -> None:
    """Pack a data set for training, into shards or a Delta table. Again: only what is new."""

    def work() -> dict[str, Any]:
        from cvpipe.data.prepare import run_prepare

        settings = {"max_side": max_side, "short_side": short_side, "quality": quality, "jpeg": jpeg}
        return run_prepare(config, overrides or (), to, settings, every if watch else None, verify)

    answer(work, as_json)


@app.command()
def bench(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each of the three things that are measured.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure how fast images load and how fast the network takes them: which one waits?"""

    def work() -> dict[str, Any]:
        from cvpipe.training.data_bench import bench as run_bench
        from cvpipe.utils.console import say

        measured = run_bench(config, overrides or (), seconds).to_dict()
        say(f"\nnext: cvpipe train --config {config}")
        return measured

    answer(work, as_json)
