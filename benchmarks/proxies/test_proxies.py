"""Each part runs, in seconds, on tables that are made up; networks have published sizes."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.fft import dctn

from benchmarks.nb201.network import Network
from benchmarks.nb201.supernet import EDGES, OPERATIONS, SPACE
from benchmarks.proxies import __main__ as command
from benchmarks.proxies.encoders import SCORED, Encoder, parsed
from benchmarks.proxies.pretraining import PROXIES, SmallNetworks, cell_text
from benchmarks.proxies.recurrent import RecipeNetwork
from benchmarks.proxies.robot import METRICS
from benchmarks.proxies.sequences import BERT, RNN
from benchmarks.proxies.tasks import TASKS
from nas_dynamic.complexity import count_parameters
from nas_dynamic.search import PretrainedMLP
from nas_dynamic.search.proxies import METRICS as FUNCTIONS

pytestmark = pytest.mark.host

CELL = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of its own, and return what it found and printed."""

    def run(part, **options):
        results = tmp_path / "proxies.json"
        given = {"results": results, "runs": tmp_path / "runs", "seeds": 1, **options}
        words = [f"--{name}={value}" for name, value in given.items()]
        monkeypatch.setattr(sys, "argv", ["proxies", part, *words])
        command.main()
        return json.loads(results.read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "images/train" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def scores(tmp_path):
    generator = np.random.default_rng(0)
    names = [CELL.format(*a.values()) for a in (SPACE.sample(generator) for _ in range(12))]
    frame = pd.DataFrame(
        [
            {"space": "nasbench201", "task": task, "arch": name}
            for task in ("cifar10", "svhn")
            for name in names
        ]
    )
    for column in ("val_accuracy", *METRICS, "nwot", "zen"):
        frame[column] = generator.random(len(frame))
    frame.loc[3, "jacov"] = -1e8
    frame.to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path / "scores.csv"


def test_the_network_has_the_published_size():
    # The benchmark's own numbers of the smallest network, and of one with a 3×3 convolution.
    none = dict.fromkeys(EDGES, "none")
    assert count_parameters(Network(none)) == 73_306
    assert count_parameters(Network(none | {"1←0": "nor_conv_3x3"})) == 316_346
    assert count_parameters(Network(none | {"3←2": "nor_conv_1x1"})) == 101_306


def test_an_edge_without_effect_changes_no_output():
    x = torch.randn(4, 3, 8, 8)
    cell = dict.fromkeys(EDGES, "none") | {"3←0": "skip_connect"}
    outputs = []
    for architecture in (cell, cell | {"1←0": "avg_pool_3x3"}):
        torch.manual_seed(0)
        outputs.append(Network(architecture, 4, 1)(x))
    torch.testing.assert_close(*outputs)
    assert set(OPERATIONS) >= set(cell.values())


def test_ours_against_published_scores(run, scores, images):
    sizes = {"networks": 5, "batch": 8, "channels": 4, "cells": 1}
    found, printed = run("agreement", scores=scores, images=images, **sizes)
    of_task = found["agreement"]["tasks"]
    assert set(of_task["cifar10"]) > {"synflow", "gradient_norm", "counts"}
    assert of_task["svhn"]["naswot"]["n"] == 5
    assert "zen" in printed
    again, _ = run("agreement", scores=scores, images=images, **sizes)
    assert again == found  # with its seconds: nothing was computed again


def test_robot_on_tasks(run, scores):
    found, printed = run("robot", scores=scores, budget=4, seeds=2)
    methods = found["robot, 4"]["methods"]
    assert set(METRICS) | {"RoBoT", "random"} < set(methods)
    count = len(methods)
    assert sum(method["mean"] for method in methods.values()) == pytest.approx(
        count * (count + 1) / 2
    )
    assert "2 tasks, 2 seeds, 4 evaluations" in printed
    assert run("robot", scores=scores, budget=4, seeds=2)[0] == found


def test_tasks_from_one_pool(run, tmp_path):
    generator = np.random.default_rng(0)
    digits = ["".join(map(str, np.unravel_index(i, (4,) * 6))) for i in range(4096)]
    frame = pd.DataFrame({"arch": [f"64-41414-{d[0]}_{d[1:3]}_{d[3:]}" for d in digits]})
    for task in TASKS:
        frame[task] = generator.permutation(len(frame))
    frame.to_csv(tmp_path / "micro.csv", index=False)
    found, printed = run("tasks", table=tmp_path / "micro.csv", budget=40)
    assert set(found["tasks, 40"]["arms"]) == {"together", "alone"}
    assert "280" in printed
    assert run("tasks", table=tmp_path / "micro.csv", budget=40)[0] == found


def test_a_capped_first_population(run, tmp_path):
    rows = pd.DataFrame({"arch_str": [CELL.format(*a.values()) for a in SPACE]})
    generator = np.random.default_rng(0)
    rows["c10_val200"] = 10 + 80 * generator.random(len(rows))
    rows["lat_ms_pixel3"] = 40 * generator.random(len(rows))
    rows.to_csv(tmp_path / "nb201.csv", index=False)
    found, _ = run("capped", table=tmp_path / "nb201.csv")
    for volumes in found["capped"]["arms"].values():
        assert sorted(volumes) == volumes
        assert 0 < volumes[0] < volumes[-1] <= 1


def test_cells_that_compute_the_same_have_one_text():
    none = dict.fromkeys(EDGES, "none")
    by_first = none | {"1←0": "nor_conv_3x3", "3←1": "skip_connect", "3←0": "nor_conv_1x1"}
    by_second = none | {"2←0": "nor_conv_3x3", "3←2": "skip_connect", "3←0": "nor_conv_1x1"}
    assert cell_text(by_first) == cell_text(by_second) == "(nor_conv_1x1(x) + nor_conv_3x3(x)) 1 1"
    dead = none | {"1←0": "avg_pool_3x3", "2←1": "nor_conv_1x1"}
    assert cell_text(dead) == cell_text(none) == "0 0 0"
    # A node that is read twice has one convolution; two nodes alike have two.
    twice = none | {"1←0": "nor_conv_1x1", "3←1": "avg_pool_3x3", "2←1": "skip_connect"}
    twice |= {"3←2": "skip_connect"}
    alike = none | {"1←0": "nor_conv_1x1", "3←1": "avg_pool_3x3", "2←0": "nor_conv_1x1"}
    alike |= {"3←2": "skip_connect"}
    texts = [cell_text(cell).rsplit(" ", 2) for cell in (twice, alike)]
    assert texts[0][0] == texts[1][0]
    assert [text[1:] for text in texts] == [["1", "0"], ["2", "0"]]


def test_proxies_of_small_networks_are_computed_once_and_kept(tmp_path):
    rows, measured = tmp_path / "rows.csv", {}
    networks = SmallNetworks(rows, measured)
    cell = dict.fromkeys(EDGES, "none") | {"3←0": "nor_conv_3x3"}
    same = cell | {"1←0": "avg_pool_3x3"}
    values = {name: of(cell) for name, of in networks.measures().items()}
    assert values == {name: of(same) for name, of in networks.measures().items()}
    kept = pd.read_csv(rows)
    assert list(kept.columns) == ["cell", *PROXIES, "seconds"]
    assert kept[list(PROXIES)].to_dict("records") == [pytest.approx(values)]
    assert networks.seconds == kept["seconds"].sum() > 0
    assert SmallNetworks(rows, measured).seconds == 0
    assert set(PROXIES) <= set(FUNCTIONS)


def test_searches_with_and_without_proxies(run, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.proxies.pretraining.PREDICTOR", PretrainedMLP(6, 8, 2, 2))
    table = pd.DataFrame({"arch_str": [CELL.format(*a.values()) for a in SPACE]})
    table["c10_val200"] = np.arange(len(table)) % 5  # one of five is the best
    table.to_csv(tmp_path / "nb201.csv", index=False)
    given = {"table": tmp_path / "nb201.csv", "seeds": 2}
    found, printed = run("pretraining", **given)
    arms = found["pretraining"]["arms"]
    assert all(0 < arm["mean"] < 200 for arm in arms.values())
    assert arms["parameters, MACs"]["networks"] == 0
    # Those of the pre-training, and those that were evaluated; some of them are one network.
    assert 6 <= arms["and synflow"]["networks"] <= 6 + arms["and synflow"]["mean"]
    assert arms["and synflow"]["seconds"] > 0
    assert "2 seeds, paired" in printed
    assert run("pretraining", **given)[0] == found


def test_recurrent_networks_of_recipes(run, tmp_path, monkeypatch):
    # An LSTM without its bias terms, as the benchmark writes it, but with nodes in any order.
    gates = {n: {"op": "linear", "input": ["x", "h_prev_0"]} for n in "ifgo"}
    lstm = {
        "h_new_0": {"op": "elementwise_prod", "input": ["o_act", "c_act"]},
        **{n + "_act": {"op": "activation_sigm", "input": [n]} for n in "ifo"},
        "g_act": {"op": "activation_tanh", "input": ["g"]},
        "kept": {"op": "elementwise_prod", "input": ["f_act", "h_prev_1"]},
        "new": {"op": "elementwise_prod", "input": ["i_act", "g_act"]},
        "h_new_1": {"op": "elementwise_sum", "input": ["kept", "new"]},
        "c_act": {"op": "activation_tanh", "input": ["h_new_1"]},
        **gates,
    }
    network = RecipeNetwork(lstm, words=9, embedding=3, hidden=4)
    torchs = torch.nn.LSTM(3, 4, batch_first=True)
    linear = [network.cell.linear[gate] for gate in "ifgo"]  # the order of torch's rows
    values = {
        "weight_ih_l0": torch.cat([x.weight for x, _ in linear]),
        "weight_hh_l0": torch.cat([h.weight for _, h in linear]),
        "bias_ih_l0": torch.cat([x.bias for x, _ in linear]),
        "bias_hh_l0": torch.zeros(16),
    }
    torchs.load_state_dict(values)
    tokens = torch.randint(9, (2, 6))
    torch.testing.assert_close(network(tokens), torchs(network.embedding(tokens))[0][:, -1])

    monkeypatch.setattr("benchmarks.proxies.recurrent.HIDDEN", 6)
    blend = {
        "f": gates["f"],
        "a": {"op": "activation_leaky_relu", "input": ["f"]},
        "h_new_0": {"op": "blend", "input": ["f", "a", "h_prev_0"]},
    }
    recipes = pd.DataFrame({"recipe_id": [1, 2, 3, 3], "params": 1})
    recipes["recipe"] = [json.dumps(lstm), json.dumps(blend), *[json.dumps(lstm)] * 2]
    recipes["test_loss_50"] = [1.0, 2.0, 3.0, 3.0]
    recipes.to_csv(tmp_path / "recipes.csv", index=False)
    rnn = pd.DataFrame({"recipe_id": [1, 2, 3], "layer_1_hidden_covariance": [3.0, 2.0, 1.0]})
    rnn.assign(params=[1, 3, 2]).to_csv(tmp_path / "rnn.csv", index=False)
    given = {"recipes": tmp_path / "recipes.csv", "rnn": tmp_path / "rnn.csv"}
    found, printed = run("recurrent", **given)
    assert found["recurrent"]["n"] == 3
    assert found["recurrent"]["published, loss"].startswith("−1.00")
    assert "3 recurrent networks" in printed
    assert run("recurrent", **given)[0] == found


ENCODERS = {
    "SA-WMA-h4-f1024-n3/LT-DCT-h2-f512-n3/SA-SDP-h4-f512-n3/SA-SDP-h4-f1024-n1": 13_330_176,
    "LT-DFT-h4-f1024-n3/SA-SDP-h2-f1024-n1/DSC-9-h4-f512-n3/DSC-5-h2-f512-n1": 11_106_199,
    "DSC-9-h4-f512-n1/DSC-5-h2-f512-n1": 5_526_167,
    "LT-DFT-h4-f512-n1/LT-DCT-h2-f512-n1": None,
}


@pytest.mark.parametrize(("layers", "published"), list(ENCODERS.items())[:3])
def test_an_encoder_has_the_published_size(layers, published):
    with torch.device("meta"):
        assert count_parameters(Encoder(parsed(layers), *SCORED)) == published


def test_operations_of_an_encoder():
    x = torch.randn(2, 6, 128)
    convolution, cosines = (
        Encoder(parsed(f"{name}-h2-f8-n1"), 128).layers[0].operation for name in ("DSC-5", "LT-DCT")
    )
    by_head = cosines.input(x).detach().reshape(2, 6, 2, 64).numpy()
    expected = torch.from_numpy(dctn(by_head, type=2, axes=(1, 3))).flatten(2)
    torch.testing.assert_close(cosines(x), expected)

    inner = convolution.inner[0]  # one head of attention, and a convolution of as many units
    query, out = inner.query(x), inner.out(x)
    spans = inner.pointwise(inner.depthwise(x.transpose(1, 2))).transpose(1, 2)
    kernels = inner.kernel(spans * query).softmax(-1)
    for time in range(6):
        near = [t for t in range(time - 2, time + 3) if 0 <= t < 6]
        expected = sum(kernels[:, time, t - time + 2, None] * out[:, t] for t in near)
        torch.testing.assert_close(inner(x)[:, time, 64:], expected)


def test_encoders_of_a_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.proxies.encoders.WORDS", 9)
    monkeypatch.setattr("benchmarks.proxies.encoders.SCORED", (16, 8))
    layers = [*ENCODERS] * 2
    frame = pd.DataFrame({"id": range(8), "layers": layers, "hidden_size": [128, 256] * 4})
    frame["n_layers"] = frame["layers"].str.count("/") + 1
    frame["params"] = [count_parameters(Encoder(parsed(text), 16, 8)) for text in layers]
    generator = np.random.default_rng(0)
    for column in ("glue", "head_confidence_normalized", "head_softmax_confidence"):
        frame[column] = generator.random(8)
    frame["head_confidence"] = frame["params"]
    frame.to_csv(tmp_path / "bert.csv", index=False)
    found, printed = run("encoders", bert=tmp_path / "bert.csv")
    assert found["encoders"]["n"] == 8
    assert float(found["encoders"]["rho"]["projections, scored, published"][0]) > 0
    assert "8 encoders" in printed
    kept = pd.read_csv(tmp_path / "runs/encoders.csv").set_index("id")
    assert (kept.loc[[3, 7], "trained head_confidence"] == 0).all()  # these have no head
    # Weights are small, so that a head looks everywhere alike: at each of 128 words with 1/128.
    heads = {0: 4 + 4 + 4, 1: 2 + 2 + 1, 2: 2 + 1}  # convolutions take the place of half of them
    for number, count in heads.items():
        assert kept.loc[number, "trained head_confidence"] == pytest.approx(count / 128, rel=0.5)
    assert run("encoders", bert=tmp_path / "bert.csv")[0] == found
    frame.assign(params=1).to_csv(tmp_path / "bert.csv", index=False)
    (tmp_path / "runs/encoders.csv").unlink()
    with pytest.raises(ValueError, match=r"encoder 0 has [\d,]+ parameters here, and 1 in "):
        run("encoders", bert=tmp_path / "bert.csv")


def test_sequence_models_beside_controls(run, tmp_path):
    generator = np.random.default_rng(0)
    rnn = pd.DataFrame({"loss": generator.random(50)})
    for column in (*RNN, "jacobian_covariance", "params"):
        rnn[column] = -rnn["loss"]
    depth = np.repeat([2, 4], 30)
    bert = pd.DataFrame({"n_layers": depth, "glue": depth + generator.random(60)})
    bert["hidden_size"] = 128
    for column in (*BERT, "params"):
        bert[column] = depth + generator.random(60)
    rnn.to_csv(tmp_path / "rnn.csv", index=False)
    bert.to_csv(tmp_path / "bert.csv", index=False)
    found, printed = run("sequences", rnn=tmp_path / "rnn.csv", bert=tmp_path / "bert.csv")
    assert found["sequences"]["RNN, loss"]["params"]["rho"] == pytest.approx(-1)
    assert found["sequences"]["BERT, GLUE"]["params"]["rho"] > 0.6
    assert abs(found["sequences"]["BERT, GLUE, within"]["params"]["rho"]) < 0.4
    assert "head_confidence" in printed
    assert "head_confidence" in run("show")[1]
