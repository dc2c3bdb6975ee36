"""Train an elastic byte-level Llama, and measure its subnets."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.elastic_lm.states import RULES, separate, separate_deviations
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.adapters.transformers import ElasticLM, elastic_lm
from nas_dynamic.complexity import population
from nas_dynamic.space import SearchSpace

__all__ = [
    "ALONE",
    "ARMS",
    "PRESETS",
    "Run",
    "Size",
    "fit",
    "losses_of",
    "model_of",
    "read_text",
    "sequences",
    "supernet_of",
    "train",
]

GROUP_BY = "width"
ARMS = ("static", "calr", "own", "deviation", *RULES)
"""`static`: γ is 1. `calr` and all others: γ by rank. `own`: MS as the package does it, the whole
state of each group is its own. `deviation`: `separate_deviations`. `RULES`: parts of the state."""

ALONE = "alone"
"""The smallest and the largest subnet, each trained alone for as many updates, with γ = 1."""


@dataclass(frozen=True)
class Size:
    """Sizes of the model and of the training.

    Attributes:
        width: of the largest subnet; the smallest is as wide as a head.
        heads: of the largest subnet.
        depth: of the largest subnet; the smallest has half of it.
        context: tokens of a sequence.
        batch: sequences of an update.
        lr: peak of the learning rate.
        bf16: whether to train under autocast to bfloat16. Losses are measured in float32.
    """

    width: int = 64
    depth: int = 4
    context: int = 64
    batch: int = 16
    lr: float = 3e-3
    heads: int = 4
    bf16: bool = False


PRESETS = {
    "cpu": Size(),
    "gpu": Size(width=256, depth=8, context=256, batch=64, lr=1e-3, heads=8, bf16=True),
}
"""A row of 400 updates takes half a minute on one core; `gpu` is for one GPU: 6.9 million
parameters, 40 subnets, 16,384 bytes an update, so that 2,000 updates read Shakespeare's works seven
times."""


@dataclass(frozen=True)
class Run:
    """What one training came to: nats a byte on the validation text.

    Attributes:
        mean: of all subnets.
        smallest: of the smallest subnet.
        largest: of the largest subnet.
        seconds: that the training took.
    """

    mean: float
    smallest: float
    largest: float
    seconds: float

    @classmethod
    def of(cls, losses: Sequence[tuple[float, float]], seconds: float) -> Run:
        """Sum up what `losses_of` gives."""
        by_size = sorted(losses, key=lambda pair: pair[0])
        mean = sum(loss for _, loss in losses) / len(losses)
        return cls(mean, by_size[0][1], by_size[-1][1], seconds)


def read_text(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bytes to train on, and the last twentieth, to validate on.

    Args:
        path: a file, or a folder whose text files are taken in the order of their names.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    split = len(text) * 19 // 20
    return text[:split], text[split:]


def model_of(size: Size, seed: int) -> LlamaForCausalLM:
    """Return a byte-level Llama."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def supernet_of(model: PreTrainedModel, size: Size, **choices: Any) -> ElasticLM:
    """Make a model elastic in depth, from a half on, and in width, by whole heads.

    Args:
        model: from `model_of`.
        size: of the model.
        choices: of `elastic_lm`, beside these two.
    """
    head_dim = size.width // size.heads
    return elastic_lm(
        model,
        depth=[*range(size.depth // 2, size.depth + 1)],
        width=[n * head_dim for n in range(1, size.heads + 1)],
        **choices,
    )


def train(
    arm: str, seed: int, updates: int, size: Size, text: tuple[torch.Tensor, torch.Tensor]
) -> Run:
    """Train one arm; all arms of a seed have the same weights, batches and subnets.

    Args:
        arm: one of `ARMS`, or `ALONE`, whose mean is NaN.
        seed: of weights, batches and subnets.
        updates: of the whole training.
        size: of it all.
        text: bytes to train on and to validate on, on the device to use.
    """
    learned, held_out = text
    supernet = supernet_of(model_of(size, seed), size).to(learned.device)
    start = time.perf_counter()
    if arm == ALONE:
        parameters, ends = supernet.subnet_parameters(), []
        for end in (supernet.space.smallest(parameters), supernet.space.largest(parameters)):
            supernet = supernet_of(model_of(size, seed), size).to(learned.device)
            space = supernet.space.restrict({label: [own] for label, own in end.items()})
            fit(supernet, "static", seed, updates, size, learned, space=space)
            ends += [loss for _, loss in losses_of(supernet, held_out, size, space)]
        return Run(float("nan"), *ends, time.perf_counter() - start)
    fit(supernet, arm, seed, updates, size, learned)
    seconds = time.perf_counter() - start
    return Run.of(losses_of(supernet, held_out, size), seconds)


def cross_entropy(supernet: ElasticLM, tokens: torch.Tensor) -> torch.Tensor:
    return supernet(tokens, labels=tokens, use_cache=False).loss


def fit(
    supernet: ElasticLM,
    arm: str,
    seed: int,
    updates: int,
    size: Size,
    learned: torch.Tensor,
    *,
    space: SearchSpace | None = None,
    loss: Callable[[ElasticLM, torch.Tensor], torch.Tensor] = cross_entropy,
) -> None:
    """Train a supernet by one arm, as in `train`.

    Args:
        supernet: to train.
        arm: one of `ARMS`.
        seed: of batches and subnets.
        updates: of the whole training.
        size: of it all.
        learned: bytes to train on, on the device of the supernet.
        space: the subnets, if not all.
        loss: (supernet, whose subnet is active, tokens) → loss.
    """
    space = space or supernet.space
    parameters = supernet.subnet_parameters()
    calr = CaLR(
        parameters,
        total_steps=updates,
        population=population(space, parameters),
        gamma_max=1.0 if arm == "static" else 4.0,
        warmup_steps=updates // 20,
    )
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=size.lr, weight_decay=0.1)
    DynamicTraining(
        optimizer,
        lambda: supernet.architecture,
        calr=calr,
        momentum=MomentumSeparation(GROUP_BY) if arm == "own" else None,
        space=supernet.space,
    )

    def group() -> Hashable:
        return supernet.architecture[GROUP_BY]

    if arm == "deviation":
        separate_deviations(optimizer, group)
    elif arm in RULES:
        separate(optimizer, group, RULES[arm], updates)
    sampler = UniformSampler(space, seed)
    generator = torch.Generator().manual_seed(seed)
    supernet.train()
    for _ in range(updates):
        supernet.activate(sampler.sample())
        starts = torch.randint(len(learned) - size.context, (size.batch,), generator=generator)
        tokens = sequences(learned, starts, size.context)
        optimizer.zero_grad()
        with torch.autocast(learned.device.type, torch.bfloat16, enabled=size.bf16):
            value = loss(supernet, tokens)
        value.backward()
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), 1.0)
        optimizer.step()


@torch.inference_mode()
def losses_of(
    supernet: ElasticLM, text: torch.Tensor, size: Size, space: SearchSpace | None = None
) -> list[tuple[float, float]]:
    """Return (parameters, nats a byte) of every subnet, on 256 sequences spread over the text."""
    supernet.eval()
    starts = torch.linspace(0, len(text) - size.context - 1, 256).long()
    tokens = sequences(text, starts, size.context)
    parameters = supernet.subnet_parameters()
    losses = []
    for architecture in space or supernet.space:
        supernet.activate(architecture)
        losses.append((parameters(architecture), float(cross_entropy(supernet, tokens))))
    return losses


def sequences(text: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Return the bytes from each start on, shape (starts, length), on the device of the text."""
    return text[(starts[:, None] + torch.arange(length)).to(text.device)].long()
