"""Every benchmark runs, at a size of seconds: what the documents tell to run is there."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import hosts

pytestmark = pytest.mark.host

QUICK = {
    "digits.grouping": "--epochs 1 --seeds 1",
    "memory.growth": "--updates 1000",
    "memory.state": "--groups 2",
    "speed.overhead": "--tensors 9 --groups 2 --updates 4",
    "speed.scoring": "--subnets 2 --plain 1 --images 64 --calibration 32 --batch 32",
}
SLOW = {
    "digits.distillation": "--epochs 1 --seeds 1",
    "digits.nni_search": "--epochs 1 --seeds 1 --candidates 21",
    "digits.strategies": "--epochs 1 --subnets 2",
    "speed.checks": "--batch 2 --updates 2",
    "speed.cost": "--channels 4 --cells 1 --size 8 --batch 4 --steps 4 --warm-up 1",
    "speed.lazy_coasting": "--updates 1",
}
"""`soak` is in neither, since the tests run its parts; nor is `hosts`, which installs packages;
`nb201`, `proxies` and `constant_lr` have tests of their own."""


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_benchmark_runs(name, monkeypatch, capfd):
    if name in ("digits.nni_search", "digits.strategies"):
        pytest.importorskip("tianshou")
    if name.startswith("digits"):
        pytest.importorskip("nni")
    monkeypatch.setattr(sys, "argv", [name, *(QUICK | SLOW)[name].split()])
    importlib.import_module(f"benchmarks.{name}").main()
    assert capfd.readouterr().out


def test_constant_lr_trains_what_its_results_lack(tmp_path, capsys):
    pytest.importorskip("nni")
    from benchmarks.constant_lr import ARMS, main

    pixels = np.random.default_rng(0).integers(256, size=(128, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "images" / ("train", "test")[number % 2] / f"class{number % 4 // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    cell = "|{}~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|skip_connect~2|"
    rows = [
        f"{cell.format(op)},{accuracy}" for op, accuracy in (("none", 50), ("skip_connect", 60))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["arch_str,c10_test200", *rows]))
    results = tmp_path / "results.csv"
    arguments = ["--seeds", "0", "--updates", "2", "--subnets", "2", "--results", str(results)]
    arguments += ["--data", str(tmp_path / "images"), "--table", str(tmp_path / "table.csv")]
    arguments += ["--runs", str(tmp_path), "--arms", ",".join(ARMS)]
    main(["run", *arguments])
    written = results.read_text()
    assert [row["arm"] for row in csv.DictReader(written.splitlines())] == [*ARMS, *ARMS]
    main(["run", *arguments])
    assert results.read_text() == written
    capsys.readouterr()
    main(["table", *arguments])
    printed = capsys.readouterr().out
    assert printed.count("mean accuracy") == 2 * len(ARMS)
    assert printed.count("τ by the loss") == len(ARMS)


def test_hosts_are_lent_torch_and_what_it_requires(tmp_path: Path):
    versions = hosts.lend(tmp_path)
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert {"torchvision", "sympy", "jinja2"} <= {name.lower() for name in versions}
    assert "numpy" not in versions
    for name in ("torch", "sympy", "torchvision"):
        there = importlib.import_module(name).__file__
        assert (tmp_path / name / "__init__.py").samefile(there)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("latency_limit", "--epochs 3 --alone 1 --seeds 0 --arms spos gumbel random"),
        ("sandwich", "--epochs 1 --seeds 1 --arms sandwich calr"),
        ("ensembles", "--epochs 1 --seeds 2 --subnets 12"),
        ("enas_memory", "--epochs 1 --seeds 1"),
    ],
)
def test_a_benchmark_makes_what_its_results_lack(name, options, tmp_path, capsys):
    pytest.importorskip("tianshou" if name == "enas_memory" else "nni")
    module = importlib.import_module(f"benchmarks.digits.{name}")
    results = tmp_path / "results"
    options = [*options.split(), "--results", str(results)]
    if name == "latency_limit":
        options += ["--latencies", str(tmp_path / "table.json")]
    module.main(["run", *options])
    made = results.read_text()
    module.main(["run", *options])  # which has nothing left to do
    assert results.read_text() == made
    capsys.readouterr()
    module.main(["table", *options])
    assert re.search(r"[+−]\d", capsys.readouterr().out), "no difference"


def test_elastic_lm_trains_what_its_results_lack(tmp_path, capsys):
    pytest.importorskip("transformers")
    from benchmarks.elastic_lm.__main__ import main

    arms = ["calr", "own", "deviation", "both_global"]
    results = tmp_path / "results.csv"
    options = ["--data", str(Path(__file__).parents[1] / "README.md"), "--lr", "0.003"]
    options += ["--updates", "3", "--seeds", "1", "--results", str(results)]
    main([*options, "--arms", *arms[:2]])
    rows = results.read_text()
    main([*options, "--arms", *arms])
    assert results.read_text().startswith(rows)
    with results.open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == arms
    assert "both_global         1 seeds" in capsys.readouterr().out


def test_ends_of_elastic_lm_are_held_against_themselves_alone(tmp_path, capsys):
    pytest.importorskip("transformers")
    from benchmarks.elastic_lm.__main__ import main
    from benchmarks.elastic_lm.rows import by_seed
    from benchmarks.nb201.report import rows_of

    results = tmp_path / "results.csv"
    options = ["--data", str(Path(__file__).parents[1] / "README.md"), "--lr", "0.003"]
    options += ["--updates", "3", "--seeds", "2", "--results", str(results)]
    main([*options, "--arms", "alone", "static", "calr"])
    alone, static, calr = (by_seed(rows_of(results), arm=a) for a in ("alone", "static", "calr"))
    gaps = [calr[seed]["largest"] - alone[seed]["largest"] for seed in (0, 1)]
    less = np.mean([calr[seed]["largest"] - static[seed]["largest"] for seed in (0, 1)])
    line = capsys.readouterr().out.splitlines()[-1].replace("−", "-")
    assert line.startswith(
        f"calr {'':14} 2 seeds  largest above itself alone {np.mean(gaps):+.4f} ["
    )
    assert f"  less static {less:+.4f} [" in line


def test_the_preset_for_a_gpu_trains_in_bfloat16(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from benchmarks.elastic_lm import training
    from benchmarks.elastic_lm.__main__ import main
    from benchmarks.elastic_lm.rows import by_seed
    from benchmarks.nb201.report import rows_of

    small = {"width": 32, "depth": 2, "context": 16, "batch": 2, "heads": 4}
    for name, bf16 in (("gpu", True), ("cpu", False)):
        size = dataclasses.replace(training.PRESETS["gpu"], bf16=bf16, **small)
        monkeypatch.setitem(training.PRESETS, name, size)
    data = ["--data", str(Path(__file__).parents[1] / "README.md"), "--device", "cpu"]
    found = {}
    for preset in ("gpu", "cpu"):
        results = tmp_path / f"{preset}.csv"
        options = ["--preset", preset, "--updates", "40", "--seeds", "1", "--arms", "calr"]
        main([*data, *options, "--results", str(results)])
        assert rows_of(results)[0]["lr"] == "0.001"
        found[preset] = by_seed(rows_of(results), arm="calr")[0]["mean"]
    assert found["gpu"] != found["cpu"]
    assert found["gpu"] == pytest.approx(found["cpu"], rel=1e-3)


def test_effects_of_a_teacher_and_of_linear_attention(tmp_path, capsys):
    pytest.importorskip("transformers")
    from benchmarks.elastic_lm.effects import main

    results = tmp_path / "results.csv"
    options = ["--updates", "2", "--seeds", "1", "--results", str(results)]
    data = str(Path(__file__).parents[1] / "README.md")
    main([*options, "--data", data, "--arms", "distilled", "linear", "mixed"])
    rows = results.read_text()
    main([*options, "--data", data])
    assert results.read_text().startswith(rows)
    with results.open() as file:
        found = {(row["arm"], row["attention"]): float(row["mean"]) for row in csv.DictReader(file)}
    assert [*found][:2] == [("distilled", "softmax"), ("linear", "linear")]
    assert len(found) == 7
    assert len(set(found.values())) == 7
    printed = capsys.readouterr().out
    assert "distilled           1 seeds" in printed
    assert printed.count("mixed: in turn      1 seeds") == 3


def test_fronts_of_attention_are_compared_over_seeds(tmp_path, capsys):
    pytest.importorskip("timm")
    from benchmarks.digits.attention import main

    results = tmp_path / "results.jsonl"
    options = ["--epochs", "1", "--budget", "4", "--seeds", "1", "--results", str(results)]
    main(["run", *options])
    rows = results.read_text()
    main(["run", *options])
    assert results.read_text() == rows
    capsys.readouterr()
    main(["table", *options])
    assert "linear   macs" in capsys.readouterr().out


def test_sub_spaces_are_trained_and_compared_over_seeds(tmp_path, capsys):
    pytest.importorskip("transformers")
    from benchmarks.elastic_lm.sub_spaces import ARMS, main

    results = tmp_path / "results.csv"
    options = ["--updates", "3", "--pretraining", "1", "--results", str(results)]
    data = str(Path(__file__).parents[1] / "README.md")
    main([*options, "--data", data, "--seeds", "1"])
    with results.open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [*ARMS]
    capsys.readouterr()
    main(options)
    assert "three sub-spaces    1 seeds" in capsys.readouterr().out


def test_searches_over_bits_are_compared_over_seeds(capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("torchao")
    from benchmarks.elastic_lm.bits import main

    data = str(Path(__file__).parents[1] / "README.md")
    main(["--data", data, "--updates", "2", "--budget", "30", "--seeds", "2"])
    printed = capsys.readouterr().out
    assert "49,152 architectures" in printed
    assert printed.count("hypervolume 0.") == 4
    assert "2 seeds of the search" in printed


def test_deviations_of_groups_by_their_formula():
    from benchmarks.elastic_lm.states import separate_deviations

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.999), weight_decay=0.0)
    group = None
    separate_deviations(optimizer, lambda: group, memory=0.8)
    expected, mean, square = weight.detach().clone(), torch.zeros(5).double(), 0.0
    deviations = {0: torch.zeros(5).double(), 1: torch.zeros(5).double()}
    for step in range(1, 9):
        group = step % 2
        gradient = torch.randn(5, dtype=torch.float64)
        gradient[4] = 0.0  # outside of the slice
        if step > 1:
            own = deviations[group]
            own += 0.2 * torch.where(gradient != 0, gradient - mean - own, 0.0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        first = (mean + deviations[group]) / (1 - 0.9**step)
        expected -= 0.1 * first / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)
    assert float(weight.detach()[4]) == float(expected[4])


def test_a_controller_learns_from_the_best_past_architectures():
    pytest.importorskip("tianshou")
    from nni.nas.hub.pytorch import NasBench201
    from nni.nas.strategy.rl import TuningTrajectoryGenerator, default_policy_fn
    from tianshou.data import ReplayBuffer

    from benchmarks.digits.enas_memory import STEPS, replaying

    torch.manual_seed(0)
    seen = []

    def controller(env):
        policy = default_policy_fn(env)
        update = policy.update

        def told(sample_size, buffer, **options):
            rows = np.arange(len(buffer)).reshape(-1, STEPS)
            seen.append([(tuple(buffer.act[r]), float(buffer.rew[r[-1]])) for r in rows])
            return update(sample_size, buffer, **options)

        policy.update = told
        return replaying(policy, kept=2)

    generator = TuningTrajectoryGenerator(NasBench201(4, 1, 10), controller)
    weights = [p.detach().clone() for p in generator.policy.parameters()]
    buffer, past, rewards = ReplayBuffer(3 * STEPS), [], np.random.default_rng(0).random(9)
    for number, reward in enumerate(rewards, 1):
        with torch.no_grad():
            generator.next_sample()
        trajectory = generator.send_reward(float(reward))
        past.append((tuple(trajectory.act), float(reward)))
        buffer.update(trajectory)
        if number % 3 == 0:
            for _ in range(2):  # as ENAS does; the second time nothing else is replayed
                generator.policy.update(0, buffer, batch_size=8, repeat=1)
                earlier = sorted(past[: number - 3], key=lambda one: -one[1])[:2]
                assert sorted(seen[-1]) == sorted(past[number - 3 : number] + earlier)
    assert any(
        (p != before).any()
        for p, before in zip(generator.policy.parameters(), weights, strict=True)
    )


def test_edit_distances_of_cells():
    pytest.importorskip("tianshou")
    from benchmarks.digits.enas_memory import edit_distances

    labels = [f"cell/{start}_{end}" for end in range(1, 4) for start in range(end)]
    none = dict.fromkeys(labels, "none")
    by_one = none | {"cell/0_1": "conv_3x3", "cell/1_3": "conv_1x1"}
    by_two = none | {"cell/0_2": "conv_3x3", "cell/2_3": "conv_1x1"}
    direct = none | {"cell/0_3": "conv_1x1"}
    # The same graph by another inner node; two operations; two edges less; one edge.
    assert edit_distances([by_one, by_two]) == [0]
    assert edit_distances([by_one, by_one | {"cell/0_1": "skip_connect"}]) == [1]
    assert edit_distances([by_one, none]) == [2]
    assert edit_distances([direct, none]) == [1]
