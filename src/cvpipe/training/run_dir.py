"""The directory of one run, and whether a command may use it.

config.yaml      the config as it was resolved
run.json         MLflow run, status, what was decided while running
checkpoints/     see training.checkpoint
bundle/          the model
evaluation/      report.html, metrics.json, predictions.csv
bad_files.csv    images that could not be used, with reasons (if any)
bad_annotations.csv    what is wrong with annotations, and whether they were left out (if any)
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cvpipe.config import Config, flatten
from cvpipe.config_file import dump_config
from cvpipe.errors import InputError
from cvpipe.utils.filesystem import write_json, write_text

RUNS = Path("runs")
# what a resumed run may have changed: none of these has a part in the weights
_FREE = (
    "training.num_workers",
    "training.max_time",
    "training.log_every",
    "training.checkpoint_every",
    "training.output_dir",
)


@dataclass(frozen=True)
class RunState:
    """What a run decided that its config does not say.

    Attributes:
        status: running, interrupted, failed or finished.
        run_id: of MLflow.
        batch_size, accumulate: after running out of memory, if that happened.
        learning_rate: what the range test found, if there was one.
        result: what `train` returned, once it is finished.
    """

    status: str
    run_id: str | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    learning_rate: float | None = None
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def bad_files(self) -> Path:
        return self.path / "bad_files.csv"

    @property
    def bad_annotations(self) -> Path:
        return self.path / "bad_annotations.csv"

    def state(self) -> RunState | None:
        path = self.path / "run.json"
        return RunState(**json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def write_state(self, state: RunState) -> None:
        write_json(self.path / "run.json", asdict(state))

    def config_values(self) -> dict[str, Any]:
        values: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text("utf-8"))
        return values

    def write_config(self, config: Config) -> None:
        write_text(self.path / "config.yaml", dump_config(config))


def open_run(config: Config, resume: bool) -> tuple[RunDir, RunState | None]:
    """The directory for this training and, for a resumed run, its state.

    Without `training.output_dir` a new numbered directory is made in runs/, or, with `resume`, the newest one of this
    config is taken. A directory that holds a run already is used only with `resume`, and only with the same config.

    Raises:
        InputError: the directory is taken, or the config is not the one the run was started with.
    """
    if config.training.output_dir is not None:
        run = RunDir(Path(config.training.output_dir))
    else:
        newest = _newest(config.stem)
        run = newest if resume and newest else RunDir(_next(config.stem))
    state = run.state()
    if state is None:
        # a run that was refused for its data leaves the lists of what is bad
        lists = (run.bad_files, run.bad_annotations)
        if run.path.is_dir() and any(path not in lists for path in run.path.iterdir()):
            raise InputError(
                f"{config.where('training.output_dir')}: {run.path} holds other files. Choose an empty folder."
            )
        run.path.mkdir(parents=True, exist_ok=True)
        return run, None
    if not resume:
        raise InputError(
            f"{config.where('training.output_dir')}: {run.path} holds a run already ({state.status}). Go on with it: "
            "--resume. Or choose another folder: training.output_dir=DIR"
        )
    before, now = _filled_in(run.config_values(), config), config.flat()
    changed = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in _FREE and not key.startswith("check.")
    ]
    if changed:
        raise InputError(
            f"--resume goes on with {run.path} as it was started, and the config is another now: {'; '.join(changed)}. "
            "Undo that, or start a new run without --resume."
        )
    return run, state


def _filled_in(values: dict[str, Any], config: Config) -> dict[str, Any]:
    """The flat settings of an earlier run; those that came later have their defaults, as they had in effect."""
    try:
        return type(config).model_validate(values).flat()
    except ValueError:  # settings that are no more: shown as changed
        return flatten(values)


def _numbered(stem: str) -> list[tuple[int, Path]]:
    pattern = re.compile(re.escape(stem) + r"-(\d{4,})")
    if not RUNS.is_dir():
        return []
    return sorted((int(m[1]), path) for path in RUNS.iterdir() if (m := pattern.fullmatch(path.name)))


def _newest(stem: str) -> RunDir | None:
    found = _numbered(stem)
    return RunDir(found[-1][1]) if found else None


def _next(stem: str) -> Path:
    found = _numbered(stem)
    return RUNS / f"{stem}-{(found[-1][0] if found else 0) + 1:04d}"
