"""`cvpipe tasks new`: a copy of the template under a name of its own, in a checkout or as a package."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from cvpipe.errors import InputError
from cvpipe.task import find_task, tasks
from cvpipe.utils.filesystem import write_text

_HOME = Path(__file__).parent
_PACKAGE = "cvpipe.scaffold.dense_template"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 32
_IMPORT = re.compile(r"from (cvpipe[\w.]*) import (.+)")
_LINE = 120


@dataclass(frozen=True)
class NewTask:
    """What was written.

    Attributes:
        name: of the task.
        files: in the order of reading.
        config: the one to train with.
        next: what to type.
    """

    name: str
    files: tuple[Path, ...]
    config: Path
    next: tuple[str, ...]


def new_task(name: str, folder: str | Path = ".", package: str | Path | None = None) -> NewTask:
    """Writes a task that trains at once, for its author to change. No file that exists is touched.

    Args:
        name: snake_case; what stands behind `task:` in a config.
        folder: a checkout of cvpipe; the task becomes a folder in its `src/cvpipe/tasks/`.
        package: write an installable package into this folder instead, for cvpipe to find by its entry point.

    Raises:
        InputError: a name that can't be, a folder that is no checkout, files that are there already.
    """
    _check_name(name)
    root = Path(package) if package is not None else Path(folder)
    plan = _package_files(name, root) if package is not None else _checkout_files(name, root)
    there = [path for path in plan if path.exists()]
    if package is None and (root / "src" / "cvpipe" / "tasks" / f"{name}.py").exists():
        there.append(root / "src" / "cvpipe" / "tasks" / f"{name}.py")
    if there:
        raise InputError(
            f"{', '.join(map(str, there[:3]))}: {'exists' if len(there) == 1 else 'exist'} already. Nothing was "
            "written; choose another name or folder."
        )
    written: list[Path] = []
    try:
        for path, text in plan.items():
            write_text(path, text)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise InputError(f"{root}: can't be written ({error.strerror or error}). Nothing was kept.") from None
    config = root / "configs" / f"{name}.yaml"
    install = (f"pip install -e {root}",) if package is not None else ()
    return NewTask(name, tuple(plan), config, (*install, f"cvpipe train --config {config}"))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(name):
        raise InputError(
            f"task name {name!r}: expected snake_case such as depth_estimation: letters a to z, digits and single "
            f"underscores, a letter first, at most {_LONGEST} characters, no word of Python's own."
        )
    if name in tasks():
        raise InputError(f"task name {name!r}: exists already ({find_task(name).summary}). Choose another.")


def _checkout_files(name: str, root: Path) -> dict[Path, str]:
    home = root / "src" / "cvpipe" / "tasks"
    if not (home / "__init__.py").is_file() or not (root / "configs").is_dir():
        raise InputError(
            f"{root.absolute()} is not a checkout of cvpipe (no src/cvpipe/tasks, or no configs). Name one with "
            "--folder, or write a package of your own with --package DIR."
        )
    rename = _Renaming(name, f"cvpipe.tasks.{name}")
    config, test = f"configs/{name}.yaml", f"tests/unit/tasks/test_{name}.py"
    return {
        **_sources(rename, home / name),
        root / config: rename.text("files/config.yaml"),
        root / test: rename.python("files/test_dense_template.py"),
        root / "docs" / "tasks" / f"{name}.md": rename.page(config, test),
    }


def _package_files(name: str, root: Path) -> dict[Path, str]:
    package = f"cvpipe_{name}"
    rename = _Renaming(name, package)
    test = f"tests/test_{name}.py"
    project = rename.text("files/pyproject.toml")
    project = project.replace("DISTRIBUTION", package.replace("_", "-")).replace("PACKAGE", package)
    return {
        root / "pyproject.toml": project,
        root / "README.md": rename.page(f"configs/{name}.yaml", test),
        **_sources(rename, root / "src" / package),
        root / "configs" / f"{name}.yaml": rename.text("files/config.yaml"),
        root / test: rename.python("files/test_dense_template.py"),
    }


def _sources(rename: _Renaming, target: Path) -> dict[Path, str]:
    files = sorted((_HOME / "dense_template").glob("*.py"))
    return {target / path.name: rename.python(f"dense_template/{path.name}") for path in files}


class _Renaming:
    """The template's texts under other names.

    Args:
        name: of the task.
        package: what its modules are imported from.
    """

    def __init__(self, name: str, package: str) -> None:
        words = name.split("_")
        self.package = package
        self._pairs = (
            (_PACKAGE, package),
            ("dense_template", name),
            ("DenseTemplate", "".join(word.capitalize() for word in words)),
            ("dense template", " ".join(words)),
            ("Dense template", " ".join(words).capitalize()),
        )

    def text(self, file: str) -> str:
        text = (_HOME / file).read_text("utf-8")
        for old, new in self._pairs:
            text = text.replace(old, new)
        return text

    def page(self, config: str, test: str) -> str:
        return self.text("files/page.md").replace("CONFIG", config).replace("TEST", test)

    def python(self, file: str) -> str:
        """The same for a module, with its imports in the order and form that linters ask for."""
        own = self.package.partition(".")[0]
        lines: list[str] = []
        block: list[tuple[str, list[str]]] = []
        for line in [*self.text(file).splitlines(), ""]:
            if found := _IMPORT.fullmatch(line):
                block.append((found[1], sorted(found[2].split(", "), key=_kind)))
                continue
            # one's own package is a group of its own, below the others
            others = [entry for entry in sorted(block) if own == "cvpipe" or entry[0].partition(".")[0] != own]
            mine = [entry for entry in sorted(block) if entry not in others]
            lines += [_import_text(*entry) for entry in others]
            lines += [""] if others and mine else []
            lines += [_import_text(*entry) for entry in mine]
            block = []
            lines.append(line)
        return "\n".join(lines).rstrip("\n") + "\n"


def _kind(name: str) -> tuple[int, str]:
    """Constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _import_text(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _LINE:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
