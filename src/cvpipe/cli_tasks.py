"""What `cvpipe tasks models` and `cvpipe tasks new` do and print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvpipe.utils.console import say, table


def models(task: str | None, pattern: str) -> dict[str, Any]:
    """Prints the networks of a task, or of all, as a table."""
    from cvpipe.models.catalog import listing
    from cvpipe.task import find_task, tasks

    chosen = [find_task(task)] if task else list(tasks().values())
    rows = [row for each in chosen for row in listing(each, pattern)]
    table(
        [
            {
                **({} if task else {"task": row["task"]}),
                "network": _shown(row),
                "library": row["library"],
                "code": row["code"],
                "published weights": row["weights"],
                "their licence": row["weights_license"] or ("" if row["allowed"] is not None else "each its own"),
                "allowed": {True: "yes", False: "no", None: "by licence"}[row["allowed"]],
            }
            for row in rows
        ]
    )
    if any(row["allowed"] is None for row in rows):
        say(f"\neach its own: `cvpipe tasks models {task or 'TASK'} --filter NAME` shows the licence of each")
    elif not rows:
        say("no such network")
    return {"models": rows}


def _shown(row: dict[str, Any]) -> str:
    if row["part"] == "backbone":
        return f"backbone {row['network']}"
    return "any timm name" if row["network"] == "*" else str(row["network"]).replace("*", "NAME")


def new(name: str, folder: Path, package: Path | None) -> dict[str, Any]:
    """Writes a task and says what to type next."""
    from cvpipe.scaffold.generate import new_task

    made = new_task(name, folder, package)
    for path in made.files:
        say(f"  {path}")
    for number, line in enumerate(made.next):
        say(f"{'     ' if number else 'next:'} {line}")
    return {"task": made.name, "files": [str(path) for path in made.files], "config": str(made.config)}
