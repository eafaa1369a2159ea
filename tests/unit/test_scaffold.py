"""`cvpipe tasks new`: what is written, what is refused, and that nothing is touched. Running it: test_new_task.py."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.cli import run
from cvpipe.errors import InputError
from cvpipe.scaffold import generate
from cvpipe.scaffold.generate import NewTask, new_task

HOME = Path(generate.__file__).parent
MODULES = {path.name for path in (HOME / "dense_template").glob("*.py")}
LONGEST = "a_task_with_quite_a_long_name_99"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for folder in ("src/cvpipe/tasks", "configs", "tests/unit/tasks", "docs"):
        (root / folder).mkdir(parents=True)
    (root / "src" / "cvpipe" / "__init__.py").touch()
    (root / "src" / "cvpipe" / "tasks" / "__init__.py").touch()
    (root / "src" / "cvpipe" / "tasks" / "base.py").touch()
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_task_in_a_checkout(checkout: Path) -> None:
    before = files(checkout)
    made = new_task("depth_estimation", checkout)
    assert files(checkout) - before == {
        *(f"src/cvpipe/tasks/depth_estimation/{name}" for name in MODULES),
        "configs/depth_estimation.yaml",
        "tests/unit/tasks/test_depth_estimation.py",
        "docs/tasks/depth_estimation.md",
    }
    assert {str(path.relative_to(checkout)) for path in made.files} == files(checkout) - before
    assert made.config == checkout / "configs" / "depth_estimation.yaml"
    assert made.next == (f"cvpipe train --config {made.config}",)
    page = (checkout / "docs" / "tasks" / "depth_estimation.md").read_text()
    assert "cvpipe train --config configs/depth_estimation.yaml" in page
    assert "`tests/unit/tasks/test_depth_estimation.py`" in page
    assert all(f"`{name}`" in page for name in MODULES), "the page says what to replace where"


def test_a_package(tmp_path: Path) -> None:
    made = new_task("crop_height", package=tmp_path / "mine")
    assert files(tmp_path / "mine") == {
        "pyproject.toml",
        "README.md",
        *(f"src/cvpipe_crop_height/{name}" for name in MODULES),
        "configs/crop_height.yaml",
        "tests/test_crop_height.py",
    }
    assert made.next[0] == f"pip install -e {tmp_path / 'mine'}"
    text = (tmp_path / "mine" / "pyproject.toml").read_text()
    assert '[project.entry-points."cvpipe.tasks"]\ncrop_height = "cvpipe_crop_height:TASK"\n' in text
    assert 'name = "cvpipe-crop-height"' in text
    assert 'packages = ["src/cvpipe_crop_height"]' in text
    if sys.version_info >= (3, 11):
        import tomllib

        assert tomllib.loads(text)["project"]["entry-points"]["cvpipe.tasks"] == {
            "crop_height": "cvpipe_crop_height:TASK"
        }


def consistent(made: NewTask, package: str) -> None:
    camel = "".join(word.capitalize() for word in made.name.split("_"))
    for path in made.files:
        text = path.read_text("utf-8")
        assert not re.search(r"[Dd]ense.?[Tt]emplate|cvpipe\.scaffold|\b(CONFIG|TEST|PACKAGE|DISTRIBUTION)\b", text), (
            path
        )
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom):
                    assert node.level == 0
                    assert node.module is not None
                    if node.module.startswith(f"{package}."):
                        assert f"{node.module.rpartition('.')[2]}.py" in MODULES
        if path.suffix == ".yaml":
            values = yaml.safe_load(text)
            assert (values["task"], values["data"]["train"]) == (made.name, f"demo:{made.name}")
    everything = "".join(path.read_text("utf-8") for path in made.files)
    assert f"class {camel}Config(" in everything
    assert f'NAME = "{made.name}"' in everything


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z0-9]{1,6}){0,3}", fullmatch=True).filter(
    lambda name: name not in ("base", "spatial") and len(name) > 2
)


@given(name=NAMES)
@settings(max_examples=10)
def test_any_name(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    import keyword

    from cvpipe.task import tasks

    root = tmp_path_factory.mktemp("any")
    if keyword.iskeyword(name) or name in tasks():
        with pytest.raises(InputError, match="task name"):
            new_task(name, package=root / "package")
        return
    consistent(new_task(name, package=root / "package"), f"cvpipe_{name}")


def test_a_checkout_is_consistent(checkout: Path) -> None:
    for name in ("xy", LONGEST):
        consistent(new_task(name, checkout), f"cvpipe.tasks.{name}")


@pytest.mark.parametrize("name", ["zoo", "depth_estimation", LONGEST])
def test_the_code_is_lint_free(name: str, checkout: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    root = HOME.parents[2]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("the linter's settings lie in the checkout")
    shutil.copy(root / "pyproject.toml", checkout)
    # the linter looks which modules are there
    shutil.copytree(HOME.parent, checkout / "src" / "cvpipe", dirs_exist_ok=True)
    new_task(name, checkout)
    new_task(name, package=checkout / "package")
    # which imports a package of one's own counts as its own is up to its own settings
    for options in ([f"src/cvpipe/tasks/{name}", "tests"], ["--ignore", "I001", "package"]):
        done = subprocess.run(
            [ruff, "check", "--no-cache", *options],
            cwd=checkout, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Depth",
        "depth-estimation",
        "_depth",
        "depth_",
        "depth__x",
        "1depth",
        "class",
        "tiefe_schätzung",
        "a" * 33,
        "a b",
    ],
)
def test_names_that_can_not_be(name: str, checkout: Path) -> None:
    before = files(checkout)
    with pytest.raises(InputError, match=r"task name .*expected snake_case such as depth_estimation"):
        new_task(name, checkout)
    assert files(checkout) == before


def test_names_that_are_taken(checkout: Path) -> None:
    with pytest.raises(InputError, match=r"'classification': exists already \(one class"):
        new_task("classification", checkout)
    with pytest.raises(InputError, match=r"tasks/base\.py: exists already"):
        new_task("base", checkout)


@pytest.mark.parametrize(
    "place",
    [
        "configs/new_one.yaml",
        "src/cvpipe/tasks/new_one/model.py",
        "tests/unit/tasks/test_new_one.py",
        "docs/tasks/new_one.md",
    ],
)
def test_nothing_is_overwritten(place: str, checkout: Path) -> None:
    (checkout / place).parent.mkdir(parents=True, exist_ok=True)
    (checkout / place).write_text("mine")
    before = files(checkout)
    with pytest.raises(InputError, match=rf"{place}: exists already\. Nothing was written"):
        new_task("new_one", checkout)
    assert files(checkout) == before
    assert (checkout / place).read_text() == "mine"


def test_all_or_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, count, real = files(checkout), [0], generate.write_text

    def filling(path: Path, text: str) -> None:
        count[0] += 1
        if count[0] == 5:
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(generate, "write_text", filling)
    with pytest.raises(InputError, match=r"can't be written \(No space left on device\)\. Nothing was kept"):
        new_task("new_one", checkout)
    assert files(checkout) == before


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a checkout of cvpipe.*--package DIR"):
        new_task("new_one", tmp_path)
    assert not files(tmp_path)


def test_the_command(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "new", "one_more", "--folder", str(checkout), "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["task"] == "one_more"
    assert all(Path(path).is_file() for path in found["files"])
    assert f"next: cvpipe train --config {found['config']}" in err
    assert run(["tasks", "new", "one_more", "--folder", str(checkout)]) == 2
    assert "exist already" in capfd.readouterr().err


def test_the_template_travels_in_wheels() -> None:
    """All of it lies in the package that pyproject.toml puts into wheels; none of it is hidden or ignored."""
    project = (HOME.parents[2] / "pyproject.toml").read_text("utf-8")
    assert 'packages = ["src/cvpipe"]' in project
    assert {"config.yaml", "page.md", "pyproject.toml", "test_dense_template.py"} == {
        path.name for path in (HOME / "files").iterdir() if path.suffix != ".pyc" and path.name != "__pycache__"
    }
