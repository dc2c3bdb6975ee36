"""What a teacher in place does to the subnets, and linear attention beside softmax.

python -m benchmarks.elastic_lm.effects --data TEXT

The sandwich rule trains the largest subnet, the smallest and a random one in each update: by the
text alone, or, distilled, the two smaller ones by the logits of the largest. Of the attentions,
one supernet has softmax in all layers, one linear attention, and one either in each; all subnets
are measured with the same attention in all layers, and with both in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.elastic_lm.rows import append, by_seed, print_against
from benchmarks.elastic_lm.training import (
    Run,
    Size,
    cross_entropy,
    fit,
    losses_of,
    model_of,
    read_text,
    supernet_of,
)
from benchmarks.nb201.report import rows_of
from nas_dynamic.adapters.transformers import ElasticLM, logits_loss
from nas_dynamic.space import Architecture, SearchSpace

RESULTS = Path("benchmarks/results/elastic_lm_effects.csv")
SIZE = Size()
KINDS = {
    "softmax": ["softmax"] * SIZE.depth,
    "linear": ["linear"] * SIZE.depth,
    "in turn": ["softmax", "linear"] * (SIZE.depth // 2),
}
TEACHERS = ("sandwich", "distilled")
ATTENTIONS = {"softmax": ["softmax"], "linear": ["linear"], "mixed": [*KINDS]}
"""Arm → attention of its subnets that are measured."""

Text = tuple[torch.Tensor, torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    updates = {"updates": options.updates}
    for seed in range(options.seeds if options.data is not None else 0):
        for arm in options.arms:
            if seed not in by_seed(rows_of(options.results), arm=arm, **updates):
                text = read_text(options.data)
                train = train_attention if arm in ATTENTIONS else train_sandwich
                for kind, run in train(arm, seed, options.updates, text).items():
                    key = {"arm": arm, "attention": kind, **updates, "seed": seed}
                    append(options.results, key, run)
    rows = rows_of(options.results)
    print(f"{options.updates} updates, nats a byte")
    print_against("sandwich", {arm: by_seed(rows, arm=arm, **updates) for arm in TEACHERS})
    subnets = [(arm, kind) for arm, kinds in ATTENTIONS.items() for kind in kinds]
    for reference in ("softmax", "linear"):
        named = {
            f"{arm}: {kind}": by_seed(rows, arm=arm, attention=kind, **updates)
            for arm, kind in subnets
        }
        print_against(f"{reference}: {reference}", named)


def train_sandwich(arm: str, seed: int, updates: int, text: Text) -> dict[str, Run]:
    """Train by the sandwich rule, with a teacher in place or without one."""
    start, supernet = time.perf_counter(), supernet_of(model_of(SIZE, seed), SIZE)
    smallest = supernet.space.smallest(supernet.subnet_parameters())
    loss = sandwich(supernet.base, smallest, distilled=arm == "distilled")
    fit(supernet, "static", seed, updates, SIZE, text[0], loss=loss)
    seconds = time.perf_counter() - start
    return {"softmax": Run.of(losses_of(supernet, text[1], SIZE), seconds)}


def sandwich(
    largest: Architecture, smallest: Architecture, *, distilled: bool
) -> Callable[[ElasticLM, torch.Tensor], torch.Tensor]:
    """Return the mean loss of both ends and the active subnet, as a loss of `fit`."""

    def loss(supernet: ElasticLM, tokens: torch.Tensor) -> torch.Tensor:
        random = supernet.architecture
        supernet.activate(largest)
        teacher = supernet(tokens, labels=tokens, use_cache=False)
        losses = [teacher.loss]
        for student in (smallest, random):
            supernet.activate(student)
            if distilled:
                logits = supernet(tokens, use_cache=False).logits
                losses.append(logits_loss(logits, teacher.logits))
            else:
                losses.append(cross_entropy(supernet, tokens))
        return torch.stack(losses).mean()

    return loss


def train_attention(arm: str, seed: int, updates: int, text: Text) -> dict[str, Run]:
    """Train a supernet of one attention, or of both, and measure it with each that it has."""
    start = time.perf_counter()
    supernet = supernet_of(
        model_of(SIZE, seed), SIZE, attention=["softmax", "linear"], per_layer=True
    )
    trained = supernet.space if arm == "mixed" else with_attention(supernet.space, KINDS[arm])
    fit(supernet, "static", seed, updates, SIZE, text[0], space=trained)
    seconds = time.perf_counter() - start
    spaces = {kind: with_attention(supernet.space, KINDS[kind]) for kind in ATTENTIONS[arm]}
    return {
        kind: Run.of(losses_of(supernet, text[1], SIZE, space), seconds)
        for kind, space in spaces.items()
    }


def with_attention(space: SearchSpace, kinds: Sequence[str]) -> SearchSpace:
    """Return the subnets that have these kinds of attention, a kind for each layer."""
    return space.restrict({f"attention{i + 1}": [kind] for i, kind in enumerate(kinds)})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic_lm.effects")
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt; print only if not")
    arms = [*TEACHERS, *ATTENTIONS]
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
