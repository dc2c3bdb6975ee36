"""Optimizers in the wrappers of hosts: what is attached to is what updates the weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace
from nas_dynamic.attach.innermost import innermost
from tests.attach import wrappers
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    CHOICES,
    Mixed,
    assert_identical,
    batches,
    calr_factor,
    complexity,
    make_model,
)

STEPS, TOTAL_STEPS, LR = 8, 20, 0.05


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y, architecture = batch
    return nn.functional.cross_entropy(model(x, architecture), y)


class Attached:
    """Attaches, and tells the architecture of the batch at hand."""

    def __init__(self, optimizer: Any, **options: Any) -> None:
        self.told: Any = None
        self.dynamic = DynamicTraining(
            optimizer,
            architecture=lambda: self.told,
            calr=CaLR(complexity, total_steps=TOTAL_STEPS, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
            space=SearchSpace(CHOICES),
            **options,
        )


def reference(update: Callable[[torch.optim.Optimizer, nn.Module, Any], None] | None = None) -> Any:
    """One optimizer a group, the lr by hand."""
    model = make_model(Mixed)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for step, batch in enumerate(batches(STEPS)):
        optimizer = optimizers.setdefault(batch[2]["layer1"], sgd(model))
        for group in optimizer.param_groups:
            group["lr"] = LR * calr_factor(batch[2], step, TOTAL_STEPS)
        model.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model.state_dict()


class Bare:
    """A wrapper that is no optimizer of torch, as mmengine's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class Subclass(torch.optim.Optimizer):
    """A wrapper that is an optimizer itself, as those of Opacus and Accelerate."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.what_a_stranger_calls_it = inner
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.defaults = inner.defaults

    def step(self, closure: Any = None) -> Any:
        return self.what_a_stranger_calls_it.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.what_a_stranger_calls_it.zero_grad(set_to_none)


def of_framework(name: str) -> Callable[[torch.optim.Optimizer], Any]:
    def wrapped(optimizer: torch.optim.Optimizer) -> Any:
        try:
            return wrappers.WRAPPERS[name](optimizer)
        except ImportError as missing:
            pytest.skip(f"{missing}")

    return wrapped


WRAPPERS = {
    "bare": Bare,
    "subclass": Subclass,
    "wrapped twice": lambda optimizer: Bare(Subclass(optimizer)),
    **{name: of_framework(name) for name in wrappers.WRAPPERS},
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_attached_to_by_what_it_wraps(name: str):
    model = make_model(Mixed)
    inner = sgd(model)
    optimizer = WRAPPERS[name](inner)
    attached = Attached(optimizer)
    assert attached.dynamic.optimizer is inner
    for batch in batches(STEPS):
        attached.told = batch[2]
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert attached.dynamic.updates == STEPS
    assert len(attached.dynamic.groups) > 1
    assert_identical(model.state_dict(), reference())


@pytest.mark.host
def test_lightning_with_manual_optimization(tmp_path: Any):
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = make_model(Mixed)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.net)

        def on_train_start(self) -> None:
            self.attached = Attached(self.optimizers())

        def training_step(self, batch: Any, number: int) -> None:
            optimizer = self.optimizers()
            self.attached.told = batch[2]
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            optimizer.step()

    module = Module()
    loader = torch.utils.data.DataLoader(batches(STEPS), batch_size=None)
    pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    ).fit(module, loader)
    assert module.attached.dynamic.updates == STEPS
    assert_identical(module.net.state_dict(), reference())


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation in two steps, as the implementations that people use."""

    def __init__(self, parameters: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.clone()
                    p.add_(p.grad * group["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old"])
        self.base_optimizer.step()


def test_sam_in_two_steps_separates_the_momenta_of_its_base():
    def trained(dynamic: bool) -> Any:
        model = make_model(Mixed)
        sams: dict[str, SAM] = {}
        make = lambda: SAM(model.parameters(), lr=LR, momentum=0.9)  # noqa: E731
        one = make() if dynamic else None
        attached = Attached(one) if one else None
        for step, batch in enumerate(batches(STEPS)):
            sam = one or sams.setdefault(batch[2]["layer1"], make())
            if attached is not None:
                attached.told = batch[2]
            sam.zero_grad()
            loss_of(model, batch).backward()
            sam.first_step()
            loss_of(model, batch).backward()
            if not dynamic:
                for group in sam.base_optimizer.param_groups:
                    group["lr"] = LR * calr_factor(batch[2], step, TOTAL_STEPS)
                with torch.no_grad():
                    for p in model.parameters():
                        if p.grad is not None:
                            p.copy_(sam.state[p]["old"])
                sam.base_optimizer.step()
            else:
                sam.second_step()
        if attached is not None:
            assert attached.dynamic.updates == STEPS
        return model.state_dict()

    assert_identical(trained(dynamic=True), trained(dynamic=False))


def test_wrappers_of_other_parameters_or_of_several_are_refused():
    model = make_model(Mixed)
    halves = [*model.parameters()][:4], [*model.parameters()][4:]
    inner = torch.optim.SGD(halves[0], lr=LR, momentum=0.9)
    outer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    outer.inside = inner
    with pytest.raises(ValueError, match=re.escape("SGD wraps another optimizer, .inside (SGD)")):
        Attached(outer)
    several = Bare(inner)
    several.second = torch.optim.SGD(halves[1], lr=LR)
    with pytest.raises(ValueError, match=re.escape("Bare wraps 2 optimizers, .optimizer (SGD)")):
        Attached(several)
    chained = Bare(inner)
    chained.optimizer = [inner, several.second]
    with pytest.raises(ValueError, match=re.escape(".optimizer[0] (SGD), .optimizer[1] (SGD)")):
        Attached(chained)
    with pytest.raises(ValueError, match="must be a torch Optimizer, got int"):
        innermost(3)
    assert not inner._optimizer_step_pre_hooks


def test_an_object_that_shares_the_hooks_cannot_be_stepped_in_place_of_the_attached_one():
    model = make_model(Mixed)
    optimizer = sgd(model)
    attached = Attached(optimizer)
    twin = copy.copy(optimizer)
    twin._optimizer_step_pre_hooks = optimizer._optimizer_step_pre_hooks
    attached.told = batches(1)[0][2]
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="another object, a SGD that has its hooks, is stepped"):
        twin.step()
