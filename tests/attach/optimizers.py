"""Every optimizer of torch and timm, with its variants, ready to be built on a small supernet.

`python -m tests.attach.optimizers > docs/optimizers.md` writes the table of what is supported.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import timm.optim
import torch
from torch import nn

from nas_dynamic.attach.supported import COAST_ONLY, FREEZE_ONLY, UNSUPPORTED
from tests.attach.reference import (
    Embeddings,
    Matrices,
    Mixed,
    backward,
    batches,
    make_model,
    param_groups,
)

LR = 0.01
FLAGS = ("nesterov", "amsgrad", "centered", "maximize", "decoupled_weight_decay")


@dataclass(frozen=True)
class Case:
    """An optimizer with its options.

    Attributes:
        name: for the test's id.
        construct: (param groups, lr, weight decay) → optimizer.
        weight_decay: 0 where the optimizer has none.
        tensor_lr: the lr is a tensor.
        one_group: all parameters are in one param group.
    """

    name: str
    construct: Callable[..., torch.optim.Optimizer] = field(compare=False)
    weight_decay: float = 0.05
    tensor_lr: bool = False
    one_group: bool = False

    @property
    def lr(self) -> Any:
        return torch.tensor(LR) if self.tensor_lr else LR

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # A tensor lr is a value of each optimizer's own: schedulers change it in place.
        if self.tensor_lr:
            groups = [group | {"lr": group["lr"].clone()} for group in groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.construct(groups, lr=self.lr)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        if self.one_group:
            return [{"params": list(model.parameters())}]
        return param_groups(model, self.lr, self.weight_decay)

    @functools.cached_property
    def unbuildable(self) -> str | None:
        """Why the optimizer cannot be built or stepped here at all, or None."""
        return None if isinstance(self._model_or_reason, type) else self._model_or_reason

    @property
    def model(self) -> type[nn.Module]:
        """The first of the supernets that the optimizer takes."""
        assert isinstance(self._model_or_reason, type)
        return self._model_or_reason

    @functools.cached_property
    def _model_or_reason(self) -> type[nn.Module] | str:
        reasons = []
        for kind in (Mixed, Matrices, Embeddings):
            model = make_model(kind)
            try:
                optimizer = self.build(self.groups(model))
                second_order = getattr(optimizer, "is_second_order", False)
                optimizer.step(functools.partial(backward, model, *batches(1)[0], second_order))
            except Exception as error:
                reasons.append(str(error))
            else:
                return kind
        return "; ".join(dict.fromkeys(reasons))


def torch_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer class of torch.optim."""
    return {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


def torch_cases() -> list[Case]:
    cases = []
    for name, cls in torch_classes().items():
        takes = inspect.signature(cls).parameters
        options: dict[str, Any] = {"momentum": 0.9} if "momentum" in takes else {}
        variants: dict[str, dict[str, Any]] = {"": {}}
        if "foreach" in takes:
            variants |= {"-foreach": {"foreach": True}, "-single": {"foreach": False}}
        if "fused" in takes:
            variants |= {"-fused": {"fused": True}}
        variants |= {f"-{flag}": {flag: True} for flag in FLAGS if flag in takes}
        if name == "SGD":
            variants |= {"-plain": {"momentum": 0.0}, "-dampening": {"dampening": 0.1}}
            variants |= {"-nesterov-foreach": {"nesterov": True, "foreach": True}}
        decay = 0.05 if "weight_decay" in takes else 0.0
        for suffix, variant in variants.items():
            construct = functools.partial(cls, **(options | variant))
            cases.append(Case(f"torch.{name}{suffix}", construct, decay, one_group=name == "LBFGS"))
        if name in ("SGD", "Adam"):
            cases.append(Case(f"torch.{name}-no-decay", functools.partial(cls, **options), 0.0))
            tensor = functools.partial(cls, **options, foreach=False)
            cases.append(Case(f"torch.{name}-tensor-lr", tensor, decay, tensor_lr=True))
    return cases


def timm_cases() -> list[Case]:
    cases = []
    for name in timm.optim.list_optimizers():
        try:
            takes = inspect.signature(timm.optim.get_optimizer_class(name)).parameters
        except Exception:  # its library or device is missing: `unbuildable` says which
            takes = {}
        foreach = ("", None), ("-foreach", True), ("-single", False)
        for suffix, value in foreach if "foreach" in takes else foreach[:1]:
            options = {"opt": name, "weight_decay": 0.05, "momentum": 0.9, "foreach": value}
            construct = functools.partial(timm.optim.create_optimizer_v2, **options)
            cases.append(Case(f"timm.{name}{suffix}", construct))
    return cases


KEEPS_WEIGHTS = {"ASGD": "ax", "MADGRAD": "x0"}
"""Classes whose state has a copy of the weights, and its name: momenta cannot be separated."""


def weights_kept(optimizer: torch.optim.Optimizer) -> str:
    """The entry of the state that is a copy of the weights, or nothing."""
    names = [base.__name__ for base in type(optimizer).__mro__]
    return next((KEEPS_WEIGHTS[name] for name in names if name in KEEPS_WEIGHTS), "")


def refusal(optimizer: torch.optim.Optimizer, idle: str) -> str | None:
    """Return the reason why an optimizer is refused according to the tables, or None."""
    for name in (base.__name__ for base in type(optimizer).__mro__):
        if name in UNSUPPORTED:
            return UNSUPPORTED[name]
        if idle == "coast" and name in FREEZE_ONLY:
            return FREEZE_ONLY[name]
    fused_momentum = any(g.get("fused") and g.get("momentum") for g in optimizer.param_groups)
    return next(iter(COAST_ONLY.values())) if idle == "freeze" and fused_momentum else None


CASES = torch_cases() + timm_cases()


def document() -> str:
    """docs/optimizers.md: every optimizer, whether it is supported, and why not."""
    rows = dict(sorted(row(case) for case in CASES if not case.name.endswith(IMPLEMENTATIONS)))
    lines = [f"| {name} | {supported} | {note} |" for name, (supported, note) in rows.items()]
    return HEADER + "\n".join(lines) + "\n"


def row(case: Case) -> tuple[str, tuple[str, str]]:
    """Return the name of a case, whether it is supported, and a note."""
    name = f"`{case.name}`"
    if case.unbuildable:
        return name, ("not tested", case.unbuildable)
    optimizer = case.build(case.groups(make_model(case.model)))
    refused = {idle: refusal(optimizer, idle) for idle in ("coast", "freeze")}
    allowed = [idle for idle, reason in refused.items() if reason is None]
    reason = next((reason for reason in refused.values() if reason), "")
    if kept := weights_kept(optimizer):
        return name, ("CaLR alone", f"its state keeps a copy of the weights, `{kept}`")
    if len(allowed) == 2:
        return name, ("yes", "all groups draw from one random stream" if draws(optimizer) else "")
    return name, (f'`idle="{allowed[0]}"` only' if allowed else "no", reason)


def draws(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer draws random numbers of its own."""
    return any(hasattr(optimizer, name) for name in ("rng", "generator"))


IMPLEMENTATIONS = ("-foreach", "-single")

HEADER = f"""# Optimizers

Written by `python -m tests.attach.optimizers > docs/optimizers.md`, with torch
{torch.__version__.split("+")[0]} and timm {timm.__version__}.
`tests/attach/test_equivalence.py` trains a small supernet with each of these and compares every
weight and every group's state, to the bit, with one optimizer object for each group; those that are
refused, it sees refused. A suffix names an option; `foreach` variants are tested and not listed.

Also refused, in both idle modes: `Lookahead` (around or inside the attached optimizer), since
{UNSUPPORTED["Lookahead"]};
and any optimizer that evaluates the closure more than once in a step. What wraps another optimizer
is attached to by that one.

| Optimizer | Supported | Note |
|---|---|---|
"""

if __name__ == "__main__":
    print(document(), end="")
