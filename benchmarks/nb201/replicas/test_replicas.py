"""The kernels run in Triton's interpreter; the truth is the benchmark's training and scoring."""

from __future__ import annotations

import csv
import dataclasses
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("on a GPU: TRITON_INTERPRET=1 python -m pytest …", allow_module_level=True)

from benchmarks.nb201 import arguments
from benchmarks.nb201.data import MEAN, STD, Images, TrainingBatches
from benchmarks.nb201.replicas import __main__ as command_line
from benchmarks.nb201.replicas import kernels_forward, kernels_weights, network
from benchmarks.nb201.replicas.check import LIMITS, SUBNETS, Check
from benchmarks.nb201.replicas.layout import Layout
from benchmarks.nb201.replicas.plan import IDLE, Plan, operations_of
from benchmarks.nb201.replicas.report import print_differences, print_errors
from benchmarks.nb201.replicas.scoring import score_replicas
from benchmarks.nb201.replicas.training import Replicas
from benchmarks.nb201.report import append_result, read_results
from benchmarks.nb201.scoring import score, top_measures
from benchmarks.nb201.supernet import OPERATIONS, SPACE, Supernet
from benchmarks.nb201.training import Training
from nas_dynamic import UniformSampler
from nas_dynamic.analysis.ranking import kendall_tau

pytestmark = pytest.mark.host

PLAN = Plan(("static", "poly", "calq-ms"), (0,), 73, "freeze", 10, 4, 1, 8, 4, "float64")
"""Its first subnets are small, and the third uses no convolution of the first two."""
RICH = (3, 2, 4, 1, 2, 3)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter is slow: several programs and several tiles, but few."""
    for name, value in {"POSITIONS": 128, "PARTS": 2, "NORM_PARTS": 4}.items():
        monkeypatch.setattr(network, name, value)
    monkeypatch.setattr(network, "default_tile", lambda name, wide: (128, 4, 1))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(0, 10, (20,), generator=generator))


class Doubled:
    """Batches of the benchmark, normalized in float64."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, update):
        x, classes = self.batches[update]
        pixels = (x.permute(0, 2, 3, 1) * STD + MEAN).round().double()
        x = pixels * (1 / STD).double() - (MEAN / STD).double()
        return x.permute(0, 3, 1, 2), classes


def trained_by_the_benchmark(plan, number, images, updates):
    run = plan.runs[number]
    training = Training(run, images, sampler=UniformSampler(SPACE, plan.subnet_seed))
    training.supernet.double()
    training.averaged.double()
    training.batches = Doubled(training.batches)
    training.advance(updates=updates)
    return training.supernet.state_dict()


def architecture(numbers):
    return dict(zip(SPACE.labels, (OPERATIONS[number] for number in numbers), strict=True))


def test_layout_goes_there_and_back():
    state = Supernet(16, 2, 3).state_dict()
    layout = Layout(16, 2)
    again = layout.unflatten(layout.flatten(state))
    assert state.keys() == again.keys()
    for name, value in state.items():
        assert torch.equal(value, again[name]), name
    ones = layout.flatten({name: torch.ones_like(value) for name, value in state.items()})
    assert int(ones.sum()) == sum(value.numel() for value in state.values())


def test_batches_are_the_benchmarks(images):
    plan = dataclasses.replace(PLAN, arms=("static", "poly"), seeds=(0, 3))
    replicas = Replicas(plan, images)
    for update in (0, 4, 5, 9):  # 5 updates an epoch
        replicas.step.fill_(update)
        for launch in replicas.prepare:
            launch()
        for m, run in enumerate(plan.runs):
            truth, classes = Doubled(TrainingBatches(images, 4, run.seed))[update]
            pictures = replicas.network.images[m].view(4, 8, 8, 16).permute(0, 3, 1, 2)
            torch.testing.assert_close(pictures[:, :3], truth, atol=1e-12, rtol=0)
            assert not pictures[:, 3:].any()
            assert torch.equal(replicas.network.classes[m], classes)


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize(
    ("arms", "updates"),
    [(("calq-ms",), 3), pytest.param(PLAN.arms, 10, marks=pytest.mark.slow)],
)
def test_updates_are_the_benchmarks(images, idle, arms, updates):
    plan = dataclasses.replace(PLAN, arms=arms, idle=idle)
    replicas = Replicas(plan, images)
    start = replicas.network.flat.clone()
    replicas.advance(updates)
    for m, run in enumerate(plan.runs):
        truth = replicas.layout.flatten(trained_by_the_benchmark(plan, m, images, updates))
        moved, mine = truth - start[m], replicas.network.flat[m] - start[m]
        assert float((mine - moved).norm() / moved.norm()) < 1e-7, run.arm
        assert torch.equal(mine == 0, moved == 0)


@pytest.mark.parametrize("arms", [("calq-ms",), pytest.param(PLAN.arms, marks=pytest.mark.slow)])
def test_replicas_side_by_side_are_those_alone(images, arms):
    plan = dataclasses.replace(PLAN, arms=arms, seeds=(0, 3))
    together = Replicas(plan, images)
    together.advance(2 if len(arms) > 1 else 1)
    for m in range(1, len(plan.runs)):
        run = plan.runs[m]
        alone = Replicas(dataclasses.replace(plan, arms=(run.arm,), seeds=(run.seed,)), images)
        alone.advance(together.updates)
        assert alone.plan.runs == [run]
        assert float((together.network.flat[m] - alone.network.flat[0]).abs().max()) < 1e-12


def test_resumed_is_straight(images, tmp_path):
    plan = dataclasses.replace(PLAN, arms=("calq-ms",), idle="coast", updates=2)
    straight, first, second = (Replicas(plan, images) for _ in range(3))
    straight.advance(2)
    assert not first.load(tmp_path)
    first.advance(1)
    first.save(tmp_path)
    assert second.load(tmp_path)
    second.advance(100)
    assert second.done
    for name in ("flat", "momentum"):
        assert torch.equal(getattr(straight.network, name), getattr(second.network, name))
    assert torch.equal(straight.losses, second.losses)
    other = Replicas(dataclasses.replace(plan, subnet_seed=1), images)
    assert not other.load(tmp_path)


def test_scores_are_the_benchmarks(images):
    layout = Layout(4, 1)
    supernets = [Supernet(4, 1, seed).double() for seed in (0, 1)]
    flat = torch.stack([layout.flatten(supernet.state_dict()) for supernet in supernets])
    numbers = [RICH, (0,) * 6, (4, 3, 0, 1, 2, 0), (4, 3, 1, 1, 2, 0)]  # the last two are alike
    chosen = [architecture(of) for of in numbers]
    batches = [(x.double(), classes) for x, classes in images.batches(4)[:2]]
    every = score_replicas(layout, flat, "float64", chosen, batches)
    for supernet, scores in zip(supernets, every, strict=True):
        truth = score(supernet, chosen, batches)
        np.testing.assert_allclose(scores.loss, truth.loss, atol=1e-9)
        np.testing.assert_allclose(scores.accuracy, truth.accuracy, atol=1e-6)


@pytest.mark.parametrize(
    ("arms", "subnets"),
    [(("calq-ms",), (RICH,)), pytest.param(("static", "calq-ms"), SUBNETS, marks=pytest.mark.slow)],
)
def test_check_knows_every_kernel_and_finds_them_right(images, arms, subnets):
    replicas = Replicas(dataclasses.replace(PLAN, arms=arms), images)
    start, lines = replicas.network.flat.clone(), []
    check = Check(replicas, lines.append)
    assert check.kernels(subnets)
    assert check.gradients((*subnets[1:], (0,) * 6))
    launched = {getattr(launch, "kernel", None) for launch in replicas.launches} - {None}
    assert {kernel.__name__ for kernel in launched} | {"classifier"} == set(check.worst)
    assert torch.equal(start, replicas.network.flat)
    assert all(line.startswith("ok ") for line in lines)


def test_check_finds_just_the_kernels_that_are_wrong(images):
    replicas = Replicas(dataclasses.replace(PLAN, arms=("poly",)), images)
    of_kernel = {}
    for launch in replicas.launches:
        of_kernel.setdefault(getattr(launch, "kernel", None), []).append(launch)
    of_kernel[kernels_forward.conv_forward][4].options["RELU"] = False
    step = of_kernel[kernels_weights.sgd][0]
    step.arguments = (*step.arguments[:-2], 0.0, step.arguments[-1])  # without weight decay
    norm = of_kernel[kernels_weights.square_sum][0]
    norm.arguments = (*norm.arguments[:-1], norm.arguments[-1] // 2)
    lines = []
    check = Check(replicas, lines.append)
    assert not check.kernels(subnets=(RICH,))
    limit = max(LIMITS["float64"])
    wrong = {kernel for kernel, (error, _) in check.worst.items() if not error < limit}
    assert wrong == {"conv_forward", "square_sum", "sgd"}
    assert sum(line.startswith("WRONG") for line in lines) == 3


def test_measures_of_the_best():
    truth, generator = np.arange(200.0), np.random.default_rng(0)
    ranking = truth + generator.normal(0, 40, 200)
    found = top_measures(ranking, truth)
    assert found["tau_top"] == kendall_tau(ranking[180:], truth[180:])
    for count in (1, 10, 100):
        assert found[f"regret_{count}"] == 199 - np.argsort(-ranking)[:count].max()


def test_results_take_new_columns(tmp_path):
    path = tmp_path / "results.csv"
    for row in ({"a": 1, "b": 2}, {"a": 3, "b": 4, "c": 5}, {"b": 7, "a": 6}):
        append_result(path, row)
    with path.open() as file:
        assert [list(row.values()) for row in csv.DictReader(file)] == [
            ["1", "2", ""],
            ["3", "4", "5"],
            ["6", "7", ""],
        ]


def test_command_line_trains_scores_and_compares(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "SIZE", 8)
    for module in (arguments, command_line):
        monkeypatch.setattr(module, "SCORING_BATCH", 4)
    monkeypatch.setattr(command_line, "_prepare", lambda plan, options: Replicas(plan, images))
    monkeypatch.setattr(command_line, "load_images", lambda *arguments: images)
    numbers = [(0, 0, 0, 2, 0, 0), (0,) * 6]
    rows = [
        f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|,{90 - i}"
        for i, (a, b, c, d, e, f) in enumerate(architecture(of).values() for of in numbers)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["arch_str,c10_test200", *rows]))
    common = ["--results", str(tmp_path / "results.csv")]
    options = "--arms static,poly --seeds 0 --updates 1 --channels 4 --cells 1 --batch 4"
    options += f" --images 8 --device cpu --precision float32 --table {tmp_path / 'table.csv'}"
    options += f" --runs {tmp_path} --out {tmp_path / 'out'}"
    command_line.main(["train", *options.split(), "--seconds", "0", *common])
    assert "--score-unfinished" in capsys.readouterr().out
    command_line.main(["train", *options.split(), *common])
    command_line.main(["score", *options.split(), *common])  # no second row
    rows = read_results(tmp_path / "results.csv")
    assert [(row["arm"], row["seed"]) for row in rows] == [("static", "0"), ("poly", "0")]
    first = {name: rows[0][name] for name in ("idle", "subnet_seed", "precision", "taken")}
    assert first == {"idle": "freeze", "subnet_seed": "0", "precision": "float32", "taken": "1"}
    (path,) = (tmp_path / "out").iterdir()
    with np.load(path) as saved:
        assert saved["loss"].shape == saved["accuracy"].shape == (2, 2, 2)
        assert saved["training_loss"].shape == (1, 2)
        chosen = [architecture(of) for of in saved["operations"]]
        assert np.array_equal(operations_of(chosen), saved["operations"])
    capsys.readouterr()
    print_differences(tmp_path / "results.csv")
    printed = capsys.readouterr().out
    assert "1 of 1 updates, C=4, N=1, float32, idle parameters: freeze" in printed
    assert "1 sequence(s) of subnets" in printed
    assert all(text in printed for text in ("τ of the best tenth by the loss", "mean accuracy"))


def test_errors_go_by_depth(tmp_path, capsys):
    """Chains of 0, 1 and 3 convolutions, ranked rightly by one arm and reversed by another."""
    chains = [(1, 0, 0, 1, 0, 0), (2, 0, 1, 0, 0, 1), (3, 0, 3, 0, 0, 3)]
    loss = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])[:, :, None]
    names = np.array(["static-freeze-s0", "calq-ms-coast-30-s0"])
    np.savez(
        tmp_path / "scores.npz", loss=loss, truth=[80, 90, 94], operations=chains, replicas=names
    )
    print_errors(tmp_path / "scores.npz")
    static, reversed_ = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert static == ["static", "+0%", "+0%", "+0%"]
    assert reversed_ == ["calq-ms", "+67%", "+0%", "−67%"]
