"""Good things and defective ones, in folders named after what they show: the layout of MVTec AD (Bergmann, 2019).

    ROOT/train/good/*.png             what is learnt
    ROOT/test/good, ROOT/test/DEFECT  what is tested; `val` or `validation` of the same kind may stand beside it
    ROOT/ground_truth/DEFECT/NAME_mask.png   pixels of the defect are not zero

Or the folder of each split is named by itself: it holds `good`, and a folder for each kind of defect.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.config import Config, DataSource
from cvpipe.data.decode import IMAGE_SUFFIXES, read_values
from cvpipe.data.demo import PREFIX, demo_folder
from cvpipe.data.formats.files import by_stem, child, folders, in_threads, read_header, split_folders
from cvpipe.data.splits import BadFile, Problem, Split, Splits, hold_out_val
from cvpipe.data.targets import Inspection
from cvpipe.data.verify import check_annotations
from cvpipe.errors import DataError, ImageError, did_you_mean, few
from cvpipe.types import Labels
from cvpipe.utils.console import warn

LAYOUT = "train/good, test/good, test/DEFECT, ground_truth/DEFECT/NAME_mask.png"
LABELS = Labels(("good", "anomalous"))
"""What any model of the task knows. Kinds of defects are known to the data alone."""

_GOOD = ("good", "ok", "normal")
_MASKS = ("ground_truth", "groundtruth", "masks")
_ENDINGS = ("_mask", "")
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})


class Place(NamedTuple):
    """One split: the folder with `good` and the defects (or with images alone), and that of the masks."""

    images: Path
    masks: Path | None


@dataclass
class _Read:
    """What was read so far, of all splits.

    Attributes:
        masks: (folder, split it was first needed for) of each folder of masks.
        used: masks that belong to an image, those that can't be used included.
    """

    problems: list[Problem] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    masks: dict[Path, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    annotations: int = 0


def load_inspections(config: Config) -> Splits:
    """The splits of a data set for anomaly detection; targets are `Inspection`s, classes good and anomalous.

    Masks that can't be used (empty, of another size than the image, unreadable) are left out and reported; their images
    stay, as defects of unknown place.

    Raises:
        DataError: no such layout, defects among the training images, no good image in train or val.
    """
    data = config.data
    where = config.where("data.train")
    places = _find(data.train, config, "train")
    if "" in places:
        places = {"train": places[""]}
    if "train" not in places:
        raise DataError(f"{where}: {data.train} has no train split. It has: {few(sorted(places))}.")
    for name, source in (("val", data.val), ("test", data.test)):
        if isinstance(source, (str, DataSource)):
            places[name] = _named(source, config, name)
    read = _Read()
    splits = {name: _split(place, name, read, config.where(f"data.{name}")) for name, place in places.items()}
    _only_good(splits["train"], places["train"], where)
    notes = ["format: mvtec"]
    if isinstance(data.val, float) and "val" in splits:
        _only_good(splits["val"], places["val"], config.where("data.val"))
        splits["train"] = _joined(splits["train"], splits.pop("val"))
    held_out = "val" not in splits
    if held_out:
        splits["train"], splits["val"], held = hold_out_val(config, splits["train"], ["good"] * len(splits["train"]))
        notes.append(held)
    for name in ("train", "val"):
        if not any(target.is_good for target in splits[name].targets):
            raise DataError(
                f"{config.where(f'data.{name}')}: no good images in {places.get(name, places['train']).images}. "
                "Thresholds and what is normal are learnt from them."
            )
    _report_unused(read)
    notes += [f"{name}: {_counts(split)}" for name, split in splits.items() if name != "train"]
    return Splits(
        splits["train"],
        splits["val"],
        splits.get("test"),
        LABELS,
        "mvtec",
        tuple(notes),
        tuple(read.bad),
        problems=tuple(read.problems),
        annotations=read.annotations,
        held_out=held_out,
    )


def load_inspection_split(source: str | DataSource, config: Config, labels: Labels, name: str) -> Split:
    """One split for evaluation. What is wrong with masks is printed as a warning.

    Raises:
        DataError: as `load_inspections`; more masks than `data.max_bad_annotations` allows can't be used.
    """
    place = _named(source, config, name)
    read = _Read()
    # masks without an image may belong to the other splits
    split = _split(place, name, read, str(source))
    check_annotations(read.problems, read.annotations, float(getattr(config.data, "max_bad_annotations", 0.0)))
    for problem in read.problems[:5]:
        warn(f"{problem.file}: {problem.reason}")
    if len(read.problems) > 5:
        warn(f"{source}: {len(read.problems) - 5} more problems with masks")
    for file in read.bad[:5]:
        warn(f"{file.path}: {file.reason}; left out")
    if len(read.bad) > 5:
        warn(f"{source}: {len(read.bad) - 5} more files left out")
    return split


def read_mask(path: str) -> npt.NDArray[np.bool_]:
    """(height, width): where the defect is. Raises ImageError."""
    values = read_values(path)
    mask: npt.NDArray[np.bool_] = (values if values.ndim == 2 else values.any(axis=2)) != 0
    return mask


def _named(source: str | DataSource, config: Config, name: str) -> Place:
    """The place of a source that was named for one split: its split of that name, or all of it where it has none."""
    places = _find(source, config, name)
    # a data set without test is tested on val
    chosen = next((option for option in ("", name, *(["val"] if name == "test" else [])) if option in places), None)
    if chosen is None:
        raise DataError(f"{config.where(f'data.{name}')}: {source} has no {name} split. It has: {few(sorted(places))}.")
    return places[chosen]


def _find(source: str | DataSource, config: Config, name: str) -> dict[str, Place]:
    """Splits of a source; "" for one without a name."""
    where = config.where(f"data.{name}")
    if isinstance(source, DataSource):
        if source.annotations is not None:
            raise DataError(
                f"{where}: found annotations: {source.annotations}, expected `images`, a folder with `good` and one "
                "for each kind of defect, and as `masks` a folder with the same names."
            )
        masks = Path(source.masks) if source.masks is not None else None
        if masks is not None and not masks.is_dir():
            raise DataError(f"{where}: masks: {masks} is no folder.")
        places = _look(Path(source.images), where)
        return {split: Place(place.images, masks or place.masks) for split, place in places.items()}
    if source.startswith(PREFIX):
        return _look(demo_folder(source, offered=("defects",)), where)
    return _look(Path(source), where)


def _look(root: Path, where: str) -> dict[str, Place]:
    if not root.is_dir():
        parent = next((p for p in root.parents if p.is_dir()), Path())
        hint = did_you_mean(root.name, [p.name for p in parent.iterdir()]) if parent == root.parent else ""
        problem = "is a file" if root.is_file() else f"does not exist ({parent} does)"
        raise DataError(f"{where}: {root} {problem}.{hint} Expected a folder with {LAYOUT}, or demo:defects.")
    masks = child(root, *_MASKS)
    splits = split_folders(root)
    if splits:
        return {split: Place(folder, child(folder, *_MASKS) or masks) for split, folder in splits.items()}
    inside = [folder for folder in folders(root) if folder != masks]
    if any(folder.name.lower() in _GOOD for folder in inside):
        return {"": Place(root, masks or child(root.parent, *_MASKS))}
    if not inside and any(_is_image(path.name) for path in root.iterdir()):
        return {"": Place(root, None)}
    found = few([path.name for path in sorted(root.iterdir())]) or "nothing"
    raise DataError(
        f"{where}: {root} is not laid out for anomaly detection: it has {found}. Expected {LAYOUT}; or `good` beside a "
        "folder for each kind of defect."
    )


def _split(place: Place, name: str, read: _Read, where: str) -> Split:
    """The images of a split with what is known about them."""
    shown = [folder for folder in folders(place.images) if folder.name.lower() not in _MASKS]
    loose = [path for path in sorted(place.images.iterdir()) if path.is_file() and path.name[0] != "."]
    paths: list[str] = []
    labels: list[str] = []
    if not shown:
        if name == "test":
            raise DataError(
                f"{where}: {place.images} holds images alone. Which of them are good? Expected the folder `good` and "
                "one for each kind of defect."
            )
        shown, loose = [place.images], []
    read.bad += [BadFile(name, str(path), "lies beside the folders") for path in loose if _is_image(path.name)]
    for folder in shown:
        good = folder.name.lower() in _GOOD or folder == place.images
        for path in _files(folder):
            if _is_image(path):
                paths.append(path)
                labels.append("good" if good else folder.name)
            else:
                read.bad.append(BadFile(name, path, "not an image file (by its name)"))
    masks = _masks(place, paths, labels, name, read)
    targets = [Inspection(label, mask) for label, mask in zip(labels, masks, strict=True)]
    if not paths:
        raise DataError(f"{where}: no images in {place.images}.")
    return Split(name, tuple(paths), tuple(targets))


def _files(folder: Path) -> list[str]:
    found = []
    for root, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if name[0] != ".")
        found += [os.path.join(root, f) for f in files if f[0] != "." and f.lower() not in _IGNORED]
    return sorted(found)


def _is_image(name: str) -> bool:
    # a name without an ending, as data lakes give, may be an image
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | {""}


def _masks(place: Place, paths: Sequence[str], labels: Sequence[str], name: str, read: _Read) -> list[str | None]:
    """For each image its mask, where there is one that can be used."""
    found: list[str | None] = [None] * len(paths)
    if place.masks is None:
        return found
    read.masks.setdefault(place.masks, name)
    by_label = {label: _by_stem(place.masks / label, name, read) for label in dict.fromkeys(labels)}
    for i, (path, label) in enumerate(zip(paths, labels, strict=True)):
        stem = os.path.splitext(os.path.relpath(path, place.images / label))[0] if label != "good" else Path(path).stem
        found[i] = next((by_label[label][stem + end] for end in _ENDINGS if stem + end in by_label[label]), None)
        if found[i] is None and label != "good":
            reason = f"no mask of this name in {place.masks / label}: where the defect is, is not known"
            read.problems.append(Problem(name, path, "the image", reason, dropped=False))
    named = [i for i in range(len(paths)) if found[i] is not None]
    read.used |= {str(found[i]) for i in named}
    read.annotations += len(named)
    jobs = [(paths[i], str(found[i]), labels[i]) for i in named]
    for i, wrong in zip(named, in_threads(_wrong, jobs), strict=True):
        if wrong:
            read.problems.append(Problem(name, str(found[i]), "the mask", wrong, dropped=True))
        if wrong or labels[i] == "good":
            found[i] = None
    return found


def _by_stem(folder: Path, name: str, read: _Read) -> dict[str, str]:
    found, doubled = by_stem(str(folder), IMAGE_SUFFIXES)
    for path, other in doubled:
        read.problems.append(Problem(name, path, "the mask", f"it has the name of {other}", dropped=True))
        read.used.add(path)
        read.annotations += 1
    return found


def _wrong(job: tuple[str, str, str]) -> str | None:
    """What is wrong with (image, mask, label), or None."""
    image, path, label = job
    try:
        mask = read_mask(path)
    except ImageError as error:
        return f"it can't be read: {str(error).removeprefix(f'{path}: ')}"
    header = read_header(image)
    if header is not None and header.size != mask.shape:
        (height, width), size = header.size, mask.shape
        return f"it has {size[1]}x{size[0]} pixels, its image {image} has {width}x{height}"
    if label == "good":
        return f"it marks a defect in an image that counts as good ({image})" if mask.any() else None
    return None if mask.any() else f"it is empty, and its image {image} counts as {label}"


def _report_unused(read: _Read) -> None:
    """Masks that belong to no image of any split."""
    for folder, split in read.masks.items():
        for path in _files(folder):
            if _is_image(path) and path not in read.used:
                reason = f"no image of this name in {Path(path).parent.name}"
                read.problems.append(Problem(split, path, "the mask", reason, dropped=True))
                read.annotations += 1


def _only_good(split: Split, place: Place, where: str) -> None:
    defects = Counter(target.label for target in split.targets if not target.is_good)
    if defects:
        raise DataError(
            f"{where}: {place.images} holds defects: {_listed(defects)}. What is normal is learnt from good images "
            "alone. Move the others to a test split (test/DEFECT beside train, or data.test), their masks to "
            "ground_truth/DEFECT."
        )


def _joined(one: Split, other: Split) -> Split:
    return Split(one.name, one.paths + other.paths, one.targets + other.targets)


def _counts(split: Split) -> str:
    """`30 good, 25 crack (24 with a mask)`"""
    counts = Counter(target.label for target in split.targets)
    good, masks = counts.pop("good", 0), sum(target.mask is not None for target in split.targets)
    known = "" if masks == sum(counts.values()) else f" ({masks} with a mask)"
    return ", ".join([f"{good} good", *([_listed(counts) + known] if counts else [])])


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
