"""The same objects come out of every format and layout; splits, classes, and what is said where nothing fits."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_sets import (
    CLASSES,
    IDS,
    LAYOUTS,
    LITTLE,
    Scene,
    Thing,
    coco_content,
    config,
    load,
    objects,
    problem,
    voc_text,
    write_image,
    write_json,
    write_mask,
    yolo_line,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvpipe.data import demo_scenes
from cvpipe.data.annotated import load_annotated_split
from cvpipe.data.formats.points import flip_pairs_from_names
from cvpipe.data.splits import Split
from cvpipe.data.targets import ClassMap
from cvpipe.errors import DataError
from cvpipe.types import Labels

DATA = Path("/work/shared/data")


def expected(scenes: Any) -> dict[str, list[tuple[Any, ...]]]:
    return {scene.name: [(thing.label, *thing.box) for thing in scene.things] for scene in scenes}


def same(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for name, things in wanted.items():
        assert [thing[0] for thing in found[name]] == [thing[0] for thing in things], name
        for one, other in zip(found[name], things, strict=True):
            np.testing.assert_allclose(one[1:], other[1:], atol=1e-3, err_msg=name)


# layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, LITTLE)
    splits = load(tmp_path)
    form = layout.split()[0]
    assert splits.format == form
    assert splits.notes[0].startswith(f"format: {form} (")
    assert splits.labels == Labels(tuple(sorted(CLASSES)) if form == "voc" else CLASSES)
    assert splits.problems == ()
    assert splits.annotations == 9
    for split in splits.all():
        same(objects(split, splits.labels.classes), expected(LITTLE[split.name]))
        for path, target in zip(split.paths, split.targets, strict=True):
            assert Path(path).is_file()
            assert target.boxes.dtype == target.areas.dtype == np.float32
            assert (target.labels.dtype, target.crowd.dtype) == (np.int64, np.bool_)
            np.testing.assert_allclose(target.areas, np.prod(target.boxes[:, 2:] - target.boxes[:, :2], axis=1))
            assert (target.masks, target.points) == (None, None), "not asked for"


@pytest.mark.parametrize(
    ("layout", "annotations"),
    [("coco annotations", "annotations/instances_{}.json"), ("yolo beside", "{}"), ("voc beside", "{}")],
)
def test_each_split_named(tmp_path: Path, layout: str, annotations: str) -> None:
    LAYOUTS[layout](tmp_path, LITTLE)
    named = {
        split: {"images": str(tmp_path / split), "annotations": str(tmp_path / annotations.format(split))}
        for split in LITTLE
    }
    splits = load(named["train"], val=named["val"], test=named["test"])
    for split in splits.all():
        same(objects(split, splits.labels.classes), expected(LITTLE[split.name]))
    # a set that is named takes the place of the folder's own
    swapped = load(tmp_path, val=named["test"], test=named["val"])
    same(objects(swapped.val, swapped.labels.classes), expected(LITTLE["test"]))
    same(objects(swapped.test, swapped.labels.classes), expected(LITTLE["val"]))


def test_a_file_or_a_folder_for_each_split(tmp_path: Path) -> None:
    LAYOUTS["coco roboflow"](tmp_path, LITTLE)
    splits = load(tmp_path / "train" / "_annotations.coco.json", val=str(tmp_path / "val"))
    same(objects(splits.train, CLASSES), expected(LITTLE["train"]))
    same(objects(splits.val, CLASSES), expected(LITTLE["val"]))
    assert splits.test is None
    LAYOUTS["yolo ultralytics"](tmp_path / "yolo", LITTLE)
    same(objects(load(tmp_path / "yolo" / "data.yaml").test, CLASSES), expected(LITTLE["test"]))


sizes = st.tuples(st.integers(8, 300), st.integers(8, 300))


@st.composite
def scenes(draw: Any, whole: bool) -> list[Scene]:
    """Images with boxes inside; of whole pixels where the format has no others."""
    number = st.integers if whole else lambda low, high: st.floats(low, high, allow_nan=False, width=32)
    made = []
    for i, size in enumerate(draw(st.lists(sizes, min_size=2, max_size=4))):
        things = []
        for label in draw(st.lists(st.sampled_from(CLASSES), max_size=4)):
            x1, y1 = (draw(number(0, side - 4)) for side in size)
            x2, y2 = draw(number(int(x1) + 2, size[0])), draw(number(int(y1) + 2, size[1]))
            box = (x1, y1, x2, y2)
            if box not in [thing.box for thing in things]:
                things.append(Thing(label, box))
        made.append(Scene(f"n{i}.png", size, things))
    made.append(Scene("z.png", (32, 32), [Thing(label, (1, 1, 9, 9 + i)) for i, label in enumerate(CLASSES)]))
    return made


@pytest.mark.parametrize("layout", ["coco annotations", "yolo folders", "voc beside"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_coordinates_survive(tmp_path_factory: pytest.TempPathFactory, layout: str, data: Any) -> None:
    made = {"train": data.draw(scenes(whole=layout.startswith("voc"))), "val": LITTLE["val"]}
    root = tmp_path_factory.mktemp("set")
    LAYOUTS[layout](root, made)
    splits = load(root)
    assert splits.problems == ()
    same(objects(splits.train, splits.labels.classes), expected(made["train"]))


def test_large_coordinates(tmp_path: Path) -> None:
    things = [Thing("cat", (5990.123, 10.456, 5999.877, 39.001)), Thing("dog", (0.001, 0.002, 5999.999, 39.9))]
    made = {"train": [Scene("a.png", (6000, 40), things)], "val": LITTLE["val"]}
    for layout in ("coco flat", "yolo beside"):
        LAYOUTS[layout](tmp_path / layout, made)
        same(objects(load(tmp_path / layout).train, CLASSES), expected(made["train"]))


def test_empty_images_stay_and_crowded_ones_are_whole(tmp_path: Path) -> None:
    crowd = [Thing(CLASSES[i % 3], (i % 25, i // 25, i % 25 + 1.5, i // 25 + 1.25)) for i in range(500)]
    made = {"train": [Scene("many.png", (64, 64), crowd), Scene("none.png")], "val": [*LITTLE["val"], Scene("n.png")]}
    for layout in ("coco annotations", "yolo beside", "voc sets"):
        if layout.startswith("voc"):
            for thing in crowd:
                thing.box = (*(float(int(v)) for v in thing.box[:2]), *(float(int(v) + 1) for v in thing.box[2:]))
        LAYOUTS[layout](tmp_path / layout, made)
        splits = load(tmp_path / layout)
        assert splits.problems == ()
        by_name = objects(splits.train, splits.labels.classes)
        same(by_name, expected(made["train"]))
        assert len(by_name["many.png"]) == 500
        empty = splits.train.targets[[Path(p).name for p in splits.train.paths].index("none.png")]
        assert (len(empty), empty.boxes.shape, empty.areas.shape) == (0, (0, 4), (0,))
        assert "1 train images without objects" in splits.notes


# splits


def many(count: int, labels: Any = lambda i: [CLASSES[i % 3]]) -> dict[str, Any]:
    names = [Scene(f"{i:03d}.png", (16, 16), [Thing(label, (1, 1, 5, 5)) for label in labels(i)]) for i in range(count)]
    return coco_content(names)


def write_many(root: Path, content: dict[str, Any]) -> Path:
    for record in content["images"]:
        write_image(root / "images" / record["file_name"], (record["width"], record["height"]))
    write_json(root / "annotations.json", content)
    return root


def test_a_share_is_held_out_by_class(tmp_path: Path) -> None:
    splits = load(write_many(tmp_path, many(40, lambda i: ["cat"] if i < 30 else ["cat", "dog"])))
    assert (len(splits.train), len(splits.val), splits.test) == (32, 8, None)
    assert "val: 20% of train held out (stratified)" in splits.notes
    assert sum(1 in target.labels for target in splits.val.targets) == 2, "dogs are the rare ones"
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert len(load(tmp_path, val=0.5).val) == 20
    assert load(tmp_path).val.paths == splits.val.paths


def test_classes_of_one_image_each_are_held_out_too(tmp_path: Path) -> None:
    names = [f"class{i}" for i in range(20)]
    made = [Scene(f"{i}.png", (16, 16), [Thing(name, (1, 1, 5, 5))]) for i, name in enumerate(names)]
    root = write_many(tmp_path, coco_content(made, {name: i + 1 for i, name in enumerate(names)}))
    assert len(load(root).val) == 4


def test_groups_stay_together(tmp_path: Path) -> None:
    content = many(30)
    for i, record in enumerate(content["images"]):
        record["group"] = f"video {i // 3}"
    splits = load(write_many(tmp_path, content))
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert not set(splits.train.groups) & set(splits.val.groups)
    assert "val: 20% of train held out (stratified, whole groups)" in splits.notes


def test_a_share_takes_the_sets_own_val_in(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    splits = load(tmp_path, val=0.3)
    names = {Path(path).name for split in (splits.train, splits.val) for path in split.paths}
    assert names == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert len(splits.val) == 1
    assert splits.test is not None
    assert problem(tmp_path, val=1.5).startswith("data.val: found 1.5, expected a share between 0 and 1 or a path.")


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    text = problem(write_many(tmp_path, many(1)))
    assert text == ("data.train: 1 images are too few to hold out a validation split. Name one: data.val=PATH.")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, {"val": LITTLE["val"], "test": LITTLE["test"]})
    assert problem(tmp_path) == f"data.train: {tmp_path} has no train split. It has: 'test', 'val'."


# one split for evaluation


def one_split(source: Any, labels: Labels, name: str = "test", kind: Any = "boxes", **data: Any) -> Split:
    return load_annotated_split(str(source), config("unused", **data), labels, name, kind)


def test_a_split_for_evaluation_has_the_models_order(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    labels = Labels(("bird", "extra", "dog", "cat"))
    for name in LITTLE:
        split = one_split(tmp_path, labels, name)
        assert split.name == name
        same(objects(split, labels.classes), expected(LITTLE[name]))
    LAYOUTS["coco annotations"](tmp_path / "no-test", {s: LITTLE[s] for s in ("train", "val")})
    same(objects(one_split(tmp_path / "no-test", labels), labels.classes), expected(LITTLE["val"]))


def test_classes_that_the_model_does_not_know(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    with pytest.raises(DataError) as caught:
        one_split(tmp_path, Labels(("bird", "dogs")))
    assert str(caught.value) == (
        f"{tmp_path}: classes that the model does not know: 'cat', 'dog'. It knows: 'bird', 'dogs'."
    )
    split = one_split(tmp_path, Labels(("bird",)), "train", classes=["bird"])
    assert [len(target) for target in split.targets] == [0, 1, 0]


def test_bad_annotations_in_evaluation_are_limited_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = many(10)
    content["annotations"][4]["bbox"] = [1, 1, 0, 5]
    root = write_many(tmp_path, content)
    with pytest.raises(DataError, match=r"1 of 10 annotations can't be used, more than data\.max_bad_annotations"):
        one_split(root, Labels(CLASSES))
    capsys.readouterr()
    assert len(one_split(root, Labels(CLASSES), max_bad_annotations=0.1)) == 10
    said = capsys.readouterr().err
    assert "1 of 10 annotations left out, 0 more noted. The first:" in said
    assert "annotation 5: box without area" in said


# classes


def test_other_classes_in_val(tmp_path: Path) -> None:
    made = {"train": LITTLE["train"], "val": [Scene("d.jpg", (32, 32), [Thing("dgo", (1, 1, 9, 9))])]}
    LAYOUTS["coco annotations"](tmp_path / "coco", {"train": made["train"]})
    write_image(tmp_path / "coco" / "val" / "d.jpg", (32, 32))
    file = write_json(
        tmp_path / "coco" / "annotations" / "instances_val.json", coco_content(made["val"], {**IDS, "dgo": 5})
    )
    assert problem(tmp_path / "coco") == (
        f"data.val: the val split ({file}) has classes that train lacks: 'dgo'. Did you mean 'dog'? Train has: 'cat', "
        "'dog', 'bird'. Use the same names, or say which to learn: data.classes=[NAME, …]."
    )
    assert load(tmp_path / "coco", classes=["dog"]).labels.classes == ("dog",)
    LAYOUTS["voc beside"](tmp_path / "voc", made)
    assert "has classes that train lacks: 'dgo'" in problem(tmp_path / "voc")


def test_other_ids_in_val_are_the_same_classes(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    write_json(
        tmp_path / "annotations" / "instances_val.json", coco_content(LITTLE["val"], {"bird": 1, "cat": 2, "dog": 3})
    )
    same(objects(load(tmp_path).val, CLASSES), expected(LITTLE["val"]))


def test_a_choice_of_classes(tmp_path: Path) -> None:
    for layout in ("coco annotations", "yolo folders", "voc sets"):
        LAYOUTS[layout](tmp_path / layout, LITTLE)
        splits = load(tmp_path / layout, classes=["dog", "cat"], num_classes=2)
        assert splits.labels.classes == ("dog", "cat")
        assert splits.problems == ()
        assert "1 train objects of other classes left out (data.classes)" in splits.notes
        for split in splits.all():
            wanted = {
                name: [thing for thing in things if thing[0] != "bird"]
                for name, things in expected(LITTLE[split.name]).items()
            }
            same(objects(split, splits.labels.classes), wanted)


def test_classes_that_are_not_there(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    assert problem(tmp_path, classes=["cat", "dgo"]) == (
        "data.classes: the data has no class 'dgo'. Did you mean 'dog'? It has: 'cat', 'dog', 'bird'."
    )
    assert "found 'cat', 'cat', expected different names." in problem(tmp_path, classes=["cat", "cat"])
    assert problem(tmp_path, num_classes=2).startswith(
        "model.num_classes: found 2, and the data has 3 classes: 'cat', 'dog', 'bird'."
    )


def test_classes_without_objects_are_said(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, {**LITTLE, "train": LITTLE["train"][2:]})
    assert "2 of 3 classes have no object in train" in load(tmp_path).notes


# what is said where nothing fits


def test_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    write_image(tmp_path / "a.jpg", (8, 8))
    text = problem(tmp_path)
    assert text.startswith(f"data.train: no annotations found in {tmp_path}. Looked for COCO: ")
    assert "YOLO: data.yaml" in text
    assert "VOC: JPEGImages" in text
    assert "It has: 'a.jpg', 'stuff'." in text
    (tmp_path / "empty").mkdir()
    assert "It has: nothing." in problem(tmp_path / "empty")


def test_annotations_of_another_task(tmp_path: Path) -> None:
    LAYOUTS["voc beside"](tmp_path, LITTLE)
    text = problem(tmp_path, "masks")
    assert "It looks like voc, which this task or data.format can't use." in text
    assert problem(tmp_path, "masks", format="voc") == (
        "data.format: found 'voc', and the task detection reads coco, yolo."
    )


def test_two_formats_at_once(tmp_path: Path) -> None:
    LAYOUTS["coco images"](tmp_path, LITTLE)
    LAYOUTS["yolo ultralytics"](tmp_path, LITTLE)
    assert problem(tmp_path) == (
        f"data.train: {tmp_path} has two formats at once: coco (…/annotations/train.json) and yolo (…/images/train). "
        "Say which: data.format=NAME."
    )
    for form in ("coco", "yolo"):
        splits = load(tmp_path, format=form)
        assert splits.format == form
        same(objects(splits.train, CLASSES), expected(LITTLE["train"]))


def test_no_json(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text('{"images": [')
    assert problem(tmp_path).startswith(f"data.train: {file} is no JSON file: Expecting value: line 1 column 13")
    file.write_bytes(b"\xff\xfe\x00\x01")
    assert problem(tmp_path).startswith(f"data.train: {file} is no JSON file: ")
    assert problem(file).startswith(f"data.train: {file} is no JSON file: ")
    file.write_text("[1, 2]")
    assert problem(file) == (
        f"data.train: {file} holds a list, expected a COCO file: an object with the lists images, annotations and "
        "categories."
    )


def test_an_empty_images_folder(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    (tmp_path / "empty").mkdir()
    file = tmp_path / "annotations" / "instances_train.json"
    text = problem({"images": str(tmp_path / "empty"), "annotations": str(file)})
    assert text.startswith(f"data.train: '{tmp_path / 'empty'}' is empty. Looked in '{tmp_path / 'empty'}'. Name")
    LAYOUTS["yolo beside"](tmp_path / "yolo", LITTLE)
    text = problem({"images": str(tmp_path / "empty"), "annotations": str(tmp_path / "yolo" / "train")})
    assert text == f"data.train: no images in '{tmp_path / 'empty'}'."
    LAYOUTS["voc beside"](tmp_path / "voc", LITTLE)
    text = problem({"images": str(tmp_path / "empty"), "annotations": str(tmp_path / "voc" / "train")})
    assert text == f"data.train: no images in {tmp_path / 'empty'}."


def test_images_that_are_elsewhere(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    (tmp_path / "train").rename(tmp_path / "photos")
    file = tmp_path / "annotations" / "instances_train.json"
    text = problem(tmp_path)
    assert text.startswith(f"data.train: the images of {file} ('a.jpg', 'b.jpg' and 1 more) are not there. Looked in ")
    assert f"data.train={{images: FOLDER, annotations: {file}}}" in text
    load({"images": str(tmp_path / "photos"), "annotations": str(file)}, val=str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/set", "does not exist"),
        ("demo:digits", "the data set 'demo:digits' has labels of another task's kind. Known: demo:scenes."),
        ({"images": "nowhere"}, "nowhere does not exist."),
        ({"images": "."}, "found . alone, expected `annotations` or `masks` beside `images`."),
        ({"images": ".", "annotations": "."}, "annotations: found ., expected a COCO .json file, or a folder of YOLO"),
        (__file__, "expected a folder, a COCO .json or a YOLO .yaml."),
    ],
)
def test_sources_that_are_none(source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in problem(source)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    LAYOUTS["coco annotations"](tmp_path, LITTLE)
    folder = tmp_path / "annotations"
    (folder / "instances_train2.json").write_text((folder / "instances_train.json").read_text())
    load(tmp_path)  # a name that says no split stands back
    (folder / "instances_new_train.json").write_text((folder / "instances_train.json").read_text())
    text = problem(tmp_path)
    assert f"several annotation files for train in {tmp_path}" in text
    assert "'annotations/instances_new_train.json', 'annotations/instances_train.json'" in text


# real data


def real(name: str) -> Path:
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"{root} is not on this machine")
    return root


def counts(split: Split | None, classes: Any) -> tuple[int, dict[str, int]]:
    assert split is not None
    return len(split), Counter(classes[label] for target in split.targets for label in target.labels)


def test_bccd() -> None:
    splits = load(real("bccd"))
    assert splits.labels == Labels(("RBC", "WBC", "Platelets"))
    assert splits.problems == ()
    assert counts(splits.train, splits.labels.classes) == (205, {"RBC": 2381, "WBC": 214, "Platelets": 209})
    assert counts(splits.val, splits.labels.classes) == (87, {"RBC": 967, "WBC": 87, "Platelets": 83})
    assert counts(splits.test, splits.labels.classes) == (72, {"RBC": 805, "WBC": 71, "Platelets": 69})
    named = {
        name: {
            "images": str(DATA / "bccd" / name),
            "annotations": str(DATA / "bccd" / "annotations" / f"instances_{name}.json"),
        }
        for name in ("train", "val", "test")
    }
    again = load(named["train"], val=named["val"], test=named["test"])
    for one, other in zip(splits.all(), again.all(), strict=True):
        assert one.paths == other.paths
        assert repr(one.targets) == repr(other.targets)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_coco_cc_mini(kind: str) -> None:
    splits = load(real("coco_cc_mini"), kind)
    assert splits.problems == ()
    assert splits.labels.classes[:3] == ("person", "bicycle", "car")
    assert (len(splits.labels.classes), splits.labels.classes[-1]) == (80, "toothbrush")
    images, found = counts(splits.train, splits.labels.classes)
    assert (images, sum(found.values()), len(found)) == (26, 181, 36)
    assert (found["person"], found["knife"], found["spoon"], found["car"]) == (49, 12, 12, 12)
    images, found = counts(splits.val, splits.labels.classes)
    assert (images, sum(found.values()), len(found), found["person"]) == (27, 174, 45, 87)
    for split in splits.all():
        for target in split.targets:
            assert (target.masks is not None) == (kind == "masks")
            assert len(target.masks or target.labels) == len(target)
    assert sum(int(target.crowd.sum()) for split in splits.all() for target in split.targets) == 3


def test_fly_keypoints() -> None:
    splits = load(real("fly_keypoints"), "points")
    assert splits.problems == ()
    assert [len(split) for split in splits.all()] == [75, 25]
    assert len(splits.labels.keypoints) == 32
    assert splits.labels.skeleton[:2] == ((0, 1), (0, 2))
    names = splits.labels.keypoints
    assert len(splits.labels.flip_pairs) == 14
    # eyeL and eyeR, in either order, as the file says: what the names say too
    by_name = {frozenset(pair) for pair in flip_pairs_from_names(names)}
    assert by_name == {frozenset(pair) for pair in splits.labels.flip_pairs}
    assert all(target.points.shape == (1, 32, 3) for target in splits.train.targets)
    assert all((target.points[..., 2] == 2).all() for target in splits.train.targets)


def test_camvid() -> None:
    splits = load(real("camvid"), "class_map")
    assert splits.problems == ()
    assert [len(split) for split in splits.all()] == [85, 28, 32]
    classes = json.loads((DATA / "camvid" / "classes.json").read_text())["classes"]
    assert splits.labels.classes == tuple(classes[:11])
    shares = np.zeros(256)
    for target in splits.train.targets:
        shares += np.bincount(target.load().ravel(), minlength=256)
    shares /= shares.sum()
    assert shares[3] == pytest.approx(0.298, abs=0.02), "road"
    assert shares[255] == pytest.approx(0.035, abs=0.01), "void"
    assert shares[11:255].sum() == 0
    root = DATA / "camvid"
    named = {
        n: {"images": str(root / n / "images"), "masks": str(root / n / "masks")} for n in ("train", "val", "test")
    }
    again = load(named["train"], "class_map", val=named["val"], test=named["test"])
    assert (again.train, again.val, again.test) == (splits.train, splits.val, splits.test)


def test_coco_cc_mini_class_maps() -> None:
    splits = load(real("coco_cc_mini"), "class_map")
    assert splits.problems == ()
    assert [len(split) for split in splits.all()] == [26, 27]
    assert splits.labels.classes[0] == "person"
    assert "unlabeled" not in splits.labels.classes
    assert "value 0 ('unlabeled') is ignored, by its name" in splits.notes
    target = splits.train.targets[0]
    assert isinstance(target, ClassMap)
    assert dict(target.classes)[0] == 255
    assert dict(target.classes)[1] == 0


def test_the_demo_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_scenes, "COUNTS", {"train": 20, "val": 6, "test": 7})
    for kind in ("boxes", "masks", "points", "class_map"):
        splits = load("demo:scenes", kind)
        assert splits.problems == ()
        assert [len(split) for split in splits.all()] == [20, 6, 7]
        assert splits.labels.classes[-4:] == ("zero", "one", "four", "seven")
        assert splits.labels.keypoints == (("top", "right", "bottom", "left") if kind == "points" else ())


def test_speed(tmp_path: Path) -> None:
    """A fifth of 100,000 annotations, in processor time, with room for machines that are busy."""
    write_image(tmp_path / "images" / "0.png", (100, 100))
    pixels = (tmp_path / "images" / "0.png").read_bytes()
    content = many(0)
    for i in range(500):
        (tmp_path / "images" / f"{i}.png").write_bytes(pixels)
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 100, "height": 100})
    for i, (x, y) in enumerate(np.random.default_rng(0).uniform(0, 80, (20_000, 2)).tolist()):
        record = {"id": i, "image_id": i % 500, "category_id": list(IDS.values())[i % 3], "bbox": [x, y, 10, 10]}
        content["annotations"].append(record | {"segmentation": [[x, y, x + 10, y, x + 10, y + 10, x, y + 10]]})
    write_json(tmp_path / "annotations.json", content)
    started = time.process_time()
    splits = load(tmp_path, "masks")
    seconds = time.process_time() - started
    assert sum(len(target) for split in splits.all() for target in split.targets) == 20_000
    assert seconds < 6, seconds


def test_texts_of_the_little_set_are_what_the_formats_say() -> None:
    """The generators themselves, so that reader and writer do not agree on the same mistake."""
    scene = Scene("a.jpg", (100, 50), [Thing("dog", (10, 20, 30, 40))])
    assert yolo_line(scene.things[0], scene.size) == "1 0.20000000 0.60000000 0.20000000 0.40000000"
    assert "<xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax>" in voc_text(scene)
    (record,) = coco_content([scene])["annotations"]
    assert (record["bbox"], record["category_id"]) == ([10, 20, 20, 20], 7)


def test_masks_and_objects_in_one_folder(tmp_path: Path) -> None:
    """Each task takes what it can use."""
    LAYOUTS["coco images"](tmp_path, LITTLE)
    for split, members in LITTLE.items():
        for scene in members:
            values = np.ones((scene.size[1], scene.size[0]))
            write_mask((tmp_path / "masks" / split / scene.name).with_suffix(".png"), values)
    write_json(tmp_path / "masks" / "classes.json", {"0": "background", "1": "thing"})
    assert load(tmp_path).format == "coco"
    assert load(tmp_path, "class_map").labels.classes == ("background", "thing")
