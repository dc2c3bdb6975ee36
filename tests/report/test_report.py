"""The report of real runs: its numbers, its pictures, its words, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from nas_dynamic.experiment.cli import main
from nas_dynamic.report import write_report
from nas_dynamic.report.format import short
from nas_dynamic.report.run_folder import Row, read_runs
from nas_dynamic.report.statistics import complexity_bands, over_sample, pareto
from nas_dynamic.report.theme import DARK, LIGHT
from nas_dynamic.storage.journal import RunError

CONFIG = {
    "name": "tiny",
    "space": {
        "name": "NasBench201",
        "kwargs": {"stem_out_channels": 2, "num_modules_per_stack": 1},
    },
    # Nothing reads the root of digits; a page must show it as text.
    "data": {"name": "digits", "validation": 0.4, "test": 0.8, "root": "<script>alert(1)</script>"},
    "optimizer": {"kwargs": {"lr": 0.05, "momentum": 0.9}},
    "scoring": {"subnets": 8, "calibration_batches": 2},
    "epochs": 4,
    "batch_size": 27,
    "seeds": [3, 5],
    "device": "cpu",
}
PAGES = ["tiny", "still tiny", "demo"]
STATIC = {"calr": False, "momentum": False, "idle": "freeze"}


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


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a dynamic run, a static one, and a demo."""
    out = tmp_path_factory.mktemp("runs")
    static = {
        "name": "still",
        "dynamic": STATIC,
        "scheduler": {"name": "CosineAnnealingLR", "kwargs": {"T_max": 4}},
    }
    for changes in ({}, static):
        path = out / "config.yaml"
        path.write_text(yaml.safe_dump(CONFIG | changes))
        assert main(["train", str(path), "--out", str(out)]) == 0
    demo = ["demo", "--seed", "0", "1", "--epochs", "1", "--standalone-epochs", "1"]
    assert main([*demo, "--subnets", "6", "--channels", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> dict[str, Page]:
    """The pages of these runs: of one, of a demo, and of two side by side."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        names: page_of(
            [runs / name for name in names.split()], folder, output=folder / f"{names}.html"
        )
        for names in PAGES
    }


@pytest.fixture
def tiny(runs, tmp_path) -> Path:
    """A copy of the dynamic run, to damage."""
    return Path(shutil.copytree(runs / "tiny", tmp_path / "tiny"))


def test_command_writes_a_page_and_pictures(runs, tmp_path, capsys):
    page, figures = tmp_path / "new/page.html", tmp_path / "pictures"
    command = ["report", str(runs / "tiny"), "--output", str(page), "--figures", str(figures)]
    page.parent.mkdir()
    page.write_text("an earlier page")
    assert main(command) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    names = {path.stem for path in figures.iterdir()}
    assert len(names) >= 7
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
    assert len(page.figures) >= 7
    for figure in page.figures:
        assert figure["title"]
        assert len(figure["caption"]) > 30
        assert re.search(r"\d", figure["label"]), figure["title"]
    assert len({figure["title"] for figure in page.figures}) == len(page.figures)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_figures_take_the_colours_of_the_page(pages):
    page = pages["demo"]
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


def test_numbers_of_the_tables_are_those_of_the_results(runs, pages):
    page = pages["tiny"]
    results = read(runs / "tiny/results.json")
    expected = [
        [
            f"tiny, seed {result['seed']}",
            "8",
            f"{np.mean([s['accuracy'] for s in result['subnets']]):.1%}",
            f"{max(s['accuracy'] for s in result['subnets']):.1%}",
            f"{result['best']['parameters']:,}",
            str(result["validation_images"]),
        ]
        for result in results["seeds"]
    ]
    assert page.tables["Subnets with inherited weights"][1:] == expected

    accuracies = np.mean([[s["accuracy"] for s in r["subnets"]] for r in results["seeds"]], axis=0)
    sizes = [s["parameters"] for s in results["seeds"][0]["subnets"]]
    best = brute_force(sizes, accuracies)
    rows = page.tables["Pareto set of tiny"][1:]
    assert sorted((row[0], row[2]) for row in rows) == sorted(
        (f"{sizes[n]:,}", f"{accuracies[n]:.1%}") for n in best
    )
    first = results["seeds"][0]["subnets"][best[0]]["architecture"]
    assert any(all(c in row[-1] for c in first.values()) for row in rows)

    cost = page.tables["Cost of each training"]
    assert [row[1] for row in cost[1:3]] == [str(r["updates"]) for r in results["seeds"]]
    assert [row[-1] for row in cost[1:3]] == ["not measured"] * 2 or "J" in cost[1][-1]
    peak = results["seeds"][0]["cost"]["peak_memory"] / 2**20
    assert cost[1][4] in (f"{peak:.0f} MiB", f"{peak / 1024:.2f} GiB")

    words = "".join(page.text)
    top = accuracies.max()
    assert f"The best of 8 scored subnets classifies {top:.1%}" in words
    agreement = kendalltau(*[[s["accuracy"] for s in r["subnets"]] for r in results["seeds"]])[0]
    assert f"τ {agreement:.2f}".replace("-", "−") in words


def brute_force(sizes, accuracies) -> list[int]:
    points = list(zip(sizes, accuracies, strict=True))
    return [
        n
        for n, (size, accuracy) in enumerate(points)
        if not any(s <= size and a >= accuracy and (s, a) != (size, accuracy) for s, a in points)
    ]


def test_pareto_set_against_brute_force():
    generator = np.random.default_rng(0)
    for count in [1, 2, 5, 30, 100] * 20:
        sizes, accuracies = generator.integers(0, 12, (2, count))
        found = np.flatnonzero(pareto(sizes, accuracies / 10))
        assert found.tolist() == brute_force(sizes, accuracies / 10)


def test_pareto_points_are_those_that_are_outlined(pages):
    page = pages["tiny"]
    (figure,) = (f for f in page.figures if f["title"].startswith("Accuracy by size"))
    assert len(figure["tips"]) == 8
    rows = page.tables["Pareto set of tiny"][1:]
    assert f"{len(rows)} of them in the Pareto set" in figure["label"]
    # The outlined points come last.
    outlined = {tip.removeprefix("tiny: ") for tip in figure["tips"][-len(rows) :]}
    assert outlined == {f"{row[2]}, {row[0]} parameters. {row[-1]}" for row in rows}


def test_demo_is_held_against_its_truth(runs, pages):
    page = pages["demo"]
    results = read(runs / "demo/results.json")
    truth = [subnet["accuracy"] for subnet in results["truth"]]
    (name,) = (name for name in page.tables if name.startswith("Diagnostics"))
    assert name == "Diagnostics over 6 subnets"
    rows = {row[0]: row[1:] for row in page.tables[name][1:]}
    for arm in ("static", "dynamic"):
        taus = []
        for seed in (0, 1):
            run = read(runs / f"demo/{arm}/seed-{seed}.json")
            accuracies = [subnet["accuracy"] for subnet in run["subnets"]]
            tau = kendalltau(accuracies, truth)[0]
            taus.append(tau)
            assert rows[f"{arm}, seed {seed}"][0].startswith(f"{tau:.2f} ".replace("-", "−"))
            pick = max(range(6), key=accuracies.__getitem__)
            regret = 100 * (max(truth) - truth[pick])
            if accuracies.count(max(accuracies)) == 1:
                assert rows[f"{arm}, seed {seed}"][3].startswith(f"{regret:.1f} ")
        assert f"a Kendall's τ of {np.mean(taus):.2f} ".replace("-", "−") in "".join(page.text)
    assert {"parameter count", "MACs", "random"} <= rows.keys()
    sizes = [subnet["parameters"] for subnet in results["truth"]]
    tau = f"{kendalltau(sizes, truth)[0]:.2f} ".replace("-", "−")
    assert rows["parameter count"][0].startswith(tau)
    assert "dynamic beside static" in page.text
    assert any("trained alone" in cell for cell in page.tables["Pareto set of dynamic"][0])


def test_runs_side_by_side_say_what_differs(runs, pages):
    page = pages["still tiny"]
    rows = {row[0]: row[1:] for row in page.tables["Configuration: what differs"][1:]}
    assert rows == {
        "dynamic.calr": ["false", "true"],
        "dynamic.momentum": ["false", "true"],
        "dynamic.idle": ["freeze", "coast"],
        "scheduler.name": ["CosineAnnealingLR", "none"],
        "scheduler.kwargs.T_max": ["4", "none"],
        "scheduler.interval": ["epoch", "none"],
    }
    (same,) = (name for name in page.tables if name.startswith("Configuration: what is the same"))
    assert ["epochs", "4"] in page.tables[same]
    means = {}
    for name in ("still", "tiny"):
        results = read(runs / f"{name}/results.json")
        means[name] = [np.mean([s["accuracy"] for s in r["subnets"]]) for r in results["seeds"]]
    difference = over_sample(np.subtract(means["tiny"], means["still"]))
    text = (
        f"The mean accuracy of tiny less that of still is {100 * difference.value:+.1f} points "
        f"[{100 * difference.low:.1f}, {100 * difference.high:.1f}], over the 2 seeds"
    )
    assert text.replace("-", "−") in "".join(page.text)
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


def write_truth(path: Path, run: Path, drop: int = 0) -> dict[str, float]:
    """A truth file: the accuracy of each subnet is 50% and its place."""
    subnets = read(run / "results.json")["seeds"][0]["subnets"][drop:]
    truth = [0.5 + place / 100 for place in range(len(subnets))]
    if path.suffix == ".json":
        rows = [
            {"architecture": s["architecture"], "accuracy": t}
            for s, t in zip(subnets, truth, strict=True)
        ]
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*subnets[0]["architecture"], "top1"])
            writer.writeheader()
            writer.writerows(
                s["architecture"] | {"top1": 100 * t} for s, t in zip(subnets, truth, strict=True)
            )
    return truth


@pytest.mark.parametrize("name", ["truth.json", "truth.csv"])
def test_truth_from_a_file(name, runs, tmp_path):
    truth = write_truth(tmp_path / name, runs / "tiny", drop=2)
    column = "accuracy" if name.endswith("json") else "top1"
    if name.endswith("csv"):  # a row that says the same again is no contradiction
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join([*lines, lines[-1]]))
    page = page_of([runs / "tiny"], tmp_path, truth=tmp_path / name, truth_column=column)
    rows = {row[0]: row[1:] for row in page.tables["Diagnostics over 6 subnets"][1:]}
    for result in read(runs / "tiny/results.json")["seeds"]:
        accuracies = [subnet["accuracy"] for subnet in result["subnets"][2:]]
        tau = f"{kendalltau(accuracies, truth)[0]:.2f} ".replace("-", "−")
        assert rows[f"tiny, seed {result['seed']}"][0].startswith(tau)
    assert "the best one reaches 55.0%" in "".join(page.text)


def test_truth_kept_by_a_demo_is_a_truth_file(runs, pages, tmp_path):
    (cache,) = runs.glob("stand-alone-*.json")
    given = page_of([runs / "demo"], tmp_path, truth=cache)
    assert (
        pages["demo"].tables["Diagnostics over 6 subnets"]
        == given.tables["Diagnostics over 6 subnets"]
    )


def test_truth_file_that_does_not_fit(runs, tmp_path, capsys):
    def refused(path: Path, *options: str) -> str:
        output = str(tmp_path / "page.html")
        command = ["report", str(runs / "tiny"), "--output", output, "--truth", str(path)]
        assert main([*command, *options]) == 1
        return capsys.readouterr().err

    write_truth(tmp_path / "truth.csv", runs / "tiny")
    message = refused(tmp_path / "truth.csv")
    assert "no column 'accuracy'" in message
    assert "--truth-column" in message
    other = [{"architecture": {"layer": "conv"}, "accuracy": 0.5}]
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert "has none of the 8 subnets of tiny" in refused(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "must be a list of" in refused(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('[{"architecture": {"layer": "conv"}, "accuracy": "?"}]')
    assert "'?', which is no finite number" in refused(tmp_path / "other.json")
    assert "is no file" in refused(tmp_path / "nowhere.csv")
    write_truth(tmp_path / "twice.json", runs / "tiny")
    rows = json.loads((tmp_path / "twice.json").read_text())
    (tmp_path / "twice.json").write_text(json.dumps([*rows, rows[0] | {"accuracy": 0.25}]))
    assert "has the values 0.5 and 0.25 for {" in refused(tmp_path / "twice.json")
    write_truth(tmp_path / "twice.csv", runs / "tiny")
    first = (tmp_path / "twice.csv").read_text().splitlines()[1]
    with (tmp_path / "twice.csv").open("a") as file:
        file.write(first.rpartition(",")[0] + ",25\n")
    message = refused(tmp_path / "twice.csv", "--truth-column", "top1")
    assert "has the values 50.0 and 25.0 for {" in message
    assert not (tmp_path / "page.html").exists()


def a_run(folder: Path, accuracies: list[float], **recorded) -> Path:
    """A run of one seed with a subnet for each accuracy; of no seed without any."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "seeds": [0]}))
    subnets = [
        {"architecture": {"layer": f"k{n}"}, "parameters": n + 1, "accuracy": accuracy}
        for n, accuracy in enumerate(accuracies)
    ]
    if subnets:
        (folder / "seed-0").mkdir()
        result = {"seed": 0, "subnets": subnets} | recorded
        (folder / "seed-0/result.json").write_text(json.dumps(result))
    return folder


def test_truth_beside_a_run_that_has_no_subnets_yet(tmp_path):
    folders = [a_run(tmp_path / "one", [0.5, 0.6, 0.7]), a_run(tmp_path / "two", [])]
    (tmp_path / "truth.csv").write_text("layer,accuracy\nk0,0.7\nk1,0.8\nk2,0.9\n")
    page = page_of(folders, tmp_path, truth=tmp_path / "truth.csv")
    assert "Diagnostics over 3 subnets" in page.tables


def test_truth_that_was_cut_off_is_named(tmp_path):
    (tmp_path / "truth.csv").write_text("layer,accuracy\nk0,0.7\nk1\n", encoding="utf-8-sig")
    with pytest.raises(RunError, match=r"truth.csv has the accuracy '', .* for \{'layer': 'k1'\}"):
        page_of([a_run(tmp_path / "one", [0.5, 0.6])], tmp_path, truth=tmp_path / "truth.csv")


def test_truth_of_a_single_subnet_is_too_little(tmp_path):
    (tmp_path / "truth.csv").write_text("layer,accuracy\nk0,0.7\n")
    folder = a_run(tmp_path / "one", [0.5, 0.6])
    words = "".join(page_of([folder], tmp_path, truth=tmp_path / "truth.csv").text)
    assert "for too few subnets were trained alone" in words
    assert "for no subnet was trained alone" in "".join(page_of([folder], tmp_path).text)


def test_a_legend_has_names_that_begin_with_an_underscore(tmp_path):
    trace = [
        {"step": n, "lr": 0.1, "parameters": 9, "loss": 1.0, "group": f"_g{n % 2}"}
        for n in range(8)
    ]
    folders = [a_run(tmp_path / name, [0.5, 0.6], trace=trace) for name in ("_old", "new")]
    page_of(folders, tmp_path)
    for name, series in (
        ("accuracy-by-size", "_old"),
        ("loss", "_old"),
        ("loss-by-group-new", "_g1"),
    ):
        assert f"{series}</text>" in (tmp_path / f"page-figures/{name}.svg").read_text()


def test_unfinished_run(tiny, tmp_path):
    shutil.rmtree(tiny / "seed-5")
    (tiny / "results.json").unlink()
    page = page_of([tiny], tmp_path)
    words = "".join(page.text)
    assert "of 2 seeds, seed 5 is missing" in words
    assert "--resume" in words
    assert [row[0] for row in page.tables["Subnets with inherited weights"][1:]] == ["tiny, seed 3"]

    shutil.rmtree(tiny / "seed-3")
    page = page_of([tiny], tmp_path)
    assert "seeds 3 and 5 are missing" in "".join(page.text)
    assert page.figures == []
    assert ["epochs", "4"] in page.tables["Configuration"]


def test_unfinished_demo(runs, tmp_path):
    demo = Path(shutil.copytree(runs / "demo", tmp_path / "demo"))
    (demo / "results.json").unlink()
    shutil.rmtree(demo / "dynamic")
    (demo / "dynamic").mkdir()
    shutil.copy(runs / "demo/dynamic/config.json", demo / "dynamic")
    page = page_of([demo], tmp_path)
    assert "of 2 seeds, seeds 0 and 1 are missing" in "".join(page.text)
    assert not [name for name in page.tables if name.startswith("Diagnostics")]
    assert len(page.tables["Subnets with inherited weights"]) == 3


def test_comparison_is_read_as_its_two_arms(runs, tmp_path):
    folder = tmp_path / "tiny-compare"
    shutil.copytree(runs / "still", folder / "static")
    shutil.copytree(runs / "tiny", folder / "dynamic")
    subnets = read(runs / "tiny/results.json")["seeds"][0]["subnets"]
    truth = [{"architecture": s["architecture"], "accuracy": n / 10} for n, s in enumerate(subnets)]
    (folder / "compare.json").write_text(json.dumps({"seeds": [3, 5], "truth": truth}))
    page = page_of([folder], tmp_path)
    assert "dynamic beside static" in page.text
    assert "Diagnostics over 8 subnets" in page.tables
    taus = {}
    for arm in ("static", "dynamic"):
        seeds = read(folder / arm / "results.json")["seeds"]
        accuracies = [[s["accuracy"] for s in seed["subnets"]] for seed in seeds]
        taus[arm] = [kendalltau(a, range(8))[0] for a in accuracies]
    difference = over_sample(np.subtract(taus["dynamic"], taus["static"]))
    text = f"τ of dynamic less that of static is {difference.value:+.2f} [{difference.low:.2f}"
    assert text.replace("-", "−") in "".join(page.text)


def test_runs_of_earlier_versions_can_be_read(runs, tmp_path):
    demo = Path(shutil.copytree(runs / "demo", tmp_path / "demo"))
    later = ("cost", "updates", "updates_by_group", "pairs", "validation_images")
    for arm in ("static", "dynamic"):
        for name in ("config.json", "environment.json"):
            (demo / arm / name).unlink()
        for path in (demo / arm).glob("seed-*.json"):
            content = {key: value for key, value in read(path).items() if key not in later}
            for subnet in content["subnets"]:
                del subnet["macs"]
            path.write_text(json.dumps(content))
    page = page_of([demo], tmp_path)
    cost = page.tables["Cost of each training"]
    assert cost[1][1] == "not recorded"
    assert cost[1][4:] == ["not recorded", "not measured"]
    assert re.fullmatch(r"[\d.]+ s|\d+ min \d+ s", cost[1][2])
    assert any("Not recorded: by an earlier version" in text for text in page.text)
    shares = next(f for f in page.figures if f["title"].startswith("Updates by group"))
    assert "in the trace" in shares["caption"]
    assert "Configuration: what differs" in page.tables
    (name,) = (name for name in page.tables if name.startswith("Diagnostics"))
    assert "MACs" not in [row[0] for row in page.tables[name]]


def test_results_alone_can_be_read(tiny, pages, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tiny / "results.json", alone)
    page = page_of([alone], tmp_path)
    name = "Cost of each training"
    assert [r[1:] for r in page.tables[name]] == [r[1:] for r in pages["tiny"].tables[name]]
    assert any("no trace of its updates" in text for text in page.text)
    assert not any(figure["title"].startswith("Loss by group") for figure in page.figures)


def refusal(capsys, *arguments: Path | str) -> str:
    assert main(["report", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_folders_that_are_no_runs(runs, tmp_path, capsys):
    assert "is no folder" in refusal(capsys, tmp_path / "nowhere")
    (tmp_path / "empty/static").mkdir(parents=True)
    assert "holds no run: there is no config.json" in refusal(capsys, tmp_path / "empty")
    message = refusal(capsys, runs)
    assert "did you mean" in message
    assert str(runs / "tiny") in message
    assert "is given twice" in refusal(capsys, runs / "tiny", runs / "demo/../tiny")
    assert "is given twice" in refusal(capsys, runs / "demo", runs / "demo/static")
    (tmp_path / "empty/results.json").write_text('{"accuracy": 3}')
    message = refusal(capsys, tmp_path / "empty")
    assert "results.json is not what nas-dynamic writes: config: Field required" in message


def test_damaged_files(tiny, capsys):
    path = tiny / "seed-3/result.json"
    sound = path.read_text()
    for damage, reason in (
        (sound[:-40], "is damaged, it is not valid JSON"),
        ("", "is damaged"),
        (sound.replace('"accuracy"', '"acuracy"'), "subnets.0.accuracy: Field required"),
        (sound.replace('"seed": 3', '"seed": "three"'), "seed: Input should be"),
        ("[" * 100_000, "is damaged"),
    ):
        path.write_text(damage)
        message = refusal(capsys, tiny)
        assert str(path) in message
        assert reason in message
        assert "--resume" in message
    path.write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in refusal(capsys, tiny)
    path.write_text(sound)
    (tiny / "config.json").write_text("{")
    assert f"{tiny / 'config.json'} is damaged" in refusal(capsys, tiny)
    (tiny / "config.json").write_text("3")
    assert "no keys and values" in refusal(capsys, tiny)


def test_the_remedy_for_a_damaged_seed_works(tiny, tmp_path):
    before = read(tiny / "seed-3/result.json")
    (tiny / "seed-3/result.json").unlink()
    (tiny / "results.json").unlink()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = ["train", str(tmp_path / "config.yaml"), "--out", str(tiny.parent), "--resume"]
    assert main(command) == 0
    after = read(tiny / "seed-3/result.json")
    for key in ("subnets", "trace", "pairs", "updates_by_group"):
        assert after[key] == before[key]


def test_output_that_would_overwrite_something_else(runs, tmp_path, capsys):
    results = runs / "tiny/results.json"
    before = results.read_text()
    assert "must end in .html" in refusal(capsys, runs / "tiny", "--output", results)
    (tmp_path / "page.html").mkdir()
    message = refusal(capsys, runs / "tiny", "--output", tmp_path / "page.html")
    assert "is a folder already" in message
    message = refusal(capsys, runs / "tiny", "--output", tmp_path / "p.html", "--figures", results)
    assert "is a file already" in message
    assert results.read_text() == before


def test_runs_of_one_name_are_told_apart(runs, tiny, tmp_path):
    assert [run.name for run in read_runs([runs / "tiny", tiny])] == [
        f"{runs.name}/tiny",
        f"{tmp_path.name}/tiny",
    ]
    page = page_of([runs / "tiny", tiny], tmp_path)
    assert "Nothing differs." in page.text
    names = {path.name for path in (tmp_path / "page-figures").iterdir()}
    assert f"learning-rate-{tmp_path.name}-tiny.png" in names


def test_too_many_runs(runs, tmp_path, capsys):
    copies = [shutil.copytree(runs / "tiny", tmp_path / f"run{n}") for n in range(9)]
    assert "9 runs are too many" in refusal(capsys, *copies)


def test_supernet_that_ranks_nothing(tiny, tmp_path):
    for path in tiny.glob("seed-*/result.json"):
        content = read(path)
        for subnet in content["subnets"]:
            subnet["accuracy"] = 0.5
        path.write_text(json.dumps(content))
    write_truth(tmp_path / "truth.json", tiny)
    page = page_of([tiny], tmp_path, truth=tmp_path / "truth.json")
    words = "".join(page.text)
    assert "there is no ranking" in words
    assert "nan" not in words
    (name,) = (name for name in page.tables if name.startswith("Diagnostics"))
    assert page.tables[name][1][1] == "undefined"


def test_names_are_cut_in_the_middle():
    assert short("conv_3x3") == "conv_3x3"
    names = {short(f"a group with a long name, number {n}") for n in range(30)}
    assert len(names) == 30
    assert {len(name) for name in names} == {16}


def test_bands_of_complexity():
    rows = [Row(step=n, lr=0.1, parameters=p) for n, p in enumerate([5] * 6 + [1, 2, 9, 7])]
    bands = complexity_bands(rows)
    assert sum(len(band.rows) for band in bands) == 10
    assert all(a.greatest < b.least for a, b in itertools.pairwise(bands))
    assert [band.least for band in complexity_bands(rows[:6])] == [5]
    many = [Row(step=n, lr=0.1, parameters=n) for n in range(100)]
    assert [len(band.rows) for band in complexity_bands(many)] == [20] * 5
