"""Alternating runs of two engines, each in a process of its own, and what is made of their figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN_TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Options:
    """What the command line chose.

    Attributes:
        quick: few and short runs: shows that everything works, the figures mean little.
        rounds: alternations of the engines.
        device: auto, cpu, cuda or cuda:N, for both sides.
        images: an ImageFolder root with train/, val/ and test/.
    """

    quick: bool
    rounds: int
    device: str
    images: Path


@dataclass(frozen=True)
class Comparison:
    """One figure with its goal.

    Attributes:
        name: such as `loader/jitter`.
        what: one line for the reader.
        unit: of the two sides' figures.
        ours, theirs: one figure a run, in the order of the runs. `theirs` is empty where there is only a limit.
        value: the median of the pairs' ratios ours / theirs, or the median of `ours`.
        goal: for the value; None where the figure is shown for information.
        at_least: the goal is a lower bound, else an upper bound.
        notes: other figures by name.
    """

    name: str
    what: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    value: float
    goal: float | None
    at_least: bool
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest value of a pair (or run)."""
        values = _ratios(self.ours, self.theirs) if self.theirs else self.ours
        return min(values), max(values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "value": self.value,
            "spread": list(self.spread),
            "goal": self.goal,
            "at_least": self.at_least,
            "reached": self.reached,
            "notes": self.notes,
        }


def compare(
    name: str,
    what: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    goal: float | None,
    at_least: bool,
    notes: Mapping[str, Any] | None = None,
) -> Comparison:
    """The median of the ratios of runs that stood next to each other: slow drifts of the machine cancel out."""
    value = statistics.median(_ratios(ours, theirs))
    return Comparison(name, what, unit, tuple(ours), tuple(theirs), value, goal, at_least, dict(notes or {}))


def alternate(engines: Sequence[str], settings: Mapping[str, Any], times: int) -> dict[str, list[dict[str, float]]]:
    """Runs every engine `times` times, in turn, the order reversed each time.

    Args:
        engines: `module.function` below `benchmarks`, such as `loader.cvpipe`.
        settings: keyword arguments of the functions.
    """
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for turn in range(times):
        for engine in engines if turn % 2 == 0 else list(reversed(engines)):
            result = run_engine(engine, settings)
            found[engine].append(result)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
            print(f"  {turn + 1}/{times}  {engine:<24} {shown}", file=sys.stderr, flush=True)
    return found


def run_engine(engine: str, settings: Mapping[str, Any], python: str = sys.executable) -> dict[str, float]:
    """Calls the function in a fresh process and returns the figures that it returned."""
    command = [python, "-m", "benchmarks.engine", engine, json.dumps(dict(settings))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, env=_environment(), check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{engine} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def figures(results: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [result[key] for result in results]


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on, and how busy the machine was."""
    from importlib.metadata import version

    import torch

    names = ("torch", "torchvision", "lightning", "timm", "pillow", "mlflow")
    cuda = device != "cpu" and torch.cuda.is_available()
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _environment() -> dict[str, str]:
    # no engine may wait for a network, or find a tracking server by accident
    own = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
    return {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | own
