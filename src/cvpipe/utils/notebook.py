"""HTML for results in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as an HTML table."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(str(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
