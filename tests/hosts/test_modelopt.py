"""NVIDIA ModelOpt: `mtn.convert(model, mode="autonas")` samples in the forward pass."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import random

import pytest
import torch
from torch import nn

pytest.importorskip("modelopt", reason="python -m benchmarks.hosts --hosts modelopt")
import modelopt.torch.nas as mtn
import modelopt.torch.opt as mto
from modelopt.torch.nas.utils import no_modelopt_patches
from modelopt.torch.utils import random as host_random
from torchvision.models import resnet18

from nas_dynamic.adapters.modelopt import (
    activate,
    dynamic,
    search_space,
    subnet_macs,
    subnet_parameters,
)
from nas_dynamic.complexity import count_macs
from nas_dynamic.evaluation import score_subnets
from tests.attach.reference import assert_identical
from tests.hosts.by_hand import Recorder, page, run, sgd, train_by_hand

pytestmark = pytest.mark.host
T = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)
        self.conv2, self.norm2 = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """Three widths to choose, and two blocks that can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def converted(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mtn.convert(Net(), mode="autonas").train()


def batches(number: int = T, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 1, 5, 5, generator=generator), torch.randint(4, (4,), generator=generator))
        for _ in range(number)
    ]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def own_sequence(model: nn.Module, number: int, seed: int = 0) -> list[dict]:
    """Return what ModelOpt samples by itself."""
    host_random._get_generator().seed(seed)
    configs = [mtn.sample(model) for _ in range(number)]
    return [{label: config[label] for label in search_space(model).labels} for config in configs]


def train(model, data, *, accumulate=1, validate=False, **options):
    """Train in a loop as a user writes it; return what is attached and the subnets."""
    optimizer = sgd(model)
    attached = dynamic(model, optimizer, total_steps=T, **options)
    recorder = Recorder(attached.training)
    for number, batch in enumerate(data, 1):
        (loss_of(model, batch) / accumulate).backward()
        if validate:
            with torch.no_grad(), pytest.warns(UserWarning, match="queue not filled"):
                model.eval()(batch[0])
            model.train()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return attached, recorder.subnets


def by_hand(attached, subnets, data, accumulate=1):
    reference = converted()

    def backward(step, drawn, weights):
        mtn.select(reference, dict(drawn[0]), strict=False)
        with no_modelopt_patches():
            for batch in data[accumulate * step : accumulate * (step + 1)]:
                (loss_of(reference, batch) / accumulate).backward()

    return reference, train_by_hand(reference, attached.training, subnets, backward)


@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_one_optimizer_a_group_over_its_own_sampled_sequence(idle, accumulate):
    data = batches(T * accumulate)
    model = converted()
    attached, subnets = train(model, data, accumulate=accumulate, idle=idle)
    assert subnets == [[subnet] for subnet in own_sequence(converted(), T)]
    reference, groups = by_hand(attached, subnets, data, accumulate)
    assert groups > 1
    assert_identical(dict(model.named_parameters()), dict(reference.named_parameters()))
    assert_identical(dict(model.named_buffers()), dict(reference.named_buffers()))


def test_a_validation_between_backward_and_step_does_not_count():
    model = converted()
    _, subnets = train(model, batches(), validate=True)
    assert subnets == [[subnet] for subnet in own_sequence(converted(), T)]


def test_a_training_in_eval_mode_is_refused():
    model = converted()
    optimizer = sgd(model)
    dynamic(model, optimizer, total_steps=T)
    with no_modelopt_patches():
        loss_of(model.eval(), batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="no subnet has been sampled for this update"):
        optimizer.step()


@pytest.mark.parametrize("begun", [False, True])
def test_resume_is_exact(begun, tmp_path):
    data = batches()
    straight = converted()
    _, subnets = train(straight, data)

    first = converted()
    optimizer = sgd(first)
    dynamic(first, optimizer, total_steps=T)
    for batch in data[:3]:
        optimizer.zero_grad()
        loss_of(first, batch).backward()
        optimizer.step()
    if begun:  # a checkpoint in the middle of an update, whose gradients are lost
        loss_of(first, data[3])
    mto.save(first, tmp_path / "model.pth")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pth")

    host_random._get_generator().seed(99)
    resumed = mto.restore(Net(), tmp_path / "model.pth").train()
    optimizer = sgd(resumed)
    recorder = Recorder(dynamic(resumed, optimizer, total_steps=T).training)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pth", weights_only=True))
    for batch in data[3:]:
        optimizer.zero_grad()
        loss_of(resumed, batch).backward()
        optimizer.step()
    assert recorder.subnets == subnets[3:]
    assert_identical(dict(resumed.named_parameters()), dict(straight.named_parameters()))


def test_a_checkpoint_without_the_sampling_is_refused():
    model = converted()
    optimizer = sgd(model)
    attached = dynamic(model, optimizer, total_steps=T)
    state = optimizer.state_dict()
    del state["dynamic_sampling"]
    with pytest.raises(ValueError, match="no state of the sampling"):
        optimizer.load_state_dict(state)
    assert attached.training.updates == 0


def test_scheduled_lr_and_clipping_are_left_to_the_loop():
    model, data = converted(), batches()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, T)
    attached = dynamic(model, optimizer)  # bends the loop's schedule
    for step, batch in enumerate(data):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = attached.training.last
        assert last.lr[0] == pytest.approx(0.05 * (1 - step / T) ** last.gamma)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 - step / T))
        scheduler.step()


@pytest.mark.parametrize("name", ["net", "resnet18"])
def test_parameters_and_macs_are_those_of_the_exported_subnet(name):
    images = torch.randn(1, 1, 5, 5) if name == "net" else torch.randn(1, 3, 32, 32)
    model = converted() if name == "net" else mtn.convert(resnet18(), mode="autonas")
    parameters, macs = subnet_parameters(model), subnet_macs(model, images)
    before = mtn.get_subnet_config(model)
    configs = [mtn.sample(model) for _ in range(6)]
    labels = search_space(model).labels
    assert len({tuple(config[label] for label in labels) for config in configs}) > 3
    for config in configs:
        architecture = {label: config[label] for label in labels}
        exported = copy.deepcopy(model)
        activate(exported, architecture)
        exported = mtn.export(exported)
        assert parameters(architecture) == sum(p.numel() for p in exported.parameters())
        assert macs(architecture) == count_macs(exported, images)
    mtn.select(model, before)
    parameters(search_space(model).decode([0] * len(labels)))
    assert mtn.get_subnet_config(model) == before


def test_what_samples_nothing_in_training_is_refused():
    for model in (Net(), mtn.convert(Net(), mode="fastnas")):
        with pytest.raises(TypeError, match="samples no subnet in training"):
            dynamic(model, sgd(model), total_steps=T)
    model = converted()
    with pytest.raises(ValueError, match=r"give complexity=subnet_macs\(model, images\)"):
        dynamic(model, sgd(model), total_steps=T, complexity="macs")
    macs = subnet_macs(model, torch.randn(1, 1, 5, 5))
    assert dynamic(model, sgd(model), total_steps=T, complexity=macs).training.calr.c_max > 0


def test_detached_it_samples_anew_in_each_forward_pass():
    model = converted()
    attached, _ = train(model, batches(2))
    attached.detach()
    assert attached.optimizer.state_dict().keys() == {"state", "param_groups"}
    expected = own_sequence(model, 4)
    host_random._get_generator().seed(0)
    seen = []
    for batch in batches(4):
        model(batch[0])
        config = mtn.get_subnet_config(model)
        seen.append({label: config[label] for label in search_space(model).labels})
    assert seen == expected


def test_search_after_it_by_mtn_and_by_scores(tmp_path):
    model, data = converted(), batches()
    attached, _ = train(model, data)
    attached.detach()
    space = search_space(model)

    with no_modelopt_patches():
        scored = list(
            score_subnets(model, activate, space, data, calibration=data, batch_norm="recalibrate")
        )
        for score in scored[:3]:  # against the exported subnet, recalibrated likewise
            exported = copy.deepcopy(model)
            activate(exported, score.architecture)
            exported = mtn.export(exported)
            (alone,) = score_subnets(
                exported, lambda model, architecture: None, [{}], data, calibration=data
            )
            assert (score.accuracy, score.loss) == (alone.accuracy, pytest.approx(alone.loss))
    assert len(scored) == space.size

    def score_func(candidate: nn.Module) -> float:
        return -sum(float(loss_of(candidate, batch)) for batch in data)

    largest = subnet_parameters(model)
    limit = sorted(map(largest, space))[space.size // 2]
    found, _ = mtn.search(
        model,
        constraints={"params": limit},
        dummy_input=(data[0][0],),
        config={
            "data_loader": data,
            "collect_func": lambda batch: (batch[0],),
            "score_func": score_func,
            "num_iters": 20,
            "population_size": 10,
            "checkpoint": str(tmp_path / "search.pth"),
        },
    )
    # ModelOpt leaves batch norm out of "params".
    norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm2d)]
    counted = sum(p.numel() for p in found.parameters())
    assert counted - sum(p.numel() for m in norms for p in m.parameters()) <= limit
    assert math.isfinite(score_func(found.eval()))


def test_the_page_runs_as_written_before_and_after():
    assert "nas_dynamic" not in page("modelopt", "-")
    before, after = run(page("modelopt", "-")), run(page("modelopt"))
    training = after["attached"].training
    assert training.updates == training.calr.total_steps == 8
    assert len(training.groups) > 1
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before["model"].parameters(), after["model"].parameters(), strict=True)
    )


def rank(number: int, attach: bool, folder: str) -> None:
    """Train two updates of two micro-batches in one of two processes."""
    torch.set_num_threads(1)
    random.seed(number)  # which ModelOpt seeds itself by
    model = converted()
    mtn.sample(model)  # before there is a process group
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=number, world_size=2
    )
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer, seen = sgd(model), []
    if attach:
        dynamic(wrapped, optimizer, total_steps=T)
    for step, batch in enumerate(batches(8, seed=number)):
        with contextlib.nullcontext() if step % 2 else wrapped.no_sync():
            loss_of(wrapped, batch).backward()
        seen.append(mtn.get_subnet_config(model, configurable=True))
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    torch.save((seen, dict(model.named_parameters())), f"{folder}/{number}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.process
def test_two_ranks_train_the_same_subnets_which_by_themselves_they_do_not(tmp_path):
    for attach in (False, True):
        folder = tmp_path / str(attach)
        folder.mkdir()
        processes = [
            multiprocessing.get_context("spawn").Process(target=rank, args=(n, attach, str(folder)))
            for n in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        (one, weights), (other, others) = (
            torch.load(folder / f"{n}.pth", weights_only=False) for n in (0, 1)
        )
        assert (one == other) == attach
        if attach:
            assert one[::2] == one[1::2], "one subnet an update"
            assert_identical(weights, others)
