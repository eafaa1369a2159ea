"""`cvpipe data prepare`: only what is new, splits that stay, bad images, checksums, and training that takes it all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_sets import config_of, named, pack, photo, photos, read

from cvpipe.data.packed.folder import verify_shards
from cvpipe.data.packed.index import load_index
from cvpipe.data.packed.shrink import Shrink
from cvpipe.data.prepare import prepare, run_prepare
from cvpipe.data.prepared import is_prepared, read_split
from cvpipe.data.store import parse_cell, read_bytes
from cvpipe.data.verify import find_bad_files
from cvpipe.errors import DataError, InputError
from cvpipe.task import find_task
from cvpipe.types import Labels


def shard_names(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}


def test_the_same_images_labels_and_order_as_from_the_folder(tmp_path: Path) -> None:
    config = photos(tmp_path / "in", 20)
    found = pack(config, tmp_path / "out")
    files, shards = read(config), read(config_of(tmp_path / "out"))
    assert found.images == {"train": len(files.train), "val": len(files.val)}
    assert shards.labels == files.labels
    for one, other in zip(files.all(), shards.all(), strict=True):
        assert list(named(one).items()) == list(named(other).items())
        assert [read_bytes(path) for path in one.paths] == [read_bytes(path) for path in other.paths]
    assert find_bad_files(shards.all()) == []
    assert "made from" in shards.notes[0]


def test_again_adds_only_what_is_new(tmp_path: Path) -> None:
    config, out = photos(tmp_path / "in", 20), tmp_path / "out"
    assert pack(config, out).changes.new == 20
    before = shard_names(out)
    again = pack(config, out)
    assert str(again.changes) == "0 new, 20 unchanged, 0 changed, 0 gone"
    assert shard_names(out) == before
    photos(tmp_path / "in", 6, first=20)
    grown = pack(config, out)
    assert str(grown.changes) == "6 new, 20 unchanged, 0 changed, 0 gone"
    assert before.items() <= shard_names(out).items(), "finished files are kept as they are"
    assert sum(grown.images.values()) == 26


def test_changed_and_gone_images(tmp_path: Path) -> None:
    config, out = photos(tmp_path / "in", 20), tmp_path / "out"
    pack(config, out, shard_bytes=4000)
    victim, other = sorted((tmp_path / "in" / "a").iterdir())[:2]
    photo(victim, 999)
    other.unlink()
    # the label of an image is its folder
    moved = sorted((tmp_path / "in" / "a").iterdir())[-1]
    moved.rename(tmp_path / "in" / "b" / moved.name)
    touched = sorted((tmp_path / "in" / "b").iterdir())[0]
    os.utime(touched, (1, 1))
    found = pack(config, out, shard_bytes=4000)
    assert str(found.changes) == "1 new, 17 unchanged, 1 changed, 2 gone"
    shards = read(config_of(out))
    content = {Path(path).name: read_bytes(path) for split in shards.all() for path in split.paths}
    assert content == {path.name: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}
    assert {parse_cell(path).file for split in shards.all() for path in split.paths} == {  # type: ignore[union-attr]
        str(path) for path in out.glob("*.arrow")
    }, "files that nothing names any more are removed"


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.booleans(), st.randoms(use_true_random=False))
def test_adding_images_never_moves_one_between_splits(steps: list[int], grouped: bool, random: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, seen = ["path,label,group"], {}
        count = 0
        for step in [8, *steps]:
            for _ in range(step):
                photo(folder / f"{count}.png", count, (8, 8))
                group = f"g{random.randrange(6)}" if grouped else ""  # type: ignore[attr-defined]
                rows.append(f"{count}.png,{'ab'[count % 2]},{group}")
                count += 1
            (folder / "list.csv").write_text("\n".join(rows))
            pack(config_of(folder / "list.csv"), folder / "out")
            splits = read(config_of(folder / "out"))
            now = {Path(path).name: split.name for split in splits.all() for path in split.paths}
            assert len(now) == count
            assert seen.items() <= now.items()
            seen = now
            groups = {(split.name, group) for split in splits.all() for group in split.groups or ()}
            assert max(Counter(group for _, group in groups).values(), default=1) == 1


def test_shares_of_each_class_are_met_and_nearly_kept(tmp_path: Path) -> None:
    config = photos(tmp_path / "in", 80)
    first = pack(config, tmp_path / "out")
    assert {label: counts["val"] for label, counts in first.classes.items()} == {"a": 8, "b": 8}
    photos(tmp_path / "in", 80, first=80)
    second = pack(config, tmp_path / "out")
    for counts in second.classes.values():
        assert 8 <= counts["val"] <= 28  # 16 expected; 80 draws of 0.2 stay within this in all but 1 of 10,000 cases


def test_a_copy_of_a_known_image_joins_its_split(tmp_path: Path) -> None:
    config = photos(tmp_path / "in", 30)
    pack(config, tmp_path / "out")
    val = [Path(path).name for path in read(config_of(tmp_path / "out")).val.paths]
    for name in val:
        original = next((tmp_path / "in").rglob(name))
        shutil.copyfile(original, original.with_name(f"copy-{name}"))
    pack(config, tmp_path / "out")
    found = {Path(path).name for path in read(config_of(tmp_path / "out")).val.paths}
    assert {f"copy-{name}" for name in val} <= found


def test_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        photos(tmp_path / "in", 6, split, first={"train": 0, "val": 10, "test": 20}[split])
    config = config_of(tmp_path / "in")
    pack(config, tmp_path / "out")
    moved = sorted((tmp_path / "in" / "train" / "a").iterdir())[0]
    moved.rename(tmp_path / "in" / "test" / "a" / moved.name)
    pack(config, tmp_path / "out")
    files, shards = read(config), read(config_of(tmp_path / "out"))
    assert [named(split) for split in files.all()] == [named(split) for split in shards.all()]


def test_bad_images_are_counted_listed_and_limited(tmp_path: Path) -> None:
    config, out = photos(tmp_path / "in", 20), tmp_path / "out"
    bad = [tmp_path / "in" / "a" / "000.png", tmp_path / "in" / "b" / "003.jpg"]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes(bad[1].read_bytes()[:200])
    with pytest.raises(DataError, match=r"2 of 20 files can't be used.*max_bad_fraction = 0\.01.*bad_files\.csv"):
        pack(config, out)
    lenient = config.replace(**{"data.max_bad_fraction": 0.2})
    found = pack(lenient, out)
    assert (found.bad, sum(found.images.values())) == (2, 18)
    with (out / "bad_files.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"a/000.png", "b/003.jpg"}
    shards = read(config_of(out))
    assert {item.path for item in shards.bad} == {"a/000.png", "b/003.jpg"}
    assert sum(len(split) for split in shards.all()) == 18
    assert str(pack(lenient, out).changes) == "0 new, 20 unchanged, 0 changed, 0 gone"
    photo(bad[0], 5)
    photo(bad[1], 6)
    assert pack(config, out).bad == 0
    assert not (out / "bad_files.csv").exists()


def test_what_a_stopped_run_has_finished_is_taken(tmp_path: Path) -> None:
    """The first files stand, the index does not: they are kept, and the end is that of an undisturbed run."""
    config = photos(tmp_path / "in", 30)
    pack(config, tmp_path / "whole", shard_bytes=6000)
    wanted = load_index(tmp_path / "whole")
    assert sum(len(split.files) for split in wanted.splits.values()) > 4

    class StoppedError(Exception):
        pass

    import cvpipe.data.packed.folder as module

    real, done = module._write, []

    def twice(*args: object) -> object:
        if len(done) == 2:
            raise StoppedError
        done.append(1)
        return real(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", twice)
        with pytest.raises(StoppedError):
            pack(config, tmp_path / "out", shard_bytes=6000)
    before = shard_names(tmp_path / "out")
    assert len(before) == 2
    pack(config, tmp_path / "out", shard_bytes=6000)
    assert before.items() <= shard_names(tmp_path / "out").items()
    assert load_index(tmp_path / "out") == wanted
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_other_settings_pack_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = photos(tmp_path / "in", 12), tmp_path / "out"
    pack(config, out)
    small = pack(config, out, Shrink(max_side=12))
    assert "All images are packed anew" in capsys.readouterr().out
    assert small.images == {"train": 10, "val": 2}
    assert load_index(out).shrink == Shrink(max_side=12)


def test_checksums_and_files_that_are_cut_off(tmp_path: Path) -> None:
    config, out = photos(tmp_path / "in", 12), tmp_path / "out"
    pack(config, out)
    assert verify_shards(out)["files"] == 2
    path = sorted(out.glob("train*.arrow"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    read(config_of(out))
    with pytest.raises(DataError, match=rf"{path.name}: its content is not what was written"):
        verify_shards(out)
    path.write_bytes(data[:-100])
    for action in (lambda: read(config_of(out)), lambda: verify_shards(out), lambda: pack(config, out)):
        with pytest.raises(DataError, match=rf"{path.name}: {len(data) - 100} bytes, expected {len(data)}"):
            action()
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: No such file"):
        read(config_of(out))


def test_mistakes_are_told(tmp_path: Path) -> None:
    config, out = photos(tmp_path / "in", 12), tmp_path / "out"
    pack(config, out)
    with pytest.raises(DataError, match="holds other files"):
        pack(config, tmp_path / "in")
    with pytest.raises(DataError, match=r"prepared for the task classification, and the config's is anomaly"):
        read(config.replace(task="anomaly").replace(**{"data.train": str(out)}))
    with pytest.raises(DataError, match=r"data\.classes: found 'a', and .* was prepared with 'a', 'b'"):
        read(config_of(out, classes=["a"]))
    with pytest.raises(DataError, match=r"found the share 0\.4, and .* was prepared with a share of 0\.2"):
        read(config_of(out, val=0.4))
    with pytest.raises(DataError, match="is prepared data, and"):
        read(config_of(tmp_path / "in", val=str(out)))
    with pytest.raises(DataError, match="classes that the model does not know: 'a', 'b'"):
        read_split(find_task("classification"), str(out), config, Labels(("x", "y")), "test")
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"version": 99}))
    with pytest.raises(DataError, match="found cvpipe-shards version 99, expected cvpipe-shards version 1"):
        read(config_of(out))
    (out / "index.json").write_text('{"format": "cvpipe-shards", "version": 1}')
    with pytest.raises(DataError, match="not an index of shards"):
        read(config_of(out))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--to .*file can't be written"):
        prepare(config, str(tmp_path / "file"))
    with pytest.raises(InputError, match="--to DIR"):
        run_prepare(tmp_path / "x.yaml", (), None, {})


def test_positions_of_a_model_are_taken(tmp_path: Path) -> None:
    config = photos(tmp_path / "in", 12)
    pack(config, tmp_path / "out")
    split = read_split(find_task("classification"), str(tmp_path / "out"), config, Labels(("z", "b", "a")), "test")
    assert split.name == "test"
    assert {target for name, target in named(split).items() if name.startswith("a/")} == {2}


def test_other_sources_may_stand_beside_shards(tmp_path: Path) -> None:
    pack(photos(tmp_path / "in", 12), tmp_path / "out")
    photos(tmp_path / "more", 8, first=50)
    splits = read(config_of(tmp_path / "out", val=str(tmp_path / "more")))
    assert len(splits.val) == 8
    assert len(splits.train) == 10


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("delta:/x/y", True),
        ("main.vision.images", True),
        ("main.vision.images@3", True),
        ("a.b.csv", False),
        ("demo:digits", False),
        ("x/y.z.w", False),
        ("images", False),
        (0.2, False),
        (None, False),
    ],
)
def test_what_counts_as_prepared(source: object, wanted: bool) -> None:
    assert is_prepared(source) is wanted
