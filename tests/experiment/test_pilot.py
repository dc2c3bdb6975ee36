"""`nas-dynamic doctor --supernet`: what it trains, what it sees, and what it advises."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas_dynamic.analysis.paired import Difference
from nas_dynamic.analysis.ranking import Estimate
from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.config import parse
from nas_dynamic.experiment.doctor.advice import SMALL, Signs, advise
from nas_dynamic.experiment.doctor.pilot import pilot_arms
from tests.experiment.configurations import CONFIG, TINY, write

WIDE = Difference(np.array([-0.1, 0.1, 0.05]))
NONE = Difference(np.array([-0.001, 0.0, 0.001]))
MORE = Difference(np.array([0.05, 0.06, 0.07]))
LESS = Difference(np.array([-0.05, -0.06, -0.07]))


def sign(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half, 3)


SIGNS = Signs(
    lag=sign(0.0),
    lessened=sign(0.0),
    label="layer1",
    within=sign(0.3),
    across=sign(0.2),
    calr=WIDE,
    momentum=WIDE,
    agreement=0.5,
    ceiling=0.8,
)
LAG = {"lag": sign(0.5), "lessened": sign(0.3)}
OPPOSED = {"across": sign(-0.3)}


@pytest.mark.parametrize(
    ("signs", "what"),
    [
        ({}, "cannot be told"),
        ({"calr": MORE}, "CaLR"),
        ({"calr": MORE, "momentum": MORE}, "CaLR + MS"),
        ({"calr": MORE, "momentum": LESS}, "CaLR"),
        ({"momentum": MORE}, "cannot be told"),
        (LAG, "CaLR"),
        (LAG | {"momentum": MORE}, "CaLR + MS"),
        # CaLR is a remedy for a lag only if it lessens it, and does no harm.
        (LAG | {"lessened": sign(0.05)}, "cannot be told"),
        (LAG | {"lag": sign(0.05)}, "cannot be told"),
        (LAG | {"calr": LESS, "momentum": NONE}, "nothing"),
        (OPPOSED, "few-shot"),
        (OPPOSED | {"calr": MORE}, "CaLR"),
        ({"calr": NONE, "momentum": NONE}, "nothing"),
        ({"calr": NONE}, "cannot be told"),
        ({"calr": LESS, "momentum": LESS}, "nothing"),
        # A ranking of equal subnets, and a space without groups, say nothing.
        ({"calr": Difference(np.array([np.nan, 0.1, 0.1]))}, "cannot be told"),
        ({"lag": Estimate(np.nan, np.nan, np.nan, 3)}, "cannot be told"),
        ({"across": Estimate(np.nan, np.nan, np.nan, 0)}, "cannot be told"),
    ],
)
def test_the_advice_is_what_the_intervals_show(signs: dict, what: str):
    assert advise(replace(SIGNS, **signs)).what == what


@pytest.mark.parametrize("seed", range(5))
def test_without_any_effect_few_are_advised_and_where_it_cannot_be_told_seeds_are_named(seed: int):
    """By chance an interval of 95% excludes 0 in one of 40 on either side."""
    generator = np.random.default_rng(seed)
    advised = []
    for _ in range(200):
        calr, momentum = (Difference(generator.normal(0, 0.05, 4)) for _ in range(2))
        advice = advise(replace(SIGNS, calr=calr, momentum=momentum))
        advised.append(advice.what)
        if advice.what == "cannot be told":
            width = max(abs(calr.mean), SMALL)
            assert (
                f"{calr.seeds_needed(width)} seeds would tell it to ±{width:.3f}" in advice.reason
            )
    assert sum(what.startswith("CaLR") for what in advised) <= 14
    assert advised.count("CaLR + MS") <= 2


def test_arms_differ_in_one_thing_each():
    others = {"curve": "cosine", "warmup_steps": 4}, {"idle": "coast"}
    for base in (CONFIG, TINY, *(TINY | {"dynamic": options} for options in others)):
        arms = pilot_arms(parse(base), 30, [0, 1])
        static, calr, both = (arm.model_dump() for arm in arms.values())
        assert {arm["steps"] for arm in (static, calr, both)} == {30}
        idle = base["dynamic"].get("idle", "auto")
        assert {arm["dynamic"]["idle"] for arm in (static, calr, both)} == {idle}

        def differing(first, other):
            return {key for key in first if first[key] != other[key]} - {"name"}

        assert differing(calr, both) == {"dynamic"}
        options = calr["dynamic"], both["dynamic"]
        assert {k for k in options[0] if options[0][k] != options[1][k]} == {"momentum"}
        if static["scheduler"] is None:
            assert static["dynamic"]["curve"] == calr["dynamic"]["curve"]
            assert static["dynamic"]["warmup_steps"] == calr["dynamic"]["warmup_steps"]
            assert static["dynamic"]["gamma_max"] == 1
        else:
            assert static["scheduler"]["name"] == "CosineAnnealingLR"
            assert calr["dynamic"]["curve"] == "cosine"


def test_one_seed_is_refused_before_anything_is_written(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", TINY)
    out = ["--out", str(tmp_path / "runs")]
    assert main(["doctor", "--supernet", config, "--seed", "3", *out]) == 1
    assert "give --seed two or more" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.host
def test_an_examination_of_a_supernet_and_its_end_kept(tmp_path, capsys, monkeypatch):
    config = write(tmp_path / "config.yaml", TINY, scoring={"subnets": 8})
    command = ["doctor", "--supernet", config, "--out", str(tmp_path)]
    command += ["--updates", "20", "--subnets", "5", "--seed", "0", "1"]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "small-doctor/doctor.json").read_text())
    assert f"Advice: {found['advice']['what']}. {found['advice']['reason']}." in printed
    assert f"nas-dynamic compare {config}" in printed

    # The figures again, from what the arms left.
    results = {
        arm: [
            json.loads((tmp_path / f"small-doctor/{arm}/seed-{seed}/result.json").read_text())
            for seed in (0, 1)
        ]
        for arm in ("static", "calr", "calr-ms")
    }
    assert {result["updates"] for arm in results.values() for result in arm} == {20}
    assert [result["group_by"] for result in results["calr"]] == [None, None]
    assert [result["group_by"] for result in results["calr-ms"]] == [found["label"]] * 2
    trained = [
        [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for path in sorted((tmp_path / "small-doctor").glob("standalone-*.jsonl"))
    ]
    assert [len(training) for training in trained] == [5, 5]
    alone = {
        json.dumps(row["architecture"]): (row["loss"] + other["loss"]) / 2
        for row, other in zip(*trained, strict=True)
    }

    def tau(result):
        rows = [
            (alone[text], subnet["loss"])
            for subnet in result["subnets"]
            if (text := json.dumps(subnet["architecture"])) in alone
        ]
        return kendalltau(*zip(*rows, strict=True)).statistic

    taus = {arm: [tau(result) for result in of_arm] for arm, of_arm in results.items()}
    assert found["calr"] == pytest.approx(np.subtract(taus["calr"], taus["static"]))
    assert found["momentum"] == pytest.approx(np.subtract(taus["calr-ms"], taus["calr"]))

    # Nothing is trained again.
    monkeypatch.setattr("nas_dynamic.experiment.run.train_supernet", None)
    monkeypatch.setattr("nas_dynamic.experiment.standalone.train_standalone", None)
    (tmp_path / "small-doctor/doctor.json").unlink()
    assert main(command) == 0
    assert json.loads((tmp_path / "small-doctor/doctor.json").read_text()) == found

    other = write(tmp_path / "other.yaml", TINY, batch_size=32, scoring={"subnets": 8})
    assert main(["doctor", "--supernet", other, *command[3:]]) == 1
    assert "batch_size was 64 and is 32" in capsys.readouterr().err
