"""Metrics leave a model as it was, and take a subnet, an extracted model and any module alike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nas_dynamic.complexity import CachedComplexity
from nas_dynamic.search import Objective, PretrainedMLP, Surrogate, search_supernet
from nas_dynamic.search.proxies import METRICS, proxy_measures
from tests.search.proxies.test_metrics import Attention, convolutional, images
from tests.search.test_supernet import Plain, nni_supernet, timm_supernet

OF_IMAGES = [n for n in METRICS if not n.startswith(("hidden", "head"))]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 5, batch_first=True, num_layers=2, dropout=0.5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Tied(nn.Module):
    """A frozen weight that is used twice, a buffer that each pass changes, and noise."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight.requires_grad_(False)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.second(torch.relu(self.first(x)) + torch.rand_like(x))[:, -1]


SEQUENCE = (torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4)
MODELS = {
    "batch norm": (lambda: convolutional(dropout=0.5), images(), OF_IMAGES),
    "group norm": (lambda: convolutional(lambda c: nn.GroupNorm(2, c)), images(), OF_IMAGES),
    "no norm": (lambda: convolutional(None), images(), OF_IMAGES),
    "transformer": (
        lambda: Attention("module"),
        SEQUENCE,
        [n for n in METRICS if n not in ("naswot", "zen", "hidden_covariance")],
    ),
    "recurrent": (
        Recurrent,
        SEQUENCE,
        ["gradient_norm", "snip", "synflow", "jacobian_covariance", "hidden_covariance"],
    ),
    "tied": (Tied, SEQUENCE, ["gradient_norm", "snip", "synflow", "naswot", "zen"]),
}
CASES = [(model, metric) for model, (_, _, metrics) in MODELS.items() for metric in metrics]


@pytest.mark.parametrize(("model", "metric"), CASES)
def test_a_model_is_as_it_was(model, metric):
    build, batch, _ = MODELS[model]
    network, metric = build().train(), METRICS[metric]
    next(network.children()).eval()  # modes may be mixed
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, float(number)) if number % 2 else None
    calls = []
    handle = network.register_forward_hook(lambda *args: calls.append(1))
    state = copy.deepcopy(network.state_dict())
    tensors = [*network.parameters(), *network.buffers()]
    flags = [p.requires_grad for p in network.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    modes = [module.training for module in network.modules()]
    hooks = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks))
        for m in network.modules()
    ]
    inputs, rng = batch[0].clone(), torch.get_rng_state()

    first = metric(network, batch)

    assert isinstance(first, float)
    assert torch.equal(torch.get_rng_state(), rng)
    assert metric(network, batch) == first  # the rng is where it was
    with torch.no_grad():
        assert metric(network, batch) == first
    assert torch.equal(batch[0], inputs)
    assert not batch[0].requires_grad
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    assert all(
        a is b for a, b in zip([*network.parameters(), *network.buffers()], tensors, strict=True)
    )
    assert [p.requires_grad for p in network.parameters()] == flags
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [module.training for module in network.modules()] == modes
    assert hooks == [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks))
        for m in network.modules()
    ]
    handle.remove()


@pytest.mark.parametrize("metric", ["gradient_norm", "naswot", "hidden_covariance", "zen"])
def test_a_model_that_raises_is_as_it_was(metric):
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(8, 3)

        def forward(self, x):
            self.rnn(x[:, 0])
            raise RuntimeError("no memory")

    model, rng = Raising().train(), torch.get_rng_state()
    weights = list(model.parameters())
    with pytest.raises(RuntimeError, match="no memory"):
        METRICS[metric](model, images())
    assert model.training
    assert not model.rnn._forward_hooks
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    "build",
    [
        Plain,
        pytest.param(timm_supernet, marks=pytest.mark.host),
        pytest.param(nni_supernet, marks=pytest.mark.host),
    ],
)
def test_an_active_subnet_is_as_the_extracted_model(build):
    torch.manual_seed(1)
    supernet, generator = build(), np.random.default_rng(0)
    batch = images(n=8, size=16)
    # Zen draws weights, of all of a supernet; NNI's and plain sliced parameters count whole.
    metrics = [n for n in OF_IMAGES if n not in ("zen", "parameters")]
    if build is Plain:
        metrics.remove("naswot")  # has no activation
    for _ in range(3):
        architecture = supernet.space.sample(generator)
        supernet.activate(architecture)
        extracted = supernet.extract(architecture)
        for name in metrics:
            active = METRICS[name](supernet, batch)
            assert METRICS[name](extracted, batch) == pytest.approx(active, rel=1e-3), name


def test_metrics_are_measures_of_a_search_that_a_predictor_learns():
    torch.manual_seed(0)
    supernet, batch = Plain(), images(n=8)
    measures = proxy_measures(supernet, batch, ["gradient_norm", "synflow", "jacobian_covariance"])
    assert all(isinstance(measure, CachedComplexity) for measure in measures.values())
    found = search_supernet(
        supernet,
        [batch],
        budget=9,
        batch_norm="batch",
        objectives=[Objective("loss"), Objective("synflow", maximize=True)],
        measures=measures,
        strategy=Surrogate(PretrainedMLP(subnets=20, steps=5, fine_tuning=5), initial=4, batch=3),
    )
    best = max(found.evaluations, key=lambda e: e.values["synflow"])
    supernet.activate(best.architecture)
    assert METRICS["synflow"](supernet, batch) == best.values["synflow"]
    assert best.architecture == {"first": 5, "second": 5}


def test_measures_of_extracted_subnets():
    supernet, batch = Plain(), images(n=8)
    of_extracted = proxy_measures(
        supernet, batch, {"own": METRICS["snip"]}, extract=supernet.extract
    )
    of_active = proxy_measures(supernet, batch, ["snip"])
    for architecture in supernet.space:
        assert of_extracted["own"](architecture) == pytest.approx(
            of_active["snip"](architecture), rel=1e-3
        )
    with pytest.raises(ValueError, match=r"\['grasp'\] is no metric; metrics are gradient_norm"):
        proxy_measures(supernet, batch, ["grasp"])
