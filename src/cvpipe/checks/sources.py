"""What `cvpipe data check` is pointed at: a config, a data set without one, or a folder of images without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvpipe.config import Config
from cvpipe.config_file import load_config, parse_config
from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.demo import PREFIX
from cvpipe.data.prepared import read_splits
from cvpipe.data.splits import SPLIT_FOLDERS, Split, Splits
from cvpipe.errors import DataError
from cvpipe.task import Task, find_task, tasks

RICHEST_FIRST = (
    "keypoints",
    "instance_segmentation",
    "detection",
    "semantic_segmentation",
    "anomaly",
    "classification",
)
_MOST_LEFT_OUT = 0.5


@dataclass(frozen=True)
class Source:
    """What is checked.

    Attributes:
        name: for the output folder.
        text: as the user wrote it.
        config: settings; those of the defaults where none were named.
        task: None for images without labels.
        splits: the images.
        data: the labelled data set; None for images without labels.
        from_config: whether a config names the data.
        notes: how it was read.
    """

    name: str
    text: str
    config: Config
    task: Task | None
    splits: tuple[Split, ...]
    data: Splits | None
    from_config: bool
    notes: tuple[str, ...]


def open_source(text: str, task: str | None, overrides: Sequence[str]) -> Source:
    """Reads names and labels, no pixels.

    Args:
        text: a config file, or what `data.train` may be.
        task: its name; None: that of the config, or the one that sees most in the data.

    Raises:
        ConfigError, DataError: it can't be read; with the place and the way out.
    """
    if is_config(text):
        changes = [*overrides, *([f"task={task}"] if task else [])]
        config = load_config(text, changes)
        found = find_task(config.task)
        return _labelled(Path(text).stem, text, config, found, True)
    name = text.removeprefix(PREFIX) if text.startswith(PREFIX) else Path(os.path.abspath(text)).name
    if task is not None:
        return _labelled(name, text, _config(text, task, overrides), find_task(task), False)
    if not text.startswith(PREFIX) and not Path(text).exists():
        raise DataError(
            f"{text}: no such file or folder. Expected a config (.yaml), a data set's folder, a manifest (.csv, "
            ".parquet, .jsonl), an annotation file, or demo:NAME."
        )
    reasons: dict[str, str] = {}
    for each in RICHEST_FIRST:
        if each not in tasks():
            continue
        try:
            source = _labelled(name, text, _config(text, each, overrides), find_task(each), False)
        except DataError as error:
            reasons[each] = str(error)
            continue
        assert source.data is not None
        if not any(_says_something(target) for split in source.splits for target in split.targets):
            reasons[each] = "all images would count as good"
            continue
        left_out = sum(problem.dropped for problem in source.data.problems)
        if left_out <= _MOST_LEFT_OUT * source.data.annotations or not source.data.annotations:
            return source
        reasons[each] = f"{left_out} of {source.data.annotations} annotations can't be used"
    return _unlabelled(name, text, overrides, reasons)


def is_config(text: str) -> bool:
    """Whether this is a cvpipe config; a YOLO data set has a YAML file, too."""
    if not text.lower().endswith((".yaml", ".yml")):
        return False
    import yaml

    try:
        values = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError):
        return True  # reading it as one says what is wrong
    return not (isinstance(values, dict) and "names" in values and "data" not in values)


def _says_something(target: Any) -> bool:
    """False for what a folder of loose images is read as: good ones to learn what is normal from."""
    return not getattr(target, "is_good", False)


def _config(text: str, task: str, overrides: Sequence[str]) -> Config:
    return parse_config({"task": task, "data": {"train": text}}, overrides)


def _labelled(name: str, text: str, config: Config, task: Task, from_config: bool) -> Source:
    data = read_splits(task, config)
    return Source(name, text, config, task, tuple(data.all()), data, from_config, (f"task: {task.name}", *data.notes))


def _unlabelled(name: str, text: str, overrides: Sequence[str], reasons: dict[str, str]) -> Source:
    """Images alone. Raises DataError where there are none either."""
    folder = Path(text)
    splits = _image_files(folder) if folder.is_dir() else []
    tried = "\n".join(f"  {task}: {reason.splitlines()[0]}" for task, reason in reasons.items())
    if not splits:
        raise DataError(f"{text}: no task reads it, and it holds no images.\n{tried}\nSay more: --task TASK")
    config = _config(text, "classification", overrides)
    note = f"no task reads labels here, so images alone are checked. If there are labels: --task TASK\n{tried}"
    return Source(name, text, config, None, tuple(splits), None, False, (note,))


def _image_files(folder: Path) -> list[Split]:
    """The images below a folder; the name of a folder directly in it may say the split."""
    aliases = {alias: name for name, names in SPLIT_FOLDERS.items() for alias in names}
    found: dict[str, list[str]] = {}
    for root, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if name[0] != ".")
        first = Path(root).relative_to(folder).parts[:1]
        split = aliases.get(first[0].lower(), "") if first else ""
        images = [os.path.join(root, f) for f in sorted(files) if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES]
        if images:
            found.setdefault(split, []).extend(i for i in images if not os.path.basename(i).startswith("."))
    return [Split(name, tuple(paths), (None,) * len(paths)) for name, paths in found.items() if paths]


def output_folder(source: Source, wanted: Path | None) -> Path:
    """Where results go. Raises DataError where that is inside the data."""
    folder = wanted if wanted is not None else Path("checks") / source.name
    root = Path(source.text)
    if not source.from_config and root.is_dir() and folder.absolute().resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{folder} is inside the data set, where its files would be taken for data. Name another: --output-dir DIR"
        )
    return folder
