"""One batch run that writes to a file: journal, loop, final assembly."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvpipe.inference.journal import MISSING, Journal
from cvpipe.inference.lock import Lock
from cvpipe.inference.pictures import PictureFolder, Pictures
from cvpipe.inference.records import RecordMaker, plain_text
from cvpipe.inference.sinks import columns, write_records
from cvpipe.inference.sources import Inputs
from cvpipe.predictor import Predictor
from cvpipe.types import Failure, Prediction
from cvpipe.utils.console import Progress, facts, say
from cvpipe.utils.filesystem import write_json

_MOST_LINES = 4096


class Run:
    """Predicts what is missing and writes the output.

    Args:
        save_every: seconds between saved parts.
        lock: held by the caller for as long as the run lasts.
        pictures: where annotated images go, or None.

    Attributes:
        maker: counts the failures.
        drawn: pictures made by this run; `undrawn` says why others could not be made.
        resumed: records taken over from an interrupted run.
        predicted: records made by this one.
        seconds: that the predictions took.
    """

    def __init__(
        self,
        predictor: Predictor,
        inputs: Inputs,
        output: Path,
        params: Mapping[str, Any],
        save_every: float,
        lock: Lock,
        pictures: PictureFolder | None = None,
    ) -> None:
        self.predictor, self.inputs, self.output, self.params = predictor, inputs, output, dict(params)
        self.save_every, self.lock, self.pictures = save_every, lock, pictures
        self.journal = Journal(parts_folder(output), header(predictor, params))
        self.maker = RecordMaker(predictor)
        self.paths = [plain_text(path) for path in inputs.paths]
        self.part_of: list[int] = []
        self.resumed = self.predicted = self.drawn = 0
        self.undrawn: tuple[str, ...] = ()
        self.seconds = 0.0

    def __call__(self, restart: bool, replace_pictures: bool = False) -> None:
        """Raises InputError where an interrupted run does not fit, or a picture would replace that of another run;
        KeyboardInterrupt once everything is saved.

        Args:
            replace_pictures: whether pictures of other runs may be replaced.
        """
        own = self.pictures is not None and not restart and self._drew_into(self.pictures)
        if self.pictures is not None and not (own or restart or replace_pictures):
            self.pictures.check_absent(range(len(self.paths)))
        self.journal.open(restart)
        self.part_of = self.journal.load(self.paths)
        if self.pictures is not None:
            self._forget_undrawn(self.pictures, own)
            write_json(self._picture_note, str(self.pictures.folder.absolute()))
        todo = [position for position, number in enumerate(self.part_of) if number == MISSING]
        self.resumed = len(self.paths) - len(todo)
        self._announce()
        start = time.monotonic()
        try:
            self._predict(todo)
            self.seconds = time.monotonic() - start
            self.lock.check()
            records = self.journal.records(self.paths, self.part_of)
            write_records(self.output, records, self.predictor.task.prediction)
        except KeyboardInterrupt:
            done = self.resumed + self.predicted
            say(f"stopped: {done} of {len(self.paths)} images are saved. The same command goes on from there.")
            raise
        self._picture_note.unlink(missing_ok=True)
        self.journal.remove()

    @property
    def _picture_note(self) -> Path:
        """Says into which folder the interrupted run drew: what is there then is its own."""
        return self.journal.folder / "pictures.json"

    def _drew_into(self, pictures: PictureFolder) -> bool:
        """Whether the interrupted run put its pictures there, too."""
        try:
            return bool(json.loads(self._picture_note.read_text("utf-8")) == str(pictures.folder.absolute()))
        except (OSError, ValueError):
            return False

    def _forget_undrawn(self, pictures: PictureFolder, own: bool) -> None:
        """Has images predicted again that are done and have no picture: the record is not enough to draw one."""
        for position, number in enumerate(self.part_of):
            if number != MISSING and not (own and pictures.path(position).is_file()):
                self.part_of[position] = MISSING

    def _predict(self, todo: Sequence[int]) -> None:
        """Predicts the images at these positions, and enters in `part_of` where their records are."""
        if self.pictures is None:
            self._write_records(todo, lambda position, answer: None)
            return
        with Pictures(self.pictures, self.predictor, self.inputs) as pictures:
            self._write_records(todo, pictures.add)
            pictures.finish()
            self.drawn, self.undrawn = pictures.saved, pictures.reasons

    def _write_records(self, todo: Sequence[int], see: Callable[[int, Prediction | Failure], None]) -> None:
        progress = Progress("predict", len(self.paths), done=self.resumed)
        answers = self.predictor.stream((self.inputs.file(position) for position in todo), **self.params)
        lines: list[str] = []
        saved = time.monotonic()
        with progress, contextlib.closing(answers):
            try:
                for position, answer in zip(todo, answers, strict=True):
                    lines.append(self.maker.line(self.paths[position], answer))
                    see(position, answer)
                    progress.advance()
                    if len(lines) >= _MOST_LINES or time.monotonic() - saved >= self.save_every:
                        self._save(todo, lines)
                        saved = time.monotonic()
            finally:
                if lines:
                    self._save(todo, lines)

    def _save(self, todo: Sequence[int], lines: list[str]) -> None:
        self.lock.check()
        number = self.journal.write(lines)
        for position in todo[self.predicted : self.predicted + len(lines)]:
            self.part_of[position] = number
        self.predicted += len(lines)
        lines.clear()

    def _announce(self) -> None:
        bundle = self.predictor.bundle
        lines: dict[str, object] = {
            "model": f"{bundle.uri}{f' (version {bundle.version})' if bundle.version else ''}",
            "device": f"{self.predictor.device}, batches of {self.predictor.batch_size}",
            "images": "; ".join([str(len(self.inputs)), *self.inputs.notes]),
            "output": self.output,
        }
        if self.pictures is not None:
            lines["pictures"] = self.pictures.folder
        if self.resumed:
            lines["resumed"] = f"{self.resumed} images are done already"
        facts(lines)


def parts_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def header(predictor: Predictor, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the records depend on. Batch size and device do not change them."""
    bundle = predictor.bundle
    settings = {**bundle.config.inference.model_dump(mode="json"), **params}
    settings.pop("batch_size")
    values = {
        "model_uri": bundle.uri,
        "model_version": bundle.version,
        "weights": bundle.info["sha256"]["weights.safetensors"],
        "settings": settings,
        "columns": columns(predictor.task.prediction),
    }
    # as it will be when it is read again
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
