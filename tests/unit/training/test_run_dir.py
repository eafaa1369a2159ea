"""Which directory a run gets, and which one it may go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cvpipe.config_file import load_config, parse_config
from cvpipe.errors import InputError
from cvpipe.training.run_dir import RunDir, RunState, open_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**changes: Any) -> Any:
    base = parse_config({"data": {"train": "images"}, "training": {"output_dir": "out", "learning_rate": 5e-5}})
    return base.replace(**changes)


def started(conf: Any, status: str = "running") -> RunDir:
    """As `train` leaves a directory once the MLflow run exists."""
    run, state = open_run(conf, resume=False)
    assert state is None
    run.write_config(conf)
    run.write_state(RunState(status, run_id="abc"))
    return run


def test_a_fresh_directory() -> None:
    run, state = open_run(config(**{"training.output_dir": "a/b/c"}), resume=False)
    assert (run.path, state) == (Path("a/b/c"), None)
    assert list(run.path.iterdir()) == [], "nothing that looks like a run before there is one"
    assert (run.checkpoints, run.bundle, run.evaluation, run.bad_files) == (
        Path("a/b/c/checkpoints"),
        Path("a/b/c/bundle"),
        Path("a/b/c/evaluation"),
        Path("a/b/c/bad_files.csv"),
    )


def test_state_and_config_come_back() -> None:
    run = RunDir(Path("x"))
    assert run.state() is None
    state = RunState("interrupted", "id", 4, 2, 3e-4, {"metrics": {"test/accuracy": 0.5}})
    run.write_state(state)
    assert run.state() == state
    # 1e3 is a number for YAML 1.2 and must come back as the folder's name
    conf = config(**{"data.train": "1e3"})
    run.write_config(conf)
    assert load_config("x/config.yaml").to_dict() == conf.to_dict() == run.config_values()


def test_a_taken_directory() -> None:
    started(config(), "interrupted")
    with pytest.raises(InputError) as caught:
        open_run(config(), resume=False)
    assert str(caught.value) == (
        "training.output_dir: out holds a run already (interrupted). Go on with it: --resume. Or choose another "
        "folder: training.output_dir=DIR"
    )


def test_the_message_names_the_line_of_the_file() -> None:
    Path("c.yaml").write_text("data: images\ntraining:\n  output_dir: out\n")
    conf = load_config("c.yaml")
    started(conf)
    with pytest.raises(InputError, match=r"^c\.yaml:3: training\.output_dir: out holds a run already"):
        open_run(conf, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_in_the_folder(resume: bool) -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"^training\.output_dir: out holds other files\. Choose an empty folder\.$"):
        open_run(config(), resume=resume)
    assert [p.name for p in Path("out").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_may_exist() -> None:
    Path("out").mkdir()
    assert open_run(config(), resume=False)[0].path == Path("out")


def test_the_list_of_bad_files_of_a_refused_run_does_not_block_the_next() -> None:
    Path("out").mkdir()
    Path("out/bad_files.csv").write_text("split,path,reason\n")
    assert open_run(config(), resume=False)[1] is None


def test_resume_gives_the_state() -> None:
    started(config())
    run, state = open_run(config(), resume=True)
    assert run.path == Path("out")
    assert state == RunState("running", run_id="abc")


def test_resume_of_a_run_that_never_began_begins_it() -> None:
    run, state = open_run(config(), resume=True)
    assert (run.path, state) == (Path("out"), None)


def test_resume_with_another_config_lists_the_changes() -> None:
    started(config())
    other = config(**{"training.epochs": 99, "model.name": "resnet18", "data.image_size": [64, 32]})
    with pytest.raises(InputError) as caught:
        open_run(other, resume=True)
    assert str(caught.value) == (
        "--resume goes on with out as it was started, and the config is another now: "
        "data.image_size: [224, 224] -> [64, 32]; model.name: 'resnet50' -> 'resnet18'; training.epochs: 10 -> 99. "
        "Undo that, or start a new run without --resume."
    )


def test_keys_that_may_change() -> None:
    started(config())
    free = {
        "training.num_workers": 3,
        "training.max_time": "2h",
        "training.log_every": "1s",
        "training.checkpoint_every": "3m",
    }
    assert open_run(config(**free), resume=True)[1] is not None
    Path("out").rename("moved")
    assert open_run(config(**{"training.output_dir": "moved"}), resume=True)[1] is not None


def test_a_setting_written_in_another_way_is_the_same_setting() -> None:
    started(config(**{"training.checkpoint_every": "600s", "data.image_size": 64}))
    same = config(**{"training.checkpoint_every": "10m", "data.image_size": [64, 64]})
    assert open_run(same, resume=True)[1] is not None


def from_file(name: str) -> Any:
    Path(name).write_text("data: images\n")
    return load_config(name)


def test_settings_that_came_later_have_their_defaults() -> None:
    run = started(config(), "interrupted")
    lines = (run.path / "config.yaml").read_text().splitlines()
    older = [line for line in lines if "cache" not in line and "scaled_decoding" not in line]
    assert len(older) < len(lines)
    (run.path / "config.yaml").write_text("\n".join(older))
    _, state = open_run(config(), resume=True)
    assert state is not None
    # what `cvpipe data check` accepts is no part of the training
    open_run(config(**{"check.limits.leakage": 5}), resume=True)
    with pytest.raises(InputError, match=r"data.scaled_decoding: True -> False"):
        open_run(config(**{"data.scaled_decoding": False}), resume=True)


def test_numbered_directories() -> None:
    conf = from_file("pets.yaml")
    assert open_run(conf, resume=False)[0].path == Path("runs/pets-0001")
    assert open_run(conf, resume=False)[0].path == Path("runs/pets-0002")
    Path("runs/pets-0041").mkdir()
    Path("runs/pets-12345").mkdir()
    Path("runs/pets-old").mkdir()
    Path("runs/pets-extra-0900").mkdir()
    assert open_run(conf, resume=False)[0].path == Path("runs/pets-12346")
    assert open_run(from_file("a.b.yaml"), resume=False)[0].path == Path("runs/a.b-0001")
    assert open_run(parse_config({"data": "images"}), resume=False)[0].path == Path("runs/config-0001")


def test_resume_takes_the_newest_of_this_config() -> None:
    pets, cars = from_file("pets.yaml"), from_file("cars.yaml")
    assert open_run(pets, resume=True) == (RunDir(Path("runs/pets-0001")), None), "none there: a new one"
    for conf in (pets, pets, cars):
        started(conf)
    run, state = open_run(pets, resume=True)
    assert run.path == Path("runs/pets-0003")
    assert state is not None
