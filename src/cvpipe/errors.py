"""The exceptions users meet. Each message says where, what was found, what was expected and what to do.

CvpipeError              exit code 1: the work failed
├── InputError           exit code 2: the input must change before a second try makes sense
│   ├── ConfigError      the YAML file or an override
│   ├── DataError        images, labels, manifests, folders
│   ├── ModelError       architecture names, weights
│   ├── BundleError      a model directory or URI that can't be read
│   ├── TrackingError    the MLflow server or registry
│   └── DependencyError  an optional package is not installed
├── ImageError           one image that can't be decoded; a Predictor turns it into a Failure
└── TrainingError        training stopped: NaN, out of memory, too many bad images
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CvpipeError(Exception):
    """Root of all errors that cvpipe raises on purpose."""

    exit_code = 1


class InputError(CvpipeError):
    """The user's input can't work as it is."""

    exit_code = 2


class ConfigError(InputError):
    """One or more problems in a config; `problems` holds a line for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = "The config has an error:" if count == 1 else f"The config has {count} errors:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(InputError):
    """Images or labels are missing or contradict each other."""


class ModelError(InputError):
    """An unknown architecture, or weights that can't be had."""


class BundleError(InputError):
    """A model directory or URI that can't be read."""


class TrackingError(InputError):
    """The MLflow tracking server or registry can't do what was asked."""


class DependencyError(InputError):
    """An optional package is needed and not installed."""


class ImageError(CvpipeError):
    """One image can't be decoded."""


class TrainingError(CvpipeError):
    """Training stopped before its end."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x' or 'y'?` for the closest of the known words, or an empty string."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def few(names: Iterable[object], most: int = 8) -> str:
    """`'a', 'b' and 7 more`: names for a message, however many there are."""
    found = list(names)
    shown = ", ".join(repr(name) for name in found[:most])
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"
