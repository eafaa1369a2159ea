"""`--save-images`: where pictures go, what stays untouched, and how runs go on."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.bundle import Bundle
from cvpipe.draw import open_image
from cvpipe.errors import CvpipeError, InputError
from cvpipe.inference import pictures as module
from cvpipe.inference.batch_inference import predict
from cvpipe.inference.pictures import PictureFolder, Pictures, _names
from cvpipe.inference.sources import find_inputs
from cvpipe.predictor import Predictor

IMAGES = 8


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> Predictor:
    return Predictor(tiny_bundle, device="cpu", batch_size=2)


@pytest.fixture
def photos(tmp_path: Path, digits: Path) -> Path:
    """Images in subfolders: PNG, JPEG, BMP, one without an ending; and a broken one."""
    folder = tmp_path / "photos"
    names = ("0.png", "a/1.png", "a/2.jpg", "a/b/3.JPEG", "a/b/4.bmp", "a/5.png", "6.png")
    for name, path in zip(names, sorted((digits / "test").rglob("*.png"))[::40], strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((48, 40)).save(folder / name)
    (folder / "a" / "broken.png").write_bytes(b"no image")
    return folder


def made(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


EXPECTED = {"0.png", "a/1.png", "a/2.jpg", "a/b/3.JPEG", "a/b/4.bmp.png", "a/5.png", "6.png"}


def contents(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in made(folder)}


@pytest.mark.parametrize("output", ["p.jsonl", None])
def test_each_image_with_its_prediction(
    output: str | None, photos: Path, tmp_path: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(photos)
    target = tmp_path / "pictures"
    result = predict(predictor, photos, output and tmp_path / output, save_images=target)
    assert made(target) == EXPECTED
    assert contents(photos) == before
    assert (result.pictures, result.drawn, result.failed) == (target, IMAGES - 1, 1)
    assert result.to_dict()["pictures"] == str(target)
    assert f"; 7 pictures -> {target}" in str(result)
    if output:
        assert str(result) in capsys.readouterr().out
    for name in sorted(EXPECTED):
        source = photos / name.replace(".bmp.png", ".bmp")
        (answer,) = predictor.predict(str(source))
        wanted = np.asarray(predictor.task.draw(open_image(str(source)), answer, predictor.bundle.labels), np.int64)
        with Image.open(target / name) as found:
            assert found.format == ("JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
            off = np.abs(np.asarray(found.convert("RGB"), np.int64) - wanted)
        assert off.max() == 0 if found.format == "PNG" else off.mean() < 6
    assert not list(target.rglob(".*"))


def test_without_the_option_nothing_changes(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    result = predict(predictor, photos, tmp_path / "p.json")
    assert set(result.to_dict()) == {"output", "images", "failed", "images_per_second"}
    assert set(os.listdir(tmp_path)) - {"default-mlflow.db"} == {"photos", "p.json"}


PARTS = st.sampled_from(["a", "A", "b.png", "b", "c.JPG", "c.jpg", "d.tif", "d.tif.png", "e"])
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True)


@given(paths=PATHS)
def test_names_are_unique_and_keep_their_folder(paths: list[str]) -> None:
    names = _names([f"/data/in/{path}" for path in paths], "/data/in")
    assert len({name.casefold() for name in names}) == len(paths)
    for path, name in zip(paths, names, strict=True):
        assert os.path.dirname(name) == os.path.dirname(path)
        assert Path(name).suffix.lower() in (".png", ".jpg")
        assert os.path.basename(name).startswith(os.path.basename(path).partition(".")[0])
    # only an equal path, or one that becomes equal with its new ending, can take a name away
    folded = [path.casefold() for path in paths]
    for path, name in zip(paths, names, strict=True):
        rivals = folded.count(path.casefold()) + folded.count(path.casefold().removesuffix(".png"))
        if path.endswith((".png", ".jpg", ".JPG")) and rivals == 1:
            assert name == path


def test_names_of_globs_and_lists_start_at_their_folder(photos: Path, tmp_path: Path) -> None:
    found = find_inputs(f"{photos}/a/**/*.png")
    assert PictureFolder(tmp_path / "x", f"{photos}/a/**/*.png", found).names == ["1.png", "5.png", "broken.png"]
    (photos / "list.txt").write_text("a/1.png\na/5.png\n")
    found = find_inputs(photos / "list.txt")
    assert PictureFolder(tmp_path / "x", photos / "list.txt", found).names == ["a/1.png", "a/5.png"]
    given = [str(photos / "a" / "1.png"), str(photos / "a" / "b" / "4.bmp")]
    assert PictureFolder(tmp_path / "x", given, find_inputs(given)).names == ["1.png", "b/4.bmp.png"]


def test_the_images_are_never_replaced(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    before = contents(photos)
    link = tmp_path / "link"
    link.symlink_to(photos)
    for folder in (photos, photos / "a" / "new", link / "sub"):
        with pytest.raises(InputError, match="lies in the folder of the images"):
            predict(predictor, photos, tmp_path / "p.json", save_images=folder, overwrite=True)
    with pytest.raises(InputError, match="lies in the folder of the images"):
        predict(predictor, f"{photos}/**/*.png", tmp_path / "p.json", save_images=photos / "new")
    files = [str(photos / "a" / "1.png"), str(photos / "a" / "5.png")]
    for folder in (photos / "a", link / "a"):
        with pytest.raises(InputError, match="would take the place of an image"):
            predict(predictor, files, tmp_path / "p.json", save_images=folder, overwrite=True)
    assert contents(photos) == before
    assert not list(tmp_path.glob("p.json*"))


def test_a_folder_that_can_not_be(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "a file of this name exists"), (tmp_path / "file" / "x", "Not a dir")):
        with pytest.raises(InputError, match=rf"--save-images {folder}: can't be written \({reason}"):
            predict(predictor, photos, tmp_path / "p.json", save_images=folder)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="Permission denied"):
            predict(predictor, photos, tmp_path / "p.json", save_images=tmp_path / "locked")


def test_pictures_of_other_runs_are_kept_unless_asked(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    target = tmp_path / "pictures"
    (target / "a").mkdir(parents=True)
    (target / "a" / "1.png").write_text("precious")
    (target / "a" / "broken.png").write_text("of an image that could be read then")
    with pytest.raises(InputError, match=r"a/1\.png exists already.*--overwrite"):
        predict(predictor, photos, tmp_path / "p.json", save_images=target)
    with pytest.raises(InputError, match="exists already"):
        predict(predictor, photos, save_images=target)
    assert made(target) == {"a/1.png", "a/broken.png"}
    assert not list(tmp_path.glob("p.json*")), "nothing is left that a second try would stumble over"
    predict(predictor, photos, tmp_path / "p.json", save_images=target, overwrite=True)
    assert made(target) == EXPECTED
    with Image.open(target / "a" / "1.png") as picture:
        assert picture.size == (48, 40)


class Stopping(Predictor):
    """Ctrl-C after some answers."""

    stop_after = 5

    def stream(self, images: Any, **params: Any) -> Any:
        for count, answer in enumerate(super().stream(images, **params)):
            if count == self.stop_after:
                raise KeyboardInterrupt
            yield answer


def test_goes_on_with_the_pictures_too(photos: Path, tmp_path: Path, tiny_bundle: Bundle, predictor: Predictor) -> None:
    output, target = tmp_path / "p.jsonl", tmp_path / "pictures"
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(tiny_bundle, device="cpu"), photos, output, save_every=0, save_images=target)
    drawn = made(target)
    assert drawn < EXPECTED
    (target / "0.png").unlink(missing_ok=True)
    times = {name: (target / name).stat().st_mtime_ns for name in made(target)}
    result = predict(predictor, photos, output, save_images=target)
    assert made(target) == EXPECTED
    assert result.resumed == len(times), "records without a picture are predicted again, the others are taken over"
    assert result.drawn == len(EXPECTED) - len(times)
    assert {name: (target / name).stat().st_mtime_ns for name in times} == times
    assert len(output.read_text().splitlines()) == IMAGES
    assert not output.with_name("p.jsonl.parts").exists()


def test_pictures_that_are_asked_for_later(
    photos: Path, tmp_path: Path, tiny_bundle: Bundle, predictor: Predictor
) -> None:
    output = tmp_path / "p.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(tiny_bundle, device="cpu"), photos, output, save_every=0)
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    with pytest.raises(InputError, match="is not of an interrupted run of this output"):
        predict(predictor, photos, output, save_images=other)
    result = predict(predictor, photos, output, save_images=tmp_path / "pictures")
    assert (result.resumed, result.drawn) == (0, IMAGES - 1)


def test_a_full_disk_ends_the_run_and_it_goes_on(
    photos: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, target, count = tmp_path / "p.jsonl", tmp_path / "pictures", [0]
    real = module.atomic_path

    @contextmanager
    def filling(path: Path) -> Iterator[Path]:
        count[0] += 1
        if count[0] > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with real(path) as staged:
            yield staged

    monkeypatch.setattr(module, "atomic_path", filling)
    with pytest.raises(CvpipeError, match=r"can't be written any more \(No space left on device\).*goes on") as caught:
        predict(predictor, photos, output, save_images=target)
    assert caught.value.exit_code == 1
    assert not output.exists()
    monkeypatch.undo()
    result = predict(predictor, photos, output, save_images=target)
    assert made(target) == EXPECTED
    assert result.images == IMAGES
    assert result.resumed <= 3


def test_what_can_not_be_drawn_is_counted(photos: Path, tmp_path: Path, tiny_bundle: Bundle) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")

    def draw(image: Any, what: Any, labels: Any) -> Any:
        if image.getpixel((0, 0)) is not None and threading.current_thread() is threading.main_thread():
            raise AssertionError("drawing belongs into the threads")
        raise ValueError("no ink\nat all")

    predictor.task = replace(predictor.task, draw=draw)
    result = predict(predictor, photos, tmp_path / "p.jsonl", save_images=tmp_path / "pictures")
    assert (result.images, result.failed, result.drawn) == (IMAGES, 1, 0)
    assert any(reason.startswith("7 x picture not made: ValueError: no ink (such as ") for reason in result.reasons)
    assert not made(tmp_path / "pictures")


def test_the_threads_do_not_fall_behind_without_limit(photos: Path, tmp_path: Path, predictor: Predictor) -> None:
    inputs = find_inputs([str(photos / "0.png"), str(photos / "a" / "1.png")])
    (answer,) = predictor.predict(str(photos / "0.png"))
    gate = threading.Event()
    slow = Predictor(predictor.bundle, device="cpu", threads=2)
    slow.task = replace(slow.task, draw=lambda image, what, labels: gate.wait(20) and image)
    folder = PictureFolder(tmp_path / "pictures", "", inputs)
    with Pictures(folder, slow, inputs) as pictures:
        threading.Timer(0.5, gate.set).start()
        for _ in range(40):
            pictures.add(0, answer)
            assert len(pictures._waiting) <= 8
        assert gate.is_set(), "the ninth had to wait"
        pictures.finish()
    assert pictures.saved == 40
