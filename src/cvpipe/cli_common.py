"""What the commands share: options that several have, and how a verb answers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cvpipe.utils.console import on_stderr

INTERRUPTED = 130

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Change settings.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else on stderr.")]
ModelUri = Annotated[str, typer.Option("--model-uri", "-m", help="models:/NAME@ALIAS, runs:/…, or a directory.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow tracking server.")]


def answer(work: Callable[[], dict[str, Any]], as_json: bool) -> dict[str, Any]:
    """Runs a verb; with --json prints its result as the one thing on stdout."""
    try:
        if not as_json:
            return work()
        # MLflow, too, prints to stdout (links to the run)
        with on_stderr(), contextlib.redirect_stdout(sys.stderr):
            result = work()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print(json.dumps(result, allow_nan=False))
    return result
