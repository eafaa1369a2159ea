"""`cvpipe predict` and `python -m src.inference.batch_inference`: a model, many images, one file of records.

Finished records are saved every few seconds beside the output (`journal`), so that the same command goes on after
Ctrl-C, SIGTERM or a crash. The output itself is complete or absent.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvpipe.bundle import Bundle
from cvpipe.config import Config
from cvpipe.errors import ConfigError, InputError
from cvpipe.inference.lock import Lock
from cvpipe.inference.pictures import PictureFolder, Pictures
from cvpipe.inference.records import RecordMaker, plain_text
from cvpipe.inference.run import Run, parts_folder
from cvpipe.inference.sinks import Record, check_suffix
from cvpipe.inference.sources import Inputs, find_inputs
from cvpipe.predictor import Predictor
from cvpipe.utils.console import duration, say

SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class BatchResult:
    """What a batch run did.

    Attributes:
        output: the file with the records, or None where they are in `records`.
        images: records, one for each distinct path.
        failed: images without a prediction; their records say why in `error`.
        images_per_second: of this run, reading and decoding included.
        resumed: records taken over from an interrupted run.
        seconds: that this run took, without loading the model.
        reasons: the most frequent kinds of failure with an example each.
        notes: on the inputs, such as repeated paths.
        records: the records where no output was named.
        pictures: folder of the annotated images, where they were asked for.
        drawn: annotated images that this run made.
    """

    output: Path | None
    images: int
    failed: int
    images_per_second: float
    resumed: int = 0
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] | None = None
    pictures: Path | None = None
    drawn: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": None if self.output is None else str(self.output),
            "images": self.images,
            "failed": self.failed,
            "images_per_second": self.images_per_second,
            **({} if self.pictures is None else {"pictures": str(self.pictures), "drawn": self.drawn}),
        }

    def __str__(self) -> str:
        parts = [f"{self.images} images", f"{self.failed} failed"]
        if self.resumed:
            parts.append(f"{self.resumed} of them from the interrupted run")
        parts.append(f"{self.images_per_second:.1f} images/s")
        drawn = "" if self.pictures is None else f"; {self.drawn} pictures -> {self.pictures}"
        return ", ".join(parts) + (f" -> {self.output}" if self.output else "") + drawn

    def _repr_html_(self) -> str:
        from cvpipe.utils.notebook import table

        rows = {**self.to_dict(), "images_per_second": f"{self.images_per_second:.1f}", "resumed": self.resumed}
        return table([{"": name, " ": value} for name, value in rows.items()]) + table(list(self.records or ())[:20])


def predict(
    model: str | Path | Bundle | Predictor,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    config: Config | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    params: Mapping[str, Any] | None = None,
    save_images: str | Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    save_every: float = SAVE_SECONDS,
) -> BatchResult:
    """Applies a model to many images. Called again after an interruption it goes on.

    Args:
        model: a Predictor, a Bundle, its directory, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/…`.
        inputs: a folder (with its subfolders), a glob, an image, a manifest (.csv, .parquet, .jsonl with a column of
            paths), a .txt list, or a sequence of paths. Relative paths in a manifest or list start at its folder.
        output: .json, .jsonl, .csv or .parquet; left out: the records come back in the result.
        config: its `tracking`, `training.device` and those settings of `inference` that it sets itself are used.
        device, batch_size: stand above the config's.
        params: the task's, such as `{"top_k": 3}`.
        save_images: folder for a copy of each image with its prediction drawn in.
        overwrite: replace an output, and pictures, that exist.
        restart: forget an interrupted run and an existing output, and start from the first image.
        save_every: seconds between saved parts; what a SIGKILL can cost.

    Raises:
        DataError: no images.
        ConfigError: the config is for another task than the model's.
        InputError: the output exists, its ending names no format, another process writes it, or an interrupted run
            used another model or other settings; or the folder for pictures can't be used.
        CvpipeError: the folder for pictures is full.
    """
    target = None if output is None else Path(output)
    if target is not None:
        check_suffix(target)
        _check_absent(target, overwrite or restart)
    found = find_inputs(inputs)
    pictures = None if save_images is None else PictureFolder(save_images, inputs, found)
    predictor = _predictor(model, config, device, batch_size, tracking_uri, registry_uri)
    chosen = predictor.check_params(params or {})
    if target is None:
        if pictures is not None and not overwrite:
            pictures.check_absent(range(len(found)))
        return _in_memory(predictor, found, chosen, pictures)
    folder = parts_folder(target)
    with _terminate_as_interrupt():
        try:
            with Lock(folder / "lock.json") as lock:
                # again, now that nobody else can write it
                _check_absent(target, overwrite or restart)
                run = Run(predictor, found, target, chosen, save_every, lock, pictures)
                run(restart, replace_pictures=overwrite)
        finally:
            # not empty where work is left, or another process has come in the meantime
            with contextlib.suppress(OSError):
                folder.rmdir()
    result = BatchResult(
        output=target,
        images=len(found),
        failed=run.maker.failed,
        images_per_second=run.predicted / run.seconds if run.predicted else 0.0,
        resumed=run.resumed,
        seconds=run.seconds,
        reasons=run.maker.reasons + run.undrawn,
        notes=found.notes,
        pictures=pictures.folder if pictures else None,
        drawn=run.drawn,
    )
    _report(result)
    return result


def _in_memory(
    predictor: Predictor, inputs: Inputs, params: Mapping[str, Any], folder: PictureFolder | None
) -> BatchResult:
    maker = RecordMaker(predictor)
    records: list[Record] = []
    start = time.monotonic()
    answers = predictor.stream(map(inputs.file, range(len(inputs))), **params)
    with Pictures(folder, predictor, inputs) if folder else contextlib.nullcontext() as pictures:
        for position, answer in enumerate(answers):
            records.append(maker.record(plain_text(inputs.paths[position]), answer))
            if pictures:
                pictures.add(position, answer)
        if pictures:
            pictures.finish()
    seconds = time.monotonic() - start
    return BatchResult(
        output=None,
        images=len(records),
        failed=maker.failed,
        images_per_second=len(records) / seconds,
        seconds=seconds,
        reasons=maker.reasons + (pictures.reasons if pictures else ()),
        notes=inputs.notes,
        records=tuple(records),
        pictures=folder.folder if folder else None,
        drawn=pictures.saved if pictures else 0,
    )


def _predictor(
    model: str | Path | Bundle | Predictor,
    config: Config | None,
    device: str | None,
    batch_size: int | None,
    tracking_uri: str | None,
    registry_uri: str | None,
) -> Predictor:
    if isinstance(model, Predictor) and config is None:
        return model
    if isinstance(model, (str, Path)):
        if config is not None:
            tracking_uri = tracking_uri or config.tracking.tracking_uri
            registry_uri = registry_uri or config.tracking.registry_uri
        model = Bundle.load(model, tracking_uri, registry_uri)
    bundle = model.bundle if isinstance(model, Predictor) else model
    if config is not None:
        if config.task != bundle.config.task:
            other = f"found {config.task!r}, and {bundle.uri} is a model for {bundle.config.task!r}."
            raise ConfigError([f"{config.where('task')}: {other}"])
        # what the config leaves out stays as it travels in the bundle
        own = {f"inference.{name}": getattr(config.inference, name) for name in config.inference.model_fields_set}
        bundle = replace(bundle, config=bundle.config.replace(**own))
        device = device or config.training.device
    return Predictor(bundle, device=device or "auto", batch_size=batch_size)


def _check_absent(output: Path, replaceable: bool) -> None:
    if output.exists() and not replaceable:
        raise InputError(f"output {output}: exists already. Replace it with --overwrite, or name another file.")


def _report(result: BatchResult) -> None:
    say(f"{result}, in {duration(result.seconds)}")
    for reason in result.reasons:
        say(f"  {reason}")
    readers = {".json": "read_json", ".jsonl": "read_json", ".csv": "read_csv", ".parquet": "read_parquet"}
    if result.output is not None:
        suffix = result.output.suffix.lower()
        options = ", lines=True" if suffix == ".jsonl" else ""
        say(f'next: pandas.{readers[suffix]}("{result.output}"{options})')


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM ends the run as Ctrl-C does: with everything saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    from cvpipe.cli import run

    return run(["predict", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
