"""Turns answers into records, and counts the failures."""

from __future__ import annotations

from collections import Counter

from cvpipe.inference.sinks import Record, columns, to_json
from cvpipe.predictor import Predictor
from cvpipe.types import Failure, Prediction

_MOST_REASONS = 3


class RecordMaker:
    """Makes the records of one run, all with the same keys; `failed` and `reasons` say what went wrong."""

    def __init__(self, predictor: Predictor) -> None:
        bundle = predictor.bundle
        self._tail: Record = {"error": None, "model_uri": bundle.uri, "model_version": bundle.version}
        self._empty: Record = dict.fromkeys(columns(predictor.task.prediction))
        self._failures: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    @property
    def failed(self) -> int:
        return self._failures.total()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The most frequent failures, each with an example."""
        return tuple(
            f"{count} x {reason} (such as {self._examples[reason]})"
            for reason, count in self._failures.most_common(_MOST_REASONS)
        )

    def record(self, path: str, answer: Prediction | Failure) -> Record:
        if not isinstance(answer, Failure):
            return {"path": path, **answer.to_record(), **self._tail}
        self._failures[answer.reason] += 1
        self._examples.setdefault(answer.reason, path)
        return {**self._empty, **self._tail, "path": path, "error": answer.reason}

    def line(self, path: str, answer: Prediction | Failure) -> str:
        """The record as JSON; a number that JSON does not have makes it a failure."""
        try:
            return to_json(self.record(path, answer))
        except ValueError:
            return to_json(self.record(path, Failure("the prediction holds a number that is not finite")))


def plain_text(path: str) -> str:
    """A path as text that every format can hold: bytes that are no UTF-8 become escapes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
