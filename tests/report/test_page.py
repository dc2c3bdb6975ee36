"""Pages of reports: whole without network, readable without seeing, true to their runs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from nas_dynamic.experiment.cli import main
from nas_dynamic.report.style import DARK, LIGHT
from tests.report.page import page_of

pytestmark = pytest.mark.xdist_group("trained run")

PAGES = ["tiny", "both", "still tiny"]


def test_command_writes_a_page_and_pictures(runs, tmp_path, capsys):
    page, figures = tmp_path / "new/page.html", tmp_path / "pictures"
    command = ["report", str(runs / "tiny"), "--output", str(page), "--figures", str(figures)]
    page.parent.mkdir()
    page.write_text("a page that was there")
    assert main(command) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    names = {path.stem for path in figures.iterdir()}
    assert len(names) >= 5
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg"}
    for name in names:
        picture = matplotlib.image.imread(figures / f"{name}.png")
        assert picture.shape[0] > 200
        assert picture[..., :3].std() > 0.02, f"{name} is blank"
        assert "<svg" in (figures / f"{name}.svg").read_text()
    assert page.stat().st_size < 3e6


@pytest.mark.parametrize("names", PAGES)
def test_page_is_whole_without_network(names, pages):
    page = pages[names]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.removeprefix("#") in ids
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                assert value.startswith("#")
                assert value[1:] in ids
    styles = "".join(page.styles)
    assert "@import" not in styles
    assert "url(" not in styles
    assert "http" not in "".join(page.styles)
    assert "prefers-color-scheme: dark" in styles
    assert len(page.html) < 3e6


@pytest.mark.parametrize("names", PAGES)
def test_every_figure_can_be_read_without_seeing_it(names, pages):
    page = pages[names]
    assert len(page.figures) >= 5
    for figure in page.figures:
        assert figure["title"]
        assert len(figure["caption"]) > 30
        assert re.search(r"\d", figure["label"]), figure["title"]
    assert len({figure["title"] for figure in page.figures}) == len(page.figures)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_figures_take_the_colours_of_the_page(pages):
    page = pages["both"]
    svgs = re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL)
    assert len(svgs) == len(page.figures)
    for svg in svgs:
        assert "var(--ink)" in svg
        # Black, matplotlib's own, would not be seen on a dark page.
        assert not re.search(r"(fill|stroke): #", svg)
    assert DARK.keys() == LIGHT.keys()
    used = set(re.findall(r"var\(--([-\w]+)\)", page.html))
    light, dark, *_ = "".join(page.styles).split("@media")
    assert "prefers-color-scheme: dark" in dark
    for theme in (light, dark):
        assert {name for name in used if f"--{name}:" not in theme} == set()


def test_runs_side_by_side_say_what_differs(pages):
    page = pages["still tiny"]
    rows = {row[0]: row[1:] for row in page.tables["Configuration: what differs"][1:]}
    assert rows == {
        "dynamic.calr": ["false", "true"],
        "dynamic.momentum": ["false", "true"],
        "dynamic.idle": ["freeze", "auto"],
        "scheduler.name": ["CosineAnnealingLR", "none"],
        "scheduler.kwargs.T_max": ["4", "none"],
        "scheduler.interval": ["epoch", "none"],
    }
    (same,) = (name for name in page.tables if name.startswith("Configuration: what is the same"))
    assert ["epochs", "4"] in page.tables[same]
    assert any("no momentum separation" in text for text in page.text)


def test_text_of_a_configuration_is_text(pages):
    page = pages["tiny"]
    assert ["data.root", "<script>alert(1)</script>"] in page.tables["Configuration"]
    assert "<script" not in page.html


def test_names_of_groups_are_text(tiny, tmp_path):
    nasty = "</svg><script>$x_1$ \"'&"
    for path in tiny.glob("seed-*/result.json"):
        text = path.read_text().replace("conv_3x3", json.dumps(nasty)[1:-1])
        path.write_text(text)
    page = page_of([tiny], tmp_path)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert any(nasty in figure["label"] for figure in page.figures)


def test_a_legend_has_names_that_begin_with_an_underscore(a_run, tmp_path):
    trace = [
        {"step": n, "lr": 0.1, "parameters": 9, "loss": 1.0, "group": f"_g{n % 2}"}
        for n in range(8)
    ]
    grouped = {"trace": trace, "group_by": "layer", "updates_by_group": {"_g0": 4, "_g1": 4}}
    folders = [a_run(name, [0.5, 0.6], **grouped) for name in ("_old", "new")]
    page_of(folders, tmp_path)
    for name, series in (
        ("accuracy-by-size", "_old"),
        ("loss", "_old"),
        ("loss-by-group-new", "_g1 (50.0%)"),
    ):
        assert f"{series}</text>" in (tmp_path / f"page-figures/{name}.svg").read_text()


def test_updates_without_a_finite_loss_are_drawn_nowhere(a_run, tmp_path):
    trace = [{"step": n, "lr": 0.1, "parameters": 9, "loss": None, "group": "a"} for n in range(8)]
    grouped = {"trace": trace, "group_by": "layer", "updates_by_group": {"a": 8}}
    page = page_of([a_run("diverged", [0.5, 0.6], **grouped)], tmp_path)
    assert "No recorded update has a finite loss" in page.words
    assert any("not finite at the end" in figure["label"] for figure in page.figures)


def test_output_that_would_overwrite_something_else(tiny, tmp_path, capsys):
    def refusal(*arguments) -> str:
        assert main(["report", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    config = tiny / "config.json"
    before = config.read_text()
    assert "must end in .html" in refusal(tiny, "--output", config)
    (tmp_path / "page.html").mkdir()
    assert "is a folder already" in refusal(tiny, "--output", tmp_path / "page.html")
    message = refusal(tiny, "--output", tmp_path / "p.html", "--figures", config)
    assert "is a file already" in message
    assert config.read_text() == before


def test_too_many_runs(runs, tmp_path, capsys):
    copies = [Path(shutil.copytree(runs / "tiny", tmp_path / f"run{n}")) for n in range(9)]
    assert main(["report", *map(str, copies)]) == 1
    assert "9 runs are too many" in capsys.readouterr().err
