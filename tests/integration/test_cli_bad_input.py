"""Whatever is wrong with the input, the command says where, what was found, what was expected and what to do.

Exit code 2, no traceback, and nothing that looks like a run is left behind.
"""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cvpipe.bundle import Bundle
from cvpipe.cli import run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    for split, most in (("train", 6), ("val", 2), ("test", 2)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for path in sorted((digits / split / str(label)).iterdir())[:most]:
                shutil.copy(path, folder)
    return root


class Command:
    """Runs cvpipe in an empty folder with a fresh MLflow, and looks at what it leaves."""

    def __init__(self, folder: Path, small: Path, capfd: Any) -> None:
        self.folder, self.small, self.capfd = folder, small, capfd

    def config(self, text: str | None = None, **sections: Any) -> Path:
        path = self.folder / "c.yaml"
        if text is None:
            values: dict[str, Any] = {
                "model": {"name": "test_resnet", "pretrained": False},
                "data": {"train": str(self.small), "image_size": 32},
                "training": {"num_workers": 0, "device": "cpu", "epochs": 1},
                "evaluation": {"bootstrap": 0, "gallery": 0},
                "tracking": {"system_metrics": False},
            }
            for name, section in sections.items():
                values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
            text = yaml.safe_dump(values, sort_keys=False)
        path.write_text(text)
        return path

    def fails(self, *argv: str, code: int = 2) -> str:
        """stderr of a command that must be refused."""
        assert run(argv) == code
        out, err = self.capfd.readouterr()
        assert "Traceback" not in out + err
        assert "{" not in out, "no result where there is none"
        self.nothing_left()
        return str(err)

    def train(self, *overrides: str, text: str | None = None, **sections: Any) -> str:
        return self.fails("train", "--config", str(self.config(text, **sections)), *overrides)

    def nothing_left(self) -> None:
        assert not list(self.folder.rglob("run.json"))
        assert not (self.folder / "runs").is_dir() or not list((self.folder / "runs").iterdir())
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            assert database.execute("select count(*) from runs").fetchone() == (0,)
        assert not [p for p in self.folder.iterdir() if p.suffix == ".parts"]


@pytest.fixture
def command(mlflow_uri: str, tmp_path: Path, small: Path, capfd: Any) -> Command:
    return Command(tmp_path, small, capfd)


# configs


def test_unknown_key(command: Command) -> None:
    err = command.train(training={"learning_rat": 0.1})
    assert "c.yaml:" in err
    assert "unknown key training.learning_rat. Did you mean 'learning_rate'?" in err


def test_unknown_section(command: Command) -> None:
    assert "unknown key trainig. Did you mean 'training'" in command.train(trainig={"epochs": 3})


def test_wrong_type(command: Command) -> None:
    err = command.train(training={"epochs": "many"})
    assert "training.epochs: found 'many', expected" in err
    line = next(i for i, text in enumerate((command.folder / "c.yaml").read_text().splitlines(), 1) if "many" in text)
    assert f"c.yaml:{line}: training.epochs" in err


def test_two_errors_at_once(command: Command) -> None:
    err = command.train(training={"epochs": 0, "optimiser": "adamw"}, model={"dropout": 3})
    assert "The config has 3 errors:" in err
    assert "training.epochs: found 0, expected" in err
    assert "unknown key training.optimiser. Did you mean 'optimizer'?" in err
    assert "model.dropout: found 3, expected" in err


def test_not_yaml(command: Command) -> None:
    err = command.train(text="data: [a, b\nmodel: }\n")
    assert "c.yaml:2" in err
    assert "not valid YAML" in err


@pytest.mark.parametrize(("text", "found"), [("", "an empty file"), ("- a\n- b\n", "a list"), ("hello\n", "a text")])
def test_yaml_that_is_no_config(command: Command, text: str, found: str) -> None:
    assert f"expected `key: value` lines (a YAML mapping), found {found}" in command.train(text=text)


def test_missing_config_file(command: Command) -> None:
    command.config().rename(command.folder / "classification.yaml")
    err = command.fails("train", "--config", str(command.folder / "clasification.yaml"))
    assert "clasification.yaml: no such file." in err
    assert "Did you mean" in err
    assert "classification.yaml" in err


def test_config_that_is_a_folder(command: Command) -> None:
    assert "can't be read" in command.fails("train", "--config", str(command.folder))


def test_bad_overrides(command: Command) -> None:
    err = command.train("training.epochs")
    assert "training.epochs" in err
    assert "section.key=value" in err.lower()
    err = command.train("training.epoch=3")
    assert "command line: unknown key training.epoch. Did you mean 'epochs'?" in err
    err = command.train("training.epochs=-1")
    assert "command line: training.epochs: found -1, expected" in err


def test_unknown_task(command: Command) -> None:
    err = command.train(task="clasification")
    assert "unknown task 'clasification'. Did you mean 'classification'?" in err


# the command line itself


def test_unknown_option_command_and_missing_option(command: Command) -> None:
    err = command.fails("train", "--config", str(command.config()), "--epochs", "3")
    assert "No such option" in err
    assert "--epochs" in err
    assert "No such command 'trian'" in command.fails("trian")
    assert "Missing option '--config'" in command.fails("train")


def test_top_k_out_of_range(command: Command, tiny_bundle: Bundle) -> None:
    err = command.fails(
        "predict", "-m", str(tiny_bundle.path), "-i", str(command.small), "-o", "o.json", "--top-k", "0"
    )
    assert "Invalid value for '--top-k'" in err


# data


def test_missing_data_path(command: Command) -> None:
    err = command.train(data={"train": str(command.small) + "s"})
    assert "c.yaml:5: data.train: " in err
    assert f"{command.small}s does not exist" in err
    assert "Did you mean" in err
    assert "Expected a folder with one folder a class, a manifest (.csv, .parquet, .jsonl), or demo:digits" in err


def test_data_left_out(command: Command) -> None:
    err = command.train(text="model: {name: resnet18}\n")
    assert "data is missing" in err
    assert "data: demo:digits" in err


def test_unknown_demo(command: Command) -> None:
    assert "unknown data set 'demo:digit'. Did you mean 'digits'?" in command.train(data={"train": "demo:digit"})


def copy_of(command: Command) -> Path:
    return Path(shutil.copytree(command.small, command.folder / "data"))


def test_empty_class_folder(command: Command) -> None:
    data = copy_of(command)
    (data / "train" / "eleven").mkdir()
    err = command.train(data={"train": str(data)})
    assert "data.train: class folders without an image" in err
    assert "'eleven'" in err
    assert "Add images or remove the folders." in err


def test_validation_classes_that_train_lacks(command: Command) -> None:
    data = copy_of(command)
    shutil.copytree(data / "val" / "3", data / "val" / "three")
    err = command.train(data={"train": str(data)})
    assert "the val split has classes that train lacks: 'three'." in err
    assert "Train has: '0', '1'" in err


def test_num_classes_that_contradicts_the_data(command: Command) -> None:
    err = command.train(model={"num_classes": 7})
    assert "c.yaml:4: model.num_classes: found 7, and the data has 10 classes" in err
    assert "Leave num_classes out, or correct it." in err


def test_unreadable_images(command: Command) -> None:
    data = copy_of(command)
    for path in sorted((data / "train" / "0").iterdir()):
        path.write_bytes(b"no image")
    err = command.train("training.output_dir=out", data={"train": str(data)})
    assert "6 of 100 files can't be read as images, more than data.max_bad_fraction = 0.01 allows" in err
    assert str(Path("out") / "bad_files.csv") in err
    assert [path.name for path in Path("out").iterdir()] == ["bad_files.csv"]


# models, devices, servers


def test_unknown_model_name(command: Command) -> None:
    err = command.train(model={"name": "resnet_50"})
    assert "model.name: unknown network 'resnet_50'. Did you mean " in err
    assert "'resnet50'" in err
    err = command.train(model={"name": "torchvision/resnet51"})
    assert "unknown torchvision network 'resnet51'. Did you mean " in err


def test_weights_of_another_network(command: Command, tiny_bundle: Bundle) -> None:
    err = command.train(model={"name": "resnet18", "pretrained": str(tiny_bundle.path)})
    assert "are of another network" in err
    assert "Set model.name" in err


def test_pretrained_without_a_hub_names_the_ways_out(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(command.folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(command.folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    err = command.train(model={"name": "resnet18", "pretrained": True})
    assert "could not be downloaded" in err
    for way in ("model.pretrained=false", "model.pretrained=FILE", "package:efficientnet-lite0", "models:/"):
        assert way in err


def test_bad_device(command: Command) -> None:
    err = command.train(training={"device": "gpu"})
    assert "device: found 'gpu', expected auto, cpu, cuda, cuda:N or mps." in err
    if not torch.cuda.is_available():
        assert "cuda is not available here" in command.train("training.device=cuda")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_unreachable_mlflow(command: Command, closed_port: int, tiny_bundle: Bundle) -> None:
    uri = f"http://127.0.0.1:{closed_port}"
    start = time.monotonic()
    errors = [
        command.train(tracking={"tracking_uri": uri}),
        command.fails("predict", "-m", "models:/a/1", "-i", str(command.small), "-o", "o.json", "--tracking-uri", uri),
        command.fails("evaluate", "-m", "models:/a@b", "--tracking-uri", uri),
        command.fails("register", "-m", "runs:/abc/model", "--name", "x", "--tracking-uri", uri),
    ]
    assert time.monotonic() - start < 20
    for err in errors:
        assert f"no MLflow server answers at {uri}" in err
        assert "tracking.tracking_uri=sqlite:///mlflow.db" in err


def test_model_uri_that_does_not_exist(command: Command) -> None:
    images = str(command.small / "test")
    err = command.fails("predict", "-m", "models:/nobody@champion", "-i", images, "-o", "o.json")
    assert "models:/nobody@champion: not found" in err
    assert "The registry is empty" in err
    err = command.fails("predict", "-m", "no/such/folder", "-i", images, "-o", "o.json")
    assert "no/such/folder: does not exist. Expected a bundle directory" in err
    assert "models:/NAME@ALIAS" in err
    err = command.fails("evaluate", "-m", str(command.small))
    assert "exists and holds no bundle.json" in err
    err = command.fails("register", "-m", "runs:/0123456789abcdef0123456789abcdef/model", "--name", "x")
    assert "could not be registered as x" in err
    assert not (command.folder / "o.json").exists()


# inputs and outputs of predict and evaluate


def test_inputs(command: Command, tiny_bundle: Bundle) -> None:
    model = str(tiny_bundle.path)
    err = command.fails("predict", "-m", model, "-i", str(command.small / "tset"), "-o", "o.json")
    assert f"{command.small / 'tset'} does not exist" in err
    assert "Did you mean 'test'?" in err
    empty = command.folder / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    err = command.fails("predict", "-m", model, "-i", str(empty), "-o", "o.json")
    assert "no image in this folder or below it (1 other files)" in err
    err = command.fails("predict", "-m", model, "-i", str(command.small / "*.tiff"), "-o", "o.json")
    assert "matches no file" in err


def test_outputs(command: Command, tiny_bundle: Bundle) -> None:
    arguments = ["predict", "-m", str(tiny_bundle.path), "-i", str(command.small / "test"), "-o"]
    err = command.fails(*arguments, "o.xlsx")
    assert "output o.xlsx: found the ending '.xlsx', expected one of .json, .jsonl, .csv, .parquet." in err
    assert "found no ending" in command.fails(*arguments, "o")
    Path("o.json").write_text("mine")
    err = command.fails(*arguments, "o.json")
    assert "exists already. Replace it with --overwrite" in err
    assert Path("o.json").read_text() == "mine"


def test_evaluate(command: Command, tiny_bundle: Bundle) -> None:
    model = str(tiny_bundle.path)
    assert "split: found 'tets', expected one of train, val, test" in command.fails(
        "evaluate", "-m", model, "--split", "tets"
    )
    data = copy_of(command)
    shutil.copytree(data / "test" / "3", data / "test" / "three")
    err = command.fails("evaluate", "-m", model, "--data", str(data))
    assert "classes that the model does not know: 'three'" in err
    assert not (command.folder / "evaluation").exists()


# results


def only_json(capfd: Any) -> tuple[dict[str, Any], str]:
    out, err = capfd.readouterr()
    assert out.count("\n") == 1, out
    result: dict[str, Any] = json.loads(out)
    return result, err


def test_json_is_the_only_thing_on_stdout(command: Command, capfd: Any) -> None:
    config = command.config(training={"output_dir": "out"})
    assert run(["train", "--config", str(config), "--json"]) == 0
    trained, err = only_json(capfd)
    assert {"run_id", "model_uri", "bundle", "metrics"} <= set(trained)
    assert "test/accuracy" in trained["metrics"]
    assert "next: cvpipe predict --model-uri" in err

    assert run(["evaluate", "--model-uri", trained["bundle"], "--json"]) == 0
    evaluated, _ = only_json(capfd)
    assert evaluated["metrics"].keys() == trained["metrics"].keys()
    assert evaluated["metrics"]["test/accuracy"] == pytest.approx(trained["metrics"]["test/accuracy"])
    assert Path(evaluated["report"]).is_file()

    assert run(["register", "-m", trained["model_uri"], "--name", "digits", "--alias", "champion", "--json"]) == 0
    registered, _ = only_json(capfd)
    assert registered == {"model_uri": "models:/digits/1", "name": "digits", "version": "1"}

    images = str(command.small / "test")
    assert run(["predict", "-m", "models:/digits@champion", "-i", images, "-o", "o.jsonl", "--json"]) == 0
    predicted, err = only_json(capfd)
    assert {"output", "images", "failed", "images_per_second"} == set(predicted)
    assert (predicted["output"], predicted["images"], predicted["failed"]) == ("o.jsonl", 20, 0)
    assert len(Path("o.jsonl").read_text().splitlines()) == 20
    assert "next: " in err

    assert run(["config", "check", str(config), "--json"]) == 0
    checked, _ = only_json(capfd)
    assert checked["training"]["output_dir"] == "out"

    assert run(["train", "--config", str(config), "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "out holds a run already (finished)" in err


def test_mlflow_may_print_what_it_likes(command: Command, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server, MLflow prints a link to the run on stdout."""
    import cvpipe.tracking

    def talkative(*args: Any) -> Any:
        print("View run at: http://…")
        return cvpipe.tracking.LoggedModel("models:/n/1", "n", "1")

    monkeypatch.setattr(cvpipe.tracking, "register_model", talkative)
    assert run(["register", "-m", "runs:/a/model", "--name", "n", "--json"]) == 0
    result, err = only_json(capfd)
    assert result["model_uri"] == "models:/n/1"
    assert "View run at" in err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cvpipe.cli as c; code = c.run(['--help']);"
        "heavy = {'torch', 'lightning', 'mlflow', 'numpy', 'pandas', 'timm', 'PIL', 'pyarrow', 'sklearn'};"
        "print('LOADED', code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED 0 []" in done.stdout, done.stdout + done.stderr
    for verb in ("train", "evaluate", "register", "predict", "demo", "tasks", "config", "data"):
        assert verb in done.stdout


VERBS = [
    [],
    ["train"],
    ["evaluate"],
    ["register"],
    ["predict"],
    ["demo"],
    ["tasks"],
    ["tasks", "list"],
    ["tasks", "models"],
    ["tasks", "new"],
    ["config"],
    ["config", "check"],
    ["config", "reference"],
    ["data"],
    ["data", "check"],
    ["data", "prepare"],
    ["data", "bench"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_fits_a_screen(verb: list[str], capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*verb, "--help"]) == 0
    out, _ = capfd.readouterr()
    lines = out.rstrip().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert "Usage: cvpipe" in out
    assert "--help" in out


def test_every_verb_is_in_the_list_above() -> None:
    import typer

    from cvpipe.cli import app

    root: Any = typer.main.get_command(app)
    found = {(name,) for name in root.commands}
    for name, sub in root.commands.items():
        found |= {(name, inner) for inner in getattr(sub, "commands", {})}
    assert found | {()} == {tuple(verb) for verb in VERBS}


def test_version(capfd: Any) -> None:
    import cvpipe

    assert run(["--version"]) == 0
    assert cvpipe.__version__ in capfd.readouterr().out


def test_as_a_module() -> None:
    import cvpipe

    done = subprocess.run(
        [sys.executable, "-m", "cvpipe", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert cvpipe.__version__ in done.stdout
    bad = subprocess.run([sys.executable, "-m", "cvpipe", "trian"], capture_output=True, text=True, timeout=60)
    assert bad.returncode == 2
    assert "cvpipe" in bad.stderr
