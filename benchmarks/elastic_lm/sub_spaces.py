"""AutoDistil in small: three sub-spaces by size, each with weights of its own, against one.

python -m benchmarks.elastic_lm.sub_spaces --data TEXT

A model is pretrained, and teaches supernets that start as copies of it, by its logits and by the
attention relations of its last layer. All arms have as many updates in all.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.elastic_lm.rows import append, by_seed, print_against
from benchmarks.elastic_lm.training import (
    Run,
    Size,
    cross_entropy,
    fit,
    losses_of,
    model_of,
    read_text,
    sequences,
    supernet_of,
)
from benchmarks.nb201.report import rows_of
from nas_dynamic.adapters.transformers import (
    ElasticLM,
    attention_features,
    logits_loss,
    relation_loss,
    sort_by_importance,
)

RESULTS = Path("benchmarks/results/elastic_lm_sub_spaces.csv")
ARMS = {"one supernet": 1, "three sub-spaces": 3, "one, not distilled": 1}
SIZE = Size(width=48, heads=6)
RELATION_HEADS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    updates = {"updates": options.updates}
    for seed in range(options.seeds):
        rows = rows_of(options.results)
        missing = [arm for arm in options.arms if seed not in by_seed(rows, arm=arm, **updates)]
        if options.data is not None and missing:
            text = read_text(options.data)
            teacher = pretrained(seed, options.pretraining, text[0])
            for arm in missing:
                run = train(arm, seed, options.updates, teacher, text)
                append(options.results, {"arm": arm, **updates, "seed": seed}, run)
    rows = rows_of(options.results)
    print(f"{options.updates} updates in all, nats a byte")
    print_against("one supernet", {arm: by_seed(rows, arm=arm, **updates) for arm in ARMS})


def pretrained(seed: int, updates: int, learned: torch.Tensor) -> PreTrainedModel:
    """Return a model, its heads and features in the order of what they weigh."""
    supernet = supernet_of(model_of(SIZE, seed), SIZE)
    alone = supernet.space.restrict({label: [own] for label, own in supernet.base.items()})
    fit(supernet, "static", seed, updates, SIZE, learned, space=alone)
    starts = torch.linspace(0, len(learned) - SIZE.context - 1, 64).long()
    tokens = sequences(learned, starts, SIZE.context)
    return sort_by_importance(supernet.extract(supernet.base), tokens.split(SIZE.batch))


def train(
    arm: str,
    seed: int,
    updates: int,
    teacher: PreTrainedModel,
    text: tuple[torch.Tensor, torch.Tensor],
) -> Run:
    """Train the sub-spaces of an arm, one after the other, and measure every subnet in its own."""
    teacher.eval()

    def distilled(student: ElasticLM, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), attention_features(teacher) as wanted:
            logits = teacher(tokens, use_cache=False).logits
        with attention_features(student) as features:
            own = student(tokens, labels=tokens, use_cache=False)
        relations = relation_loss(features, wanted, heads=RELATION_HEADS)
        return own.loss + logits_loss(own.logits, logits) + relations

    start, losses = time.perf_counter(), []
    whole = supernet_of(teacher, SIZE)
    widths = whole.space.choices["width"]
    each = len(widths) // ARMS[arm]
    for first in range(0, len(widths), each):
        supernet = copy.deepcopy(whole)
        space = whole.space.restrict({"width": widths[first : first + each]})
        loss = cross_entropy if arm == "one, not distilled" else distilled
        share = updates // ARMS[arm]
        fit(supernet, "static", seed, share, SIZE, text[0], space=space, loss=loss)
        losses += losses_of(supernet, text[1], SIZE, space)
    return Run.of(losses, time.perf_counter() - start)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic_lm.sub_spaces")
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt; print only if not")
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=ARMS)
    parser.add_argument("--updates", type=int, default=400, help="of all sub-spaces together")
    parser.add_argument("--pretraining", type=int, default=400, help="updates of the teacher")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
