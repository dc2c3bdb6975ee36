"""From a run to a network: `nas-dynamic search` and `export`, and files that need torch alone."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from nas_dynamic.complexity import AdditiveTable
from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.data import batch_loader
from nas_dynamic.experiment.scores import SubnetScorer
from nas_dynamic.experiment.search import expected_lowest
from nas_dynamic.storage.journal import RunError

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("compared")]


@pytest.fixture(scope="module")
def run(compared, tmp_path_factory):
    """A copy of a trained run."""
    folder = tmp_path_factory.mktemp("a run") / "tiny"
    shutil.copytree(compared.folder / "dynamic", folder)
    return folder


@pytest.fixture
def loaded(run):
    from nas_dynamic.experiment.load import load_run

    return load_run(run)


@pytest.fixture(scope="module")
def exported(run):
    """A folder with the files of the subnet that the run ranks first."""
    assert main(["export", str(run), "--onnx"]) == 0
    return run / "export"


def scored(run: Path) -> list[str]:
    return (run / "seed-3/scores.jsonl").read_text().splitlines()[1:]


def test_a_loaded_run_scores_as_the_training_did(loaded, run):
    before = scored(run)
    result = loaded.result.subnets
    anew = SubnetScorer(loaded.supernet, loaded.config, loaded.data)
    again = list(anew([subnet.architecture for subnet in result[:3]]))
    assert [(s.loss, s.accuracy) for s in again] == [(s.loss, s.accuracy) for s in result[:3]]
    kept = {
        tuple(s.architecture.values()): s.loss
        for s in loaded.score([r.architecture for r in result])
    }
    assert kept == {tuple(s.architecture.values()): s.loss for s in result}
    assert scored(run) == before


def test_a_search_keeps_to_the_limits_and_scores_nothing_twice(loaded, run, capsys):
    sizes = sorted(subnet.parameters for subnet in loaded.result.subnets)
    before = scored(run)
    command = ["search", str(run), "--limit", f"parameters={sizes[6]}", "--strategy", "random"]
    assert main([*command, "--budget", "20"]) == 0
    printed = capsys.readouterr().out
    assert f"nas-dynamic export '{run}'" in printed
    within = [s.loss for s in loaded.result.subnets if s.parameters <= sizes[6]]
    assert f"best of {min(20, len(within))} random ones has a loss of" in " ".join(printed.split())
    found = json.loads((run / "search.json").read_text())
    assert found["evaluations"] == 20
    assert found["best"]["values"]["parameters"] <= sizes[6]
    after = scored(run)
    new = [json.loads(line) for line in after[len(before) :]]
    assert len(new) > 10
    size = loaded.supernet.subnet_parameters()
    assert max(size(score["architecture"]) for score in new) <= sizes[6] < max(sizes)
    assert found["best"]["values"]["loss"] <= min(score["loss"] for score in new)
    assert main([*command, "--budget", "20"]) == 0
    assert scored(run) == after
    assert main([*command, "--budget", "25"]) == 0
    assert len(scored(run)) <= len(after) + 5
    (run / "search.json").unlink()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_expected_best_of_random_subnets(count):
    losses = [0.5, 2.0, 0.1, 0.7, 0.7]
    lowest = [min(drawn) for drawn in itertools.combinations(losses, count)]
    assert expected_lowest(losses, count) == pytest.approx(sum(lowest) / len(lowest))


@pytest.mark.parametrize("strategy", ["pretrained", "robot"])
def test_a_search_by_training_free_metrics(run, strategy, monkeypatch):
    if strategy == "robot":
        pytest.importorskip("bayes_opt")
    monkeypatch.setattr("nas_dynamic.experiment.search.MEASURED", 12)
    command = ["search", str(run), "--strategy", strategy, "--budget", "10"]
    assert main(command) == 0
    found = json.loads((run / "search.json").read_text())
    assert found["evaluations"] == 10
    assert {"synflow", "gradient_norm"} < set(found["best"]["values"])
    kept = scored(run)
    assert main(command) == 0
    assert json.loads((run / "search.json").read_text()) == found
    assert scored(run) == kept
    (run / "search.json").unlink()


def test_a_search_by_a_table_of_latencies(loaded, run, tmp_path, capsys):
    space = loaded.supernet.space
    table = AdditiveTable(
        1.0, {k: {c: float(c == "conv_3x3") for c in cs} for k, cs in space.choices.items()}
    )
    table.save(tmp_path / "phone.json")
    command = ["search", str(run), "--limit", "latency=2", "--budget", "12"]
    assert main([*command, "--latency-table", str(tmp_path / "phone.json")]) == 0
    assert "latency, ms" in capsys.readouterr().out
    best = json.loads((run / "search.json").read_text())["best"]
    assert list(best["architecture"].values()).count("conv_3x3") <= 1
    (run / "search.json").unlink()
    assert main([*command, "--latency-table", str(run / "config.json")]) == 1
    assert "is no complexity table" in capsys.readouterr().err


def test_limits_that_nothing_meets(run, capsys):
    assert main(["search", str(run), "--limit", "parameters=5", "--budget", "3"]) == 1
    error = capsys.readouterr().err
    assert "the search cannot be made" in error
    assert "parameters" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("limit", ["size=3", "parameters", "parameters=many", "macs=-1"])
def test_limits_that_are_none(limit, capsys):
    with pytest.raises(SystemExit):
        main(["search", "run", "--limit", limit])
    assert "such as parameters=50k" in capsys.readouterr().err


ALONE = """
    import sys
    sys.modules["nas_dynamic"] = None  # an import of it raises
    import torch
    images, labels = torch.load("images.pt", weights_only=True)
    {build}
    with torch.no_grad():
        logits = network(images)
    torch.save(logits, "logits.pt")
    print((logits.argmax(1) == labels).float().mean().item())
    assert not [m for m in sys.modules if m.startswith("nas_dynamic.")]
    assert not {without} & set(sys.modules)
"""


@pytest.mark.process
@pytest.mark.parametrize("file", ["subnet.pt2", "subnet.pt"])
def test_a_network_that_is_loaded_without_this_package_is_as_accurate(file, exported, loaded):
    content = json.loads((exported / "subnet.json").read_text())
    how = content["load"][file]
    if file == "subnet.pt2":  # torch alone
        build, without = f"network = {how}", {"nni", "pytorch_lightning", "timm"}
    else:
        build, without = "\n".join([*how, "network.eval()"]), set()
    ((images, labels),) = batch_loader(loaded.data.test, 5000)
    torch.save((images, labels), exported / "images.pt")
    code = textwrap.dedent(ALONE).format(build=build, without=repr(without))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.splitlines()[-1])
    assert accuracy == pytest.approx(content["accuracy"]["test"], abs=1e-6)
    logits = torch.load(exported / "logits.pt", weights_only=True)
    with torch.no_grad():
        expected = loaded.extract(content["architecture"])(images)
    torch.testing.assert_close(logits, expected)
    assert logits.std(0).min() > 0.01, "of outputs that are all alike the accuracy says little"


def test_onnx_computes_the_same(exported, loaded):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported / "subnet.onnx"))
    content = json.loads((exported / "subnet.json").read_text())
    ((images, labels),) = batch_loader(loaded.data.test, 5000)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    accuracy = (torch.from_numpy(logits).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(content["accuracy"]["test"], abs=1e-6)


def test_an_export_is_described(exported, loaded):
    content = json.loads((exported / "subnet.json").read_text())
    pick = loaded.result.pick
    assert content["architecture"] == pick.architecture
    assert content["parameters"] == pick.parameters
    assert content["macs"] == pick.macs
    assert content["accuracy"]["validation"] == pytest.approx(pick.accuracy)
    assert content["input"]["mean"] == pytest.approx(loaded.data.train.mean.tolist())
    assert not list(exported.glob(".*"))


def test_another_architecture_is_exported(run, loaded, tmp_path, capsys):
    wanted = dict.fromkeys(loaded.supernet.space.labels, "conv_1x1")
    command = ["export", str(run), "--out", str(tmp_path / "other"), "--architecture"]
    assert main([*command, json.dumps(wanted)]) == 0
    content = json.loads((tmp_path / "other/subnet.json").read_text())
    assert content["architecture"] == wanted
    assert main([*command, str(tmp_path / "other/subnet.json")]) == 0
    capsys.readouterr()
    assert main([*command, '{"a": 1}']) == 1
    assert "has no such subnet" in capsys.readouterr().err
    assert main([*command, "nowhere.json"]) == 1
    assert "--architecture takes" in capsys.readouterr().err


def test_what_cannot_be_loaded(compared, run, tmp_path):
    from nas_dynamic.experiment.load import load_run

    with pytest.raises(RunError, match=r"a comparison; give one of its arms: \S+static or "):
        load_run(compared.folder)
    with pytest.raises(RunError, match="has no finished seed 9; it has 3, 5"):
        load_run(run, 9)
    shutil.copytree(run, tmp_path / "other")
    content = json.loads((tmp_path / "other/config.json").read_text())
    content["space"]["kwargs"]["stem_out_channels"] = 4
    (tmp_path / "other/config.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="does not have the weights of the space of the run"):
        load_run(tmp_path / "other")
    for path in tmp_path.glob("other/seed-3/last.ckpt*"):
        path.unlink()
    with pytest.raises(RunError, match="the weights of a run are in its last checkpoint"):
        load_run(tmp_path / "other")


def test_the_commands_of_the_document(run, tmp_path, monkeypatch, capsys):
    """Every command line of docs/network.md, on a small run, with a small budget."""
    (tmp_path / "runs").mkdir()
    for name in ("digits", "letters"):
        shutil.copytree(run, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/network.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 7
    from nas_dynamic.experiment import search as searching

    quickly = partial(searching.measure_latency, seconds=0.001)
    monkeypatch.setattr(searching, "measure_latency", quickly)
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "nas-dynamic"
        if arguments[0] == "search":
            arguments += ["--budget", "15"]
        assert main(arguments) == 0, command
    (table,) = (tmp_path / "runs/digits").glob("latency-*.json")
    assert AdditiveTable.load(table).constant > 0
    found = capsys.readouterr().out
    assert "random subnets the table is off by" in found
    assert (tmp_path / "runs/mine/subnet.pt2").exists()
