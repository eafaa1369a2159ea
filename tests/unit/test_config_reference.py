"""The reference of the docs is made from the schema."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from cvpipe.config import Duration, Section, Size
from cvpipe.config_reference import reference, type_text
from cvpipe.tasks.classification.config import ClassificationConfig


class Inner(Section):
    """What is inside."""

    a: int = Field(3, ge=1, lt=9, description="a | b")


class Outer(Section):
    """What is outside."""

    size: Size = Field((8, 16), description="s")
    when: Duration | None = Field(None, description="w")
    every: Duration = Field(timedelta(minutes=10), description="e")
    kind: Literal["x", "y"] = Field("x", description="k")
    rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(0.5, description="r")
    pair: tuple[float, float] = Field((0.0, 1.0), description="p")
    names: list[str] = Field(default_factory=list, description="n")
    flag: bool = Field(True, description="f")
    need: str = Field(description="d")
    inner: Inner = Field(default_factory=Inner)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("size", "N or [height, width]"),
        ("when", "a duration such as 90s, 15m or 1h30m or null"),
        ("every", "a duration"),
        ("kind", "one of x, y"),
        ("rate", "a number greater than 0 or auto"),
        ("pair", "[a number, a number]"),
        ("names", "a list of text"),
        ("flag", "true or false"),
        ("inner", "a section (`key: value` lines)"),
    ],
)
def test_types_in_words(name: str, text: str) -> None:
    assert type_text(Outer.model_fields[name]) == text


def test_tables() -> None:
    text = reference(Outer)
    assert text.startswith("### Top level\n")
    assert "| `every` | a duration | `10m` | e |" in text
    assert "| `flag` | true or false | `true` | f |" in text
    assert "| `need` | text | required | d |" in text
    assert "| `size` | N or [height, width] | `[8, 16]` | s |" in text
    assert "### `inner`\n\nWhat is inside.\n" in text
    assert "| `a` | a whole number at least 1 and less than 9 | `3` | a \\| b |" in text


def test_every_setting_of_classification_is_described() -> None:
    text = reference(ClassificationConfig)

    def check(schema: type[BaseModel], prefix: str) -> int:
        count = 0
        for name, info in schema.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                count += check(info.annotation, f"{prefix}{name}.")
                assert f"### `{prefix}{name}`" in text
            else:
                assert info.description, f"{prefix}{name} has no description"
                assert f"| `{name}` |" in text
                count += 1
        return count

    assert check(ClassificationConfig, "") > 60
    assert "<class" not in text
    assert "Annotated" not in text
