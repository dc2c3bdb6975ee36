"""Updates of several subnets, against the formulas written out."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace
from nas_dynamic.sampling import FairSampler, UniformSampler

SPACE = SearchSpace({"layer1": ["a", "b", "c"], "layer2": ["a", "b", "c"]})
SIZES = {"a": 1.0, "b": 3.0, "c": 9.0}
STEPS, LR = 8, 0.1
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD),
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "weight decay": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.05),
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.05),
}
SCHEDULE = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)


class Supernet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.ModuleDict({c: nn.Linear(5, 5) for c in "abc"})
        self.layer2 = nn.ModuleDict({c: nn.Linear(5, 5) for c in "abc"})
        self.double()

    def loss(self, x, architecture):
        x = torch.tanh(self.layer1[architecture["layer1"]](x))
        return self.layer2[architecture["layer2"]](x).square().mean()


def complexity(architecture):
    return sum(SIZES[op] for op in architecture.values())


def make_calr(**options):
    return CaLR(complexity, total_steps=STEPS, bounds=(2, 18), **options)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


class Loop:
    """A host that takes several subnets a step, with one update or one for each group."""

    def __init__(self, optimizer, calr, group_by=None, split=False, schedule=None, idle="coast"):
        self.model = Supernet()
        self.optimizer = optimizer(self.model.parameters(), lr=LR)
        self.scheduler = schedule and schedule(self.optimizer)
        self.split = split
        self.current = None
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.current,
            calr=calr,
            momentum=MomentumSeparation(group_by) if group_by else None,
            space=SPACE,
            idle=idle,
        )

    def step(self, x, architectures, micro_batches=1):
        parts = self.dynamic.split(architectures) if self.split else [architectures]
        for part in parts:
            self.current = part
            self.optimizer.zero_grad()
            weights = self.dynamic.loss_weights(part)
            for micro in x.chunk(micro_batches):
                for architecture, weight in zip(part, weights, strict=True):
                    (weight * self.model.loss(micro, architecture) / micro_batches).backward()
            self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()


def reference(optimizer, sequence, factor, group_by=None, split=False, anneal="lr"):
    """Gradients by hand: Σ_k f_k ∇L_k, an lr or a loss that carries f, an optimizer a group."""
    model = Supernet()
    optimizers, trained = {}, set()
    for t, (x, architectures) in enumerate(zip(batches(), sequence, strict=True)):
        parts = {}
        for architecture in architectures:
            key = architecture[group_by] if split else None
            parts.setdefault(key, []).append(architecture)
        for part in parts.values():
            factors = [factor(architecture, t) for architecture in part]
            mean = sum(factors) / len(factors)
            gradient = {name: torch.zeros_like(model.get_parameter(name)) for name in trained}
            for architecture, f in zip(part, factors, strict=True):
                model.zero_grad()
                model.loss(x, architecture).backward()
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        weighted = p.grad * (f if anneal == "loss" else f / mean)
                        gradient[name] = gradient.get(name, 0) + weighted
            trained |= gradient.keys()
            for name, p in model.named_parameters():
                p.grad = gradient.get(name)
            group = part[0][group_by] if group_by else None
            if group not in optimizers:
                optimizers[group] = optimizer(model.parameters(), lr=LR)
            optimizers[group].param_groups[0]["lr"] = LR * (1 if anneal == "loss" else mean)
            optimizers[group].step()
    return model


def assert_close(model, expected):
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def fair(group_by=None):
    sampler = FairSampler(SPACE, seed=3, group_by=group_by)
    return [sampler.sample() for _ in range(STEPS)]


@pytest.mark.parametrize("anneal", ["lr", "loss"])
@pytest.mark.parametrize("mode", ["one momentum", "one group a step", "split"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_the_formula(optimizer, mode, anneal):
    group_by = None if mode == "one momentum" else "layer1"
    sequence = fair(group_by if mode == "one group a step" else None)
    calr = make_calr(anneal=anneal)
    loop = Loop(OPTIMIZERS[optimizer], calr, group_by, split=mode == "split")
    for x, architectures in zip(batches(), sequence, strict=True):
        loop.step(x, architectures)
    expected = reference(
        OPTIMIZERS[optimizer], sequence, calr.factor, group_by, mode == "split", anneal
    )
    assert_close(loop.model, expected)
    assert loop.dynamic.steps == STEPS
    assert loop.dynamic.updates == (3 * STEPS if mode == "split" else STEPS)
    assert len(loop.dynamic.groups) == (0 if group_by is None else 3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scheduler_is_bent_for_several_subnets(optimizer):
    sequence = fair()
    loop = Loop(OPTIMIZERS[optimizer], make_calr(curve="scheduler"), schedule=SCHEDULE)
    for x, architectures in zip(batches(), sequence, strict=True):
        loop.step(x, architectures)
    cosine = make_calr(curve="cosine")
    assert_close(loop.model, reference(OPTIMIZERS[optimizer], sequence, cosine.factor))


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_subnet_is_the_single_subnet_step_bit_for_bit(optimizer, split, idle):
    sampler = UniformSampler(SPACE, seed=5)
    sequence = [sampler.sample() for _ in range(STEPS)]
    loop = Loop(OPTIMIZERS[optimizer], make_calr(), "layer2", split, idle=idle)
    single = Loop(OPTIMIZERS[optimizer], make_calr(), "layer2", idle=idle)
    for x, architecture in zip(batches(), sequence, strict=True):
        loop.step(x, [architecture])
        single.current = architecture
        single.optimizer.zero_grad()
        single.model.loss(x, architecture).backward()
        single.optimizer.step()
    for p, q in zip(loop.model.parameters(), single.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert dataclasses.asdict(loop.dynamic.last) == dataclasses.asdict(single.dynamic.last)


@pytest.mark.parametrize("architectures", [1, 3])
def test_accumulated_micro_batches_equal_the_whole_batch(architectures):
    whole = Loop(OPTIMIZERS["nesterov"], make_calr(), "layer1", split=True)
    accumulated = Loop(OPTIMIZERS["nesterov"], make_calr(), "layer1", split=True)
    for x, sampled in zip(batches(), fair(), strict=True):
        whole.step(x, sampled[:architectures])
        accumulated.step(x, sampled[:architectures], micro_batches=2)
    assert_close(accumulated.model, whole.model)


def test_loss_scaling_and_a_skipped_part():
    """Scaled losses give the same weights; inf in one part of a split step skips only that."""
    sequence = fair()
    plain = Loop(OPTIMIZERS["nesterov"], make_calr(), "layer1", split=True)
    scaled = Loop(OPTIMIZERS["nesterov"], make_calr(), "layer1", split=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t, (x, architectures) in enumerate(zip(batches(), sequence, strict=True)):
        skip = architectures[1] if t == 3 else None
        for loop in (plain, scaled):
            for part in loop.dynamic.split(architectures):
                loop.current = part
                loop.optimizer.zero_grad()
                (weight,) = loop.dynamic.loss_weights(part)
                loss = weight * loop.model.loss(x, part[0])
                if loop is plain:
                    loss.backward()
                    if part[0] != skip:
                        loop.optimizer.step()
                else:
                    scaler.scale(loss * (float("inf") if part[0] == skip else 1)).backward()
                    scaler.step(loop.optimizer)
                    scaler.update()
    assert_close(scaled.model, plain.model)
    assert scaled.dynamic.updates == 3 * STEPS - 1
    assert scaled.dynamic.steps == plain.dynamic.steps == STEPS


def test_checkpoint_within_a_split_step():
    sequence = fair()
    straight = Loop(OPTIMIZERS["adamw"], make_calr(), "layer1", split=True)
    for x, architectures in zip(batches()[:4], sequence, strict=False):
        straight.step(x, architectures)
    parts = straight.dynamic.split(sequence[4])

    def part_step(loop, part):
        loop.current = part
        loop.optimizer.zero_grad()
        (weight,) = loop.dynamic.loss_weights(part)
        (weight * loop.model.loss(batches()[4], part[0])).backward()
        loop.optimizer.step()

    part_step(straight, parts[0])
    resumed = Loop(OPTIMIZERS["adamw"], make_calr(), "layer1", split=True)
    resumed.model.load_state_dict(copy.deepcopy(straight.model.state_dict()))
    resumed.optimizer.load_state_dict(copy.deepcopy(straight.optimizer.state_dict()))
    for part in parts[1:]:
        part_step(straight, part)
        part_step(resumed, part)
    assert straight.dynamic.steps == resumed.dynamic.steps == 5
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def at_step(dynamic, steps):
    dynamic._update.progress = dynamic._update.progress._replace(steps=steps)


def test_weights_have_mean_one_and_order_by_complexity():
    loop = Loop(OPTIMIZERS["sgd"], make_calr())
    at_step(loop.dynamic, 5)
    architectures = [{"layer1": op, "layer2": op} for op in "abc"]
    weights = loop.dynamic.loss_weights(architectures)
    assert sum(weights) == pytest.approx(3)
    assert weights == sorted(weights)
    assert weights[2] / weights[0] == pytest.approx((3 / 8) ** (0.25 - 4))


def refused(loop, architectures, weigh=True):
    before = copy.deepcopy((loop.model.state_dict(), loop.optimizer.state_dict()))
    loop.current = architectures
    loop.optimizer.zero_grad()
    if weigh:
        loop.dynamic.loss_weights(architectures)
    for architecture in architectures:
        loop.model.loss(batches()[0], architecture).backward()
    with pytest.raises(RuntimeError) as error:
        loop.optimizer.step()
    after = loop.model.state_dict(), loop.optimizer.state_dict()
    assert str(before) == str(after)
    return str(error.value)


def test_mixed_groups_are_refused():
    loop = Loop(OPTIMIZERS["momentum"], make_calr(), "layer1")
    message = refused(loop, fair()[0])
    assert "one momentum would mix them" in message
    assert "DynamicTraining.split" in message


def test_forgotten_weights_are_refused():
    message = refused(Loop(OPTIMIZERS["momentum"], make_calr()), fair()[0], weigh=False)
    assert "DynamicTraining.loss_weights" in message
    single = Loop(OPTIMIZERS["momentum"], make_calr(anneal="loss"))
    assert "DynamicTraining.loss_weights" in refused(single, fair()[0][:1], weigh=False)


def test_weights_of_the_last_update_are_refused():
    loop = Loop(OPTIMIZERS["momentum"], make_calr())
    loop.step(batches()[0], fair()[0])
    assert "DynamicTraining.loss_weights" in refused(loop, fair()[0], weigh=False)
    loop.step(batches()[1], fair()[0])
    assert loop.dynamic.updates == 2


def test_param_groups_on_different_schedules_are_refused():
    model = Supernet()
    optimizer = torch.optim.SGD(
        [{"params": model.layer1.parameters()}, {"params": model.layer2.parameters()}], lr=LR
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0, lambda t: 0.5**t])
    current = None
    dynamic = DynamicTraining(optimizer, lambda: current, calr=make_calr(curve="scheduler"))
    current = SPACE.decode([0, 0])
    model.loss(batches()[0], current).backward()
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match="different parts of their lr schedules"):
        dynamic.loss_weights(fair()[0])
    assert dynamic.loss_weights(fair()[0][:1]) == [1.0]
    dynamic.detach()
    calr = make_calr(curve="scheduler", anneal="loss")
    dynamic = DynamicTraining(optimizer, lambda: current, calr=calr)
    assert dynamic.loss_weights([current]) == [1.0]
    model.loss(batches()[0], current).backward()
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match="different parts of their lr schedules"):
        dynamic.loss_weights([current])
    dynamic.detach()
    # Where the weights depend on no schedule, they need not be alike.
    dynamic.detach()
    for calr, weights in ((None, [1.0, 1.0, 1.0]), (make_calr(), None)):
        dynamic = DynamicTraining(optimizer, lambda: current, calr=calr)
        at_step(dynamic, 5)
        found = dynamic.loss_weights(fair()[0])
        alone = DynamicTraining(torch.optim.SGD(model.parameters(), LR), lambda: current, calr=calr)
        at_step(alone, 5)
        assert found == (weights or alone.loss_weights(fair()[0]))
        dynamic.detach()


def test_a_param_group_that_is_not_trained_has_no_part_in_the_weights():
    def weights(frozen):
        """After an update, and at half of the peak lr."""
        model = Supernet()
        groups = [{"params": model.layer1.parameters()}, {"params": model.layer2.parameters()}]
        if frozen:
            groups.insert(0, {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.0})
        optimizer = torch.optim.SGD(groups, lr=LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
        first = SPACE.decode([0, 0])
        dynamic = DynamicTraining(optimizer, lambda: first, calr=make_calr(curve="scheduler"))
        model.loss(batches()[0], first).backward()
        optimizer.step()
        scheduler.step()
        return dynamic.loss_weights(fair()[0])

    assert weights(frozen=True) == weights(frozen=False)
    assert max(weights(frozen=True)) > 1.1


def test_last_update_of_several_subnets_lists_them():
    loop = Loop(OPTIMIZERS["sgd"], make_calr())
    loop.step(batches()[0], fair()[0])
    assert [subnet.architecture for subnet in loop.dynamic.last.subnets] == fair()[0]
    with pytest.raises(ValueError, match="3 subnets"):
        _ = loop.dynamic.last.architecture
