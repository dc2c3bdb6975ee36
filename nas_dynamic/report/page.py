"""`nas-dynamic report`: one page, without network, on one run or several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nas_dynamic._extras import extra
from nas_dynamic.report import tables
from nas_dynamic.report.criteria import criteria
from nas_dynamic.report.figure import ReportFigure
from nas_dynamic.report.format import duration, joined, percent
from nas_dynamic.report.group_figures import loss_by_group, similarity_by_group
from nas_dynamic.report.measures import MEASURES, PRIMARY, compare
from nas_dynamic.report.next_steps import head, next_steps
from nas_dynamic.report.ranking_figures import accuracy_by_size, loss_by_standalone, taus
from nas_dynamic.report.records import Comparison
from nas_dynamic.report.run_folder import Run, read_runs
from nas_dynamic.report.standalone_file import with_standalone
from nas_dynamic.report.statistics import Ranked, pareto, rankings
from nas_dynamic.report.style import DARK, LIGHT, STYLE, inline_svg, save
from nas_dynamic.report.summary import summary, unfinished
from nas_dynamic.report.training_figures import learning_rate, loss, same_scale
from nas_dynamic.storage.journal import RunError, write_text

with extra("experiment"):
    import matplotlib
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

__all__ = ["MAX_RUNS", "write_report"]

MAX_RUNS = 8
"""More would not be told apart in a figure."""


@dataclass(frozen=True)
class _Section:
    """A part of the page: figures, then what could not be drawn, then tables."""

    id: str
    title: str
    text: str
    figures: Sequence[ReportFigure] = ()
    tables: Sequence[tables.Table] = ()

    @property
    def drawn(self) -> list[ReportFigure]:
        return [figure for figure in self.figures if figure.drawn is not None]

    @property
    def undrawn(self) -> dict[str, list[str]]:
        """Reason → titles of the figures that are not there for it."""
        reasons: dict[str, list[str]] = {}
        for figure in self.figures:
            if figure.drawn is None:
                reasons.setdefault(figure.caption, []).append(figure.title)
        return reasons


def write_report(
    folders: Sequence[Path],
    *,
    output: Path | None = None,
    figures: Path | None = None,
    standalone: Path | None = None,
    standalone_column: str = "accuracy",
    resamples: int = 1000,
) -> tuple[Path, Path]:
    """Write the page of some runs, and its figures as PNG and SVG, over those that are there.

    Args:
        folders: that `nas-dynamic train`, `compare` and `demo` have written, finished or not.
        output: the page; by default report.html in the folder of the run, or in the folder that
            holds the first one where there are several.
        figures: folder of the figures; by default the page's name and -figures, beside it.
        standalone: stand-alone accuracies of the scored subnets: see `with_standalone`.
        standalone_column: of `standalone`, that holds the accuracies.
        resamples: number of bootstrap samples of the intervals.

    Returns:
        The page and the folder of the figures.

    Raises:
        RunError: a folder holds no run, a file is damaged, or there are too many runs.
    """
    if output is None:
        output = (folders[0] if len(folders) == 1 else folders[0].parent) / "report.html"
    if output.suffix not in (".html", ".htm"):
        raise RunError(f"--output is {output}; its name must end in .html")
    figures = figures or output.with_name(f"{output.stem}-figures")
    for path in (output, figures):
        if path.exists() and path.is_dir() == (path == output):
            kind = "a folder" if path == output else "a file"
            raise RunError(f"{path} is {kind} already; choose another --output or --figures")
    runs = read_runs(folders)
    if len(runs) > MAX_RUNS:
        raise RunError(
            f"{len(runs)} runs are too many for one page; give {MAX_RUNS} at most (a comparison "
            "has two)"
        )
    if standalone is not None:
        runs = with_standalone(runs, standalone, standalone_column)
    pairs = [compare(runs[0], run) for run in runs[1:]]
    comparisons = [comparison for comparison in pairs if comparison is not None]
    ranked = rankings(runs, resamples=resamples)
    with matplotlib.rc_context(STYLE):
        sections = list(_sections(runs, comparisons, ranked))
    svgs = {
        figure.name: inline_svg(
            save(figure.drawn, figures, figure.name), f"figure-{n}", figure.label, figure.tips
        )
        for n, figure in enumerate((f for section in sections for f in section.drawn), 1)
        if figure.drawn is not None
    }
    write_text(output, _page(runs, comparisons, ranked, sections, svgs))
    return output, figures


def _sections(
    runs: Sequence[Run], comparisons: Sequence[Comparison], ranked: Sequence[Ranked]
) -> Iterator[_Section]:
    scored = [run for run in runs if run.seeds]
    colours = {run.name: number for number, run in enumerate(runs)}
    if comparisons:
        yield _Section(
            "side-by-side",
            "Side by side",
            "Means over the seeds that both trainings have.",
            (),
            [tables.compared(comparison) for comparison in comparisons],
        )
    if scored:
        yield _Section(
            "accuracy",
            "Accuracy and size",
            "Subnets with the weights that they inherit from the supernet.",
            [accuracy_by_size(scored, colours)],
            [tables.scores(scored), *map(tables.pareto_set, scored)],
        )
    if ranked:
        figures = []
        for n, group in enumerate(ranked, 1):
            suffix = f"-{n}" if len(ranked) > 1 else ""
            figures += [loss_by_standalone(group, colours, suffix), taus(group, colours, suffix)]
        yield _Section(
            "standalone",
            "Against stand-alone accuracy",
            "The same subnets, each trained alone: what a supernet is asked to predict.",
            figures,
            [tables.diagnostics(group) for group in ranked],
        )
    if scored:
        named = [(run, f": {run.name}" if len(scored) > 1 else "") for run in scored]
        rates = [learning_rate(run, suffix) for run, suffix in named]
        losses = [loss_by_group(run, suffix) for run, suffix in named]
        same_scale(rates)
        same_scale(losses)
        yield _Section(
            "training",
            "Training",
            "What the updates used, and what they came to.",
            [*rates, loss(scored, colours)],
        )
        yield _Section(
            "groups",
            "Groups of subnets",
            "With momentum separation the subnets of a group share a momentum of their own.",
            [*losses, *(similarity_by_group(run, suffix) for run, suffix in named)],
        )
        yield _Section("cost", "Cost", "", (), [tables.cost(scored), criteria(scored, ranked)])
    yield _Section(
        "settings",
        "Configuration and environment",
        "",
        (),
        [*tables.settings(runs), *tables.environments(runs)],
    )


def _page(
    runs: Sequence[Run],
    comparisons: Sequence[Comparison],
    ranked: Sequence[Ranked],
    sections: Sequence[_Section],
    svgs: Mapping[str, str],
) -> str:
    jinja = Environment(
        loader=PackageLoader("nas_dynamic.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"code": _code, "breakable": _breakable}
    return jinja.get_template("report.html").render(
        runs=runs,
        title=joined([run.name for run in runs]),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        heads={head(run): None for run in runs if head(run)},
        summary=summary(runs, comparisons, ranked),
        steps=next_steps(runs, comparisons),
        unfinished=unfinished(runs),
        tiles=[_tiles(run, n, ranked) for n, run in enumerate(runs, 1) if run.seeds],
        sections=sections,
        svgs={name: Markup(svg) for name, svg in svgs.items()},
        light=LIGHT,
        dark=DARK,
    )


def _code(text: str) -> Markup:
    """Return text in which `this` is code."""
    parts = [
        Markup("<code>{}</code>" if n % 2 else "{}").format(p)
        for n, p in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _breakable(text: str) -> Markup:
    """Return a dotted key, which may go on in a new line after a dot."""
    return Markup(".<wbr>").join(text.split("."))


def _tiles(run: Run, place: int, ranked: Sequence[Ranked]) -> dict[str, Any]:
    """Return the few numbers of a run that stand at the top."""
    picks = [seed.pick.accuracy for seed in run.seeds]
    tiles = [("its pick", percent(sum(picks) / len(picks)), "inherited weights")]
    for group in ranked:
        if run.name in group.means:
            value, _, ends = f"{group.means[run.name]:.2f}".partition(" ")
            tiles.insert(0, (MEASURES[PRIMARY].title, value, ends))
    best = pareto(run.parameters(), run.accuracies().mean(0))
    tiles.append(("Pareto set", str(best.sum()), "subnets"))
    seconds = [seed.cost.seconds for seed in run.seeds]
    tiles.append(("training", duration(sum(seconds) / len(seconds)), "a seed"))
    return {"name": run.name, "colour": place, "seeds": len(run.seeds), "tiles": tiles}
