"""Reads a data set, whatever it is: the task's own formats, shards, Delta tables. The way that every verb goes."""

from __future__ import annotations

from pathlib import Path

from cvpipe.config import Config, DataSource
from cvpipe.data.cache import cache_folder, use_cache
from cvpipe.data.packed.delta import is_table, open_table
from cvpipe.data.packed.index import is_shards, load_index, load_shards
from cvpipe.data.packed.tables import copy_shards, copy_to_shards
from cvpipe.data.splits import DEFAULT_VAL, Split, Splits, check_num_classes
from cvpipe.errors import DataError, few
from cvpipe.task import Task
from cvpipe.types import Labels


def read_splits(task: Task, config: Config) -> Splits:
    """The data set that a config names. `task.load_data` for files, and the same for prepared data.

    Starts the local cache where `data.cache` names one.

    Raises:
        DataError: the data can't be used as they are; with the place and the way out.
    """
    _use_cache(config)
    data = config.data
    if not is_prepared(data.train):
        for name, source in (("val", data.val), ("test", data.test)):
            if is_prepared(source):
                raise DataError(
                    f"{config.where(f'data.{name}')}: {source} is prepared data, and data.train is not. Prepare them "
                    "together: cvpipe data prepare."
                )
        return task.load_data(config)
    splits = _load(data.train, config, "train")
    folder, labels = data.train, splits.labels
    if data.classes is not None and tuple(data.classes) != labels.classes:
        raise DataError(
            f"{config.where('data.classes')}: found {few(data.classes)}, and {folder} was prepared with "
            f"{few(labels.classes)}. Leave data.classes out, or prepare the data again."
        )
    check_num_classes(config, labels.classes)
    changed = {
        name: read_split(task, source, config, labels, name)
        for name, source in (("val", data.val), ("test", data.test))
        if isinstance(source, (str, DataSource))
    }
    splits = Splits(
        splits.train,
        changed.get("val", splits.val),
        changed.get("test", splits.test),
        labels,
        splits.format,
        splits.notes,
        tuple(bad for bad in splits.bad if bad.split not in changed),
        held_out=splits.held_out,
    )
    for split in (splits.train, splits.val):
        if not len(split):
            raise DataError(f"{config.where('data.train')}: {folder} has no {split.name} images.")
    return splits


def read_split(task: Task, source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    """One labelled split for evaluation with a model's own labels. `task.load_split`, and the same for prepared data.

    Raises:
        DataError: the data can't be used as they are; a class that the model does not know.
    """
    _use_cache(config)
    if not is_prepared(source):
        return task.load_split(source, config, labels, name)
    splits = _load(source, config, name, labels)
    found = {split.name: split for split in splits.all() if len(split)}
    # a data set without test is tested on val
    chosen = next((found[option] for option in (name, *(["val"] if name == "test" else [])) if option in found), None)
    if chosen is None:
        raise DataError(f"{config.where(f'data.{name}')}: {source} has no {name} split. It has: {few(sorted(found))}.")
    return Split(name, chosen.paths, chosen.targets, chosen.groups)


def is_prepared(source: object) -> bool:
    """Whether `data.train` and its like name shards or a Delta table."""
    if not isinstance(source, str):
        return False
    return is_shards(source) or is_table(source)


def _load(source: object, config: Config, name: str, labels: Labels | None = None) -> Splits:
    text, where = str(source), config.where(f"data.{name}")
    folder = _folder(text, config)
    index = load_index(folder)
    if index.task != config.task:
        raise DataError(
            f"{where}: {text} was prepared for the task {index.task}, and the config's is {config.task}. Prepare the "
            f"source again with this config: cvpipe data prepare."
        )
    share = config.data.val
    if labels is None and isinstance(share, float) and share != index.val:
        made = "its own val split" if not index.held_out else f"a share of {index.val or DEFAULT_VAL:g}"
        raise DataError(
            f"{config.where('data.val')}: found the share {share:g}, and {text} was prepared with {made}. Leave "
            "data.val out, or prepare the data again elsewhere."
        )
    if labels is not None:
        unknown = [label for label in index.labels.classes if label not in labels.classes]
        if unknown and index.layout.kind != "inspection":
            raise DataError(
                f"{text}: classes that the model does not know: {few(unknown)}. It knows: {few(labels.classes)}."
            )
        if index.labels.keypoints != labels.keypoints:
            raise DataError(
                f"{text}: its keypoints are {few(index.labels.keypoints)}, those of the model {few(labels.keypoints)}."
            )
    return load_shards(folder, labels)


def _folder(source: str, config: Config) -> Path:
    """Where the shards lie: the folder itself, or a local copy of a table, or of shards where `data.cache` is set."""
    cache = cache_folder(config.data.cache)
    try:
        if is_shards(source):
            return copy_shards(Path(source), cache) if config.data.cache else Path(source)
        return copy_to_shards(open_table(source), cache)
    except OSError as error:
        raise DataError(
            f"{config.where('data.cache')}: {source} can't be copied to {cache}: {error.strerror or error}. Name a "
            "folder with room, or unset it: data.cache=null."
        ) from None


def _use_cache(config: Config) -> None:
    use_cache(config.data.cache, config.data.cache_gb)
