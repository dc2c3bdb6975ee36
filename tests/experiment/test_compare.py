"""`nas-dynamic compare` and `demo`: paired arms, what is kept, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from nas_dynamic.adapters.nni import search_space
from nas_dynamic.experiment import run as experiment
from nas_dynamic.experiment import standalone
from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.compare import static_arm
from nas_dynamic.experiment.config import parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.engine import LocalEngine
from nas_dynamic.experiment.nni.build import build_space
from nas_dynamic.experiment.nni.supernet import train_supernet
from nas_dynamic.experiment.run import checked_data, load_data
from nas_dynamic.experiment.standalone import standalone_scores
from tests.experiment.configurations import CONFIG, TINY
from tests.experiment.configurations import write as write_config

pytestmark = pytest.mark.xdist_group("trained run")

OPTIONS = ["--subnets", "6", "--standalone-epochs", "1"]
DEMO = ["demo", "--epochs", "1", "--subnets", "4", "--channels", "2", "--budget", "5"]


def write(path: Path, **changes) -> str:
    return write_config(path, TINY, **changes)


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """Which supernets are trained from here on: name of the configuration, and seed."""
    trained, train = [], experiment.train_supernet

    def counted(config, data, seed, **options):
        trained.append((config.name, seed))
        return train(config, data, seed, **options)

    monkeypatch.setattr(experiment, "train_supernet", counted)
    return trained


@pytest.fixture
def again(compared, tmp_path):
    """A copy of the finished comparison, and the arguments that made it."""
    shutil.copytree(compared.folder.parent, tmp_path / "again")
    out = str(compared.folder.parent)
    arguments = [text.replace(out, str(tmp_path / "again")) for text in compared.arguments]
    return tmp_path / "again" / compared.folder.name, arguments


def test_a_comparison_goes_on_with_more_seeds(again, trained, monkeypatch, capsys):
    folder, arguments = again
    first = {path: path.read_text() for path in folder.glob("*/seed-*/result.json")}
    assert len(first) == 4
    monkeypatch.setattr(standalone, "train_standalone", None)  # all of them are kept
    assert main([*arguments, "--seed", "4", "3"]) == 0
    assert trained == [("tiny-static", 4), ("tiny-dynamic", 4)]
    assert {path: path.read_text() for path in first} == first
    assert read(folder / "compare.json")["seeds"] == [3, 4]
    assert read(folder / "static/config.json")["seeds"] == [3, 4, 5]
    assert "mean over seeds 3 and 4" in capsys.readouterr().out
    trained.clear()
    assert main([*arguments, "--seed", "5"]) == 0
    assert trained == []
    assert "One seed tells nothing about the next one" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_of_another_configuration_is_refused(again, capsys):
    folder, arguments = again
    before = {path: path.read_text() for path in folder.rglob("*.json")}
    config = Path(arguments[1])
    config.write_text(config.read_text().replace("batch_size: 27", "batch_size: 16"))
    assert main(arguments) == 1
    assert "batch_size was 27 and is 16" in capsys.readouterr().err
    assert {path: path.read_text() for path in folder.rglob("*.json")} == before


def test_a_stop_leaves_no_comparison_beside_new_results(again, monkeypatch):
    folder, arguments = again

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train_supernet", stop)
    assert main([*arguments, "--seed", "3", "9"]) == 130
    assert not (folder / "compare.json").exists()


def test_both_arms_see_the_same_subnets_and_only_one_heeds_them(compared):
    traces = [
        read(compared.folder / f"{arm}/seed-3/result.json")["trace"]
        for arm in ("static", "dynamic")
    ]
    static, dynamic = traces
    assert [row["parameters"] for row in static] == [row["parameters"] for row in dynamic]
    assert len({row["lr"] for row in static}) == 4
    assert len({row["lr"] for row in dynamic}) > 15


@pytest.mark.host
def test_a_demo_goes_from_a_space_to_a_network_and_on_or_begins_anew(tmp_path, trained, capsys):
    out = ["--out", str(tmp_path), "--seed", "3"]
    assert main([*DEMO, *out]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed  # no terminal, no control characters
    said = " ".join(printed.split())
    result = read(tmp_path / "demo/seed-3/result.json")
    content = read(tmp_path / "demo/export/subnet.json")
    sizes = sorted(subnet["parameters"] for subnet in result["subnets"])
    assert content["parameters"] <= sizes[len(sizes) // 2]
    assert f"{content['accuracy']['test']:.1%} of the test images" in said
    for text in ("An update takes", "Measured elsewhere, not by this demo", "smallest fifth"):
        assert text in said
    loaded = torch.export.load(tmp_path / "demo/export/subnet.pt2").module()
    assert loaded(torch.rand(5, 3, 8, 8)).shape == (5, 10)
    assert trained == [("demo", 3)]
    assert main([*DEMO, *out]) == 0
    assert len(trained) == 1
    assert read(tmp_path / "demo/seed-3/result.json") == result
    assert main([*DEMO, "--epochs", "2", *out]) == 0
    assert len(trained) == 2
    assert read(tmp_path / "demo/config.json")["epochs"] == 2


def test_the_lrs_of_the_demo_are_those_of_small_and_large_subnets():
    from nas_dynamic.experiment.demo import learning_rates
    from nas_dynamic.report.records import SeedResult

    trace = [
        {"step": n, "lr": 0.1 * (1 - n / 1000) ** gamma, "parameters": size}
        for n in range(1000)
        for size, gamma in [[(10, 4.0), (20, 1.0), (30, 0.25)][n % 3]]
    ]
    subnet = {"architecture": {"a": 1}, "accuracy": 0.5, "loss": 1.0, "parameters": 10}
    result = SeedResult(
        seed=0, subnets=[subnet], validation_images=1, group_by=None, cost={"seconds": 1},
        updates=1000, updates_by_group={}, trace=trace, pairs=[],
    )  # fmt: skip
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in learning_rates(result).rows}
    for share, cells in rows.items():
        if share in ("25%", "50%", "75%"):
            left = 1 - float(share[:-1]) / 100
            assert cells == pytest.approx([0.1 * left**gamma for gamma in (4, 1, 0.25)], rel=0.05)


def test_a_demo_that_cannot_run_leaves_the_last_one(tmp_path, capsys):
    config = tmp_path / "demo/config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert main([*DEMO, "--device", "cuda:99", "--out", str(tmp_path)]) == 1
    assert "device is 'cuda:99', which cannot be used: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


OWN_SPACE = """
import nni
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d
from torch import nn

class Space(ModelSpace):
    def __init__(self, num_labels):
        super().__init__()
        self.pool = LayerChoice([nn.Identity(), nn.AvgPool2d(2)], label="pool")
        self.conv = MutableConv2d(3, 4, KERNEL, padding="same")
        self.head = nn.Linear(4, num_labels)

    def forward(self, x):
        return self.head(self.conv(self.pool(x)).mean((2, 3)))

def space(num_labels):
    return Space(num_labels)
"""


@pytest.fixture
def own_space(tmp_path, monkeypatch):
    def own_space(name: str, kernel: str) -> dict[str, str]:
        (tmp_path / f"{name}.py").write_text(OWN_SPACE.replace("KERNEL", kernel))
        monkeypatch.syspath_prepend(tmp_path)
        return {"name": f"{name}:space"}

    return own_space


@pytest.mark.host
def test_compare_takes_candidates_that_are_tuples(tmp_path, own_space):
    space = own_space("tuple_space", 'nni.choice("kernel", [(1, 3), (3, 3)])')
    config = write(tmp_path / "config.yaml", space=space, epochs=1)
    arguments = ["compare", config, "--out", str(tmp_path), *OPTIONS]
    for seeds in (["0"], ["0", "1"]):
        assert main([*arguments, "--seed", *seeds]) == 0
    comparison = read(tmp_path / "small-compare/compare.json")
    kernels = [subnet["architecture"]["kernel"] for subnet in comparison["standalone"]]
    assert sorted(kernels) == [[1, 3], [1, 3], [3, 3], [3, 3]]
    assert comparison["subnets"] == 4


@pytest.mark.parametrize("curve", ["cosine", "polynomial"])
def test_a_static_arm_of_calrs_needs_no_subnets_of_different_sizes(curve, own_space):
    options = {"complexity": "macs", "warmup_steps": 2}
    config = parse(TINY | {"space": own_space("macs_space", "3"), "dynamic": options})
    checked_data(static_arm(config, curve), config)


def test_arms_differ_in_the_method_alone():
    config = parse(TINY | {"steps": 50, "epochs": None})
    static, dynamic = static_arm(config).model_dump(), config.model_dump()
    differing = {key for key in dynamic if static[key] != dynamic[key]}
    assert differing == {"dynamic", "scheduler"}
    assert static["scheduler"] == {
        "name": "CosineAnnealingLR",
        "kwargs": {"T_max": 50},
        "interval": "step",
    }
    kept = parse(CONFIG)
    assert static_arm(kept).scheduler == kept.scheduler


@pytest.mark.host
@pytest.mark.parametrize("budget", [{"epochs": 2}, {"steps": 14}], ids=str)
def test_both_arms_warm_up_alike(budget):
    warmup, peak = 4, 0.05
    budget = {"epochs": None} | budget
    of_dynamic = {"warmup_steps": warmup, "gamma_by": "rank", "momentum": True}
    dynamic = parse(TINY | budget | {"dynamic": of_dynamic})
    data = load_data(dynamic.data)
    lrs = {}
    for name, config in {"static": static_arm(dynamic), "dynamic": dynamic}.items():
        recorder = train_supernet(config, data, 0, progress=lambda done, total, loss: None).recorder
        lrs[name] = [row["lr"] for row in recorder.rows]
        assert (recorder.group_by is None) == (name == "static")
    steps = len(lrs["static"])
    decay = [
        peak * (1 + math.cos(math.pi * t / (steps - warmup))) / 2 for t in range(steps - warmup)
    ]
    ramp = [peak * (t + 1) / warmup for t in range(warmup)]
    assert lrs["static"] == pytest.approx(ramp + decay)
    assert lrs["dynamic"][:warmup] == lrs["static"][:warmup]
    assert lrs["dynamic"][warmup + 1 :] != lrs["static"][warmup + 1 :]


@pytest.mark.host
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_static_arm_can_decay_as_calr_does(warmup):
    budget = {"epochs": None, "steps": 14}
    config = parse(TINY | budget | {"dynamic": {"warmup_steps": warmup}})
    static, data = static_arm(config, "polynomial"), load_data(config.data)
    recorder = train_supernet(static, data, 0, progress=lambda done, total, loss: None).recorder
    ramp = [0.05 * (t + 1) / warmup for t in range(warmup)]
    decay = [0.05 * (1 - t / (14 - warmup)) for t in range(14 - warmup)]
    assert [row["lr"] for row in recorder.rows] == pytest.approx(ramp + decay)
    assert recorder.group_by is None


FUSED = {"kwargs": {"lr": 0.05, "momentum": 0.9, "fused": True}}


@pytest.mark.parametrize(
    ("changes", "options", "messages"),
    [
        (
            {"scheduler": CONFIG["scheduler"]},
            ["--static-curve", "polynomial"],
            ["both arms have the scheduler of the file"],
        ),
        (
            {"scheduler": CONFIG["scheduler"], "dynamic": {"warmup_steps": 4}},
            [],
            ["warmup_steps is 4 beside scheduler CosineAnnealingLR", "dynamic.curve: scheduler"],
        ),
        ({"optimizer": FUSED}, [], ["SGD(fused=True, momentum=…) cannot", "leave fused out"]),
        ({"dynamic": {"calr": False, "momentum": False}}, [], ["nothing to compare"]),
        (
            {"dynamic": {"group_by": "nonsense"}},
            [],
            ["config.yaml: dynamic: group_by='nonsense' is no label of the space"],
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(
    changes, options, messages, tmp_path, capsys
):
    config = write(tmp_path / "config.yaml", **changes)
    assert main(["compare", config, "--out", str(tmp_path / "runs"), *OPTIONS, *options]) == 1
    error = capsys.readouterr().err
    for message in messages:
        assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.host
def test_finalists_can_be_told_apart_without_the_test_images(tmp_path):
    config = parse(TINY)
    data = experiment.load_data(config.data)
    labels = search_space(build_space(config, data.classes)).labels
    architecture = dict.fromkeys(labels, "conv_3x3")
    found = {}
    with Display() as display:
        for on in ("test", "validation"):
            options = (config, data, [architecture] * 2, 2, tmp_path, LocalEngine(display.work))
            found[on], same = standalone_scores(*options, on=on)
            assert same is found[on]
    assert len(list(tmp_path.glob("standalone-*.jsonl"))) == 2
    for on, score in found.items():
        images = len(getattr(data, on))
        assert score.accuracy * images == pytest.approx(round(score.accuracy * images))
    assert found["test"].accuracy != found["validation"].accuracy
