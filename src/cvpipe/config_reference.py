"""Writes the settings down as text: the type of a field for messages, and the reference page of the docs."""

from __future__ import annotations

import types
from datetime import timedelta
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cvpipe.config import Duration, Section, Size

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", timedelta: "a duration"}
_BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


def type_text(info: FieldInfo) -> str:
    """What a field accepts, in words: `a number at least 0`, `one of adamw, sgd`."""
    return _with_bounds(_type_text(info.annotation), info.metadata)


def _with_bounds(text: str, metadata: list[Any]) -> str:
    bounds = [
        f"{words} {getattr(item, attribute):g}"
        for item in metadata
        for attribute, words in _BOUNDS.items()
        if getattr(item, attribute, None) is not None
    ]
    return f"{text} {' and '.join(bounds)}" if bounds else text


def _type_text(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a section (`key: value` lines)"
    if annotation in (Size, get_args(Size)[0]):
        return "N or [height, width]"
    if annotation == Duration:
        return "a duration such as 90s, 15m or 1h30m"
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        flat = [piece for item in metadata for piece in getattr(item, "metadata", [item])]
        return _with_bounds(_type_text(inner), flat)
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(part) for part in get_args(annotation))
    if origin is tuple and get_args(annotation)[-1] is Ellipsis:
        return f"a list of {_type_text(get_args(annotation)[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_text(part) for part in get_args(annotation))}]"
    if origin is list:
        return f"a list of {_type_text(get_args(annotation)[0])}"
    if origin is dict:
        return "a mapping"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def reference(schema: type[BaseModel]) -> str:
    """A Markdown table of settings for each section of a config class."""
    parts: list[str] = []
    _reference(schema, "", parts)
    return "\n".join(parts)


def _reference(section: type[BaseModel], prefix: str, parts: list[str]) -> None:
    rows: list[str] = []
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            nested.append((f"{prefix}{name}", info.annotation))
        else:
            cells = (f"`{name}`", type_text(info), _default_text(info), info.description or "")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        title = f"### `{prefix.rstrip('.')}`" if prefix else "### Top level"
        about = (section.__doc__ or "").strip().splitlines()[0] if prefix else ""
        parts += [title, "", *([about, ""] if about else []), "| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [*rows, ""]
    for name, inner in nested:
        _reference(inner, f"{name}.", parts)


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        return f"`{seconds // 60}m`" if seconds % 60 == 0 else f"`{seconds}s`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"
