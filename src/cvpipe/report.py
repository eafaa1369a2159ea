"""Builds self-contained HTML reports for data checks, evaluation, monitoring: one file, no scripts, nothing fetched.

    report = Report("Evaluation", "digits, test split")
    report.facts({"images": 364}).table("Classes", rows).gallery("Mistakes", [("a.png", "true 3, predicted 8 0.97")])
    report.write("report.html")

Every text is escaped. Figures and thumbnails are `data:` images: an SVG shown through <img> can run no script. A
Content-Security-Policy in the head forbids the page to load anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.errors import ImageError
from cvpipe.utils.filesystem import write_text

if TYPE_CHECKING:
    import PIL.Image

THUMBNAIL = 200
"""Longest side of a thumbnail, pixels."""

_FOLDED = 40  # rows from which a table starts folded
DRAWN = 640
"""Longest side of a picture in a wide gallery."""
_PIXEL_ART = 100  # longest side below which an image is enlarged without blurring


class Report:
    """A page of sections in the order in which they are added. All adding methods return the report itself.

    Args:
        title: the heading.
        subtitle: one line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []

    def text(self, text: str, title: str = "") -> Report:
        """Paragraphs of plain text, separated by empty lines."""
        paragraphs = "".join(f"<p>{_text(part)}</p>" for part in text.split("\n\n") if part.strip())
        return self._add(title, paragraphs)

    def warning(self, text: str) -> Report:
        """A paragraph that stands out."""
        return self._add("", f'<p class="warning">{_text(text)}</p>')

    def tiles(self, tiles: Sequence[tuple[str, str, str]]) -> Report:
        """The most important values in large type: (name, value, note) each."""
        cells = "".join(
            f'<div class="tile"><div class="name">{_text(name)}</div><div class="value">{_text(value)}</div>'
            f'<div class="note">{_text(note)}</div></div>'
            for name, value, note in tiles
        )
        return self._add("", f'<div class="tiles">{cells}</div>') if tiles else self

    def facts(self, facts: Mapping[str, object], title: str = "") -> Report:
        """Names and values, one a line."""
        rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(_cell(value))}</dd>" for name, value in facts.items())
        return self._add(title, f"<dl>{rows}</dl>") if facts else self

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> Report:
        """Rows with equal keys. Numbers stand to the right, None is a dash, a long table starts folded."""
        if not rows:
            return self._add(title, '<p class="note">none</p>')
        columns = list(rows[0])
        kinds = [' class="number"' if _is_number_column(rows, column) else "" for column in columns]
        head = "".join(f"<th{kind}>{_text(column)}</th>" for column, kind in zip(columns, kinds, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{kind}>{_text(_cell(row[c]))}</td>" for c, kind in zip(columns, kinds, strict=True))
            + "</tr>"
            for row in rows
        )
        html = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        if len(rows) > _FOLDED:
            html = f"<details><summary>{len(rows)} rows</summary>{html}</details>"
        return self._add(title, html)

    def figure(self, title: str, svg: str) -> Report:
        """An SVG drawing, scaled down to the width of the page."""
        source = base64.b64encode(svg.encode("utf-8", "replace")).decode()
        image = f'<img class="figure" alt="{_text(title)}" src="data:image/svg+xml;base64,{source}">'
        return self._add(title, f'<div class="scroll">{image}</div>')

    def gallery(self, title: str, images: Sequence[tuple[Any, str]], note: str = "", wide: bool = False) -> Report:
        """Thumbnails with captions.

        Args:
            images: (image, caption) each; the image is whatever `cvpipe.data.decode.read_image` takes. One that can't
                be read is replaced by a field that says why.
            note: a line above the images.
            wide: show them up to `DRAWN` pixels wide, for pictures with drawings in them.
        """
        cells = "".join(
            f"<figure>{_thumbnail(image, wide)}<figcaption>{_text(caption)}{_file_name(image)}</figcaption></figure>"
            for image, caption in images
        )
        above = f'<p class="note">{_text(note)}</p>' if note else ""
        return self._add(
            title,
            f'{above}<div class="gallery{" wide" if wide else ""}">{cells}</div>'
            if images
            else '<p class="note">none</p>',
        )

    def html(self) -> str:
        """The whole page."""
        subtitle = f'<p class="subtitle">{_text(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            f"<title>{_text(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_text(self.title)}</h1>{subtitle}</header>\n"
            + "\n".join(self._sections)
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page; the file is complete or absent."""
        write_text(path, self.html())
        return Path(path)

    def _add(self, title: str, html: str) -> Report:
        heading = f"<h2>{_text(title)}</h2>" if title else ""
        self._sections.append(f"<section>{heading}{html}</section>")
        return self


def _text(value: object) -> str:
    """Escaped, and free of the lone surrogates that file names with undecodable bytes bring."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _is_number_column(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    present = [row[column] for row in rows if row[column] is not None]
    return bool(present) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)


def _file_name(image: Any) -> str:
    if not isinstance(image, (str, Path)):
        return ""
    path = Path(image)
    return f'<span class="file" title="{_text(path)}">{_text("/".join(path.parts[-2:]))}</span>'


def _thumbnail(image: Any, wide: bool) -> str:
    """An <img> with a small JPEG, or a field with the reason why there is none."""
    from cvpipe.data.decode import read_image

    try:
        pixels = read_image(image)
    except ImageError as error:
        return f'<div class="broken">{_text(error)}</div>'
    from PIL import Image

    found = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if wide:
        found.thumbnail((DRAWN, DRAWN))
    small = found if wide else _shrink(found)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{source}">'


def _shrink(image: PIL.Image.Image) -> PIL.Image.Image:
    """The longest side at most THUMBNAIL; very small images are enlarged, so that their pixels can be seen."""
    from PIL import Image

    longest = max(image.size)
    if longest < _PIXEL_ART:
        factor = THUMBNAIL // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


_CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1f2328; --quiet: #5c6670; --line: #dfe3e8;
  --accent: #1f6feb; --warn: #9a4b00; --warn-back: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --card: #181d24; --ink: #e6edf3; --quiet: #9aa6b2;
  --line: #2d343d; --accent: #6cb0ff; --warn: #ffc680; --warn-back: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header { border-left: 4px solid var(--accent); padding-left: 16px; margin-bottom: 24px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; overflow-wrap: anywhere; }
.subtitle { color: var(--quiet); margin: 6px 0 0; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
section p { margin: 0 0 10px; } section p:last-child { margin-bottom: 0; }
section:has(> .tiles) { background: none; border: 0; padding: 0; }
section:has(> .warning) { background: var(--warn-back); border-color: var(--warn); }
.warning { color: var(--warn); }
.note, .tile .name { color: var(--quiet); font-size: 13px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile .value { font-size: 27px; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 640px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--card); color: var(--quiet); font-weight: 600; }
tbody tr:hover { background: var(--page); } tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
summary { cursor: pointer; color: var(--accent); margin-bottom: 8px; }
.scroll:has(> .figure) { max-height: none; }
.figure { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.gallery figure { margin: 0; min-width: 0; }
.gallery img, .broken { width: 100%; height: 150px; object-fit: contain; background: var(--page);
  border: 1px solid var(--line); border-radius: 8px; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); } .gallery.wide img { height: auto; }
.broken { display: flex; align-items: center; justify-content: center; text-align: center; padding: 8px;
  color: var(--warn); font-size: 12px; overflow: hidden; overflow-wrap: anywhere; border-style: dashed; }
figcaption { font-size: 13px; line-height: 1.35; margin-top: 6px; overflow-wrap: anywhere; }
.file { display: block; color: var(--quiet); font-size: 11px; }
@media print { body { background: none; } section { break-inside: avoid; } .scroll { max-height: none; } }
"""
