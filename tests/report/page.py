"""Reads a page of a report, as far as tests look at it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from nas_dynamic.report import write_report


class Page(HTMLParser):
    """What of a page the tests look at."""

    VOID = frozenset(["meta", "br", "hr", "img", "link", "input", "wbr"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[tuple[str, dict]] = []
        self.tags: list[tuple[str, dict]] = []
        self.figures: list[dict] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self.styles: list[str] = []
        self._title = ""
        self.feed(html)
        self.close()
        assert not self.open, "an element is not closed"

    @property
    def words(self) -> str:
        """All of its text."""
        return "".join(self.text)

    def inside(self, tag: str) -> bool:
        return any(name == tag for name, _ in self.open)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append((tag, attributes))
        if tag == "figure":
            self.figures.append({"title": "", "caption": "", "label": "", "tips": []})
        elif tag == "svg":
            self.figures[-1]["label"] = attributes.get("aria-label", "")
        elif tag in ("h3", "summary") and not self.inside("figure"):
            self._title = ""
        elif tag == "table":
            self.tables[self._title] = []
        elif tag == "tr":
            self.tables[self._title].append([])
        elif tag in ("td", "th"):
            self.tables[self._title][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        name, _ = self.open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"

    def handle_data(self, data):
        if self.inside("style"):
            self.styles.append(data)
            return
        self.text.append(data)
        if self.inside("figure"):
            for tag, key in (("h3", "title"), ("figcaption", "caption")):
                if self.inside(tag):
                    self.figures[-1][key] += data
            if self.inside("svg") and self.inside("title"):
                self.figures[-1]["tips"].append(data)
        elif self.inside("h3") or self.inside("summary"):
            self._title += data
        if self.inside("td") or self.inside("th"):
            self.tables[self._title][-1][-1] += data


def page_of(folders, tmp_path, **options) -> Page:
    options = {"output": tmp_path / "page.html", "resamples": 20} | options
    output, _ = write_report([Path(folder) for folder in folders], **options)
    return Page(output.read_text(encoding="utf-8"))
