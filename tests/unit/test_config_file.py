"""Every mistake in a config gets one line: where, what was found, what was expected."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cvpipe.config import Config
from cvpipe.config_file import as_config, dump_config, load_config, parse_config
from cvpipe.errors import ConfigError, InputError
from cvpipe.task import tasks

DOCUMENTED = """\
model:
  name: resnet50
  pretrained: true
  num_classes: 10
  dropout: 0.2
training:
  batch_size: 64
  num_workers: 4
  epochs: 20
  learning_rate: 5e-5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "my_run.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The error lines, with the file's path as F."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert isinstance(caught.value, InputError)
    assert caught.value.exit_code == 2
    return [problem.replace(str(path), "F") for problem in caught.value.problems]


def test_the_documented_yaml_needs_data_only(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, DOCUMENTED + "data: demo:digits\n"))
    assert type(config).__name__ == "ClassificationConfig"
    assert (config.model.name, config.model.pretrained, config.model.num_classes) == ("resnet50", True, 10)
    assert config.model.dropout == 0.2
    assert (config.training.batch_size, config.training.num_workers, config.training.epochs) == (64, 4, 20)
    assert config.training.learning_rate == 5e-5
    assert config.data.train == "demo:digits"
    assert config.stem == "my_run"
    assert problems(tmp_path, DOCUMENTED) == ["F: data is missing. For a first try: `data: demo:digits`."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: x\nmodel:\n  nmae: a\n", ["F:3: unknown key model.nmae. Did you mean 'name'?"]),
        ("data: x\nepochs: 3\n", ["F:2: unknown key epochs. The key exists as training.epochs."]),
        (
            "data: x\nzzz: 3\n",
            ["F:2: unknown key zzz. Known keys: task, model, data, training, evaluation, inference, tracking, check."],
        ),
        (
            "data: x\ntraining:\n  epochs: many\n",
            [
                "F:3: training.epochs: found 'many', expected a whole number at least 1 (passes over the training images)."  # noqa: E501
            ],
        ),
        (
            "data: x\ntraining:\n  epochs: 0\n  learning_rate: fast\n",
            [
                "F:3: training.epochs: found 0, expected a whole number at least 1 (passes over the training images).",
                "F:4: training.learning_rate: found 'fast', expected a number greater than 0 or auto (peak learning "
                "rate; auto: range test).",
            ],
        ),
        (
            "data: x\ntraining: {learning_rate: -1}\n",
            [
                "F:2: training.learning_rate: found -1, expected a number greater than 0 or auto (peak learning rate; "
                "auto: range test)."
            ],
        ),
        (
            "data: x\ntraining:\n  optimizer: adam\n",
            [
                "F:3: training.optimizer: found 'adam', expected one of adamw, sgd (adamw, or sgd with Nesterov momentum 0.9)."  # noqa: E501
            ],
        ),
        ("data: x\ntraining:\n", ["F:2: training: found nothing, expected a section (`key: value` lines)."]),
        ("data: x\nmodel: resnet50\n", ["F:2: model: found 'resnet50', expected a section (`key: value` lines)."]),
        (
            "data: x\ntraining:\n  max_time: soon\n",
            ["F:3: training.max_time: found 'soon', expected a duration such as 90s, 15m, 1h30m or 01:30:00."],
        ),
        (
            "data:\n  train: x\n  augment:\n    crop_scale: [0.9, 0.1]\n",
            ["F:4: data.augment.crop_scale: found [0.9, 0.1], expected [low, high] with 0 < low <= high."],
        ),
        (
            "data:\n  val: 0.2\n",
            [
                "F:1: data.train is missing (a folder, a manifest (.csv, .parquet, .jsonl), `demo:NAME`, a mapping with `images` and `annotations` or `masks`; or what `cvpipe data prepare` made: a folder of shards, `delta:PATH`, `delta:PATH@7`, catalog.schema.table). For a first "  # noqa: E501
                "try: `data: demo:digits`."
            ],
        ),
        (
            "task: clasification\ndata: x\n",
            [
                "F:1: task: unknown task 'clasification'. Did you mean 'classification'? Known tasks: "
                f"{', '.join(sorted(tasks()))}."
            ],
        ),
        ("task: [a]\ndata: x\n", ["F:1: task: expected a name, found ['a']."]),
        ("data: x\ndata: y\n", ["F:2: data stands here and at F:1; keep one."]),
        (
            "data: x\nmodel: {name: a, name: b}\nmodel: {}\n",
            ["F:2: model.name stands here and at F:2; keep one.", "F:3: model stands here and at F:2; keep one."],
        ),
        ("", ["F: expected `key: value` lines (a YAML mapping), found an empty file."]),
        ("- a\n- b\n", ["F: expected `key: value` lines (a YAML mapping), found a list."]),
        ("just text", ["F: expected `key: value` lines (a YAML mapping), found a text."]),
        ("data: [1\n", ["F:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'."]),
        ("data: x\n\tmodel: y\n", ["F:2:1: not valid YAML: found character '\\t' that cannot start any token."]),
        ("data: !env X\n", ["F:1:7: can't be read: could not determine a constructor for the tag '!env'."]),
        ("? [a, b]\n: 1\n", ["F:1:3: can't be read: found unhashable key."]),
        ("data: x\n3: y\n", ["F:2: unknown key 3: keys are texts."]),
    ],
)
def test_messages(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_all_errors_come_at_once_with_those_of_the_command_line(tmp_path: Path) -> None:
    text = "data: x\nmodel: {dropot: 0.5}\ntraining:\n  batch_size: none\n"
    found = problems(tmp_path, text, "nonsense", "training.epochs=-1", "data.image_size=4")
    assert len(found) == 5
    assert "command line: expected section.key=value, found 'nonsense'." in found
    assert any(line.startswith("F:2: unknown key model.dropot. Did you mean 'dropout'?") for line in found)
    assert any(line.startswith("F:4: training.batch_size: found 'none', expected a whole number") for line in found)
    assert any(line.startswith("command line: training.epochs: found -1, expected") for line in found)
    assert any("data.image_size: found 4" in line and "greater than or equal to 8" in line for line in found)


def test_the_message_counts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^The config has 2 errors:\n  .*\n  .*$"):
        load_config(write(tmp_path, "data: x\na: 1\nb: 2\n"))
    with pytest.raises(ConfigError, match=r"^The config has an error:\n  .*$"):
        load_config(write(tmp_path, "data: x\na: 1\n"))


def test_missing_file_suggests(tmp_path: Path) -> None:
    write(tmp_path, "data: x\n")
    with pytest.raises(ConfigError, match=r"my_rnu\.yaml: no such file\. Did you mean '.*my_run\.yaml'\?"):
        load_config(tmp_path / "my_rnu.yaml")
    with pytest.raises(ConfigError, match=r"no such file\.$"):
        load_config(tmp_path / "no" / "x.yaml")


def test_what_is_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read as a UTF-8 text file"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read as a UTF-8 text file"):
        load_config(tmp_path / "b.yaml")


def test_errors_survive_pickling(tmp_path: Path) -> None:
    # Ray and spawned workers send exceptions by pickle
    error = ConfigError(["a", "b"])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == ["a", "b"]
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("1E-3", 1e-3), ("1e-3", 1e-3), (".5", 0.5), ("0.001", 1e-3), ("1", 1.0), ("+1e+1", 10.0)],
)
def test_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, f"data: x\ntraining: {{learning_rate: {text}}}\n")
    assert load_config(path).training.learning_rate == value
    assert load_config(path, [f"training.learning_rate={text}"]).training.learning_rate == value


@pytest.mark.parametrize("text", ["demo:digits", "/a/b.csv", "1.2.3", "v1e", "e5", "2024-13-45", "a: b: c", "[x"])
def test_overrides_that_stay_text(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, "data: x\n"), [f"data.train={text}"]).data.train == text


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "data: demo:digits\nmodel: {dropout: 0.5}\n")
    config = load_config(
        path, ["data.val=0.3", "model.pretrained=false", "training.max_time=2h", "data.image_size=[32, 48]"]
    )
    assert config.data.train == "demo:digits", "an override below a shorthand keeps it"
    assert config.data.val == 0.3
    assert config.model.pretrained is False
    assert config.model.dropout == 0.5
    assert config.training.max_time is not None
    assert config.training.max_time.total_seconds() == 7200
    assert config.data.image_size == (32, 48)
    assert load_config(path, ["model.num_classes="]).model.num_classes is None
    assert load_config(path, ["data=other"]).data.train == "other"
    assert load_config(path, ["model.name=a", "model.name=b"]).model.name == "b"


def test_where(tmp_path: Path) -> None:
    path = write(tmp_path, "data: x\nmodel:\n  name: a\n")
    config = load_config(path, ["training.epochs=3"])
    assert config.where("model.name") == f"{path}:3: model.name"
    assert config.where("data.train") == f"{path}:1: data.train", "the shorthand is data.train"
    assert config.where("training.epochs") == "command line: training.epochs"
    assert config.where("training.seed") == "training.seed"


def test_an_override_of_a_section_hides_the_files_lines(tmp_path: Path) -> None:
    found = problems(tmp_path, "data: x\ntraining:\n  epochs: 3\n", "training={epochs: no-number}")
    assert found[0].startswith("command line: training.epochs: found 'no-number'")


def test_parse_config_leaves_the_mapping_alone() -> None:
    values = {"data": "demo:digits", "training": {"epochs": 2}}
    config = parse_config(values, ["training.epochs=5", "data.val=0.1"])
    assert (config.training.epochs, config.data.val) == (5, 0.1)
    assert values == {"data": "demo:digits", "training": {"epochs": 2}}
    with pytest.raises(ConfigError, match=r"config: unknown key modle\. Did you mean 'model'\?"):
        parse_config({"data": "x", "modle": {}})


def test_as_config(tmp_path: Path) -> None:
    path = write(tmp_path, "data: x\nmodel:\n  name: a\n")
    config = load_config(path)
    assert as_config(config) is config
    changed = as_config(config, ["training.epochs=3"])
    assert (changed.training.epochs, changed.model.name, changed.stem) == (3, "a", "my_run")
    assert changed.where("model.name") == f"{path}:3: model.name"
    assert changed.where("training.epochs") == "command line: training.epochs"
    assert as_config(str(path), ["training.epochs=3"]).training.epochs == 3
    assert as_config({"data": "x"}).data.train == "x"


@example("a\x85b", 1.0)
@example("\u2028", 1.0)
@given(st.text(max_size=12), st.floats(1e-12, 1e3))
def test_any_text_and_number_survive_the_file(tmp_path_factory: pytest.TempPathFactory, text: str, rate: float) -> None:
    config = parse_config({"data": {"train": text}, "training": {"learning_rate": rate}, "tracking": {"alias": text}})
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(dump_config(config), "utf-8")
    assert load_config(path).to_dict() == config.to_dict()


@pytest.mark.parametrize("text", ["1e3", "5e-5", "true", "null", "1.5", "0x10", "~", "2024-01-01", "yes"])
def test_texts_that_look_like_something_else_survive_the_file(tmp_path: Path, text: str) -> None:
    config = parse_config({"data": {"train": text}})
    assert load_config(write(tmp_path, dump_config(config))).data.train == text


def test_the_dump_is_plain_yaml(tmp_path: Path) -> None:
    config = parse_config({"data": "demo:digits", "training": {"max_time": "1h30m"}})
    values = yaml.safe_load(dump_config(config))
    assert values == config.to_dict()
    assert values["training"]["max_time"] == "5400s"


def test_configs_of_the_repository_load() -> None:
    folder = Path(__file__).parents[2] / "configs"
    for path in sorted(folder.glob("*.y*ml")):
        assert isinstance(load_config(path), Config), path


def test_a_misspelt_section_of_an_override_is_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: demo:digits\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["trainin.epochs=3"])
    assert caught.value.problems == ["command line: unknown key trainin. Did you mean 'training' or 'tracking'?"]
