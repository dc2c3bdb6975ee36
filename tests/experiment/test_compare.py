from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from scipy import stats

from nas_dynamic.adapters.nni import search_space
from nas_dynamic.analysis import ranking
from nas_dynamic.experiment import compare as module
from nas_dynamic.experiment import run as experiment
from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.compare import standalone_scores, static_arm
from nas_dynamic.experiment.config import parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.nni.supernet import build_space, train_supernet
from nas_dynamic.experiment.run import checked_data, load_data
from tests.experiment.test_cli import CONFIG

TINY = CONFIG | {"epochs": 2, "scheduler": None, "dynamic": {}}
OPTIONS = ["--subnets", "6", "--standalone-epochs", "1"]


def write(path, **changes) -> str:
    path.write_text(yaml.safe_dump(TINY | changes))
    return str(path)


def test_compare_pairs_seeds_and_goes_on(tmp_path, capsys, monkeypatch):
    config = write(tmp_path / "config.yaml")
    arguments = ["compare", config, "--out", str(tmp_path), *OPTIONS]
    folder = tmp_path / "small-compare"
    assert main([*arguments, "--seed", "0"]) == 0
    assert "One seed tells nothing" in capsys.readouterr().out
    results = sorted(folder.glob("*/seed-*/result.json"))
    first = {path: path.read_text() for path in results}
    assert len(first) == 2

    trained, run_seed = [], experiment.run_seed

    def counted(config, data, seed, *arguments, **options):
        trained.append((options["name"], seed))
        return run_seed(config, data, seed, *arguments, **options)

    monkeypatch.setattr(experiment, "run_seed", counted)
    assert main([*arguments, "--seed", "0", "1", "2"]) == 0
    assert trained == [(arm, seed) for seed in (1, 2) for arm in ("static", "dynamic")]
    assert {path: path.read_text() for path in first} == first
    printed = capsys.readouterr().out
    assert "mean of 3 seeds" in printed

    # Every figure again, from the runs and the stand-alone accuracies on disk.
    comparison = json.loads((folder / "compare.json").read_text())
    (cache,) = tmp_path.glob("stand-alone-*.json")
    alone = {
        tuple(sorted(entry["architecture"].items())): entry["accuracy"]
        for entry in json.loads(cache.read_text())["truth"]
    }
    taus = {}
    for arm in ("static", "dynamic"):
        taus[arm] = []
        for seed in range(3):
            result = json.loads((folder / f"{arm}/seed-{seed}/result.json").read_text())
            accuracies = [subnet["accuracy"] for subnet in result["subnets"]]
            truth = [alone[tuple(sorted(s["architecture"].items()))] for s in result["subnets"]]
            losses = [-subnet["loss"] for subnet in result["subnets"]]
            sizes = [subnet["parameters"] for subnet in result["subnets"]]
            measured = {name: values[seed] for name, values in comparison["arms"][arm].items()}
            taus[arm].append(stats.kendalltau(losses, truth).statistic)
            assert measured["tau_accuracy"] == stats.kendalltau(accuracies, truth).statistic
            assert measured["bias"] == ranking.complexity_bias(losses, truth, sizes).value
            matched = ranking.matched_kendall(losses, truth, sizes).value
            assert measured["tau_matched"] == (matched if np.isfinite(matched) else None)
            assert measured["pick"] == truth[int(np.argmax(losses))]
    assert comparison["arms"]["static"]["tau"] == pytest.approx(taus["static"])
    test = stats.ttest_rel(taus["dynamic"], taus["static"])
    interval = test.confidence_interval(0.95)
    found = comparison["differences"]["tau"]
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]" in printed

    other = write(tmp_path / "other.yaml", batch_size=16)
    before = (folder / "static/config.json").read_text()
    assert main(["compare", other, "--out", str(tmp_path), *OPTIONS]) == 1
    assert "batch_size was 64 and is 16" in capsys.readouterr().err
    assert (folder / "static/config.json").read_text() == before


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


def test_compare_takes_candidates_that_are_tuples(tmp_path, own_space):
    space = own_space("tuple_space", 'nni.choice("kernel", [(1, 3), (3, 3)])')
    config = write(tmp_path / "config.yaml", space=space, epochs=1)
    arguments = ["compare", config, "--out", str(tmp_path), *OPTIONS]
    for seeds in (["0"], ["0", "1"]):
        assert main([*arguments, "--seed", *seeds]) == 0
    comparison = json.loads((tmp_path / "small-compare/compare.json").read_text())
    kernels = [subnet["architecture"]["kernel"] for subnet in comparison["truth"]]
    assert sorted(kernels) == [[1, 3], [1, 3], [3, 3], [3, 3]]


@pytest.mark.parametrize("curve", ["cosine", "polynomial"])
def test_a_static_arm_of_calrs_needs_no_subnets_of_different_sizes(curve, own_space):
    options = {"complexity": "macs", "warmup_steps": 2}
    config = parse(TINY | {"space": own_space("macs_space", "3"), "dynamic": options})
    checked_data(static_arm(config, curve), config)


def test_a_subnet_that_diverged_is_ranked_last():
    losses, truth = [1.0, None, 0.5, 2.0], np.array([0.8, 0.1, 0.9, 0.7])
    subnets = [{"accuracy": 0.5, "loss": loss, "parameters": n} for n, loss in enumerate(losses)]
    measured = module._measures({"subnets": subnets, "mean_accuracy": 0.5, "seconds": 1.0}, truth)
    assert measured["tau"] == pytest.approx(1)
    assert measured["pick"] == 0.9
    assert measured["tau_accuracy"] is None


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


@pytest.mark.parametrize("budget", [{"epochs": 2}, {"steps": 14}], ids=str)
def test_both_arms_warm_up_alike(budget):
    warmup, peak = 4, 0.05
    budget = {"epochs": None} | budget
    dynamic = parse(TINY | budget | {"dynamic": {"warmup_steps": warmup, "gamma_by": "rank"}})
    data = load_data(dynamic.data)
    lrs = {}
    for name, config in {"static": static_arm(dynamic), "dynamic": dynamic}.items():
        trained = train_supernet(config, data, 0, progress=lambda done, total: None)
        lrs[name] = [row["lr"] for row in trained.trace.rows]
        assert (trained.trace.group_by is None) == (name == "static")
    steps = len(lrs["static"])
    decay = [
        peak * (1 + math.cos(math.pi * t / (steps - warmup))) / 2 for t in range(steps - warmup)
    ]
    ramp = [peak * (t + 1) / warmup for t in range(warmup)]
    assert lrs["static"] == pytest.approx(ramp + decay)
    assert lrs["dynamic"][:warmup] == lrs["static"][:warmup]
    assert lrs["dynamic"][warmup + 1 :] != lrs["static"][warmup + 1 :]


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_static_arm_can_decay_as_calr_does(warmup):
    budget = {"epochs": None, "steps": 14}
    config = parse(TINY | budget | {"dynamic": {"warmup_steps": warmup}})
    static = static_arm(config, "polynomial")
    trained = train_supernet(static, load_data(config.data), 0, progress=lambda done, total: None)
    ramp = [0.05 * (t + 1) / warmup for t in range(warmup)]
    decay = [0.05 * (1 - t / (14 - warmup)) for t in range(14 - warmup)]
    assert [row["lr"] for row in trained.trace.rows] == pytest.approx(ramp + decay)
    assert trained.trace.group_by is None


def test_a_curve_of_the_static_arm_that_would_decay_nothing_is_refused(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", scheduler=CONFIG["scheduler"])
    arguments = ["compare", config, "--out", str(tmp_path), *OPTIONS]
    assert main([*arguments, "--static-curve", "polynomial"]) == 1
    assert "both arms have the scheduler of the file" in capsys.readouterr().err
    assert not (tmp_path / "small-compare").exists()


def test_a_warm_up_beside_a_scheduler_is_refused_ahead_of_any_training(tmp_path, capsys):
    changes = {"scheduler": CONFIG["scheduler"], "dynamic": {"warmup_steps": 4}}
    config = write(tmp_path / "config.yaml", **changes)
    assert main(["compare", config, "--out", str(tmp_path), *OPTIONS]) == 1
    error = capsys.readouterr().err
    assert "warmup_steps is 4 beside scheduler CosineAnnealingLR" in error
    assert "dynamic.curve: scheduler" in error
    assert not (tmp_path / "small-compare").exists()


def test_an_optimizer_that_cannot_freeze_is_refused_ahead_of_any_training(tmp_path, capsys):
    kwargs = {"lr": 0.05, "momentum": 0.9, "fused": True}
    config = write(tmp_path / "config.yaml", optimizer={"kwargs": kwargs})
    assert main(["compare", config, "--out", str(tmp_path), *OPTIONS]) == 1
    error = capsys.readouterr().err
    assert "SGD(fused=True, momentum=…) cannot" in error
    assert "leave fused out" in error
    assert not (tmp_path / "small-compare").exists()


def test_finalists_can_be_told_apart_without_the_test_images(tmp_path):
    config = parse(TINY)
    data = experiment.load_data(config.data)
    labels = search_space(build_space(config, data.classes)).labels
    architecture = dict.fromkeys(labels, "conv_3x3")
    found = {}
    with Display() as display:
        for on in ("test", "validation"):
            options = (config, data, [architecture], 2, tmp_path, display)
            (found[on],) = standalone_scores(*options, on=on)
    assert len(list(tmp_path.glob("stand-alone-*.json"))) == 2
    for on, score in found.items():
        images = len(getattr(data, on))
        assert score.accuracy * images == pytest.approx(round(score.accuracy * images))
    assert found["test"].accuracy != found["validation"].accuracy


def test_arms_are_checked_ahead_of_both(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", dynamic={"group_by": "nonsense"})
    assert main(["compare", config, "--out", str(tmp_path / "runs"), *OPTIONS]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nas-dynamic: dynamic: group_by='nonsense' is no label of the space")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_static_configuration_has_nothing_to_compare(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", dynamic={"calr": False, "momentum": False})
    assert main(["compare", config, "--out", str(tmp_path), *OPTIONS]) == 1
    assert "nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ([0.1, 0.11, 0.12], "ranks these subnets better"),
        ([-0.1, -0.11, -0.12], "worse at this budget"),
        ([0.3, -0.2, 0.1], "do not tell which training ranks better. At this spread about 100"),
        ([0.01, -0.011, 0.0], "If there is a difference, it is small"),
    ],
)
def test_the_verdict_is_what_the_interval_tells(differences, text):
    from nas_dynamic.analysis.paired import Difference

    difference = Difference(np.array(differences))
    low, high = difference.t_interval()
    comparison = {
        "seeds": [0, 1, 2],
        "subnets": 5,
        "standalone_epochs": 1,
        "alone": [0.1, 0.2],
        "curves": {"static": "cosine", "dynamic": "polynomial"},
        "differences": {
            "tau": {
                "mean": difference.mean,
                "low": low,
                "high": high,
                "seeds_needed": difference.seeds_needed(0.05),
            }
        },
    }
    assert text in module._verdict(comparison)
    told = low > 0 or high < 0
    assert ("--static-curve polynomial" in module._verdict(comparison)) == told
    comparison["curves"]["static"] = "polynomial"
    assert "--static-curve" not in module._verdict(comparison)
