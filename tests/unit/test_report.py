"""Reports: one safe file."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.report import THUMBNAIL, Report

NASTY = "<script>alert('x')</script> \" & ' \udcff"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags and texts, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(report.html())
    reader.close()
    assert reader.open == []
    return reader


def pictures(reader: Reader) -> list[Image.Image]:
    sources = [str(a["src"]) for tag, a in reader.tags if tag == "img" and "jpeg" in str(a["src"])]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def test_every_text_is_escaped_everywhere() -> None:
    report = Report(NASTY, NASTY).text(NASTY, NASTY).warning(NASTY).tiles([(NASTY, NASTY, NASTY)])
    report.facts({NASTY: NASTY}, NASTY).table(NASTY, [{NASTY: NASTY}]).figure(NASTY, "<svg></svg>")
    report.gallery(NASTY, [(NASTY, NASTY)], NASTY)
    reader = read(report)
    assert reader.count("script") == 0
    assert sum("<script>alert('x')</script>" in text for text in reader.texts) >= 12
    report.html().encode("utf-8")


@given(st.text(), st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_any_text_keeps_the_page_well_formed(title: str, key: str, value: object) -> None:
    reader = read(Report(title).facts({key: value}, title).table(title, [{key: value}]))
    assert reader.count("table") == 1


def test_nothing_is_fetched(tmp_path: Path) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    page = Report("a").figure("b", svg).gallery("c", [(np.zeros((4, 4, 3), np.uint8), "d")]).html()
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')]{0,10})", page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.25, "0.2500"), (12345, "12,345"), (True, "True"), ("text", "text")]
)
def test_cells(value: object, shown: str) -> None:
    assert shown in read(Report("a").table("b", [{"column": value}])).texts


def test_numbers_stand_to_the_right_and_none_does_not_matter() -> None:
    reader = read(Report("a").table("b", [{"n": 1.0, "t": "x"}, {"n": None, "t": None}]))
    assert [attrs.get("class") for tag, attrs in reader.tags if tag == "th"] == ["number", None]


def test_long_tables_start_folded_and_empty_ones_say_none() -> None:
    assert read(Report("a").table("b", [{"n": i} for i in range(100)])).count("details") == 1
    assert read(Report("a").table("b", [{"n": 1}])).count("details") == 0
    assert "none" in read(Report("a").table("b", [])).texts
    assert "none" in read(Report("a").gallery("b", [])).texts


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 5000), (3000, 17), (640, 480), (99, 3)])
def test_thumbnails_are_small_and_keep_their_shape(size: tuple[int, int]) -> None:
    (shown,) = pictures(read(Report("a").gallery("b", [(Image.new("RGB", size), "c")])))
    assert max(shown.size) <= THUMBNAIL
    assert min(shown.size) >= 1
    if min(size) > 100:
        assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_thumbnails_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 100))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    (shown,) = pictures(read(Report("a").gallery("b", [(tmp_path / "turned.jpg", "c")])))
    assert shown.height > shown.width


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_thumbnails_of_any_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (120, 120)).save(path)
    assert len(pictures(read(Report("a").gallery("b", [(path, "c")])))) == 1


def test_a_broken_image_leaves_its_reason_and_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 nothing")
    images = [(broken, "one"), (tmp_path / "absent.png", "two"), (Image.new("RGB", (9, 9)), "three")]
    reader = read(Report("a").gallery("b", images))
    assert len(pictures(reader)) == 1
    assert sum(1 for tag, attrs in reader.tags if attrs.get("class") == "broken") == 2
    assert any("No such file" in text for text in reader.texts)


def test_a_report_is_one_complete_file(tmp_path: Path) -> None:
    path = Report("a", "b").text("one\n\ntwo").write(tmp_path / "below" / "report.html")
    assert path.read_text("utf-8").endswith("</html>\n")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert read(Report("a").text("one\n\ntwo")).count("p") == 2
