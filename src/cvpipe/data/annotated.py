"""Finds images with boxes, masks, keypoints or class maps, in the formats of `data.formats`, and their splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cvpipe.config import Config, DataSource
from cvpipe.data.demo import PREFIX, demo_folder
from cvpipe.data.formats import coco, masks, panoptic, voc, yolo
from cvpipe.data.formats.class_maps import build_maps
from cvpipe.data.formats.files import holds
from cvpipe.data.formats.objects import Built, build_objects
from cvpipe.data.formats.rows import Format, Kind, MapRows, ObjectRows, Place, Request
from cvpipe.data.splits import Problem, Split, Splits, check_num_classes, hold_out_val, rarest, val_share
from cvpipe.data.verify import check_annotations
from cvpipe.errors import DataError, did_you_mean, few
from cvpipe.types import Labels
from cvpipe.utils.console import warn

FORMATS: dict[Kind, tuple[str, ...]] = {
    "boxes": ("coco", "yolo", "voc"),
    "masks": ("coco", "yolo"),
    "points": ("coco", "yolo"),
    "class_map": ("masks", "panoptic"),
}
_READERS: dict[str, Format] = {
    "coco": cast(Format, coco),
    "yolo": cast(Format, yolo),
    "voc": cast(Format, voc),
    "masks": cast(Format, masks),
    "panoptic": cast(Format, panoptic),
}
_MOST_CLASSES = 255
"""Class maps are 8 bits deep, and 255 is what is ignored."""

Rows = ObjectRows | MapRows
Found = tuple[str, dict[str, Place]]


def load_annotated(config: Config, kind: Kind) -> Splits:
    """The splits of a data set with annotated objects (targets are `Objects`) or class maps (`ClassMap`).

    Args:
        kind: what the task learns. Masks are read only for `masks`, keypoints only for `points`.

    Returns:
        Splits whose `problems` tell what is wrong with single annotations; those that can't be used are left out.

    Raises:
        DataError: nothing of a known format, several at once, a file that can't be read as what it is, classes in
            val or test that train lacks; each with the place and the way out.
    """
    data = config.data
    request = _request(config, kind, "train")
    form, places = _find(data.train, config, request)
    if "" in places:
        places = {**places, "train": places[""]}
        del places[""]
    named = {n: s for n, s in (("val", data.val), ("test", data.test)) if isinstance(s, (str, DataSource))}
    if "train" not in places:
        raise DataError(f"{request.where}: {data.train} has no train split. It has: {few(sorted(places))}.")
    rows = {name: _read(form, place, name, request) for name, place in places.items() if name not in named}
    for name, source in named.items():
        rows[name] = _read_named(source, config, _request(config, kind, name), name)[1]
    merged = ["train", *(["val"] if isinstance(data.val, float) and "val" in rows else [])]
    # before anything is built from the pixels' values
    if "val" not in rows or "val" in merged:
        val_share(config)
    classes = _classes(rows, merged, config)
    check_num_classes(config, classes)
    built = {name: _build(part, name, kind, classes) for name, part in rows.items()}
    notes = [f"format: {form} ({_short(places['train'].annotations or places['train'].images[0])})"]
    notes += dict.fromkeys(note for part in built.values() for note in part.notes)
    notes += _counts(built["train"], classes, kind)
    problems = tuple(problem for part in built.values() for problem in part.problems)
    splits = {name: part.split for name, part in built.items() if name not in merged[1:]}
    if merged[1:]:
        splits["train"] = _joined(built["train"].split, built["val"].split)
    _check_not_empty(splits, config, problems, kind, [labels for name in merged for labels in built[name].present])
    held_out = "val" not in splits
    if held_out:
        present = [labels for name in merged for labels in built[name].present]
        strata = _strata(present, val_share(config))
        splits["train"], splits["val"], held = hold_out_val(config, splits["train"], strata)
        notes.append(held)
    first = rows["train"]
    points = (first.keypoints, first.skeleton, first.flip_pairs) if isinstance(first, ObjectRows) else ((), (), ())
    labels = Labels(classes, keypoints=points[0], skeleton=points[1], flip_pairs=points[2])
    annotations = sum(part.annotations for part in built.values())
    return Splits(
        splits["train"],
        splits["val"],
        splits.get("test"),
        labels,
        form,
        tuple(notes),
        problems=problems,
        annotations=annotations,
        held_out=held_out,
    )


def load_annotated_split(source: str | DataSource, config: Config, labels: Labels, name: str, kind: Kind) -> Split:
    """One annotated split for evaluation with a model's own classes.

    Annotations that can't be used are left out with a warning.

    Raises:
        DataError: as `load_annotated`; classes that the model does not know; more than `data.max_bad_annotations`.
    """
    request = _request(config, kind, name)
    rows = _read_named(source, config, request, name)[1]
    unknown = [] if config.data.classes else [label for label in rows.categories if label not in labels.classes]
    if unknown:
        hint = did_you_mean(unknown[0], labels.classes)
        raise DataError(
            f"{source}: classes that the model does not know: {few(unknown)}.{hint} It knows: {few(labels.classes)}."
        )
    if isinstance(rows, ObjectRows) and rows.keypoints != labels.keypoints:
        raise DataError(
            f"{source}: its keypoints are {few(rows.keypoints)}, those of the model {few(labels.keypoints)}."
        )
    built = _build(rows, name, kind, labels.classes)
    check_annotations(built.problems, built.annotations, _limit(config))
    if not len(built.split):
        raise DataError(f"{source}: no image that can be used.{_first(built.problems)}")
    if built.problems:
        left_out = sum(problem.dropped for problem in built.problems)
        warn(
            f"{source}: {left_out} of {built.annotations} annotations left out, {len(built.problems) - left_out} more "
            f"noted.{_first(built.problems)}"
        )
    return built.split


def _limit(config: Config) -> float:
    return float(getattr(config.data, "max_bad_annotations", 0.0))


def _request(config: Config, kind: Kind, name: str) -> Request:
    data = config.data
    return Request(
        kind,
        config.where(f"data.{name}"),
        data.classes,
        getattr(data, "ignore_index", None),
        getattr(data, "root", None),
    )


def _find(source: str | DataSource, config: Config, request: Request) -> Found:
    """(format, its splits; "" for one without a name). Raises DataError."""
    wanted = config.data.format
    offered = FORMATS[request.kind]
    if wanted != "auto" and wanted not in offered:
        raise DataError(
            f"{config.where('data.format')}: found {wanted!r}, and the task {config.task} reads {', '.join(offered)}."
        )
    if isinstance(source, DataSource):
        form, place = _mapping(source, request)
        found = {form: {"": place}}
    elif source.startswith(PREFIX):
        found = _look(demo_folder(source, offered=("scenes",)), offered, request)
    else:
        path = Path(source)
        if not path.exists():
            parent = next((p for p in path.parents if p.is_dir()), Path())
            hint = did_you_mean(path.name, [p.name for p in parent.iterdir()]) if parent == path.parent else ""
            raise DataError(
                f"{request.where}: {source} does not exist ({parent} does).{hint} Expected a data set's folder, an "
                "annotation file, demo:scenes, or a mapping with `images` and `annotations` or `masks`."
            )
        found = (
            _look(path, (wanted,) if wanted != "auto" else offered, request) if path.is_dir() else _file(path, request)
        )
    if len(found) > 1:
        shown = " and ".join(f"{form} ({_example(places)})" for form, places in found.items())
        raise DataError(f"{request.where}: {source} has two formats at once: {shown}. Say which: data.format=NAME.")
    ((form, places),) = found.items()
    if wanted not in ("auto", form):
        raise DataError(f"{config.where('data.format')}: found {wanted!r}, and {source} is {form}.")
    if form not in offered:
        raise DataError(f"{request.where}: {source} is {form}, and the task {config.task} reads {', '.join(offered)}.")
    return form, places


def _look(root: Path, forms: Sequence[str], request: Request) -> dict[str, dict[str, Place]]:
    found = {form: places for form in forms if (places := _READERS[form].look(root, request))}
    if not found:
        looked = "; ".join(_READERS[form].LAYOUT for form in forms)
        others = [form for form in _READERS if form not in forms and _other(form, root, request)]
        instead = f" It looks like {' and '.join(others)}, which this task or data.format can't use." if others else ""
        inside = few([path.name for path in sorted(root.iterdir())]) or "nothing"
        raise DataError(
            f"{request.where}: no annotations found in {root}.{instead} Looked for {looked}. It has: {inside}. "
            "Or name the places: {images: FOLDER, annotations: FILE_OR_FOLDER} or {images: FOLDER, masks: FOLDER}."
        )
    return found


def _other(form: str, root: Path, request: Request) -> bool:
    try:
        return bool(_READERS[form].look(root, request))
    except DataError:
        return False


def _example(places: Mapping[str, Place]) -> str:
    place = next(iter(places.values()))
    return _short(place.annotations or place.images[0])


def _short(path: str) -> str:
    """The end of a path, which says what it is."""
    parts = Path(path).parts
    return path if len(parts) <= 3 else os.path.join("…", *parts[-2:])


def _file(path: Path, request: Request) -> dict[str, dict[str, Place]]:
    """A data set that is named by one file."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        form = "panoptic" if request.kind == "class_map" else "coco"
        return {form: {"": Place((), str(path), str(path.parent))}}
    if suffix in (".yaml", ".yml"):
        return {"yolo": yolo.look_file(path, request)}
    raise DataError(f"{request.where}: found the file {path}, expected a folder, a COCO .json or a YOLO .yaml.")


def _mapping(source: DataSource, request: Request) -> tuple[str, Place]:
    """The format and the places that a mapping says."""
    for named in (source.images, source.annotations, source.masks):
        if named is not None and not Path(named).exists():
            raise DataError(f"{request.where}: {named} does not exist.")
    if not Path(source.images).is_dir():
        raise DataError(f"{request.where}: images: {source.images} is a file, expected a folder.")
    images = (source.images,)
    if source.annotations is None:
        if source.masks is None:
            raise DataError(
                f"{request.where}: found {source} alone, expected `annotations` or `masks` beside `images`."
            )
        return "masks", Place(images, source.masks, "")
    path, extra = Path(source.annotations), source.masks or ""
    if path.is_file() and path.suffix.lower() == ".json":
        form = "panoptic" if request.kind == "class_map" or extra else "coco"
        return form, Place(images, str(path), str(path.parent), extra)
    if path.is_dir() and not extra:
        for form, suffix in (("yolo", ".txt"), ("voc", ".xml")):
            if holds(path, [suffix]):
                return form, Place(images, str(path), str(path))
    raise DataError(
        f"{request.where}: annotations: found {source.annotations}, expected a COCO .json file, or a folder of YOLO "
        ".txt or VOC .xml files."
    )


def _read(form: str, place: Place, name: str, request: Request) -> Rows:
    return _READERS[form].read(place, name, request)


def _read_named(source: str | DataSource, config: Config, request: Request, name: str) -> tuple[str, Rows]:
    """A source that was named for one split: its split of that name, or all of it where it has none."""
    form, places = _find(source, config, request)
    # a data set without test is tested on val
    options = ["", name, *(["val"] if name == "test" else [])]
    chosen = next((option for option in options if option in places), None)
    if chosen is None:
        raise DataError(f"{request.where}: {source} has no {name} split. It has: {few(sorted(places))}.")
    return form, _read(form, places[chosen], name, request)


def _classes(rows: Mapping[str, Rows], merged: Sequence[str], config: Config) -> tuple[str, ...]:
    """The classes in order. Raises DataError where the splits do not go together."""
    known = tuple(dict.fromkeys(label for name in merged for label in rows[name].categories))
    wanted = config.data.classes
    if wanted is not None:
        missing = [label for label in wanted if label not in known]
        if missing or len(set(wanted)) < len(wanted) or not wanted:
            problem = f"the data has no class {few(missing)}.{did_you_mean(missing[0], known)}" if missing else ""
            raise DataError(
                f"{config.where('data.classes')}: {problem or f'found {few(wanted)}, expected different names.'} "
                f"It has: {few(known)}."
            )
    classes = wanted or known
    if not classes:
        raise DataError(f"{config.where('data.train')}: no object in train, and no list of classes.")
    for name, part in rows.items():
        extra = [label for label in part.categories if label not in known]
        if extra and wanted is None:
            raise DataError(
                f"{config.where(f'data.{name}')}: the {name} split ({part.file}) has classes that train lacks: "
                f"{few(extra)}.{did_you_mean(extra[0], classes)} Train has: {few(classes)}. Use the same names, or say "
                "which to learn: data.classes=[NAME, …]."
            )
        first = rows["train"]
        if isinstance(part, ObjectRows) and isinstance(first, ObjectRows) and part.keypoints != first.keypoints:
            raise DataError(
                f"{config.where(f'data.{name}')}: the {name} split ({part.file}) has the keypoints "
                f"{few(part.keypoints)}, and train {few(first.keypoints)}."
            )
        if isinstance(part, MapRows) and len(classes) > _MOST_CLASSES:
            raise DataError(
                f"{config.where('data.train')}: {len(classes)} classes, and masks are learnt with {_MOST_CLASSES} at "
                "most. Choose: data.classes=[NAME, …]."
            )
    return classes


def _build(rows: Rows, name: str, kind: Kind, classes: Sequence[str]) -> Built:
    return build_maps(rows, name, classes) if isinstance(rows, MapRows) else build_objects(rows, name, kind, classes)


def _counts(train: Built, classes: Sequence[str], kind: Kind) -> list[str]:
    """What is worth knowing about the training images before time is spent on them."""
    if kind == "class_map":
        return []
    notes = []
    empty = sum(not labels for labels in train.present)
    if empty:
        notes.append(f"{empty} train images without objects")
    absent = len(classes) - len({label for labels in train.present for label in labels})
    if absent:
        notes.append(f"{absent} of {len(classes)} classes have no object in train")
    return notes


def _check_not_empty(
    splits: Mapping[str, Split], config: Config, problems: Sequence[Problem], kind: Kind, present: Sequence[Any]
) -> None:
    for name, split in splits.items():
        if not len(split):
            mine = [problem for problem in problems if problem.split == name]
            raise DataError(f"{config.where(f'data.{name}')}: no {name} image that can be used.{_first(mine)}")
    if kind != "class_map" and not any(present):
        raise DataError(
            f"{config.where('data.train')}: no object in the {len(splits['train'])} training images.{_first(problems)}"
        )


def _first(problems: Sequence[Problem]) -> str:
    """` The first: …`, or nothing."""
    shown = "; ".join(f"{p.file}: {p.annotation}: {p.reason}" for p in problems[:3])
    return f" The first: {shown}." if shown else ""


def _joined(first: Split, second: Split) -> Split:
    groups = None
    if first.groups or second.groups:
        groups = (*(first.groups or first.paths), *(second.groups or second.paths))
    return Split("train", first.paths + second.paths, first.targets + second.targets, groups)


def _strata(present: Sequence[tuple[int, ...]], share: float) -> list[int]:
    """The rarest class of each image; strata too small to give one image are put together."""
    strata = rarest(present, -1)
    counts = Counter(strata)
    return [stratum if counts[stratum] * share >= 1 else -2 for stratum in strata]
