"""The NAS-Bench-201 example runs, resumes, and anneals the lr of every arm."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from nas_dynamic.complexity import count_parameters
from nas_dynamic.host import Supernet

pytestmark = pytest.mark.host

FOLDER = Path(__file__).parents[2] / "examples" / "nasbench201"


@pytest.fixture
def example(monkeypatch):
    """Import the example's module, at a size of seconds."""
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train")
    monkeypatch.setitem(train.PRESETS, "small", train.Preset(4, 1, 2, 8))
    digits = train.digits
    monkeypatch.setattr(train, "digits", lambda: digits(validation=0.9))
    yield train
    for name in ("train", "supernet"):
        sys.modules.pop(name)


@pytest.fixture
def run(example, monkeypatch, tmp_path):
    def run(method, sampler, out=tmp_path, **options):
        arguments = ["--method", method, "--sampler", sampler, "--out", str(out), "--device", "cpu"]
        published = options.pop("published", False)
        arguments += [text for key, v in options.items() for text in (f"--{key}", str(v))]
        arguments += ["--as-published"] if published else []
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        example.main()
        return out / f"{method}-{sampler}-small{'-published' if published else ''}-s0"

    return run


@pytest.mark.parametrize("method", ["static", "calr", "ms", "dynamic"])
@pytest.mark.parametrize("sampler", ["spos", "fair", "fewshot"])
def test_every_arm_trains_and_scores(example, run, method, sampler, tmp_path):
    table = tmp_path / "standalone.csv"
    rows = [f"{example.key_of(a)},{50 + i % 40}" for i, a in enumerate(example.SPACE)]
    table.write_text("\n".join(["arch_str,c10_test200", *rows]))
    folder = run(method, sampler, standalone=table)
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["mean"] <= result["best"] <= 1
    assert -1 <= result["tau"] <= 1
    supernets = sorted(path.name for path in folder.glob("*.pt"))
    assert len(supernets) == (6 if sampler == "fewshot" else 1)
    for name in supernets:
        saved = torch.load(folder / name, weights_only=True)
        assert saved["epoch"] == 2
        if method in ("static", "ms"):
            assert saved["scheduler"]["_last_lr"] == pytest.approx([0.0], abs=1e-9)
        training = saved["optimizer"]["dynamic_training"]
        if method in ("ms", "dynamic"):
            assert 1 < len(training["groups"]["groups"]) <= 5
        else:
            assert training["groups"] is None
        assert (training["definition"]["calr"] is None) == (method in ("static", "ms"))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_fairnas_as_published_equals_the_loop_of_the_scripts(example, run, method):
    """Five optimizers of a constant lr, and losses that are summed, each with its factor."""
    folder = run(method, "fair", published=True)
    trained = torch.load(folder / "supernet.pt", weights_only=True)["supernet"]

    torch.manual_seed(0)
    data, space = example.digits(), example.SPACE
    supernet = example.Supernet(4, 1, data.classes)
    size = supernet.subnet_parameters()
    sizes = [size(architecture) for architecture in space]
    slope = -(4 - 0.25) / (math.log(max(sizes)) - math.log(min(sizes)))
    batches = example.batch_loader(data.train, 64, shuffle=True, seed=0)
    edge = "3←0" if method == "dynamic" else None
    sampler = example.FairSampler(space, 0, edge)
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    optimizers = {
        operation: torch.optim.SGD(supernet.parameters(), 0.025, **options)
        for operation in (space.choices[edge] if edge else [None])
    }
    total, step = 2 * len(batches), 0
    supernet.train()
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        for images, labels in batches:
            subnets = sampler.sample()
            optimizer = optimizers[subnets[0][edge] if edge else None]
            optimizer.zero_grad(set_to_none=False)
            for subnet in subnets:
                supernet.activate(subnet)
                gamma = 0.25 + slope * (math.log(size(subnet)) - math.log(max(sizes)))
                factor = (1 - step / total) ** gamma if edge else 1.0
                (factor * torch.nn.functional.cross_entropy(supernet(images), labels)).backward()
            optimizer.step()
            step += 1
    for name, parameter in supernet.state_dict().items():
        torch.testing.assert_close(trained[name], parameter, rtol=1e-4, atol=1e-5)


def test_few_shot_as_published_starts_each_supernet_anew_with_the_bounds_of_all(example, run):
    folder = run("dynamic", "fewshot", published=True)
    assert len(list(folder.glob("*.pt"))) == 5
    size = example.Supernet(4, 1, 10).subnet_parameters()
    sizes = [size(architecture) for architecture in example.SPACE]
    for path in folder.glob("*.pt"):
        saved = torch.load(path, weights_only=True)["optimizer"]["dynamic_training"]
        assert saved["definition"]["calr"]["bounds"] == pytest.approx((min(sizes), max(sizes)))


def test_stopped_and_resumed_equals_straight(example, run, monkeypatch, tmp_path):
    straight = run("dynamic", "fair", tmp_path / "straight")
    save = example.save

    def stop(path, **state):
        save(path, **state)
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run("dynamic", "fair")
    monkeypatch.setattr(example, "save", save)
    resumed = run("dynamic", "fair")
    one, other = (torch.load(f / "supernet.pt", weights_only=True) for f in (straight, resumed))
    assert one["supernet"].keys() == other["supernet"].keys()
    for name, value in one["supernet"].items():
        assert torch.equal(value, other["supernet"][name])
    results = [json.loads((f / "result.json").read_text()) for f in (straight, resumed)]
    assert results[0] == results[1]


def test_size_and_name_of_a_subnet(example):
    operations = ["nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3"]
    architecture = dict(zip(example.SPACE.labels, [*operations, *operations[:2]], strict=True))
    assert example.key_of(architecture) == (
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    )
    supernet = example.Supernet(4, 2, 10)
    supernet.activate(architecture)
    assert isinstance(supernet, Supernet)
    size = supernet.subnet_parameters()(architecture)
    assert size == count_parameters(supernet, torch.randn(2, 3, 8, 8))


def test_one_edge_for_both_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("dynamic", "fewshot", split="3←0")
    assert "must be different edges" in capsys.readouterr().err
