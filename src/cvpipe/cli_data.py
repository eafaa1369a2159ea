"""`cvpipe data …`: look at data, prepare it, measure how fast it comes."""

from __future__ import annotations

import typer

app = typer.Typer(help="Check a data set, prepare it for training, measure loading.", no_args_is_help=True)
