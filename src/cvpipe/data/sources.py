"""Finds images and their labels: ImageFolder, manifests, demo sets. Reads names, not pixels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvpipe.config import Config, DataConfig, DataSource
from cvpipe.data.decode import IMAGE_SUFFIXES
from cvpipe.data.demo import PREFIX, demo_folder
from cvpipe.data.splits import SPLIT_FOLDERS, BadFile, Split, Splits, check_num_classes, hold_out_val, rarest
from cvpipe.errors import DataError, did_you_mean, few
from cvpipe.types import Labels

MANIFEST_SUFFIXES = (".csv", ".parquet", ".jsonl")
_NOT_IMAGE = "not an image file (by its name)"
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})
_COLUMNS = {
    "path": ("path", "image", "file", "file_name", "filename", "image_path"),
    "label": ("label", "labels", "class", "category", "target"),
    "split": ("split",),
    "group": ("group",),
}

# one labelled image: path, label texts, split or "", group or ""
Row = tuple[str, tuple[str, ...], str, str]


def load_classification(config: Config) -> Splits:
    """The splits of an image classification data set.

    Raises:
        DataError: a path that is missing, a class without images, classes in val or test that train lacks, labels
            that can't be read; each with the place and the way out.
    """
    data = config.data
    train, kind, multi_label = _read(data.train, config, "train", data)
    notes = [f"format: {kind}"]
    by_split = _by_split(train)
    if isinstance(data.val, (str, DataSource)):
        by_split["val"] = _labelled(data.val, config, "val", multi_label)
    elif isinstance(data.val, float):
        # an explicit share is taken from what is there to train on, and the data set's own val split goes with it
        by_split["train"] += by_split.pop("val", [])
    if data.test is not None:
        by_split["test"] = _labelled(data.test, config, "test", multi_label)

    bad = [
        BadFile(name, row[0], _NOT_IMAGE) for name, rows in by_split.items() for row in rows if not _named_as_image(row)
    ]
    by_split = {name: [row for row in rows if _named_as_image(row)] for name, rows in by_split.items()}
    if data.classes is not None:
        by_split, note = _only(data.classes, by_split, config, multi_label)
        notes += note
    if not by_split["train"]:
        raise DataError(f"{config.where('data.train')}: no training images in {data.train}.")
    classes = _classes(by_split, config, multi_label)
    splits = {name: _split(name, rows, classes, multi_label) for name, rows in by_split.items() if rows}
    held_out = "val" not in splits
    if held_out:
        strata = rarest([row[1] for row in by_split["train"]], "")
        splits["train"], splits["val"], held = hold_out_val(config, splits["train"], strata)
        notes.append(held)
    labels = Labels(classes=classes, multi_label=multi_label)
    check_num_classes(config, classes)
    return Splits(
        splits["train"], splits["val"], splits.get("test"), labels, kind, tuple(notes), tuple(bad), held_out=held_out
    )


def _only(
    classes: Sequence[str], by_split: dict[str, list[Row]], config: Config, multi_label: bool
) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows with the labels that `data.classes` names, and a note on what was left out. Raises DataError."""
    found = Counter(label for row in by_split["train"] for label in row[1])
    missing = [name for name in classes if name not in found]
    if missing:
        raise DataError(
            f"{config.where('data.classes')}: train has no image of {few(missing)}.{did_you_mean(missing[0], found)} "
            f"It has: {few(sorted(found, key=lambda label: _natural(str(label))))}."
        )
    wanted = set(classes)
    kept = {
        name: [
            (path, tuple(label for label in labels if label in wanted), split, group)
            for path, labels, split, group in rows
            if multi_label or set(labels) <= wanted
        ]
        for name, rows in by_split.items()
    }
    before, after = (sum(len(row[1]) for rows in part.values() for row in rows) for part in (by_split, kept))
    notes = [f"data.classes: {before - after} labels of other classes left out"] if before > after else []
    return kept, notes


def load_one(source: str | DataSource, config: Config, labels: Labels, name: str = "test") -> Split:
    """One labelled split for evaluation with a model's own classes. Raises DataError for unknown classes."""
    rows, _, multi_label = _read(source, config, name, config.data)
    if multi_label != labels.multi_label:
        raise DataError(
            f"{source}: the labels are {'multi' if multi_label else 'single'}-label, the model is "
            f"{'multi' if labels.multi_label else 'single'}-label."
        )
    chosen = _pick(rows, name, str(source), str(source))
    present = {label for row in chosen for label in row[1]}
    unknown = sorted(present - set(labels.classes))
    if unknown:
        raise DataError(
            f"{source}: classes that the model does not know: {few(unknown)}. It knows: {few(labels.classes)}."
        )
    return _split(name, [row for row in chosen if _named_as_image(row)], labels.classes, multi_label)


def _labelled(source: str | DataSource, config: Config, name: str, multi_label: bool) -> list[Row]:
    """The rows of a source that was named for val or test."""
    rows, _, found = _read(source, config, name, config.data)
    where = config.where(f"data.{name}")
    if found != multi_label:
        raise DataError(
            f"{where}: the labels of {source} are {'multi' if found else 'single'}-label, those of data.train are "
            f"{'multi' if multi_label else 'single'}-label. Name the label column alike: `label` or `labels`."
        )
    return _pick(rows, name, where, str(source))


def _pick(rows: Sequence[Row], name: str, where: str, source: str) -> list[Row]:
    """The rows of a split; all of them where the source names no splits. A data set without test is tested on val."""
    present = {row[2] for row in rows}
    if present == {""}:
        return list(rows)
    wanted = next((split for split in (name, *(["val"] if name == "test" else [])) if split in present), None)
    if wanted is None:
        raise DataError(f"{where}: {source} has no {name} split. It has: {few(sorted(present - {''}))}.")
    return [row for row in rows if row[2] == wanted]


def list_images(folder: str | Path) -> list[str]:
    """All image files below a folder, sorted; hidden files and folders are left out."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [os.path.join(root, f) for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES and f[0] != "."]
    return sorted(found)


def _read(source: str | DataSource, config: Config, split: str, data: DataConfig) -> tuple[list[Row], str, bool]:
    """(rows, format, multi-label)"""
    where = config.where(f"data.{split}")
    root = data.root
    if isinstance(source, DataSource):
        if source.annotations is None or source.masks is not None:
            raise DataError(
                f"{where}: found {source}, expected `images` and, as `annotations`, a manifest with paths and labels."
            )
        root, source = source.images, source.annotations
    if source.startswith(PREFIX):
        return _read_folder(demo_folder(source), where), f"{source} (imagefolder)", False
    path = Path(source)
    if not path.exists():
        parent = next((p for p in path.parents if p.is_dir()), Path())
        hint = did_you_mean(path.name, [p.name for p in parent.iterdir()]) if parent == path.parent else ""
        raise DataError(
            f"{where}: {source} does not exist ({parent} does).{hint} Expected a folder with one folder a "
            "class, a manifest (.csv, .parquet, .jsonl), or demo:digits."
        )
    wanted = data.format
    if path.is_dir():
        if wanted not in ("auto", "imagefolder"):
            raise DataError(f"{config.where('data.format')}: found {wanted!r}, and {source} is a folder.")
        return _read_folder(path, where), "imagefolder", False
    if path.suffix.lower() not in MANIFEST_SUFFIXES or wanted not in ("auto", "manifest"):
        raise DataError(
            f"{where}: found the file {source} (data.format {wanted}), expected a folder or a manifest "
            f"({', '.join(MANIFEST_SUFFIXES)})."
        )
    rows, multi_label = _read_manifest(path, root, where)
    return rows, "manifest", multi_label


def _read_folder(root: Path, where: str) -> list[Row]:
    """One folder a class, or such folders below train/, val/ and test/."""
    subfolders = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    parts = {
        name: subfolders[alias] for name, aliases in SPLIT_FOLDERS.items() for alias in aliases if alias in subfolders
    }
    if "train" in parts:
        return [row for name, folder in parts.items() for row in _read_classes(folder, where, name)]
    return _read_classes(root, where, "")


def _read_classes(folder: Path, where: str, split: str) -> list[Row]:
    rows: list[Row] = []
    empty: list[str] = []
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        loose = sum(1 for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        raise DataError(
            f"{where}: {folder} has no class folders"
            + (f" but {loose} loose images" if loose else "")
            + ". Expected one folder a class, each with its images, or a manifest with the labels."
        )
    for class_folder in classes:
        files = _files(class_folder)
        if not any(Path(f).suffix.lower() in IMAGE_SUFFIXES for f in files):
            empty.append(class_folder.name)
        rows += [(f, (class_folder.name,), split, "") for f in files]
    if empty:
        raise DataError(
            f"{where}: class folders without an image in {folder}: {few(empty)}. Add images or remove the folders."
        )
    return rows


def _files(folder: Path) -> list[str]:
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [os.path.join(root, f) for f in files if f[0] != "." and f.lower() not in _IGNORED]
    return sorted(found)


def _read_manifest(path: Path, base: str | None, where: str) -> tuple[list[Row], bool]:
    frame = read_table(path, where)
    names = {str(c).lower(): c for c in frame.columns}
    columns = {role: next((names[a] for a in aliases if a in names), None) for role, aliases in _COLUMNS.items()}
    for role in ("path", "label"):
        if columns[role] is None:
            raise DataError(
                f"{where}: {path} has the columns {few([str(c) for c in frame.columns])}, expected one of "
                f"{', '.join(_COLUMNS[role])} for the {role}."
            )
    label_column = columns["label"]
    multi_label = str(label_column).lower() == "labels"
    root = Path(base) if base else path.parent
    rows: list[Row] = []
    problems: list[str] = []
    # a CSV file's first line holds the names
    for line, record in enumerate(frame.to_dict("records"), start=2 if path.suffix.lower() == ".csv" else 1):
        file = record[columns["path"]]
        label = record[label_column]
        if not isinstance(file, str) or not file:
            problems.append(f"row {line}: no path")
            continue
        labels = _label_texts(label, multi_label)
        if not labels and not multi_label:
            problems.append(f"row {line}: no label for {file}")
            continue
        split = _text(record.get(columns["split"])).lower() if columns["split"] else ""
        split = next((name for name, aliases in SPLIT_FOLDERS.items() if split in aliases), split)
        if split not in ("", "train", "val", "test"):
            problems.append(f"row {line}: split {split!r}, expected train, val or test")
            continue
        group = _text(record.get(columns["group"])) if columns["group"] else ""
        rows.append((str(root / file), labels, split, group))
    if problems:
        raise DataError(f"{where}: {path}: {len(problems)} rows can't be used: {'; '.join(problems[:5])}.")
    if not rows:
        raise DataError(f"{where}: {path} has no rows.")
    doubled = [p for p, n in Counter(row[0] for row in rows).items() if n > 1]
    if doubled:
        raise DataError(f"{where}: {path}: {len(doubled)} images stand in several rows: {few(doubled)}.")
    return rows, multi_label


def read_table(path: Path, where: str) -> Any:
    """A manifest as a pandas DataFrame of texts. Raises DataError."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_json(path, lines=True, dtype=False)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise DataError(f"{where}: {path} can't be read: {(str(error).splitlines() or ['broken'])[0]}") from None


def _label_texts(value: Any, multi_label: bool) -> tuple[str, ...]:
    if multi_label:
        if hasattr(value, "__iter__") and not isinstance(value, str):
            parts = [_text(item) for item in value]
        else:
            text = _text(value)
            separator = next((s for s in (";", "|", ",") if s in text), ";")
            parts = [part.strip() for part in text.split(separator)]
        return tuple(dict.fromkeys(part for part in parts if part))
    text = _text(value)
    return (text,) if text else ()


def _text(value: Any) -> str:
    # NaN, and pandas' own two kinds of nothing
    if value is None or (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _by_split(rows: Iterable[Row]) -> dict[str, list[Row]]:
    by_split: dict[str, list[Row]] = {"train": []}
    for row in rows:
        by_split.setdefault(row[2] or "train", []).append(row)
    return by_split


def _classes(by_split: dict[str, list[Row]], config: Config, multi_label: bool) -> tuple[str, ...]:
    named = config.data.classes
    classes = list(named) if named else sorted({label for row in by_split["train"] for label in row[1]}, key=_natural)
    for name in ("val", "test"):
        present = {label for row in by_split.get(name, []) for label in row[1]}
        unknown = sorted(present - set(classes))
        if unknown:
            hints = "".join(did_you_mean(label, classes) for label in unknown[:1])
            raise DataError(
                f"{config.where(f'data.{name}')}: the {name} split has classes that train lacks: {few(unknown)}."
                f"{hints} Train has: {few(classes)}."
            )
    if len(classes) < (1 if multi_label else 2):
        raise DataError(
            f"{config.where('data.train')}: found {len(classes)} class{'' if len(classes) == 1 else 'es'} "
            f"({few(classes) or 'no label'}), expected at least {1 if multi_label else 2}."
        )
    return tuple(classes)


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers in the order of their value, before texts."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _split(name: str, rows: Sequence[Row], classes: Sequence[str], multi_label: bool) -> Split:
    position = {label: i for i, label in enumerate(classes)}
    encoded = [tuple(position[label] for label in row[1]) for row in rows]
    targets: tuple[Any, ...] = tuple(encoded) if multi_label else tuple(labels[0] for labels in encoded)
    groups = tuple(row[3] or row[0] for row in rows) if any(row[3] for row in rows) else None
    return Split(name, tuple(row[0] for row in rows), targets, groups)


def _named_as_image(row: Row) -> bool:
    """False for names such as notes.txt. A name without an ending (as data lakes give) may be an image."""
    return Path(row[0]).suffix.lower() in IMAGE_SUFFIXES | {""}
