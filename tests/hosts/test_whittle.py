"""whittle: training strategies sample, run backward and reset, in Fabric and in plain loops."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("whittle", reason="python -m benchmarks.hosts --hosts whittle")
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from litgpt import Config
from syne_tune.config_space import choice, randint, uniform
from whittle.metrics.parameters import compute_parameters
from whittle.models.gpt import GPT
from whittle.sampling.grid_samplers import StratifiedRandomSampler
from whittle.sampling.random_sampler import RandomSampler
from whittle.search.search import multi_objective_search
from whittle.search.search_spaces import SmallSearchSpace
from whittle.training_strategies import (
    ATS,
    RandomLinearStrategy,
    RandomStrategy,
    SandwichStrategy,
    StandardStrategy,
)

from nas_dynamic.adapters.whittle import dynamic, search_space
from tests.attach.reference import assert_identical
from tests.hosts.by_hand import Recorder, page, run, sgd, train_by_hand

pytestmark = pytest.mark.host
T = 10
SPACE = {
    "sub_network_n_embd": choice([16, 32]),
    "sub_network_intermediate_size": randint(63, 64),
    "sub_network_num_heads": choice([2, 4]),
    "sub_network_n_layers": choice([1, 2, 3]),
}
DEPTH = "sub_network_n_layers"


def gpt(width: int = 32) -> GPT:
    torch.manual_seed(0)
    model = GPT(
        Config(
            n_layer=3,
            n_embd=width,
            n_head=4,
            n_query_groups=4,
            intermediate_size=64,
            vocab_size=64,
            padded_vocab_size=64,
            block_size=8,
            mlp_class_name="LLaMAMLP",
            norm_class_name="RMSNorm",
            bias=False,
        )
    )
    model.max_seq_length = 8
    return model


def tokens(number: int = T) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(64, (2, 9), generator=generator) for _ in range(number)]
    return [(x[:, :-1], x[:, 1:]) for x in drawn]


def loss_function(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def strategy_of(kind: type, space: Any = SPACE, **options: Any) -> Any:
    sampler = RandomSampler(space, seed=5)
    return kind(sampler=sampler, loss_function=loss_function, device="cpu", **options)


STRATEGIES = {
    "random": lambda: strategy_of(RandomStrategy),
    "random of two": lambda: strategy_of(RandomStrategy, random_samples=2),
    "sandwich": lambda: strategy_of(SandwichStrategy),
    "random linear": lambda: strategy_of(RandomLinearStrategy, total_number_of_steps=T),
    "ats": lambda: strategy_of(ATS),
    "ats of two": lambda: strategy_of(ATS, random_samples=2),
}
SEVERAL = ("random of two", "sandwich", "ats of two")
RANKED = ("random", "random linear", "sandwich")


def own_sequence(name: str, number: int = T) -> list[list[dict[str, Any]]]:
    """Return what a strategy trains by itself, read off the network's forward passes."""
    strategy, model, trained = STRATEGIES[name](), gpt(), []
    names = list(SPACE)
    inner = strategy.loss_function

    def recorded(*arguments: Any) -> torch.Tensor:
        trained.append({name: getattr(model, name) for name in names})
        return inner(*arguments)

    strategy.loss_function = recorded
    global_state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002 (the global one is what whittle draws from)
    sequence = []
    for x, y in tokens(number):
        trained = []
        strategy(model, x, y)
        sequence.append(trained)
    np.random.set_state(global_state)  # noqa: NPY002
    return sequence


def train(
    name: str, *, accumulate: int = 1, fabric: Fabric | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    """Train all batches; with a Fabric, those of this one of two ranks."""
    network, strategy, data = gpt(), STRATEGIES[name](), tokens(T * accumulate)
    model, optimizer = network, sgd(network)
    if fabric is not None:
        model, optimizer = fabric.setup(network, optimizer)
        strategy.fabric, data = fabric, tokens(2 * T)[fabric.global_rank :: 2]
    if name in SEVERAL:
        options["momentum"] = False
    else:
        options["group_by"] = DEPTH
    strategy = dynamic(strategy, optimizer, model, total_steps=T, **options)
    recorder = Recorder(strategy.training)
    for number, (x, y) in enumerate(data, 1):
        strategy(model, x, y, scale_loss=1 / accumulate)
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return network, strategy, recorder.subnets


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_equals_one_optimizer_a_group_over_its_own_sampled_sequence(name: str, accumulate: int):
    model, strategy, subnets = train(name, accumulate=accumulate)
    assert subnets == own_sequence(name)
    assert len(list(itertools.chain(*subnets))) >= T
    reference, data = gpt(), tokens(T * accumulate)

    def backward(step: int, drawn: Any, weights: Any) -> None:
        for x, y in data[accumulate * step : accumulate * (step + 1)]:
            for subnet, weight in zip(drawn, weights, strict=True):
                reference.set_sub_network(**subnet)
                loss = loss_function(reference(x), y) * weight * (1 / accumulate)
                loss.backward()
                reference.reset_super_network()

    groups = train_by_hand(reference, strategy.training, subnets, backward)
    assert groups == 1 if name in SEVERAL else groups > 1
    assert_identical(model.state_dict(), reference.state_dict())


@pytest.mark.parametrize("idle", ["coast", "freeze"])
def test_idle_parameters_of_layers_that_are_left_out(idle: str):
    model, strategy, subnets = train("random", idle=idle)
    reference, data = gpt(), tokens()

    def backward(step: int, drawn: Any, weights: Any) -> None:
        reference.set_sub_network(**drawn[0])
        loss_function(reference(data[step][0]), data[step][1]).backward()

    train_by_hand(reference, strategy.training, subnets, backward)
    reference.reset_super_network()
    assert_identical(model.state_dict(), reference.state_dict())


@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_under_fabric_is_exact(name: str, tmp_path: Path):
    options = {"momentum": False} if name in SEVERAL else {"group_by": DEPTH}
    straight, _, subnets = train(name)

    def run(start: int, end: int, load: bool) -> tuple[Any, Any]:
        fabric = Fabric(accelerator="cpu", devices=1)
        network = gpt()
        module, optimizer = fabric.setup(network, sgd(network))
        strategy = STRATEGIES[name]()
        strategy.fabric = fabric
        strategy = dynamic(strategy, optimizer, module, total_steps=T, **options)
        recorder = Recorder(strategy.training)
        state = {"model": module, "optimizer": optimizer}
        if load:
            np.random.seed(99)  # noqa: NPY002
            fabric.load(tmp_path / "last.ckpt", state)
        for x, y in tokens()[start:end]:
            strategy(module, x, y)
            optimizer.step()
            optimizer.zero_grad()
        fabric.save(tmp_path / "last.ckpt", state)
        return network, recorder.subnets

    _, first = run(0, 4, load=False)
    network, rest = run(4, T, load=True)
    assert first + rest == subnets
    assert_identical(network.state_dict(), straight.state_dict())


@pytest.mark.process
def test_two_ranks_equal_one_process_with_both_batches(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "tests.hosts.whittle_ranks", tmp_path], check=True)
    for name in RANKED:
        network, _, subnets = train(name, accumulate=2)
        (one, told), (other, others) = (torch.load(tmp_path / f"{name}.{n}") for n in (0, 1))
        assert told == others == subnets
        assert_identical(one, other)
        # Of several subnets an update the ranks add each one's gradients before the next.
        torch.testing.assert_close(one, network.state_dict(), rtol=1e-5, atol=1e-6)


def test_the_global_generator_is_left_alone_and_validation_sees_the_plain_loss():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    model, strategy, _ = train("random linear")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    x, y = tokens(1)[0]
    assert strategy.loss_function(model(x), y) == loss_function(model(x), y)
    assert isinstance(strategy, RandomLinearStrategy)


def test_whittles_own_loop(tmp_path: Path):
    """`whittle.pretrain_super_network.fit` schedules the lr, accumulates, clips and logs."""
    from litgpt.args import EvalArgs, TrainArgs
    from whittle.pretrain_super_network import fit

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[logger])
    fabric.launch()
    network = gpt()
    model, optimizer = fabric.setup(network, sgd(network))
    batches = [torch.cat([x, y[:, -1:]], dim=1) for x, y in tokens(8)]
    strategy = dynamic(strategy_of(RandomStrategy, fabric=fabric), optimizer, model)
    recorder = Recorder(strategy.training)
    seen = []
    strategy.training.optimizer.register_step_post_hook(
        lambda *a: seen.append((strategy.training.last, optimizer.param_groups[0]["lr"]))
    )
    fit(
        fabric,
        1,
        {"model": model, "optimizer": optimizer, "iter_num": 0, "step_count": 0},
        fabric.setup_dataloaders(torch.utils.data.DataLoader(batches, batch_size=None)),
        fabric.setup_dataloaders(torch.utils.data.DataLoader(batches, batch_size=None)),
        tmp_path,
        None,
        TrainArgs(
            global_batch_size=4,
            micro_batch_size=2,
            max_tokens=8 * 2 * 8,
            lr_warmup_steps=0,
            max_norm=1.0,
            min_lr=0.0,
            log_interval=1,
            save_interval=None,
        ),
        EvalArgs(interval=2, max_iters=1),
        training_strategy=strategy,
    )
    assert recorder.subnets == own_sequence("random", 4)
    peak = seen[0][1]  # the loop's cosine, bent
    for update, scheduled in seen:
        assert update.lr[0] == pytest.approx(peak * (scheduled / peak) ** update.gamma)
    assert len({scheduled for _, scheduled in seen}) == 4
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    logged = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:]]
    used = [row for row in logged if row["dynamic/lr"]]
    assert [int(row["step"]) for row in used] == [1, 3, 5, 7]
    assert [float(row["dynamic/gamma"]) for row in used] == [u.gamma for u, _ in seen]


def test_spaces_by_other_names_and_a_space_that_does_not_reach_the_whole():
    model = gpt(width=128)
    sampler = RandomSampler(SmallSearchSpace(model.config), seed=0)
    space = search_space(sampler)
    assert space.choices["heads"] == (1, 2, 3, 4)
    assert space.choices["n_embd"] == tuple(range(64, 129))
    sampler.search_space.config_space["heads"] = choice([2, 4])
    sampler.search_space.config_space["n_embd"] = choice([64, 96, 128])
    strategy = SandwichStrategy(sampler=sampler, loss_function=loss_function, device="cpu")
    optimizer = sgd(model)
    strategy = dynamic(strategy, optimizer, model, total_steps=T, momentum=False)
    strategy(model, *tokens(1)[0])
    optimizer.step()
    whole, *_, smallest = strategy.training.last.subnets
    assert whole.complexity == compute_parameters(model)
    assert smallest.architecture == dict(zip(space.labels, (64, 1, 2, 1), strict=True))

    model = gpt()
    narrow = SPACE | {"sub_network_n_embd": choice([8, 16])}
    strategy = dynamic(strategy_of(SandwichStrategy, narrow), sgd(model), model, momentum=False)
    with pytest.raises(ValueError, match="SandwichStrategy trains the super-network too"):
        strategy(model, *tokens(1)[0])


def test_refusals():
    model = gpt()
    with pytest.raises(TypeError, match="StandardStrategy samples no subnet"):
        dynamic(strategy_of(StandardStrategy), sgd(model), model)
    with pytest.raises(TypeError, match="which is not finite; use choice"):
        search_space(RandomSampler({"width": uniform(0, 1)}))
    stratified = StratifiedRandomSampler(SPACE)
    strategy = RandomStrategy(sampler=stratified, loss_function=loss_function)
    with pytest.raises(TypeError, match="StratifiedRandomSampler does not draw each choice"):
        dynamic(strategy, sgd(model), model)
    with pytest.raises(ValueError, match="give a function of an arch"):
        dynamic(strategy_of(RandomStrategy), sgd(model), model, complexity="macs")
    optimizer = sgd(model)
    strategy = dynamic(strategy_of(SandwichStrategy), optimizer, model, group_by=DEPTH)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"several momentum groups in one update: say momentum="):
        strategy(model, *tokens(1)[0])
    assert all(p.grad is None for p in model.parameters())
    assert_identical(model.state_dict(), weights)
    loss_function(model(tokens(1)[0][0]), tokens(1)[0][1]).backward()
    with pytest.raises(RuntimeError, match="the strategy has not been called for this update"):
        optimizer.step()


def test_search_after_it_by_whittle():
    model, _, _ = train("random")
    x, y = tokens(1)[0]

    def objective(config: dict[str, Any]) -> tuple[float, float]:
        model.set_sub_network(**config)
        with torch.no_grad():
            scores = float(loss_function(model(x), y)), compute_parameters(model)
        model.reset_super_network()
        return scores

    # randint(63, 64) has no middle for syne-tune to begin with.
    space = SPACE | {"sub_network_intermediate_size": choice([63, 64])}
    result = multi_objective_search(
        objective, space, "random_search", num_samples=6, seed=0, verbose=False
    )
    assert any(result["is_pareto_optimal"])
    assert len(result["configs"]) == 6


def test_the_page_runs_as_written_before_and_after():
    assert "nas_dynamic" not in page("whittle", "-")
    before, after = run(page("whittle", "-")), run(page("whittle"))
    training = after["strategy"].training
    assert training.updates == training.calr.total_steps == 8
    assert training.momentum is None  # of AdamW it is one by default
    weights = [names["model"].lm_head.weight for names in (before, after)]
    assert not torch.equal(*weights)
