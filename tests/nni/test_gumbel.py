"""Single-path Gumbel search: its gradients, its latency term, and what it gives within a limit."""

from __future__ import annotations

import atexit
import itertools

import pytest
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.differentiable import LinearTemperatureScheduler
from nni.nas.strategy import GumbelDARTS
from torch import nn
from torch.nn import functional as F

from nas_dynamic.adapters.nni import GumbelOneShot, activate, dynamic, extract, search_space
from nas_dynamic.adapters.nni.gumbel import CosinePowerTemperature, GumbelModule
from nas_dynamic.complexity import AdditiveTable
from tests.nni.runs import fit

pytestmark = pytest.mark.host


class Two(ModelSpace):
    """Two choices: one of named candidates, one of a list."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice(
            {f"linear{n}": nn.Linear(12, 5, bias=n > 0) for n in range(3)}, label="first"
        )
        self.second = LayerChoice([nn.Linear(5, 10), nn.Linear(5, 10)], label="second")

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).tanh())


def table_of(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AdditiveTable(
        1.0,
        {
            label: {c: float(torch.rand((), generator=generator)) for c in candidates}
            for label, candidates in search_space(space).choices.items()
        },
    )


def module_of(strategy, space):
    inner = nn.Module()
    inner.model = strategy.mutate_model(space)
    return GumbelModule(
        inner,
        strategy.temperature,
        logits=strategy._arch_parameters,
        strategy=strategy,
        arc_learning_rate=0.1,
    )


@pytest.mark.parametrize("max_w", [False, True])
def test_the_gradient_of_the_logits_is_that_of_the_straight_through_sample(max_w):
    """Against PyTorch's hard samples, and all candidates in the graph."""
    strategy = GumbelOneShot(max_w=max_w, temperature=LinearTemperatureScheduler(0.7, 0.7))
    module = module_of(strategy, Two())
    model, logits = module.model, strategy._arch_parameters
    for alpha in logits.values():
        nn.init.normal_(alpha)
    strategy.samples.tau = 0.7
    x = torch.randn(4, 3, 2, 2)
    torch.manual_seed(1)
    with strategy.samples.straight_through():
        sample = module.resample()
        output = model(x)
        output.square().sum().backward()
    found = {label: alpha.grad.clone() for label, alpha in logits.items()}
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(1)
    hidden = x.flatten(1)
    for layer, after in ((model.first, torch.tanh), (model.second, lambda h: h)):
        soft = F.gumbel_softmax(logits[layer.label], tau=0.7)
        hard = F.one_hot(soft.argmax(), len(soft))
        weights = 1 - soft.max() + soft if max_w else soft
        weights = hard + weights - weights.detach()
        hidden = after(
            sum(w * layer[name](hidden) for w, name in zip(weights, layer.names, strict=True))
        )
        assert layer.names[int(soft.argmax())] == sample[layer.label]
    torch.testing.assert_close(output, hidden)
    hidden.square().sum().backward()
    for label, alpha in logits.items():
        torch.testing.assert_close(found[label], alpha.grad)
        assert alpha.grad.abs().max() > 0
    # One path: of the candidates, those that were drawn alone have a graph.
    chosen = {f"{layer}.{sample[layer]}" for layer in ("first", "second")}
    assert {name.rsplit(".", 1)[0] for name in trained if "alpha" not in name} <= chosen


def test_a_weight_step_is_that_of_the_subnet_alone():
    strategy = GumbelOneShot()
    module = module_of(strategy, Two())
    x = torch.randn(4, 3, 2, 2)
    sample = module.resample()
    assert torch.equal(module.model(x), extract(module.model, sample)(x))
    module.model(x).sum().backward()
    assert all(alpha.grad is None for alpha in strategy._arch_parameters.values())


def test_draws_are_those_of_the_probabilities():
    strategy = GumbelOneShot()
    module = module_of(strategy, Two())
    strategy._arch_parameters["first"].data = torch.tensor([0.5, 0.3, 0.2]).log()
    torch.manual_seed(0)
    drawn = [module.resample()["first"] for _ in range(4000)]
    shares = [drawn.count(name) / len(drawn) for name in module.model.first.names]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    probabilities = module.export_probs()["first"].values()
    assert list(probabilities) == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("seed", range(5))
def test_expected_latency_and_what_keeps_the_limit(seed):
    """Against all subnets of a space, written out."""
    space = NasBench201(4, 1, 10)
    table = table_of(space, seed)
    subnets = list(search_space(space))
    limit = sorted(map(table, subnets))[len(subnets) // (3 + 20 * seed)]
    strategy = GumbelOneShot(latency=table, limit=limit)
    module = module_of(strategy, space)
    torch.manual_seed(seed)
    for alpha in strategy._arch_parameters.values():
        nn.init.normal_(alpha, std=2)
    log_p = {
        label: dict(zip(search_space(space).choices[label], a.log_softmax(0).tolist(), strict=True))
        for label, a in strategy._arch_parameters.items()
    }
    of = {tuple(a.values()): sum(log_p[k][c] for k, c in a.items()) for a in subnets}
    expected = sum(
        torch.tensor(p).exp() * table(a) for a, p in zip(subnets, of.values(), strict=True)
    )
    torch.testing.assert_close(module.expected_latency(), expected.float(), rtol=1e-4, atol=1e-4)
    found = module.export()
    assert table(found) <= limit
    within = [a for a in subnets if table(a) <= table(found) + 1e-9]
    assert of[tuple(found.values())] == max(of[tuple(a.values())] for a in within)
    probable = module.export(within_limit=False)
    assert of[tuple(probable.values())] == max(of.values())


def test_the_latency_term_lowers_the_latency(classification):
    def expected(strength):
        space = NasBench201(4, 1, 10)
        table = table_of(space)
        strategy = dynamic(
            GumbelOneShot(
                latency=table, limit=2.3, strength=strength, arc_learning_rate=0.1, warmup_epochs=1
            )
        )
        modules = []
        build = strategy.configure_oneshot_module
        strategy.configure_oneshot_module = lambda m: modules.append(build(m)) or modules[-1]
        fit(strategy, classification(max_epochs=5), space)
        return float(modules[-1].expected_latency())

    assert expected(10.0) < expected(0.0) - 0.5


def test_an_experiment_ends_in_a_network_within_the_limit(classification, tmp_path):
    space = Two()
    table = table_of(space)
    limit = sorted(map(table, search_space(space)))[1]
    strategy = dynamic(GumbelOneShot(latency=table, limit=limit))
    experiment = NasExperiment(space, classification((3, 2, 2), max_epochs=2), strategy)
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    (found,) = experiment.export_top_models(formatter="dict")
    experiment.stop()
    atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
    assert table(found) <= limit
    activate(strategy.supernet, found)
    drawn = strategy.draw(50)
    assert found in drawn
    assert len({tuple(a.values()) for a in drawn}) == len(drawn)
    assert {tuple(a.values()) for a in drawn} == {
        tuple(a.values()) for a in search_space(space) if table(a) <= limit
    }


def test_temperature_falls_by_the_cosine_power_curve():
    temperature = CosinePowerTemperature(5.0, 0.5)
    values = [temperature.step(epoch, 10) for epoch in range(11)]
    assert values[0] == 5.0
    assert values[-1] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[5] == pytest.approx(0.5 + 4.5 * (10**1.5 - 10) / 90)
    with pytest.raises(ValueError, match="max_epochs"):
        temperature.step(0, None)


def test_refusals(classification):
    table = AdditiveTable(1.0, {"first": {"linear0": 1.0, "linear1": 2.0, "linear2": 3.0}})
    with pytest.raises(ValueError, match="no gradient"):
        GumbelOneShot(penalty={"baseline": 1.0})
    with pytest.raises(ValueError, match="both, or neither"):
        GumbelOneShot(limit=1.0)
    with pytest.raises(ValueError, match="the fastest one has 2"):
        GumbelOneShot(latency=table, limit=1.5)
    with pytest.raises(ValueError, match=r"no entry for .* of 'second'"):
        GumbelOneShot(latency=table, limit=3.0).mutate_model(Two())
    with pytest.raises(RuntimeError, match="activate"):
        GumbelOneShot().mutate_model(Two())(torch.randn(1, 3, 2, 2))
    with pytest.raises(TypeError, match="GumbelDARTS does not"):
        dynamic(GumbelDARTS())
