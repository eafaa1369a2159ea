"""What README and docs say is right: links, configs, command lines, Python, and the reference of settings."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvpipe import task as task_module
from cvpipe.config_file import load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MODULES = {"src.training.train": "train", "src.inference.batch_inference": "predict", "cvpipe.cli": ""}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> Iterator[Any]:
    """Each fenced block of a language in all pages."""
    for page in PAGES:
        for number, match in enumerate(
            re.finditer(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
        ):
            yield pytest.param(match[1], id=f"{name_of(page)}:{number}")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> Iterator[Any]:
    """Each line of the bash blocks that starts cvpipe, split into words."""
    for param in blocks("bash"):
        for line in param.values[0].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and words[2] in MODULES:
                words = ["cvpipe", MODULES[words[2]], *words[3:]]
            if words[:1] == ["cvpipe"]:
                yield pytest.param(words[1:], id=f"{param.id}:{line}")


def created() -> set[str]:
    """Tasks that a page has its reader make."""
    return {name for page in PAGES for name in re.findall(r"^cvpipe tasks new (\w+)", page.read_text("utf-8"), re.M)}


def test_all_pages_are_there() -> None:
    names = {name_of(page) for page in PAGES}
    sections = ("getting_started", "project_structure", "configuration", "training", "inference", "monitoring")
    wanted = {f"docs/{name}.md" for name in (*sections, "adding_a_task", "evaluation", "README")}
    assert wanted | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= names
    readme, index = (prose(ROOT / name) for name in ("README.md", "docs/README.md"))
    for name in wanted - {"docs/README.md"}:
        assert f"({name})" in readme
        assert f"({Path(name).name})" in index
    assert "![" in readme
    assert "(docs/pipeline.svg)" in readme


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target}: no such file"
        assert path.is_relative_to(ROOT), f"{target}: outside of the repository"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading"


def test_the_picture_is_valid_and_loads_nothing() -> None:
    from xml.etree import ElementTree

    text = (ROOT / "docs" / "pipeline.svg").read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"<script|<image|href=|@import|url\((?!#)", text)


def test_the_reference_is_that_of_the_schema() -> None:
    from cvpipe.config_reference import reference
    from cvpipe.tasks.classification.config import ClassificationConfig

    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    (found,) = re.findall(r"<!-- reference:begin -->\n\n(.*?)\n\n<!-- reference:end -->", text, re.S)
    assert found == reference(ClassificationConfig).rstrip(), (
        "write the output of `cvpipe config reference` between the markers"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_loads(path: Path) -> None:
    load_config(path)


def test_the_documented_config() -> None:
    config = load_config(ROOT / "configs" / "classification_resnet50.yaml")
    model, training = config.model, config.training
    assert (model.name, model.pretrained, model.num_classes, model.dropout) == ("resnet50", True, 10, 0.2)
    assert config.data.train == "demo:digits"
    lines = (ROOT / "configs" / "classification_resnet50.yaml").read_text("utf-8").splitlines()
    assert all("#" in line for line in lines if re.search(r"\w:\s+\w", line)), "each key has a comment"
    values = (training.batch_size, training.num_workers, training.epochs, training.learning_rate)
    assert values == (32, 4, 10, 0.001)


def test_the_demo_trains_the_digits_config() -> None:
    from cvpipe.demo import CONFIG

    config = load_config(ROOT / "configs" / "classification_digits.yaml")
    assert parse_config({**CONFIG, "tracking": config.to_dict()["tracking"]}).flat() == config.flat()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_configs(text: str) -> None:
    parse_config(yaml.safe_load(text))


@pytest.mark.parametrize("text", blocks("json"))
def test_json_blocks_are_json(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_compile_and_import_what_exists(text: str) -> None:
    import cvpipe

    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cvpipe":
            assert node.attr in cvpipe.__all__, f"cvpipe.{node.attr} is not public"
        if isinstance(node, ast.ImportFrom) and node.module == "cvpipe":
            assert {alias.name for alias in node.names} <= set(cvpipe.__all__)


@pytest.mark.parametrize("words", commands())
def test_commands_are_valid(words: list[str]) -> None:
    """Parses a command line as the program would, and runs nothing."""
    import typer

    from cvpipe.cli import app

    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), "expected a verb"
    # a wrong option raises; `parse_args` takes the words out of its list
    context = command.make_context(command.name, list(words))
    given = context.params
    overrides = given.get("overrides") or []
    assert all(re.match(r"\w+(\.\w+)*=", override) for override in overrides), overrides
    config = given.get("config")
    if config is not None and Path(config).stem in created():
        return  # its schema comes into being with it; tests/integration/test_new_task.py runs these lines
    if config is not None and Path(config).parts[0] == "configs":
        load_config(ROOT / config, overrides)
    else:
        parse_config({"data": "demo:digits"}, overrides)


def test_wrong_commands_would_be_found() -> None:
    for words in (["train", "--confg", "x.yaml"], ["train"], ["trian"], ["predict", "-m", "a", "-i", "b"]):
        with pytest.raises(Exception, match=r"(?i)no such option|missing|expected a verb"):
            test_commands_are_valid(words)
    with pytest.raises(Exception, match=r"unknown key training\.epoch\."):
        test_commands_are_valid(["train", "-c", "configs/classification_resnet50.yaml", "training.epoch=3"])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {match for page in PAGES for match in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text("utf-8"), re.M)}
    assert {"demo", "test", "check"} <= named <= targets


def test_the_documented_commands_stand_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    config = "--config configs/classification_resnet50.yaml"
    assert f"\npython -m src.training.train {config}\n" in text
    files = "--model-uri models:/NAME/1 --input-dir DIR --output-file predictions.json"
    assert f"\npython -m src.inference.batch_inference {config} {files}\n" in text
    assert text.index("make demo") < text.index("make test") < text.index("pip install -r requirements.txt")


def test_requirements_are_those_of_the_project() -> None:
    # tomllib comes with Python 3.11; the list is plain enough to be read without it
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (listed,) = re.findall(r"^dependencies = (\[.*?^\])", project, re.M | re.S)
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    ranges = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert ranges == ast.literal_eval(listed)


def test_extras_in_the_docs_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (table,) = re.findall(r"^\[project\.optional-dependencies\]\n(.*?)^\[project\.", project, re.M | re.S)
    extras = set(re.findall(r"^([\w-]+) = \[", table, re.M))
    for page in PAGES:
        for names in re.findall(r"(?:-e '?\.|databricks-cv-pipeline)\[([\w,-]+)\]", page.read_text("utf-8")):
            assert set(names.split(",")) <= extras, name_of(page)


def test_the_example_package_adds_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Path) -> None:
    """The code of docs/adding_a_task.md, installed as it says there."""
    text = (ROOT / "docs" / "adding_a_task.md").read_text("utf-8")
    package = tmp_path / "my_tasks"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, code in re.findall(r"^```python\n# my_tasks/(\w+\.py)\n(.*?)^```$", text, re.M | re.S):
        (package / name).write_text(code)
    ((entry, value),) = re.findall(r'^(\w+) = "([\w.:]+)"$', text, re.M)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(entry, value, "cvpipe.tasks")
    monkeypatch.setattr(task_module, "entry_points", lambda group: (point,))
    task_module.tasks.cache_clear()
    try:
        task = task_module.find_task("focal")
        config = parse_config(task.example(tmp_path / "data"), ["training.focal_gamma=0"])
        assert config.training.focal_gamma == 0  # type: ignore[attr-defined]
        splits = task.load_data(config)
        module = task.module(config, splits.labels).eval()
        batch = next(iter(task.data_module(config, splits).val_dataloader()))
        from torch.nn import functional

        expected = functional.cross_entropy(module.network(batch.images), batch.targets)
        assert module.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    finally:
        monkeypatch.undo()
        task_module.tasks.cache_clear()
