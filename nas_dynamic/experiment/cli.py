"""The command line: `nas-dynamic demo`, `train`, `search`, `export`, …

Importing it imports no torch: help is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas_dynamic.experiment.arguments import build_parser
from nas_dynamic.storage.journal import RunError, check_writable, command_text

__all__ = ["main"]

IMPORT_HINTS = ("pkg_resources is deprecated", ".* is found to be not a nn.Module")
"""What NNI warns of when it is imported, as regular expressions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status.

    Returns:
        0; 1 for a run that cannot be; 130 where it was stopped by Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(COMMANDS)
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    for hint in IMPORT_HINTS:
        warnings.filterwarnings("ignore", hint)
    if options.loads and sys.stderr.isatty():
        print(f"{options.loads} …", file=sys.stderr, flush=True)
    try:
        options.command(options)
    except (RunError, FileNotFoundError, ImportError) as error:
        print(f"nas-dynamic: {error}", file=sys.stderr)
        return 1
    except FloatingPointError as error:
        print(f"nas-dynamic: the training diverged: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        resume = ["--resume"] if options.command is _train and not options.resume else []
        where = f" {stop}" if str(stop) else ""
        again = "go on" if options.goes_on else "again"
        again = f"{again}: {command_text(parser.prog, *given, *resume)}"
        print(f"nas-dynamic: stopped{where}; {again}", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    import torch

    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.demo import demo, demo_config

    # The networks are so small that more threads gain nothing and make sums come out otherwise.
    torch.set_num_threads(1)
    config = demo_config(
        epochs=options.epochs,
        channels=options.channels,
        device=options.device,
        precision=options.precision,
        subnets=options.subnets,
    )
    folder, display = options.out / "demo", Display()
    files = demo(config, folder, display, seed=options.seed, budget=options.budget)
    display.commands(
        {
            "The network, for torch alone": f"torch.export.load({str(files[0])!r}).module()",
            f"A page with figures, {folder / 'report.html'}": command_text(
                "nas-dynamic", "report", folder
            ),
            "Does it help on a space and data of yours": "nas-dynamic compare CONFIG.yaml",
        }
    )


def _compare(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.compare import compare, print_comparison
    from nas_dynamic.experiment.config import load
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.engine import open_engine

    config = load(options.config, device=options.device, precision=options.precision)
    scoring = config.scoring.model_copy(update={"subnets": options.subnets})
    folder = options.out / f"{config.name}-compare"
    with (
        Display() as display,
        open_engine(options.engine, display.work, config.device) as engine,
        _of_file(options.config),
    ):
        comparison = compare(
            config.model_copy(update={"scoring": scoring}),
            folder,
            engine,
            seeds=sorted(set(options.seed)),
            standalone_epochs=options.standalone_epochs,
            kept=options.out,
            static_curve=options.static_curve,
        )
    print_comparison(comparison, display)
    report, export = (
        command_text("nas-dynamic", name, place)
        for name, place in (("report", folder), ("export", folder / "dynamic"))
    )
    display.commands(
        {
            f"All of it is in {folder}; a page with figures, {folder / 'report.html'}": report,
            "Take the best subnet away": export,
        }
    )


def _train(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.config import load
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.engine import open_engine
    from nas_dynamic.experiment.run import run
    from nas_dynamic.report.tables import picked, scores

    config = load(
        options.config, seeds=options.seed, device=options.device, precision=options.precision
    )
    with (
        Display() as display,
        open_engine(options.engine, display.work, config.device) as engine,
        _of_file(options.config),
    ):
        finished = run(config, options.out, engine, resume=options.resume)
    display.table(scores([finished]))
    display.say(picked(finished))
    middle = sorted(finished.parameters())[len(finished.subnets) // 2]
    display.commands(
        {
            "Search the whole space, here within a number of parameters": command_text(
                "nas-dynamic", "search", finished.folder, "--limit", f"parameters={middle}"
            ),
            "Take the best subnet away": command_text("nas-dynamic", "export", finished.folder),
            "A page with figures": command_text("nas-dynamic", "report", finished.folder),
        }
    )


def _search(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.engine import open_engine
    from nas_dynamic.experiment.search import found_table, read_latency_table, search_run
    from nas_dynamic.experiment.search_runs import (
        best_table,
        front_table,
        load_runs,
        search_runs,
    )

    if len(options.runs) > 1 and options.minimize:
        raise RunError(
            "--minimize is for one run: of several the Pareto set is that of their losses; give "
            "--limit, or search one run"
        )
    if len(options.runs) > 1 and options.strategy == "robot":
        raise RunError(
            "--strategy robot looks for one best subnet, and of several runs each has its own: "
            "give surrogate, or search one run"
        )
    for folder in options.runs:
        check_writable(folder)
    table = options.latency_table and read_latency_table(options.latency_table)
    runs = load_runs(options.runs, options.seed, device=options.device)
    first = next(iter(runs.values()))
    limits = dict(options.limit)
    given = {"budget": options.budget, "seed": options.strategy_seed, "latency": table}
    with (
        Display() as display,
        open_engine(options.engine, display.work, first.config.device) as engine,
    ):
        if len(runs) > 1:
            strategy = options.strategy or "surrogate"
            tasks = search_runs(runs, display, engine, limits=limits, strategy=strategy, **given)
            tables = [best_table(runs, tasks, limits), front_table(runs, tasks)]
        else:
            strategy = options.strategy or "evolution"
            minimize = options.minimize
            found = search_run(
                first, display, engine, limits=limits, minimize=minimize, strategy=strategy, **given
            )
            tables = [found_table(first, found, limits)]
    for of_search in tables:
        display.table(of_search)
    display.commands(
        {
            f"Take the one of the lowest loss away{f', of {name}' if len(runs) > 1 else ''}": (
                command_text("nas-dynamic", "export", run.folder)
            )
            for name, run in runs.items()
        }
    )


def _export(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.export import chosen_architecture, export_subnet, read_architecture
    from nas_dynamic.experiment.load import load_run
    from nas_dynamic.report.tables import exported

    folder = options.out or options.run / "export"
    check_writable(folder)
    run = load_run(options.run, options.seed)
    reason = "as given"
    if options.architecture is None:
        architecture, reason = chosen_architecture(run)
    else:
        architecture = read_architecture(options.architecture)
    description, files = export_subnet(run, architecture, folder, onnx=options.onnx)
    display = Display()
    display.say(exported(description, reason))
    display.commands(
        {
            "Written": " ".join(map(str, files)),
            "Load it, with torch alone": f"torch.export.load({str(files[0])!r}).module()",
        }
    )


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """Name the file in errors of a configuration that show when it is used."""
    from nas_dynamic.experiment.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _report(options: argparse.Namespace) -> None:
    check_writable((options.output or options.runs[0]).parent)
    from nas_dynamic.report import write_report

    page, figures = write_report(
        options.runs,
        output=options.output,
        figures=options.figures,
        standalone=options.standalone,
        standalone_column=options.standalone_column,
    )
    print(f"The report is {page}; its figures, as PNG and SVG, are in {figures}")


def _doctor(options: argparse.Namespace) -> None:
    if options.supernet is not None:
        return _doctor_of_supernet(options)
    from nas_dynamic.experiment.doctor.installation import examine, print_findings

    if not print_findings(examine()):  # each as it is found
        raise RunError("what is broken, and the remedy, stands above")


def _doctor_of_supernet(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.config import load
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.doctor.pilot import examine_supernet, signs_table
    from nas_dynamic.experiment.engine import open_engine

    config = load(options.supernet, device=options.device, precision=options.precision)
    folder = options.out / f"{config.name}-doctor"
    with (
        Display() as display,
        open_engine(options.engine, display.work, config.device) as engine,
        _of_file(options.supernet),
    ):
        signs, advice = examine_supernet(
            config,
            folder,
            engine,
            updates=options.updates,
            seeds=sorted(set(options.seed)),
            subnets=options.subnets,
        )
    display.table(signs_table(signs))
    display.say(f"Advice: {advice.what}. {advice.reason}.")
    display.commands(
        {
            f"All of it is in {folder}; at full length, with an interval": command_text(
                "nas-dynamic", "compare", options.supernet
            )
        }
    )


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "compare": _compare,
    "search": _search,
    "export": _export,
    "report": _report,
    "doctor": _doctor,
}
