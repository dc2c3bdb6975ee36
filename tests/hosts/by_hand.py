"""The slow reference of a host: one optimizer for each group; and the code of the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic import Architecture, DynamicTraining

LR = 0.05
PAGE = Path(__file__).parents[2] / "docs" / "hosts_in_own_environments.md"


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)


class Recorder:
    """The subnets of the updates of a training, in order."""

    def __init__(self, training: DynamicTraining) -> None:
        self.subnets: list[list[Architecture]] = []
        training.optimizer.register_step_post_hook(
            lambda *arguments: self.subnets.append([s.architecture for s in training.last.subnets])
        )


def train_by_hand(
    model: nn.Module,
    training: DynamicTraining,
    subnets: Sequence[Sequence[Architecture]],
    backward: Callable[[int, Sequence[Architecture], Sequence[float]], Any],
) -> int:
    """Train a model on the subnets of each update; return the number of groups.

    Args:
        model: has its first weights.
        training: whose γ, groups and total steps are taken, not its state.
        subnets: of each update.
        backward: (update, its subnets, the weights of their losses) → gradients.
    """
    calr, momentum, total = training.calr, training.momentum, training.calr.total_steps
    optimizers: dict[Hashable, torch.optim.Optimizer] = {}
    for step, drawn in enumerate(subnets):
        group = None if momentum is None else momentum.group(drawn[0])
        optimizer = optimizers.setdefault(group, sgd(model))
        factors = [(1 - step / total) ** calr.gamma(subnet) for subnet in drawn]
        mean = sum(factors) / len(factors)
        optimizer.param_groups[0]["lr"] = LR * mean
        optimizer.zero_grad(set_to_none=training.idle == "freeze")
        backward(step, drawn, [factor / mean for factor in factors])
        optimizer.step()
    return len(optimizers)


def page(name: str, side: str = "+") -> str:
    """Return a block of the page of these hosts; of a diff, the side of "-" or of "+"."""
    kind, text = re.findall(rf"<!-- {name} -->\n\n```(\w+)\n(.*?)```", PAGE.read_text(), re.S)[0]
    if kind != "diff":
        return text
    dropped = "-" if side == "+" else "+"
    return "\n".join(line[1:] for line in text.splitlines() if not line.startswith(dropped))


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run code of the page from a seed, and return its names."""
    torch.manual_seed(0)
    names["__name__"] = "page"
    exec(compile(code, PAGE.name, "exec"), names)
    return names
