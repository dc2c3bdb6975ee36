"""Command line: check the kernels, train replicas, score them, print differences of the arms."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.nb201.arguments import SCORING_BATCH, names, seeds, whole_batches
from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import load_images, load_table
from benchmarks.nb201.replicas.check import Check
from benchmarks.nb201.replicas.layout import Layout
from benchmarks.nb201.replicas.network import PRECISIONS
from benchmarks.nb201.replicas.plan import IDLE, Plan, operations_of
from benchmarks.nb201.replicas.report import print_differences, print_errors
from benchmarks.nb201.replicas.scoring import score_replicas
from benchmarks.nb201.replicas.training import Replicas
from benchmarks.nb201.report import append_result, identity, read_results
from benchmarks.nb201.scoring import Scores, measures, score
from benchmarks.nb201.supernet import Supernet
from nas_dynamic import Architecture

START = time.perf_counter()
SIZE = 32
REPORT_EVERY, TIMED = 1000, 200  # updates
SCORES = ("accuracy", "loss")
TOLERATED = 0.1  # of a loss, in TF32


def main(arguments: Sequence[str] | None = None) -> None:
    torch.backends.cudnn.allow_tf32 = False  # what the replicas are compared with is to be exact
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.nb201.replicas", description=__doc__
    )
    commands = parser.add_subparsers(required=True)
    texts = {
        _check: ("check", "check every kernel on the device, and time an update"),
        _train: ("train", "check, train until the budget or the time is spent, and score"),
        _score: ("score", "score a checkpoint"),
        _table: ("table", "print the differences of the arms"),
        _errors: ("errors", "print which subnets come out too high"),
    }
    for command, (name, text) in texts.items():
        _add_options(commands.add_parser(name, help=text), command)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: Any) -> None:
    parser.set_defaults(command=command)
    add = parser.add_argument
    if command is _errors:
        scores = Path("benchmarks/results/nb201_replicas_scores.npz")
        add("--scores", type=Path, default=scores, help="a file that score has written")
        return
    add("--results", type=Path, default=Path("benchmarks/results/nb201_replicas.csv"))
    if command is _table:
        return
    add("--arms", type=names(ARMS), default=["static", "poly", "calq", "calq-ms"], metavar="A,B")
    add("--seeds", type=seeds, default=[0, 1], metavar="0,1,5-9")
    add("--subnet-seed", type=int, default=0, help="of the subnets, which all replicas share")
    add("--updates", type=int, default=98_000, help="budget, over which the lr goes to 0")
    add("--seconds", type=float, default=math.inf, help="of training, at most")
    add("--channels", type=int, default=16)
    add("--cells", type=int, default=5)
    add("--batch", type=int, default=64)
    add("--precision", choices=[name for name in PRECISIONS if name != "float64"], default="tf32")
    add("--idle", choices=IDLE, default=IDLE[0], help="what parameters outside the subnet do")
    add("--data", type=Path, default=Path("data/cifar10_jpeg.tar.gz"))
    add("--table", type=Path, default=Path("data/nb201.csv.gz"))
    add("--device", default="cuda", help="of scoring; training needs a CUDA device")
    add("--runs", type=Path, default=Path("runs/nb201"), help="checkpoints and caches")
    add("--out", type=Path, default=Path("runs/nb201"), help="scores and losses")
    add("--architectures", type=int, default=1000, help="subnets that are scored")
    add("--images", type=whole_batches, default=5120, help="test images that score them")
    add("--score-unfinished", action="store_true", help="score also before the budget is spent")


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


def _plan(options: argparse.Namespace) -> Plan:
    chosen = vars(options) | {"arms": tuple(options.arms), "seeds": tuple(options.seeds)}
    fields = [field.name for field in dataclasses.fields(Plan) if field.name != "size"]
    return Plan(**{name: chosen[name] for name in fields}, size=SIZE)


def _prepare(plan: Plan, options: argparse.Namespace, updates: int | None = None) -> Replicas:
    """Return replicas that are ready to train; exit if a check fails."""
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: nothing is run")
    images = load_images(options.data, "train", SIZE, options.runs)
    say(f"{len(images.classes)} training images; {plan.name}")
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    # What is wrong shows in float32, where rounding hides less: on two replicas.
    few = dataclasses.replace(
        plan, precision="float32", seeds=plan.seeds[:1], arms=(plan.arms[0], plan.arms[-1])
    )
    for kind, drawn in ((few, 3), (plan, updates)):
        replicas = Replicas(kind, images, "cuda", drawn)
        say(f"{kind.precision}: {len(kind.runs)} replicas, {len(replicas.launches)} launches")
        replicas.compile()
        say("kernels compiled")
        check = Check(replicas, say)
        if not all([check.kernels(), check.gradients(), check.graph()]):
            sys.exit("CHECK FAILED: see WRONG above; nothing is trained")
    say("all checks passed")
    return replicas


def _check(options: argparse.Namespace) -> None:
    plan = _plan(options)
    replicas = _prepare(plan, options, 2 * TIMED)
    replicas.advance(TIMED)
    before = replicas.seconds
    replicas.advance(TIMED)
    ms = (replicas.seconds - before) * 1000 / TIMED
    losses = " ".join(f"{loss:.3f}" for loss in replicas.losses[-TIMED:].mean(0).tolist())
    say(f"{len(plan.runs)} replicas, {TIMED} updates: mean losses {losses}")
    memory = torch.cuda.max_memory_allocated() / 2**30
    say(f"{ms:.3f} ms an update, {memory:.1f} GiB; in S seconds {1000 / ms:.1f} · S updates")
    marks: list[float] = []
    architectures = load_table(options.table).stratified(40).architectures
    images = load_images(options.data, "test", SIZE, options.runs).balanced(2 * SCORING_BATCH)
    batches = images.batches(SCORING_BATCH, "cuda")
    mark = lambda text: marks.append(time.perf_counter())  # noqa: E731
    score_replicas(
        replicas.layout, replicas.network.flat, plan.precision, architectures, batches, mark
    )
    each = (marks[-1] - marks[-2]) / len(architectures)
    every = each * options.architectures * options.images // SCORING_BATCH
    say(f"scoring: {1000 * each:.2f} ms a subnet and batch, at most {every:.0f} s in all")


def _train(options: argparse.Namespace) -> None:
    plan = _plan(options)
    replicas = _prepare(plan, options)
    if replicas.load(options.runs):
        say(f"resumed at update {replicas.updates}")
    start, first = time.perf_counter(), replicas.updates
    while not replicas.done:
        before = replicas.updates
        replicas.advance(REPORT_EVERY - before % REPORT_EVERY, start + options.seconds)
        if replicas.updates == before:
            say("the time is up")
            break
        rate = (replicas.updates - first) / (time.perf_counter() - start)
        losses = replicas.losses[-REPORT_EVERY:].mean(0).tolist()
        say(
            f"update {replicas.updates} of {plan.updates}, {rate:.1f} a second, "
            f"{(plan.updates - replicas.updates) / rate:.0f} s left, "
            f"loss {' '.join(f'{loss:.4f}' for loss in losses)}"
        )
    path = replicas.save(options.runs)
    say(f"{replicas.updates} of {plan.updates} updates in {replicas.seconds:.0f} s: {path}")
    del replicas
    _score(options)


def _score(options: argparse.Namespace) -> None:
    plan = _plan(options)
    path = options.runs / f"{plan.name}.pt"
    saved = torch.load(path, weights_only=True, mmap=True)
    if saved["updates"] < plan.updates and not options.score_unfinished:
        say(f"{saved['updates']} of {plan.updates} updates: --score-unfinished scores them")
        return
    layout, flat = Layout(plan.channels, plan.cells), saved["flat"].to(options.device)
    table = load_table(options.table).stratified(options.architectures)
    images = load_images(options.data, "test", SIZE, options.runs).balanced(options.images)
    batches = images.batches(SCORING_BATCH, options.device)
    say(f"scoring {len(table.architectures)} subnets on {len(batches)} batches")
    every = score_replicas(layout, flat, plan.precision, table.architectures, batches, say)
    arrays = {name: np.stack([getattr(scores, name) for scores in every]) for name in SCORES}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{plan.name}-{len(table.architectures)}x{options.images}.npz"
    np.savez_compressed(
        file,
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        training_loss=saved["losses"].numpy(),
        truth=table.accuracy,
        operations=operations_of(table.architectures).astype(np.int8),
        replicas=np.array([run.name for run in plan.runs]),
    )
    say(f"{file}, {file.stat().st_size / 2**20:.1f} MiB")
    _compare(layout, flat, table.architectures, batches[0], every)
    known = read_results(options.results) if options.results.is_file() else []
    for run, scores in zip(plan.runs, every, strict=True):
        row = dataclasses.asdict(run) | {"scored": "last"} | measures(table, scores)
        row |= {"images": options.images, "seconds": round(saved["seconds"])}
        row |= {"subnet_seed": plan.subnet_seed, "precision": plan.precision}
        row["taken"] = saved["updates"]
        if identity(row) not in map(identity, known):
            append_result(options.results, row)
    print_differences(options.results)


def _compare(
    layout: Layout,
    flat: torch.Tensor,
    architectures: list[Architecture],
    batch: tuple[torch.Tensor, torch.Tensor],
    every: list[Scores],
) -> None:
    """Compare some scores with those of the benchmark's supernet; exit if they differ."""
    chosen = np.linspace(0, len(architectures) - 1, 10).astype(int)
    for m in {0, len(flat) - 1}:
        supernet = Supernet(layout.channels, layout.cells).to(flat.device)
        supernet.load_state_dict(layout.unflatten(flat[m]))
        truth = score(supernet, [architectures[i] for i in chosen], [batch]).loss[:, 0]
        errors = np.abs(every[m].loss[chosen, 0] / truth - 1)
        typical = float(np.median(errors))
        text = f"median of the relative differences {typical:.1e}, greatest {errors.max():.1e}"
        say(f"losses of replica {m} and those by torch in float32: {text}")
        if np.isfinite(truth).all() and not typical < TOLERATED:
            sys.exit("SCORES ARE WRONG: no row is written")


def _table(options: argparse.Namespace) -> None:
    print_differences(options.results)


def _errors(options: argparse.Namespace) -> None:
    print_errors(options.scores)


if __name__ == "__main__":
    main()
