"""Every benchmark runs, at a size of seconds: what the documents tell to run is there."""

from __future__ import annotations

import csv
import importlib
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
