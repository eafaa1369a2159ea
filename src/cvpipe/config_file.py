"""Reads config files: YAML with line numbers, `section.key=value` overrides, all errors at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cvpipe.config import Config, Section
from cvpipe.errors import ConfigError, did_you_mean

COMMAND_LINE = "command line"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-5 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d+([eE][-+]?\d+)?|\d[\d_]*\.[\d_]*)$"),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers, such as a folder named 1e3."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unicode's own line breaks become spaces outside double quotes
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_config(config: Config) -> str:
    """The config as YAML that `load_config` reads back."""
    text: str = yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


@dataclass
class _Source:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, applies `section.key=value` overrides, and validates with the task's schema.

    Raises:
        ConfigError: holds every problem found, each with file and line, what was found and what was expected.
    """
    path = Path(path)
    source = _read_yaml(path)
    for override in overrides:
        _apply_override(source, override)
    config = _validate(source, str(path))
    config._stem = path.stem
    return config


def parse_config(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """The same from a nested mapping, for notebooks and tests."""
    source = _Source(values=_plain(values))
    for override in overrides:
        _apply_override(source, override)
    return _validate(source, "config")


def as_config(config: Config | str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """What the Python API accepts in place of a config: a Config, a file, or nested values."""
    if isinstance(config, Config):
        changes = list(overrides)
        if not changes:
            return config
        source = _Source(values=config.to_dict(), origins=dict(config._origins))
        for override in changes:
            _apply_override(source, override)
        changed = _validate(source, config.stem)
        changed._stem = config._stem
        return changed
    if isinstance(config, (str, Path)):
        return load_config(config, overrides)
    return parse_config(config, overrides)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _read_yaml(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = sorted(str(p) for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        hint = did_you_mean(str(path), names) or (f" {folder} has: {', '.join(names[:8])}." if names else "")
        raise ConfigError([f"{path}: no such file.{hint}"]) from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: can't be read as a UTF-8 text file ({error})."]) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError([f"{where}: not valid YAML: {what}."]) from None
    source = _Source()
    if not isinstance(node, yaml.MappingNode):
        found = "an empty file" if node is None else f"a {'list' if isinstance(node, yaml.SequenceNode) else 'text'}"
        raise ConfigError([f"{path}: expected `key: value` lines (a YAML mapping), found {found}."])
    _walk(node, "", path, source)
    if source.problems:
        raise ConfigError(source.problems)
    try:
        source.values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # an unknown !tag, a key that is a list, a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError([f"{where}: can't be read: {getattr(error, 'problem', None) or error}."]) from None
    return source


def _walk(node: yaml.MappingNode, prefix: str, path: Path, source: _Source) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in source.origins:
            source.problems.append(f"{path}:{line}: {key} stands here and at {source.origins[key]}; keep one.")
        source.origins[key] = f"{path}:{line}"
        if key == "data" and isinstance(value_node, yaml.ScalarNode):
            source.origins["data.train"] = source.origins[key]
        if isinstance(value_node, yaml.MappingNode):
            _walk(value_node, f"{key}.", path, source)


def _apply_override(source: _Source, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        source.problems.append(f"{COMMAND_LINE}: expected section.key=value, found {override!r}.")
        return
    try:
        value = yaml.load(text, Loader=_Loader) if text else None
    except (yaml.YAMLError, ValueError):
        value = text
    *parents, last = key.split(".")
    node = source.values
    for depth, parent in enumerate(parents):
        child = node.get(parent)
        if parents[0] == "data" and depth == 0 and isinstance(child, str):
            child = {"train": child}
        node[parent] = child if isinstance(child, dict) else {}
        node = node[parent]
    node[last] = value
    # what the file says below this key is gone
    source.origins = {known: place for known, place in source.origins.items() if not known.startswith(f"{key}.")}
    source.origins[key] = COMMAND_LINE
    if key == "data":
        source.origins["data.train"] = COMMAND_LINE


def _validate(source: _Source, name: str) -> Config:
    from cvpipe.task import find_task

    task = source.values.get("task", "classification")
    if not isinstance(task, str):
        raise ConfigError(
            [*source.problems, f"{source.origins.get('task', name)}: task: expected a name, found {task!r}."]
        )
    try:
        schema = find_task(task).config
    except ConfigError as error:
        raise ConfigError([*source.problems, f"{source.origins.get('task', name)}: {error.problems[0]}"]) from None
    try:
        config = schema.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError([*source.problems, *_explain(error, schema, source, name)]) from None
    if source.problems:
        raise ConfigError(source.problems)
    config._origins = source.origins
    return config


def _explain(error: ValidationError, schema: type[Config], source: _Source, name: str) -> list[str]:
    """One line for each key, unions folded into one."""
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        section, path, rest = _resolve(schema, item["loc"])
        key = ".".join(path)
        where = _origin(source, path, name)
        if item["type"] == "extra_forbidden":
            known = section.model_fields
            hint = did_you_mean(path[-1], known) or f" Known keys: {', '.join(known)}."
            elsewhere = [k for k in _all_keys(schema) if k.rsplit(".", 1)[-1] == path[-1] and k != key]
            if elsewhere and not did_you_mean(path[-1], known):
                hint = f" The key exists as {' and '.join(elsewhere)}."
            problems.setdefault(key, f"{where}: unknown key {key}.{hint}")
        elif item["type"] == "missing":
            example = " For a first try: `data: demo:digits`." if key in ("data", "data.train") else ""
            about = section.model_fields[path[-1]].description if path[-1] in section.model_fields else None
            problems.setdefault(key, f"{where}: {key} is missing{f' ({about})' if about else ''}.{example}")
        elif item["type"] == "value_error" and not rest:
            problems.setdefault(key or name, f"{where}: {key}: found {_found(item['input'])}, {item['ctx']['error']}.")
        elif item["type"] == "invalid_key":
            problems.setdefault(key, f"{where}: unknown key {key}: keys are texts.")
        else:
            wanted = _wanted(section, path[-1]) if path else "valid values"
            detail = item["msg"][0].lower() + item["msg"][1:]
            if wanted and rest and rest[0].isdigit():  # an item of a list: its own bounds are in the message alone
                wanted = f"{wanted}; {detail}"
            problems.setdefault(key, f"{where}: {key}: found {_found(item['input'])}, expected {wanted or detail}.")
    return list(problems.values())


def _resolve(schema: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[type[BaseModel], list[str], list[str]]:
    """Splits a pydantic location into section, key path, and the rest (union members, list positions)."""
    section: type[BaseModel] = schema
    path: list[str] = []
    for position, part in enumerate(loc):
        path.append(str(part))
        field_info = section.model_fields.get(str(part))
        inner = _section_of(field_info.annotation) if field_info else None
        if inner is None:
            return section, path, [str(p) for p in loc[position + 1 :]]
        if position + 1 < len(loc):
            section = inner
    return section, path, []


def _section_of(annotation: Any) -> type[Section] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _all_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in schema.model_fields.items():
        inner = _section_of(info.annotation)
        keys += _all_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


def _origin(source: _Source, path: list[str], name: str) -> str:
    for length in range(len(path), 0, -1):
        if origin := source.origins.get(".".join(path[:length])):
            return origin
    # a section that stands in no file, such as a misspelt one of an override, is known by its keys
    inside = ".".join(path) + "."
    return next((origin for key, origin in source.origins.items() if key.startswith(inside)), name)


def _found(value: Any) -> str:
    """The value as YAML writes it."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _wanted(section: type[BaseModel], key: str) -> str:
    info = section.model_fields.get(key)
    if info is None:
        return ""
    from cvpipe.config_reference import type_text

    return f"{type_text(info)} ({info.description})" if info.description else type_text(info)
