"""One search over sizes and bits, against sizes first and bits after: hypervolumes.

python -m benchmarks.elastic_lm.bits --data TEXT

Trains one supernet, whose seed is 0; the seeds are those of the searches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.elastic_lm.training import Size, fit, model_of, read_text, sequences, supernet_of
from nas_dynamic.adapters.elastic.quantised import QuantisedSupernet
from nas_dynamic.analysis.paired import Difference
from nas_dynamic.search import Evolution, Objective, SearchResult, search
from nas_dynamic.space import Architecture, Key, SearchSpace, key

OBJECTIVES = (Objective("loss"), Objective("bytes"))
Loss = Callable[[Architecture], float]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    size = Size()
    learned, held_out = read_text(options.data)
    ffn = [size.width * 3 * n // 4 for n in (1, 2, 3, 4)]
    supernet = supernet_of(model_of(size, 0), size, ffn=ffn, per_layer=True)
    fit(supernet, "calr", 0, options.updates, size, learned)
    quantised = QuantisedSupernet(supernet).eval()
    loss, bytes_of = losses(quantised, held_out, size), quantised.subnet_bytes()
    print(f"{quantised.space}, {options.budget} evaluations a search")

    labels = [label for label in quantised.space.labels if label.startswith("bits")]
    int8, full = dict.fromkeys(labels, 8), dict.fromkeys(labels)
    smallest = supernet.space.smallest(supernet.subnet_parameters())
    corners = (smallest | int8, quantised.base)
    best, worst = ([f(a) for f in (loss, bytes_of)] for a in (corners[1], corners[0]))
    best[1], worst[1] = worst[1], best[1]
    show("largest, full", loss(supernet.base | full), bytes_of(supernet.base | full))
    show("largest, int8", loss(supernet.base | int8), bytes_of(supernet.base | int8))
    show("smallest, int8", loss(corners[0]), bytes_of(corners[0]))

    shares: dict[str, list[float]] = {"joint": [], "sizes first": []}
    for seed in range(options.seeds):
        for name, run in (("joint", joint), ("sizes first", sizes_first)):
            found = run(quantised, loss, bytes_of, options.budget, seed)
            shares[name].append(float(found.hypervolume(worst, best)[-1]))
            limit = 1.01 * loss(quantised.base)
            good = [e for e in found.pareto if e.values["loss"] <= limit]
            least = min((e.values["bytes"] for e in good), default=bytes_of(quantised.base))
            print(
                f"seed {seed}, {name}: hypervolume {shares[name][-1]:.4f}, front of "
                f"{len(found.pareto)}, {least / 1e3:,.0f} kB within 1% of the largest one's loss",
                flush=True,
            )
    if options.seeds > 1:
        difference = Difference(np.subtract(shares["joint"], shares["sizes first"]))
        print(f"joint less sizes first: {difference:+.4f}, {options.seeds} seeds of the search")


def joint(
    quantised: QuantisedSupernet, loss: Loss, bytes_of: Loss, budget: int, seed: int
) -> SearchResult:
    """Search sizes and bits at once."""
    return nsga2(quantised.space, lambda a: a, loss, bytes_of, budget, seed)


def sizes_first(
    quantised: QuantisedSupernet, loss: Loss, bytes_of: Loss, budget: int, seed: int
) -> SearchResult:
    """Search sizes without bits, then bits of the front, each with half of the evaluations."""
    bits = {k: v for k, v in quantised.space.choices.items() if k.startswith("bits")}
    full = dict.fromkeys(bits)
    sizes = quantised.supernet.space
    first = nsga2(sizes, lambda a: {**a, **full}, loss, bytes_of, budget // 2, seed)
    front = [evaluation.architecture for evaluation in first.pareto]
    then = SearchSpace({"front": range(len(front)), **bits})

    def whole(chosen: Architecture) -> Architecture:
        return {**front[int(str(chosen["front"]))], **{label: chosen[label] for label in bits}}

    second = nsga2(then, whole, loss, bytes_of, budget - budget // 2, seed, int8_at_least=1)
    return SearchResult(OBJECTIVES, [*first.evaluations, *second.evaluations])


def nsga2(
    space: SearchSpace,
    whole: Callable[[Architecture], Architecture],
    loss: Loss,
    bytes_of: Loss,
    budget: int,
    seed: int,
    int8_at_least: int = 0,
) -> SearchResult:
    """Search a space, each of whose architectures stands for one with sizes and bits."""

    def score(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        for architecture in architectures:
            yield {"loss": loss(whole(architecture))}

    def int8(architecture: Architecture) -> float:
        return sum(v == 8 for k, v in architecture.items() if k.startswith("bits"))

    return search(
        space,
        score,
        OBJECTIVES,
        budget=budget,
        strategy=Evolution(population=20),
        measures={"bytes": lambda a: bytes_of(whole(a)), "int8": int8},
        at_least={"int8": int8_at_least},
        seed=seed,
    )


def losses(quantised: QuantisedSupernet, text: torch.Tensor, size: Size) -> Loss:
    """Return architecture → nats a byte on 64 sequences spread over a text; each computed once."""
    starts = torch.linspace(0, len(text) - size.context - 1, 64).long()
    tokens = sequences(text, starts, size.context)
    known: dict[Key, float] = {}

    @torch.inference_mode()
    def loss(architecture: Architecture) -> float:
        if key(architecture) not in known:
            quantised.activate(architecture)
            known[key(architecture)] = float(quantised(tokens, labels=tokens, use_cache=False).loss)
        return known[key(architecture)]

    return loss


def show(name: str, loss: float, size: float) -> None:
    print(f"{name}: {loss:.4f} nats a byte, {size / 1e3:,.0f} kB")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic_lm.bits")
    parser.add_argument("--data", type=Path, required=True, help="text, or a folder of *.txt")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--budget", type=int, default=100, help="evaluations of a search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
