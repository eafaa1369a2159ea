"""What is found where, and what is said when it can't be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from cvpipe.config_file import load_config, parse_config
from cvpipe.data.demo import demo_folder
from cvpipe.data.sources import list_images, load_classification, load_one
from cvpipe.data.splits import Split, Splits
from cvpipe.errors import DataError, InputError
from cvpipe.types import Labels


def write_images(folder: Path, count: int, start: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(start, start + count)]
    for path in paths:
        Image.new("RGB", (4, 4), (path.stem[-1] == "0", 0, 0)).save(path)
    return paths


def load(data: Any, **model: Any) -> Splits:
    return load_classification(parse_config({"data": data, "model": {"pretrained": False, **model}}))


def problem(data: Any, **model: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(data, **model)
    assert isinstance(caught.value, InputError)
    assert caught.value.exit_code == 2
    return str(caught.value)


def names(split: Split | None) -> list[str]:
    assert split is not None
    return sorted(f"{Path(path).parent.name}/{Path(path).name}" for path in split.paths)


# folders


def test_one_folder_a_class(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_images(tmp_path / name, 10)
    splits = load(str(tmp_path))
    assert splits.labels == Labels(("a", "b", "c"))
    assert splits.format == "imagefolder"
    assert (len(splits.train), len(splits.val), splits.test) == (24, 6, None)
    assert sorted(splits.val.targets) == [0, 0, 1, 1, 2, 2]
    for split in splits.all():
        for path, target in zip(split.paths, split.targets, strict=True):
            assert Path(path).parent.name == splits.labels.classes[target]


def test_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    for name in ("10", "9", "x", "1"):
        write_images(tmp_path / name, 3)
    assert load(str(tmp_path)).labels.classes == ("1", "9", "10", "x")


@pytest.mark.parametrize("alias", ["val", "valid", "Validation"])
def test_split_folders(tmp_path: Path, alias: str) -> None:
    for split, count in (("train", 4), (alias, 3), ("test", 2)):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, count)
    splits = load(str(tmp_path))
    assert (len(splits.train), len(splits.val)) == (8, 6)
    assert splits.test is not None
    assert len(splits.test) == 4
    assert splits.train.name, splits.val.name == ("train", "val")


def test_a_share_for_val_takes_the_own_val_split_back(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 10)
    splits = load({"train": str(tmp_path), "val": 0.1})
    assert (len(splits.train), len(splits.val)) == (36, 4)
    assert "10% of train" in " ".join(splits.notes)


def test_named_val_and_test_folders(tmp_path: Path) -> None:
    for split in ("one", "two", "three"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 2)
    data = {"train": str(tmp_path / "one"), "val": str(tmp_path / "two"), "test": str(tmp_path / "three")}
    splits = load(data)
    assert all("/two/" in path for path in splits.val.paths)
    assert splits.test is not None
    assert all("/three/" in path for path in splits.test.paths)


def test_the_root_of_split_folders_named_for_val_gives_its_val_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / "set" / split / name, 2)
    root = str(tmp_path / "set")
    splits = load({"train": root, "val": root, "test": root})
    assert all("/val/" in path for path in splits.val.paths)
    assert splits.test is not None
    assert all("/test/" in path for path in splits.test.paths)


def test_images_in_folders_below_the_class_folder_and_hidden_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name / "deep", 5)
        (tmp_path / name / ".hidden.png").write_bytes(b"x")
        (tmp_path / name / "Thumbs.db").write_bytes(b"x")
        write_images(tmp_path / name / ".cache", 2)
    (tmp_path / ".git").mkdir()
    splits = load(str(tmp_path))
    assert len(splits.train) + len(splits.val) == 10
    assert splits.bad == ()


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 5)
    (tmp_path / "a" / "notes.txt").write_text("x")
    splits = load(str(tmp_path))
    assert [(Path(f.path).name, f.split) for f in splits.bad] == [("notes.txt", "train")]
    assert "by its name" in splits.bad[0].reason


def test_demo_digits(digits: Path) -> None:
    splits = load("demo:digits")
    assert splits.labels.classes == tuple("0123456789")
    assert [len(s) for s in splits.all()] == [1252, 181, 364]
    assert demo_folder("demo:digits") == digits
    seen = {path for split in splits.all() for path in split.paths}
    assert len(seen) == 1797


# manifests


def manifest(folder: Path, rows: Sequence[dict[str, Any]], kind: str = "csv") -> str:
    path = folder / f"data.{kind}"
    frame = pd.DataFrame(rows)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_single_label_manifest(tmp_path: Path, kind: str) -> None:
    files = write_images(tmp_path / "img", 20)
    rows = [{"path": f"img/{f.name}", "label": "cat" if i % 2 else "dog"} for i, f in enumerate(files)]
    splits = load(manifest(tmp_path, rows, kind))
    assert splits.labels == Labels(("cat", "dog"))
    assert splits.format == "manifest"
    assert (len(splits.train), len(splits.val)) == (16, 4)
    assert all(Path(p).is_file() for p in splits.train.paths)
    by_path = {row["path"].split("/")[1]: row["label"] for row in rows}
    for path, target in zip(splits.train.paths, splits.train.targets, strict=True):
        assert by_path[Path(path).name] == splits.labels.classes[target]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_multi_label_manifest(tmp_path: Path, kind: str) -> None:
    sets = [["a"], ["a", "b"], [], ["b", "c"], ["c"]] * 6
    rows: list[dict[str, Any]] = [
        {"file": f"{i}.jpg", "labels": ";".join(s) if kind == "csv" else s} for i, s in enumerate(sets)
    ]
    splits = load(manifest(tmp_path, rows, kind))
    assert splits.labels == Labels(("a", "b", "c"), multi_label=True)
    by_name = {f"{i}.jpg": s for i, s in enumerate(sets)}
    for split in splits.all():
        for path, target in zip(split.paths, split.targets, strict=True):
            assert [splits.labels.classes[i] for i in target] == by_name[Path(path).name]
    assert 4 <= len(splits.val) <= 8


def test_multi_label_sets_that_are_all_different_still_give_a_val_split(tmp_path: Path) -> None:
    # each set stands once: stratified by sets, nothing could be held out
    rows = [
        {"path": f"{i}.jpg", "labels": ",".join(c for b, c in enumerate("abcdef") if i >> b & 1)} for i in range(64)
    ]
    splits = load(manifest(tmp_path, rows))
    assert 8 <= len(splits.val) <= 18


@pytest.mark.parametrize("text", ["a;b", "a|b", "a, b", "b;a;b;"])
def test_separators_of_labels(tmp_path: Path, text: str) -> None:
    rows = [{"path": f"{i}.jpg", "labels": text} for i in range(10)]
    assert load(manifest(tmp_path, rows)).labels.classes == ("a", "b")


def test_texts_that_pandas_takes_for_nothing_are_labels(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.jpg", "label": "NA" if i % 2 else "001"} for i in range(10)]
    assert load(manifest(tmp_path, rows)).labels.classes == ("001", "NA")


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_numbers_as_labels(tmp_path: Path, kind: str) -> None:
    rows = [{"path": f"{i}.jpg", "label": i % 11} for i in range(33)]
    assert load(manifest(tmp_path, rows, kind)).labels.classes == tuple(map(str, range(11)))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_split_column(tmp_path: Path, kind: str) -> None:
    parts = ["train", "validation", "test", "train"]
    rows = [{"path": f"{i}.jpg", "label": i // 2 % 2, "split": parts[i % 4]} for i in range(40)]
    splits = load(manifest(tmp_path, rows, kind))
    assert [len(s) for s in splits.all()] == [20, 10, 10]


def test_a_manifest_named_for_val_gives_only_its_val_rows(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.jpg", "label": i // 2 % 2, "split": "train" if i < 30 else "val"} for i in range(40)]
    path = manifest(tmp_path, rows)
    splits = load({"train": path, "val": path})
    assert (len(splits.train), len(splits.val)) == (30, 10)
    assert not set(splits.train.paths) & set(splits.val.paths)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_groups_never_stand_in_both_splits(tmp_path: Path, kind: str) -> None:
    rows = [{"path": f"{i}.jpg", "label": i % 2, "group": f"patient{i // 4}"} for i in range(100)]
    splits = load(manifest(tmp_path, rows, kind))
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert not set(splits.train.groups) & set(splits.val.groups)
    assert 12 <= len(splits.val) <= 28
    assert "whole groups" in " ".join(splits.notes)


def test_images_without_a_group_are_held_out_alike_wherever_the_data_lies(tmp_path: Path) -> None:
    chosen = []
    for place in ("here", "there/below"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        rows = [{"path": f"{i}.jpg", "label": i % 2, "group": "g" if i < 4 else ""} for i in range(60)]
        chosen.append({Path(path).name for path in load(manifest(folder, rows)).val.paths})
    assert chosen[0] == chosen[1]


def test_root_of_relative_paths(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.jpg", "label": i % 2} for i in range(10)]
    splits = load({"train": manifest(tmp_path, rows), "root": "/Volumes/x"})
    assert all(path.startswith("/Volumes/x/") for path in splits.train.paths)


def test_absolute_and_relative_paths_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"path": f"{i}.jpg" if i % 2 else f"/abs/{i}.jpg", "label": i // 2 % 2} for i in range(20)]
    manifest(tmp_path, rows)
    splits = load("data.csv")
    assert len(splits.train) + len(splits.val) == 20


def test_names_without_an_ending_are_taken(tmp_path: Path) -> None:
    rows = [{"path": f"blob{i}", "label": i % 2} for i in range(20)]
    assert len(load(manifest(tmp_path, rows)).val) == 4


# messages


def test_missing_path_names_key_line_and_the_closest_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "c.yaml"
    file.write_text(f"model:\n  name: resnet18\ndata:\n  train: {tmp_path}/imagse\n")
    with pytest.raises(DataError) as caught:
        load_classification(load_config(file))
    text = str(caught.value)
    assert text.startswith(f"{file}:4: data.train: {tmp_path}/imagse does not exist")
    assert "Did you mean 'images'?" in text
    assert "demo:digits" in text


@pytest.mark.parametrize("key", ["val", "test"])
def test_missing_path_of_val_and_test(tmp_path: Path, key: str) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 5)
    assert f"data.{key}: /no/such/place does not exist (/ does)" in problem(
        {"train": str(tmp_path), key: "/no/such/place"}
    )


def test_unknown_demo() -> None:
    assert "Did you mean 'digits'?" in problem("demo:digit")


def test_empty_class_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    text = problem(str(tmp_path))
    assert f"class folders without an image in {tmp_path}: 'empty', 'text'" in text
    assert "Add images or remove the folders" in text


def test_loose_images(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    assert "has no class folders but 3 loose images" in problem(str(tmp_path))


def test_empty_folder(tmp_path: Path) -> None:
    assert "has no class folders. Expected" in problem(str(tmp_path))


def test_one_class(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    assert "found 1 class ('a'), expected at least 2" in problem(str(tmp_path))
    rows = [{"path": f"{i}.jpg", "label": "a"} for i in range(9)]
    assert "found 1 class ('a'), expected at least 2" in problem(manifest(tmp_path, rows))


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_that_train_lacks(tmp_path: Path, split: str) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 2)
    for name in ("cat", "dogs"):
        write_images(tmp_path / split / name, 2)
    text = problem(str(tmp_path))
    assert f"data.{split}: the {split} split has classes that train lacks: 'dogs'. Did you mean 'dog'?" in text
    assert "Train has: 'cat', 'dog'." in text


def test_num_classes_that_contradicts_the_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "d" / name, 5)
    file = tmp_path / "c.yaml"
    file.write_text(f"model:\n  num_classes: 7\ndata: {tmp_path}/d\n")
    with pytest.raises(
        DataError, match=r"c\.yaml:2: model\.num_classes: found 7, and the data has 2 classes: 'a', 'b'"
    ):
        load_classification(load_config(file))
    assert load(str(tmp_path / "d"), num_classes=2).labels.classes == ("a", "b")


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_impossible_share(tmp_path: Path, share: float) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 5)
    assert "expected a share between 0 and 1 or a path" in problem({"train": str(tmp_path), "val": share})


def test_too_few_images_to_hold_some_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 1)
    assert "too few to hold out a validation split. Name one: data.val=PATH" in problem(str(tmp_path))


def test_file_that_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "expected a folder or a manifest (.csv, .parquet, .jsonl)" in problem(str(tmp_path / "a.txt"))


def test_format_that_contradicts_the_path(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 1)
    assert "data.format: found 'manifest'" in problem({"train": str(tmp_path), "format": "manifest"})
    path = manifest(tmp_path, [{"path": "a.jpg", "label": "a"}])
    assert "data.format imagefolder" in problem({"train": path, "format": "imagefolder"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a.jpg", "label": "x"}], "has the columns 'name', 'label', expected one of path, image"),
        ([{"path": "a.jpg", "kind": "x"}], "expected one of label, labels"),
        ([{"path": "a.jpg", "label": "x"}, {"path": "b.jpg", "label": ""}], "row 3: no label for b.jpg"),
        ([{"path": "", "label": "x"}], "row 2: no path"),
        ([{"path": "a.jpg", "label": "x", "split": "trian"}], "row 2: split 'trian', expected train, val or test"),
        ([{"path": "a.jpg", "label": "x"}, {"path": "./a.jpg", "label": "y"}], "1 images stand in several rows"),
        ([{"path": "a.jpg", "label": "x", "split": "test"}], "no training images"),
    ],
)
def test_manifest_problems(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    text = problem(manifest(tmp_path, rows))
    assert message in text
    assert text.startswith("data.train: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b""), ("a.csv", b"\xff\xfe\x00\xd8\xff"), ("a.parquet", b"no parquet"), ("a.jsonl", b"{no json}\n")],
)
def test_manifest_that_can_not_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} can't be read: " in problem(str(tmp_path / name))


def test_manifest_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n")
    assert "has no rows" in problem(str(tmp_path / "a.csv"))


def test_single_and_multi_label_together(tmp_path: Path) -> None:
    train = manifest(tmp_path, [{"path": f"{i}.jpg", "label": i % 2} for i in range(9)])
    (tmp_path / "other").mkdir()
    val = manifest(tmp_path / "other", [{"path": "z.jpg", "labels": "0;1"}])
    assert "multi-label, those of data.train are single-label" in problem({"train": train, "val": val})


# a split for evaluation


def test_load_one_takes_the_models_classes(digits: Path) -> None:
    config = parse_config({"data": "demo:digits"})
    labels = Labels(tuple("9876543210"))
    split = load_one("demo:digits", config, labels)
    assert (split.name, len(split)) == ("test", 364)
    for path, target in zip(split.paths, split.targets, strict=True):
        assert Path(path).parent.name == labels.classes[target]
    assert len(load_one(str(digits), config, labels, "val")) == 181
    assert len(load_one(str(digits / "test"), config, labels)) == 364


def test_load_one_falls_back_on_val_never_on_train(tmp_path: Path) -> None:
    config, labels = parse_config({"data": "demo:digits"}), Labels(("a", "b"))
    for name in ("a", "b"):
        write_images(tmp_path / "train" / name, 2)
    with pytest.raises(DataError, match=r"has no test split\. It has: 'train'"):
        load_one(str(tmp_path), config, labels)
    for name in ("a", "b"):
        write_images(tmp_path / "val" / name, 1)
    split = load_one(str(tmp_path), config, labels)
    assert names(split) == ["a/000.png", "b/000.png"]
    assert all("/val/" in path for path in split.paths)


def test_load_one_refuses_other_classes_and_kinds(tmp_path: Path) -> None:
    config = parse_config({"data": "demo:digits"})
    for name in ("a", "zebra"):
        write_images(tmp_path / name, 1)
    with pytest.raises(DataError, match=r"the model does not know: 'zebra'\. It knows: 'a', 'b'"):
        load_one(str(tmp_path), config, Labels(("a", "b")))
    with pytest.raises(DataError, match="single-label, the model is multi-label"):
        load_one(str(tmp_path), config, Labels(("a", "zebra"), multi_label=True))


def test_list_images(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "b", 2) + write_images(tmp_path / "a" / "c", 1)
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "UP.JPG").write_text("x")
    write_images(tmp_path / ".hidden", 1)
    assert list_images(tmp_path) == sorted([*map(str, paths), str(tmp_path / "UP.JPG")])


# the classes that are wanted, and images apart from their table


def test_named_classes_are_kept_in_their_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_images(tmp_path / name, 10)
    splits = load({"train": str(tmp_path), "classes": ["c", "a"]})
    assert splits.labels.classes == ("c", "a")
    assert len(splits.train) + len(splits.val) == 20
    assert "data.classes: 10 labels of other classes left out" in splits.notes
    for path, target in zip(splits.train.paths, splits.train.targets, strict=True):
        assert Path(path).parent.name == ("c", "a")[target]
    assert "train has no image of 'cc'. Did you mean 'c'?" in problem({"train": str(tmp_path), "classes": ["cc", "a"]})


def test_named_classes_of_several_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 10)
    lines = [f"{i:03d}.png,{'a;b' if i % 2 else 'c'}" for i in range(10)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,labels", *lines]))
    source = {"images": str(tmp_path / "photos"), "annotations": str(table)}
    splits = load({"train": source, "val": source, "classes": ["b"]})
    assert splits.labels == Labels(("b",), multi_label=True)
    assert (len(splits.train), len(splits.val)) == (10, 10), "images without a label that is wanted stay"
    assert sorted(splits.train.targets) == [()] * 5 + [(0,)] * 5
    assert all(Path(path).is_file() for path in splits.train.paths)
    assert "expected `images` and, as `annotations`, a manifest" in problem({"train": {"images": "x", "masks": "y"}})
