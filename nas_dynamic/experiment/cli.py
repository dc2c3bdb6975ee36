"""The command line: `nas-dynamic demo`, `train`, `compare`, `report`, …"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_dynamic.storage.journal import RunError

if TYPE_CHECKING:
    from nas_dynamic.experiment.config import Config

__all__ = ["main"]

DEMO = """\
A comparison (see compare) whose configuration is built in: NNI's NasBench201 space, at small size,
on scikit-learn's digits, trained as usual and with dynamic training from the same seeds, on the
same subnets, for as many updates. Nothing is downloaded. Results go to OUT/demo. The same demo
again goes on after a stop; a demo with other options takes the place of the earlier one."""

COMPARE = """\
Answers whether dynamic training helps on the space and data of CONFIG, with an interval: trains
its supernet as usual and as CONFIG says, from the same seeds, on the same subnets, for as many
updates; scores a sample of subnets, trains each of them alone for its stand-alone accuracy, and
prints the differences over the seeds. Results go to OUT/NAME-compare. Start it again to go on
after a stop, or with more seeds: what is there is kept. CONFIG is as for train; its seeds are not
used."""

TRAIN = """\
Trains the supernet that CONFIG describes (model space, data, optimizer, dynamic options, budget,
seeds) and scores a sample of its subnets. Results go to OUT/NAME, where NAME is the name in
CONFIG. A checkpoint is written after every epoch, so that --resume can go on with a run that was
stopped. A finished run is never overwritten. The keys of CONFIG are in docs/configuration.md."""

REPORT = """\
Writes one HTML page, which needs no network, on runs that train, demo and compare have written:
what was found and how sure that is, accuracy by size, the ranking against stand-alone accuracy
where it is known, training, groups, cost, configuration. Several runs stand side by side; the
first one is what the others are compared with. A run that is not finished is reported as far as it
is. A page of the same name, and its figures, are overwritten."""

IMPORT_HINTS = ("pkg_resources is deprecated", ".* is found to be not a nn.Module")
"""What NNI warns of when it is imported, as regular expressions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status: 0, or 1 for a run that cannot be."""
    options = _parser().parse_args(arguments)
    for hint in IMPORT_HINTS:
        warnings.filterwarnings("ignore", hint)
    try:
        options.command(options)
    except (RunError, FileNotFoundError, ImportError) as error:
        print(f"nas-dynamic: {error}", file=sys.stderr)
        return 1
    except FloatingPointError as error:
        print(f"nas-dynamic: the training diverged: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nas-dynamic: interrupted", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    import torch

    from nas_dynamic.experiment.demo import demo_config

    # The networks are so small that more threads gain nothing and make sums come out otherwise.
    torch.set_num_threads(1)
    config = demo_config(
        epochs=options.epochs,
        channels=options.channels,
        device=options.device,
        precision=options.precision,
    )
    _compare_arms(config, options, options.out / "demo", overwrite=True)


def _compare(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.config import load

    config = load(options.config, device=options.device, precision=options.precision)
    folder = options.out / f"{config.name}-compare"
    _compare_arms(config, options, folder, static_curve=options.static_curve)


def _compare_arms(config: Config, options: argparse.Namespace, folder: Path, **more: Any) -> None:
    from nas_dynamic.experiment.compare import compare, print_comparison
    from nas_dynamic.experiment.console import Display

    scoring = config.scoring.model_copy(update={"subnets": options.subnets})
    with Display() as display:
        comparison = compare(
            config.model_copy(update={"scoring": scoring}),
            folder,
            display,
            seeds=sorted(set(options.seed)),
            standalone_epochs=options.standalone_epochs,
            kept=options.out,
            **more,
        )
    print_comparison(comparison, display)
    _print_folder(folder)


def _train(options: argparse.Namespace) -> None:
    from nas_dynamic.experiment.config import load
    from nas_dynamic.experiment.console import Display
    from nas_dynamic.experiment.run import run
    from nas_dynamic.report.tables import scores

    config = load(
        options.config, seeds=options.seed, device=options.device, precision=options.precision
    )
    with Display() as display:
        finished = run(config, options.out, display, resume=options.resume)
    display.table(scores([finished]))
    _print_folder(finished.folder)


def _print_folder(folder: Path) -> None:
    print(f"All of it is in {folder}; `nas-dynamic report {folder}` makes a page with figures")


def _report(options: argparse.Namespace) -> None:
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
    from nas_dynamic.experiment.doctor import examine, print_findings

    if not print_findings(examine()):
        raise RunError("what is broken, and the remedy, stands above")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nas-dynamic", description="Dynamic training of weight-sharing supernets."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, short: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=text,
            help=short,
        )
        added.set_defaults(command=run)
        return added

    demo = command("demo", _demo, DEMO, "compare static and dynamic training on a small task")
    train = command("train", _train, TRAIN, "train and score the supernet of a configuration file")
    compare = command(
        "compare", _compare, COMPARE, "measure whether dynamic training helps, over paired seeds"
    )
    report = command("report", _report, REPORT, "make a page of one run or more")
    command("doctor", _doctor, "Prints what of this installation works.", "what works here")

    for of_runs in (demo, train, compare):
        of_runs.add_argument(
            "--out",
            type=Path,
            default=Path("runs"),
            help="folder of all runs (default: %(default)s)",
        )
    for configured in (train, compare):
        configured.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
        configured.add_argument("--device", help=f"instead of CONFIG's: {DEVICES}")
        configured.add_argument("--precision", choices=PRECISIONS, help="instead of CONFIG's")
    for pair, seeds, subnets, least in ((demo, [0, 1], 50, 2), (compare, [0, 1, 2, 3, 4], 30, 3)):
        pair.add_argument(
            "--seed",
            type=SEED,
            nargs="+",
            default=seeds,
            help=f"seeds of the supernets (default: {' '.join(map(str, seeds))})",
        )
        _add_number(pair, "--subnets", subnets, least, "that are scored, and trained alone")
        _add_number(pair, "--standalone-epochs", 10, 1, "of each subnet that is trained alone")

    demo.add_argument("--device", default="cpu", help=f"{DEVICES} (default: %(default)s)")
    demo.add_argument(
        "--precision", choices=PRECISIONS, default="32", help="(default: %(default)s)"
    )
    _add_number(demo, "--epochs", 100, 1, "of each supernet")
    _add_number(demo, "--channels", 4, 1, "of the first cells of the space")

    train.add_argument("--resume", action="store_true", help="go on with the run in OUT/NAME")
    train.add_argument("--seed", type=SEED, nargs="+", help="instead of CONFIG's seeds")

    compare.add_argument(
        "--static-curve",
        choices=("cosine", "polynomial", "cosine-power"),
        default="cosine",
        help="decay of the static arm's lr where CONFIG has no scheduler; CONFIG's dynamic.curve "
        "tells what the curve by itself does (default: cosine)",
    )

    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    for name, kind, text in (
        ("--output", "FILE.html", "the page (default: report.html in RUN, or beside several)"),
        ("--figures", "FOLDER", "of the figures (default: FILE-figures)"),
        ("--standalone", "FILE", "stand-alone accuracies: .json, .jsonl, .csv or .parquet"),
    ):
        report.add_argument(name, type=Path, metavar=kind, help=text)
    report.add_argument(
        "--standalone-column",
        default="accuracy",
        metavar="NAME",
        help="that holds them (default: %(default)s)",
    )
    return parser


DEVICES = "auto, cpu, cuda, cuda:N or mps"
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


def _add_number(
    parser: argparse.ArgumentParser, name: str, default: int, least: int, text: str
) -> None:
    parser.add_argument(
        name, type=_from(least), default=default, metavar="N", help=f"{text} (default: {default})"
    )


def _from(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Return an argument type: whole numbers from `least` on, up to `most`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{value} is more than {most}")
        return value

    return number


SEED = _from(0, 2**32 - 1)  # as in a configuration
