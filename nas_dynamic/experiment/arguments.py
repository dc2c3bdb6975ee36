"""What the command line takes, and its help; torch is not imported for it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Command", "build_parser"]

Command = Callable[[argparse.Namespace], None]

DEMO = """\
From a space to a network, in minutes and without a download: trains the supernet of NNI's
NasBench201 space, at small size, on scikit-learn's digits, with dynamic training; says what lr the
updates used and what they cost; searches the supernet within a limit of size; and writes the
network that it finds to OUT/demo/export, which torch alone loads. Whether dynamic training helps
takes more than minutes: the demo prints what was measured elsewhere. The same demo again goes on
after a stop; a demo with other options takes the place of the earlier one."""

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

SEARCH = """\
Looks for the subnet of the lowest loss, with the weights that it inherits from the supernet of RUN,
within limits of its size: parameters, macs (multiply-accumulates of one image) and latency
(milliseconds for one image, by a table that is measured here, or by --latency-table). With
--minimize it finds the Pareto set. Scores are kept in RUN: the same search goes on after a stop,
with a greater budget, or within other limits. What it finds goes to RUN/search.json, from which
export takes it. Several runs of one space, one for each task or data set, are searched over one
pool: each subnet that is looked at is scored in every run, and found are the best one of each run
and those that no other one beats."""

EXPORT = """\
Writes one subnet of RUN as a network of its own: subnet.pt2, which torch alone loads and computes,
subnet.pt, its state dict, and subnet.json: architecture, size, accuracy, input, and how to load
the others, none of which needs this package. Taken is the subnet of the last search of RUN; without
one, that of the lowest loss of those that train has scored; or --architecture. Files that an
earlier export wrote there are overwritten."""

DOCTOR = """\
Prints what of this installation works. With --supernet CONFIG it examines that supernet instead:
trains it shortly in three ways that differ in one thing each (static, with CaLR, with CaLR and
momentum separation; from the same seeds, along one decay of the lr), and some of its subnets
alone, for as many updates. It says how far large subnets lag, how alike gradients are, how noisy
the ranking is, and ends in one of: CaLR, CaLR + MS, few-shot, nothing, cannot be told. Short
trainings tell large effects only; compare tells at full length. What is in OUT/NAME-doctor is
kept: start it again to go on after a stop, or with more seeds."""


def build_parser(run: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        run: what each command does, by its name; `None` is the command of a line without one.
    """
    parser = argparse.ArgumentParser(
        prog="nas-dynamic", description="Dynamic training of weight-sharing supernets."
    )
    parser.add_argument("--version", action=_Version, help="print the version, and end")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(
        name: str,
        text: str,
        short: str,
        loads: str = "loading torch and NNI",
        goes_on: bool = True,
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=text,
            help=short,
        )
        added.set_defaults(command=run[name], loads=loads, goes_on=goes_on, config=None)
        return added

    demo = command("demo", DEMO, "from a space to a network, on a small task")
    train = command("train", TRAIN, "train and score the supernet of a configuration file")
    compare = command(
        "compare", COMPARE, "measure whether dynamic training helps, over paired seeds"
    )
    search = command("search", SEARCH, "find the best subnets of runs, within limits")
    export = command(
        "export", EXPORT, "write a subnet of a run as a network of its own", goes_on=False
    )
    report = command(
        "report",
        REPORT,
        "make a page of one run or more",
        "reading the runs, drawing figures",
        goes_on=False,
    )
    doctor = command("doctor", DOCTOR, "what works here, and what a supernet needs")

    for of_runs in (demo, train, compare, doctor):
        of_runs.add_argument(
            "--out",
            type=Path,
            default=Path("runs"),
            help="folder of all runs (default: %(default)s)",
        )
    doctor.add_argument(
        "--supernet", type=Path, metavar="CONFIG", help="YAML file, as for train: examine that"
    )
    for configured in (train, compare):
        configured.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    for configured in (train, compare, doctor):
        configured.add_argument("--device", help=f"instead of CONFIG's: {DEVICES}")
        configured.add_argument("--precision", choices=PRECISIONS, help="instead of CONFIG's")
    for paired, seeds in ((compare, range(5)), (doctor, range(4))):
        paired.add_argument(
            "--seed",
            type=SEED,
            nargs="+",
            default=list(seeds),
            help=f"seeds of the supernets (default: {' '.join(map(str, seeds))})",
        )
    _add_number(doctor, "--updates", 400, 10, "of each training")
    _add_number(doctor, "--subnets", 12, 3, "that are trained alone")
    for of_pieces, pieces in (
        (train, "its seeds"),
        (compare, "its trainings"),
        (doctor, "the trainings of --supernet"),
        (search, "the scoring of subnets"),
    ):
        of_pieces.add_argument(
            "--engine",
            choices=("local", "ray"),
            default="local",
            help=f"ray: {pieces} over the machines of the Ray cluster that this one is part of; "
            "see docs/configuration.md (default: local, one after the other)",
        )
    _add_number(compare, "--subnets", 30, 3, "that are scored, and trained alone")
    _add_number(compare, "--standalone-epochs", 10, 1, "of each subnet that is trained alone")

    demo.add_argument("--seed", type=SEED, default=0, metavar="N", help="(default: 0)")
    _add_number(demo, "--subnets", 100, 2, "that are scored after the training")
    _add_number(demo, "--budget", 100, 1, "subnets that the search scores at most")
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

    search.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    export.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    for of_run in (search, export):
        of_run.add_argument(
            "--seed", type=SEED, help="which supernet of the run (default: the first one)"
        )
    search.add_argument(
        "--limit",
        type=_limit,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="greatest parameters, macs or latency, such as parameters=50k; can be repeated",
    )
    search.add_argument(
        "--minimize",
        action="append",
        default=[],
        choices=MEASURES,
        help="beside the loss, for a Pareto set; of one run",
    )
    _add_number(search, "--budget", 300, 1, "subnets that are scored at most")
    search.add_argument(
        "--strategy",
        choices=("evolution", "random", "surrogate", "pretrained", "robot"),
        help="what is scored next; robot is for one run (default: evolution, of several runs "
        "surrogate)",
    )
    search.add_argument("--strategy-seed", type=SEED, default=0, metavar="N", help="(default: 0)")
    search.add_argument(
        "--latency-table",
        type=Path,
        metavar="FILE",
        help="measured elsewhere, as AdditiveTable.save writes it (default: measured here)",
    )
    search.add_argument("--device", help=f"instead of the run's: {DEVICES}")

    export.add_argument(
        "--architecture", metavar="JSON", help='{"label": candidate, …}, or a file of that'
    )
    export.add_argument("--out", type=Path, help="folder of the files (default: RUN/export)")
    export.add_argument("--onnx", action="store_true", help="write subnet.onnx as well")

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
MEASURES = ("parameters", "macs", "latency")
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


class _Version(argparse.Action):
    """As argparse's own, which would look the version up for every command."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import nas_dynamic

        print(f"{parser.prog} {nas_dynamic.__version__}")
        parser.exit()


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    unit = UNITS.get(value[-1:], 1.0)
    try:
        number = float(value.rstrip("kMG")) * unit
    except ValueError:
        number = math.nan
    if name not in MEASURES or not number > 0:
        raise argparse.ArgumentTypeError(
            f"{text} must be {', '.join(MEASURES)} and a number, such as parameters=50k, "
            "macs=2.5M, latency=1.5 (milliseconds)"
        )
    return name, number


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
