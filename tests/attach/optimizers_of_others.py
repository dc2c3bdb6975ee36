"""Optimizers of all makers against one optimizer a group: identical, or refused by name.

    python -m tests.attach.optimizers_of_others > docs/optimizers_of_others.md

trains a small supernet with every optimizer class of torch, timm, pytorch_optimizer, schedulefree
and bitsandbytes that this machine can build: straight, stopped half way and resumed in new objects,
and through the wrappers of frameworks. The exit code is the number of silent differences.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from tqdm import tqdm

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.innermost import innermost
from tests.attach.optimizers import Case
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    CHOICES,
    GAMMA_MAX,
    GAMMA_MIN,
    STEPS,
    Reference,
    assert_identical,
    backward,
    batches,
    complexity,
    make_model,
)
from tests.attach.wrappers import WRAPPERS

LIBRARIES = {
    "torch": "torch.optim",
    "timm": "timm.optim",
    "pytorch_optimizer": "pytorch_optimizer",
    "schedulefree": "schedulefree",
    "bitsandbytes": "bitsandbytes.optim",
}
TOTAL_STEPS = STEPS + 10
LABEL = "layer1"


def construct(cls: type[torch.optim.Optimizer], groups: Any, lr: float) -> torch.optim.Optimizer:
    """Build one, with momentum where it takes one, in training mode where it has modes."""
    takes = inspect.signature(cls).parameters
    options = {"momentum": 0.9} if "momentum" in takes else {}
    options |= {"num_iterations": STEPS} if "num_iterations" in takes else {}
    # Quantised state in the small tensors of the supernet too.
    options |= {"min_8bit_size": 1} if "min_8bit_size" in takes else {}
    optimizer = cls(groups, lr=lr, **options)  # type: ignore[call-arg]
    if callable(train := getattr(optimizer, "train", None)):
        train()
    return optimizer


def cases(libraries: list[str]) -> Iterator[Case]:
    """Yield a case for every optimizer class that a library makes public."""
    for library in libraries:
        module = importlib.import_module(LIBRARIES[library])
        for name, cls in sorted(vars(module).items()):
            if (
                inspect.isclass(cls)
                and issubclass(cls, torch.optim.Optimizer)
                and cls.__module__.startswith(library)
                and not inspect.isabstract(cls)
                and not name.endswith("Closure")
                and name not in ("BaseOptimizer", "Optimizer8bit", "Optimizer1State")
                and name not in ("Optimizer2State", "Paged", "GlobalOptimManager")
            ):
                decay = 0.05 if "weight_decay" in inspect.signature(cls).parameters else 0.0
                yield Case(f"{library}.{name}", functools.partial(construct, cls), decay)


def schedule(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)


class Trained:
    """A supernet under dynamic training, which can be stopped and go on in new objects."""

    def __init__(self, case: Case, separate: bool, wrap: Callable[[Any], Any]) -> None:
        self.model = make_model(case.model)
        self.optimizer = case.build(case.groups(self.model))
        self.scheduler = schedule(self.optimizer)
        self.wrapped = wrap(self.optimizer)
        self.sampled: dict[str, str] = {}
        self.dynamic = DynamicTraining(
            self.wrapped,
            architecture=lambda: self.sampled,
            calr=CaLR(
                complexity,
                total_steps=TOTAL_STEPS,
                bounds=(C_MIN, C_MAX),
                gamma_max=GAMMA_MAX,
                gamma_min=GAMMA_MIN,
            ),
            momentum=MomentumSeparation(LABEL) if separate else None,
        )
        self.second_order = getattr(self.optimizer, "is_second_order", False)

    def update(self, x: torch.Tensor, y: torch.Tensor, sampled: dict[str, str]) -> None:
        """Make one update by a batch, through the wrapper."""
        self.wrapped.zero_grad()
        self.sampled = sampled
        backward(self.model, x, y, sampled, self.second_order)
        self.wrapped.step()
        self.scheduler.step()

    def save(self) -> bytes:
        """Return all that a loop would save."""
        parts = (self.model, self.optimizer, self.scheduler)
        file = io.BytesIO()
        random_states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        torch.save(([part.state_dict() for part in parts], random_states), file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        """Go on from what `save` returned."""
        parts = (self.model, self.optimizer, self.scheduler)
        states, random_states = torch.load(io.BytesIO(saved), weights_only=False)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random_states[0])
        np.random.set_state(random_states[1])  # noqa: NPY002


def dynamic_weights(
    case: Case, separate: bool, wrap: Callable[[Any], Any], stop: int | None
) -> tuple[dict[str, torch.Tensor], str]:
    """Return the weights after training and the resolved `idle`."""
    seed()
    run = Trained(case, separate, wrap)
    for step, batch in enumerate(batches()):
        if step == stop:
            saved = run.save()
            run = Trained(case, separate, wrap)
            run.load(saved)
        run.update(*batch)
    return run.model.state_dict(), run.dynamic.idle


def reference_weights(case: Case, separate: bool, idle: str) -> dict[str, torch.Tensor]:
    """Return the weights of training with one optimizer for each group."""
    seed()
    model = make_model(case.model)
    reference = Reference(
        case.build,
        case.groups(model),
        lambda architecture: architecture[LABEL] if separate else None,
        schedule,
        idle,
    )
    for candidate in CHOICES[LABEL] if separate else ():
        reference.optimizer(candidate)  # before the first update, as at attachment
    second_order = getattr(reference.first, "is_second_order", False)
    for step, (x, y, architecture) in enumerate(batches()):
        backward(model, x, y, architecture, second_order)
        reference.update(architecture, step, TOTAL_STEPS)
    return model.state_dict()


def seed() -> None:
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002


def alone(optimizer: Any) -> Any:
    return optimizer


RUNS: dict[str, tuple[Callable[[Any], Any], int | None]] = {
    "straight": (alone, None),
    "resumed": (alone, STEPS // 2),
    **{name: (wrap, None) for name, wrap in WRAPPERS.items()},
}


def compared(case: Case, separate: bool, run: str) -> str:
    """Return "identical", or in which way a training is not that of the reference."""
    try:
        here, idle = dynamic_weights(case, separate, *RUNS[run])
    except ValueError as error:
        return f"refused: {error}"
    except Exception as error:
        if raises_by_itself(case, run):
            return "raises by itself"
        return f"error: {type(error).__name__}: {first_sentence(str(error))}"
    there = reference_weights(case, separate, idle)
    try:
        assert_identical(here, there)
    except AssertionError:
        optimizer = case.build(case.groups(make_model(case.model)))
        if innermost(optimizer) is not optimizer:
            return "groups share what it keeps around the optimizer it wraps"
        return "resumes differently by itself" if differs_by_itself(case, run) else "DIFFERENT"
    return "identical"


def raises_by_itself(case: Case, run: str) -> bool:
    """Whether the optimizer in this wrapper raises with nothing attached."""
    model = make_model(case.model)
    optimizer = case.build(case.groups(model))
    wrapped = RUNS[run][0](optimizer)
    try:
        for x, y, architecture in batches(3):
            wrapped.zero_grad()
            backward(model, x, y, architecture, getattr(optimizer, "is_second_order", False))
            wrapped.step()
    except Exception:
        return True
    return False


def differs_by_itself(case: Case, run: str) -> bool:
    """Whether the optimizer alone, with nothing attached, does not resume its own training."""

    def trained(stop: int | None) -> nn.Module:
        seed()
        model = make_model(case.model)
        optimizer = case.build(case.groups(model))
        for step, (x, y, architecture) in enumerate(batches()):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = case.build(case.groups(model))
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            backward(model, x, y, architecture, getattr(optimizer, "is_second_order", False))
            optimizer.step()
        return model

    stop = RUNS[run][1]
    states = trained(None).state_dict(), trained(stop).state_dict()
    return any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def row(case: Case) -> tuple[list[str], int]:
    """Return the cells of an optimizer's row, and how many silent differences it has."""
    if case.unbuildable:
        reason = case.unbuildable.splitlines()[0][:100] if case.unbuildable else ""
        return [f"`{case.name}`", "not tested", *[""] * len(RUNS), reason], 0
    parts, notes = "CaLR, MS", ""
    results = [compared(case, True, "straight")]
    separate = not results[0].startswith("refused")
    if not separate:
        notes = results[0].removeprefix("refused: ")
        parts, results = "CaLR alone", [compared(case, False, "straight")]
        if results[0].startswith("refused"):
            notes = results[0].removeprefix("refused: ")
            return [f"`{case.name}`", "refused", *[""] * len(RUNS), first_sentence(notes)], 0
    results += [compared(case, separate, run) for run in [*RUNS][1:]]
    return [f"`{case.name}`", parts, *results, first_sentence(notes)], results.count("DIFFERENT")


def first_sentence(text: str) -> str:
    """Return what a cell of a table has room for."""
    return " ".join(text.split()).split(". ", 1)[0].replace("|", "/")


HEADER = """# Optimizers of all makers, resumed and in wrappers

Written by `python -m tests.attach.optimizers_of_others > docs/optimizers_of_others.md`, with
{versions}.
Each is the training of a small supernet in three momentum groups, by default options, compared to
the bit with one optimizer object for each group. *CaLR alone*: momenta are refused, for the reason
in the note, before the first update. *Resumed*: saved half way and loaded into new objects.
*Accelerate*, *Fabric*, *Lightning* (manual optimization), *SAM* (by a perturbation of 0): attached
to, and stepped through, that wrapper. *By itself*: with nothing attached as well.

| Optimizer | Parts | Straight | Resumed | Accelerate | Fabric | Lightning | SAM | Note |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", nargs="*", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--only", default="", help="a part of the optimizer's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    warnings.simplefilter("ignore")
    logging.getLogger("nas_dynamic").setLevel(logging.WARNING)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in arguments.library]
    lines, different = [], 0
    chosen = [case for case in cases(arguments.library) if arguments.only in case.name]
    for case in tqdm(chosen, file=sys.stderr):
        with contextlib.redirect_stdout(sys.stderr):  # some print at each change of mode
            cells, count = row(case)
        lines.append("| " + " | ".join(cells) + " |")
        different += count
    print(HEADER.format(versions=", ".join(versions)) + "\n".join(lines))
    return different


if __name__ == "__main__":
    sys.exit(main())
