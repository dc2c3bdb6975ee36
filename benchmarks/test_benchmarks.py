"""Every benchmark runs, at a size of seconds: what the documents tell to run is there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

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
`nb201` has tests of its own."""


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


def test_hosts_are_lent_torch_and_what_it_requires(tmp_path: Path):
    versions = hosts.lend(tmp_path)
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert {"torchvision", "sympy", "jinja2"} <= {name.lower() for name in versions}
    assert "numpy" not in versions
    for name in ("torch", "sympy", "torchvision"):
        there = importlib.import_module(name).__file__
        assert (tmp_path / name / "__init__.py").samefile(there)
