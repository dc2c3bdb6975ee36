"""`nas-dynamic search` over several runs: one pool of subnets, the best of each run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.export import chosen_architecture
from nas_dynamic.experiment.load import load_run
from nas_dynamic.experiment.search_runs import load_runs
from nas_dynamic.space import architecture_text
from nas_dynamic.storage.journal import RunError
from tests.experiment.configurations import TINY, write

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("compared")]

TASKS = ("static", "dynamic")


@pytest.fixture
def runs(compared, tmp_path) -> list[str]:
    """Copies of two runs of one space, whose supernets differ."""
    for name in TASKS:
        shutil.copytree(compared.folder / name, tmp_path / name)
    return [str(tmp_path / name) for name in TASKS]


def scored(run: str) -> list[str]:
    return (Path(run) / "seed-3/scores.jsonl").read_text().splitlines()[1:]


def found(run: str) -> dict:
    return json.loads((Path(run) / "search.json").read_text())


@pytest.mark.parametrize("strategy", [[], ["--strategy", "evolution"]])
def test_each_run_gets_the_best_of_one_pool(runs, strategy, capsys):
    sizes = sorted(s.parameters for s in load_run(runs[0]).result.subnets)
    limit = sizes[8]
    known = {run: len(scored(run)) for run in runs}
    command = ["search", *runs, "--limit", f"parameters={limit}", *strategy, "--budget"]
    assert main([*command, "30"]) == 0
    printed = capsys.readouterr().out
    new = {
        run: {
            architecture_text(line["architecture"]): line["loss"]
            for line in map(json.loads, scored(run))
        }
        for run in runs
    }
    for run, count in known.items():
        content = found(run)
        assert (content["evaluations"], content["strategy"]) == (
            30,
            strategy[-1] if strategy else "surrogate",
        )
        best = content["best"]
        assert best["values"]["parameters"] <= limit
        assert new[run][architecture_text(best["architecture"])] == best["values"]["loss"]
        assert len(scored(run)) <= count + 30
        loaded = load_run(run)
        assert chosen_architecture(loaded)[0] == best["architecture"]
        assert f"nas-dynamic export {run}" in printed
        assert architecture_text(best["architecture"]) in printed
    # What one run has scored the other has as well, but for those that training has scored.
    pools = [set(of_run) for of_run in new.values()]
    assert pools[0] == pools[1]
    size = load_run(runs[0]).supernet.subnet_parameters()
    within = list(map(json.loads, scored(runs[0])[known[runs[0]] :]))
    assert max(size(line["architecture"]) for line in within) <= limit < sizes[-1]
    check_front(runs, new)


def check_front(runs: list[str], losses: dict[str, dict[str, float]]) -> None:
    """The kept front is that of the losses in the files, by comparing all pairs."""
    content = found(runs[0])
    assert content["pareto"] == found(runs[1])["pareto"]
    front = [e["values"] for e in content["pareto"]]
    kept = np.array([[values[f"{name}/loss"] for name in TASKS] for values in front])
    size = load_run(runs[0]).supernet.subnet_parameters()
    assert all(
        size(e["architecture"]) <= content["limits"]["parameters"] for e in content["pareto"]
    )
    for e, row in zip(content["pareto"], kept, strict=True):
        text = architecture_text(e["architecture"])
        assert row.tolist() == [losses[run][text] for run in runs]
        assert not ((kept <= row).all(1) & (kept < row).any(1)).any()
    for run, name in zip(runs, TASKS, strict=True):
        own = found(run)["best"]["values"]["loss"]
        assert min(values[f"{name}/loss"] for values in front) == pytest.approx(own, abs=1e-6)


def test_a_search_of_runs_goes_on_after_a_stop(runs, tmp_path, monkeypatch):
    """Stopped between the two runs' scores of a subnet, it makes each score once."""
    from nas_dynamic.experiment import scores

    whole = [shutil.copytree(run, tmp_path / "whole" / Path(run).name) for run in runs]
    assert main(["search", *map(str, whole), "--budget", "25"]) == 0
    score, made = scores.SubnetScorer._score, []

    def stopped(self, architecture, place):
        if len(made) == 15:
            raise KeyboardInterrupt
        made.append(self.folder)
        return score(self, architecture, place)

    known = [len(scored(run)) for run in runs]
    monkeypatch.setattr(scores.SubnetScorer, "_score", stopped)
    assert main(["search", *runs, "--budget", "25"]) == 130
    assert not (Path(runs[0]) / "search.json").exists()
    after = [len(scored(run)) - before for run, before in zip(runs, known, strict=True)]
    assert sorted(after) == [7, 8]
    monkeypatch.setattr(scores.SubnetScorer, "_score", score)
    assert main(["search", *runs, "--budget", "25"]) == 0
    for run, other in zip(runs, whole, strict=True):
        assert scored(run) == scored(str(other))
        assert found(run)["best"] == found(str(other))["best"]
        assert found(run)["pareto"] == found(str(other))["pareto"]


def test_training_free_metrics_and_macs_of_each_run(runs, monkeypatch, capsys):
    monkeypatch.setattr("nas_dynamic.experiment.search.MEASURED", 12)
    macs = sorted(s.macs for s in load_run(runs[0]).result.subnets)[8]
    command = ["search", *runs, "--strategy", "pretrained", "--limit", f"macs={macs}"]
    assert main([*command, "--budget", "10"]) == 0
    values = found(runs[1])["best"]["values"]
    assert {"loss", "accuracy", "parameters", "macs", "synflow"} <= set(values)
    assert values["macs"] <= macs
    assert "MACs" in capsys.readouterr().out


def test_runs_that_cannot_be_searched_together_are_told(runs, tmp_path, capsys):
    assert main(["search", *runs, "--minimize", "macs"]) == 1
    assert "--minimize is for one run" in capsys.readouterr().err
    assert main(["search", runs[0], runs[0]]) == 1
    assert "is given twice" in capsys.readouterr().err
    assert main(["search", *runs, "--strategy", "robot", "--budget", "3"]) == 1
    assert "--strategy robot looks for one best subnet" in capsys.readouterr().err
    assert main(["search", *runs, "--limit", "parameters=5", "--budget", "3"]) == 1
    told = capsys.readouterr().err
    assert "the search cannot be made: no architecture found within static/parameters ≤ 5" in told
    assert [*load_runs([Path(run) for run in runs])] == [*TASKS]
    sizes = {"img_size": 8, "patch_size": 4, "search_embed_dim": [16, 32], "search_depth": [1, 2]}
    other = {"name": "AutoFormer", "kwargs": {**sizes, "search_num_heads": [2, 4]}}
    config = write(tmp_path / "other.yaml", TINY, name="other", space=other, epochs=1)
    assert main(["train", config, "--out", str(tmp_path)]) == 0
    with pytest.raises(RunError, match="are of different spaces"):
        load_runs([Path(runs[0]), tmp_path / "other"])
