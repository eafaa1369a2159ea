"""What counts as input of a batch run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from cvpipe.errors import DataError
from cvpipe.inference.sources import find_inputs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/{b.png,a.JPG,sub/c.png} with a text file and hidden files beside them; contents do not matter here."""
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "notes.md", ".hidden.png", "sub/c.png", ".cache/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_folder_is_searched_with_its_subfolders_in_order(photos: Path) -> None:
    found = find_inputs(photos)
    assert found.paths == tuple(str(photos / name) for name in ("a.JPG", "b.png", "sub/c.png"))
    assert found.file(0) == found.paths[0]


def test_paths_of_a_folder_begin_with_the_folder_as_given(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    assert find_inputs("photos/").paths == ("photos/a.JPG", "photos/b.png", "photos/sub/c.png")


def test_glob(photos: Path) -> None:
    assert find_inputs(f"{photos}/**/*.png").paths == (str(photos / "b.png"), str(photos / "sub/c.png"))
    mixed = find_inputs(f"{photos}/*.*")
    assert len(mixed) == 2
    assert mixed.notes == ("1 files that are not images left out",)


def test_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    folder = tmp_path / "set[1]"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    assert find_inputs(folder).paths == (str(folder / "a.png"),)


def test_single_image(photos: Path) -> None:
    assert find_inputs(photos / "b.png").paths == (str(photos / "b.png"),)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["path", "Image_Path"])
def test_manifest_paths_are_kept_as_written_and_opened_from_its_folder(photos: Path, suffix: str, column: str) -> None:
    frame = pd.DataFrame({column: ["sub/c.png", str(photos / "b.png")], "other": [1, 2]})
    manifest = photos / f"list{suffix}"
    if suffix == ".csv":
        frame.to_csv(manifest, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(manifest)
    else:
        manifest.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    found = find_inputs(manifest)
    assert found.paths == ("sub/c.png", str(photos / "b.png"))
    assert [Path(found.file(i)) for i in range(2)] == [photos / "sub/c.png", photos / "b.png"]


def test_text_list(photos: Path) -> None:
    (photos / "list.txt").write_text("b.png\n\n  sub/c.png  \nb.png\n", "utf-8-sig")
    found = find_inputs(photos / "list.txt")
    assert found.paths == ("b.png", "sub/c.png")
    assert found.notes == ("1 repeated paths: one record for each path",)
    assert Path(found.file(1)) == photos / "sub/c.png"


def test_sequence(photos: Path) -> None:
    found = find_inputs([photos / "b.png", "x/y.png", photos / "b.png"])
    assert found.paths == (str(photos / "b.png"), "x/y.png")
    assert found.file(1) == "x/y.png"


def test_missing_path_names_the_nearest(photos: Path) -> None:
    with pytest.raises(DataError, match=r"photo does not exist .*Did you mean 'photos'\? Expected a folder"):
        find_inputs(photos.parent / "photo")
    with pytest.raises(DataError, match="does not exist"):
        find_inputs("no/such/folder")


def test_empty_inputs(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("x")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.csv").write_text("path\n")
    with pytest.raises(DataError, match=r"no image in this folder or below it \(1 other files\).*\.jpg"):
        find_inputs(tmp_path / "empty")
    for source in (tmp_path / "empty.txt", tmp_path / "empty.csv", []):
        with pytest.raises(DataError, match="is empty"):
            find_inputs(source)
    with pytest.raises(DataError, match="matches no file"):
        find_inputs(f"{photos}/*.webp")
    with pytest.raises(DataError, match="none of them is an image"):
        find_inputs(f"{photos}/*.md")


def test_manifest_that_can_not_be_used(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("url,label\nx,1\n")
    with pytest.raises(DataError, match=r"has the columns url, label, expected one of path, image"):
        find_inputs(manifest)
    manifest.write_text('path,label\n"",1\na.png,2\n')
    with pytest.raises(DataError, match="1 rows have no path in the column path; the first is row 1"):
        find_inputs(manifest)


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="unknown kind"):
        find_inputs(tmp_path / "images.zip")
