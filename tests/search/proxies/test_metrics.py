"""Metrics against cases worked out by hand, and against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas_dynamic.search.proxies import (
    METRICS,
    gradient_norm,
    head_confidence,
    head_importance,
    hidden_covariance,
    jacobian_covariance,
    macs,
    naswot,
    parameters,
    snip,
    synflow,
    zen,
)

K = 1e-5


def linear(*rows) -> nn.Linear:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], len(rows), bias=False)
    layer.weight.data.copy_(weight)
    return layer


def of_eigenvalues(*values: float) -> float:
    return -sum(math.log(value + K) + 1 / (value + K) for value in values)


def images(n=6, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=generator), torch.arange(n) % 4


def convolutional(norm=nn.BatchNorm2d, dropout=0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        norm(6) if norm else nn.Identity(),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        norm(8) if norm else nn.Identity(),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_gradient_norm_and_snip_by_hand():
    # Logits (1, −1) of the input 1: softmax (p, 1 − p), so the gradient of W is (p − 1, 1 − p).
    model, batch = linear([1.0], [-1.0]), (torch.ones(1, 1), torch.tensor([0]))
    p = 1 / (1 + math.exp(-2))
    assert gradient_norm(model, batch) == pytest.approx(math.sqrt(2) * (1 - p))
    assert snip(model, batch) == pytest.approx(2 * (1 - p))


def test_gradient_norm_and_snip_of_all_layers():
    model, (x, y) = convolutional(), images()
    loss = F.cross_entropy(model.train()(x), y)
    weights = [p for p in model.parameters() if p.dim() > 1]
    found = torch.autograd.grad(loss, weights)
    expected = sum(float(g.norm()) for g in found)
    assert gradient_norm(model, (x, y)) == pytest.approx(expected, rel=1e-4)
    expected = sum(float((w * g).detach().abs().sum()) for w, g in zip(weights, found, strict=True))
    assert snip(model, (x, y)) == pytest.approx(expected, rel=1e-4)


def test_synflow_by_hand():
    # R = Σ |W₂| |W₁| 1 = 3·(1 + 2) + 4·(2 + 1) = 21, and each layer's products add up to R.
    model = nn.Sequential(linear([1.0, -2.0], [-2.0, 1.0]), linear([-3.0, 4.0]))
    batch = (torch.zeros(1, 2), torch.tensor([0]))
    assert synflow(model, batch) == pytest.approx(math.log1p(2 * 21))


def test_synflow_does_not_see_batch_norm_and_does_not_overflow():
    model, batch = convolutional(), images()
    bare = nn.Sequential(*(m for m in model if not isinstance(m, nn.BatchNorm2d)))
    assert synflow(model, batch) == synflow(bare, batch)
    deep = nn.Sequential(*(linear(*[[10.0] * 10] * 10) for _ in range(30)))
    # R = 10 · 100³⁰; of 30 layers.
    expected = math.log(30) + math.log(10) + 30 * math.log(100)
    assert synflow(deep, (torch.zeros(1, 10), torch.tensor([0]))) == pytest.approx(expected)


def test_jacobian_covariance_by_hand():
    # A linear model has the same Jacobian everywhere: correlations are 1, eigenvalues n and 0.
    model, batch = linear([1.0, 2.0, 4.0]), (torch.randn(3, 3), torch.zeros(3, dtype=torch.long))
    # Rounding leaves eigenvalues of about 1e-16, of which 1 / (λ + k) hardly depends.
    assert jacobian_covariance(model, batch) == pytest.approx(of_eigenvalues(3, 0, 0), rel=1e-6)


def test_jacobian_covariance_as_published():
    model, (x, y) = convolutional(), images()
    x = x.requires_grad_()
    model.train()(x).sum().backward()
    eigenvalues, _ = np.linalg.eig(np.corrcoef(x.grad.flatten(1).double()))
    expected = -np.sum(np.log(eigenvalues + K) + 1 / (eigenvalues + K))
    assert jacobian_covariance(model, (x.detach(), y)) == pytest.approx(expected, rel=1e-4)


def test_a_jacobian_that_is_zero_is_the_worst():
    class Constant(nn.Linear):
        def forward(self, x):
            return self.bias.expand(len(x), -1)

    model, (x, y) = Constant(4, 3), (torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    assert jacobian_covariance(model, (x, y)) == pytest.approx(of_eigenvalues(5, 0, 0, 0, 0))


def test_states_that_overflow_are_the_worst():
    class Exploding(nn.Linear):
        def forward(self, x):
            return super().forward(x) / torch.tensor([1.0, 0.0, 0.0])

    batch = (torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    model = nn.Sequential(Exploding(4, 3), nn.ReLU())
    # Two units that are infinite count as the third.
    found = hidden_covariance(model, batch, layer="0")
    assert found == pytest.approx(of_eigenvalues(3, 0, 0), rel=1e-6)


def test_naswot_by_hand():
    # States 10, 11: two positions agree with oneself, one with the other; det [[2, 1], [1, 2]] = 3.
    model = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0]), nn.ReLU())
    batch = (torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    assert naswot(model, batch) == pytest.approx(math.log(3))
    same = (torch.ones(2, 2), torch.tensor([0, 1]))
    assert naswot(model, same) == -math.inf


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.GELU(),
        nn.SiLU(inplace=True),
        nn.Hardswish(),
        nn.PReLU(),
        nn.ELU(),
        nn.LeakyReLU(inplace=True),
        nn.Mish(),
    ],
    ids=repr,
)
def test_naswot_counts_states_of_activations_and_of_functions(activation):
    class Functional(nn.Sequential):
        def forward(self, x):
            return self[0](x).relu() + torch.relu(self[1](x))

    x, y = images()
    layers = [nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)]
    states = [(layer(x) > 0).flatten(1).double() for layer in layers]
    kernel = sum(s @ s.T + (1 - s) @ (1 - s).T for s in states)
    expected = float(np.linalg.slogdet(kernel.detach().numpy())[1])
    assert naswot(Functional(*layers), (x, y)) == pytest.approx(expected)

    class Modules(Functional):
        def forward(self, x):
            return activation(self[0](x)) + activation(self[1](x))

    assert naswot(Modules(*layers), (x, y)) == pytest.approx(expected)


def test_zen_without_batch_norm_is_the_distance_of_the_features():
    model, (x, y) = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)), images()
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    torch.randn(4, 144, generator=generator)
    torch.randn(x.shape, generator=generator)
    step = 0.01 * torch.randn(x.shape, generator=generator)
    expected = F.conv2d(step, weight).abs().flatten(1).sum(1).mean().log()
    assert zen(model, (x, y), seed=5) == pytest.approx(float(expected), rel=1e-3)
    assert zen(model, (x, y), seed=5, layer="0") == zen(model, (x, y), seed=5)


def test_zen_multiplies_what_batch_norm_divides_by():
    model, (x, y) = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images()
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    x = torch.randn(x.shape, generator=generator)
    moved = x + 0.01 * torch.randn(x.shape, generator=generator)
    before = F.conv2d(x, weight)
    plain, moved = (
        F.batch_norm(v, None, None, training=True) for v in (before, F.conv2d(moved, weight))
    )
    sigma = before.var((0, 2, 3), correction=0).mean().sqrt()
    expected = (plain - moved).abs().flatten(1).sum(1).mean().log() + sigma.log()
    assert zen(model, (x, y), seed=5) == pytest.approx(float(expected), rel=1e-3)


def test_parameters_and_macs_are_those_of_the_network():
    model, batch = convolutional(), images()
    assert parameters(model, batch) == sum(p.numel() for p in model.parameters())
    assert macs(model, batch) == 6 * 27 * 64 + 8 * 54 * 16 + 32


def test_hidden_covariance_is_of_units_or_of_inputs():
    torch.manual_seed(0)
    tokens, labels = torch.randint(11, (5, 7)), torch.zeros(5, dtype=torch.long)

    class Recurrent(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.embedding = nn.Embedding(11, 4)
            self.rnn = nn.LSTM(4, 6, batch_first=batch_first)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x = self.embedding(x)
            return self.head(self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))[0])

    model, twin = Recurrent(True), Recurrent(False)
    twin.load_state_dict(model.state_dict())
    states = model.rnn(model.embedding(tokens))[0].detach().double()
    for of, rows in (("units", states.flatten(0, 1).T), ("inputs", states.flatten(1))):
        eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows))
        expected = -np.sum(np.log(eigenvalues + K) + 1 / (eigenvalues + K))
        for network in (model, twin):
            found = hidden_covariance(network, (tokens, labels), of=of)
            assert found == pytest.approx(expected, rel=1e-3)
            assert hidden_covariance(network, (tokens, labels), of=of, layer="rnn") == found


@pytest.mark.parametrize("of", ["units", "inputs"])
def test_hidden_covariance_of_a_cell_that_is_called_at_each_time(of):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state

    torch.manual_seed(0)
    model, x = Steps(), torch.randn(4, 5, 3)
    rnn = nn.GRU(3, 4, batch_first=True)
    for name, values in model.cell.named_parameters():
        getattr(rnn, f"{name}_l0").data.copy_(values.data)
    batch = (x, torch.zeros(4, dtype=torch.long))
    # The order of what is correlated over does not matter.
    expected = hidden_covariance(rnn, batch, of=of)
    assert hidden_covariance(model, batch, of=of, layer="cell") == pytest.approx(expected, rel=1e-3)


class Attention(nn.Module):
    """Attention of three heads, causal, in each of the ways that a transformer may be written."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        self.head = nn.Linear(6, 4)

    def attend(self, x, gate=None):
        """Attention weights and the output, written out; the gate multiplies heads."""
        qkv = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, 3, 2)).permute(2, 0, 3, 1, 4)
        if self.way == "fused" and gate is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            weights = None
        else:
            scores = (q @ k.transpose(-2, -1)) / 2**0.5
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            out = weights @ v
        if gate is not None:
            out = out * gate[..., None, None]
        return weights, self.attention.out_proj(out.transpose(1, 2).flatten(2))

    def forward(self, x):
        if self.way == "module":
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            y = self.attention(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0]
        else:
            y = self.attend(x)[1]
        return self.head(y.mean(1))


@pytest.mark.parametrize("way", ["module", "fused", "softmax"])
def test_heads_are_seen_however_attention_is_written(way):
    torch.manual_seed(0)
    model, x, y = Attention(way), torch.randn(5, 4, 6), torch.tensor([0, 1, 2, 3, 0])
    gate = torch.ones(5, 3, requires_grad=True)
    weights, out = model.attend(x, gate)
    confidence = weights.amax(-1).mean((0, 2))
    assert head_confidence(model, (x, y)) == pytest.approx(
        float(confidence.detach().sum()), rel=1e-5
    )
    assert head_confidence(model, (x, y), mean=True) == pytest.approx(
        float(confidence.detach().mean())
    )
    # Michel et al.: the derivative with respect to a mask of the head, for each input.
    loss = F.cross_entropy(model.head(out.mean(1)), y)
    (of_gate,) = torch.autograd.grad(loss, gate)
    expected = float(of_gate.abs().mean(0).sum())
    assert head_importance(model, (x, y)) == pytest.approx(expected, rel=1e-4)


def test_attention_that_is_computed_here_is_torchs():
    """Capturing heads computes attention anew: with masks, other keys, groups, in every layout."""
    from nas_dynamic.search.proxies.sequences import _AttentionWeights

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8) for n in (5, 7, 7))
    seen = torch.rand(2, 1, 5, 7) > 0.3
    seen[..., 0] = True
    added = torch.randn(5, 7)
    with _AttentionWeights():
        ours = [
            F.scaled_dot_product_attention(q, k, v, seen),
            F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=0.3),
            F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        ]
    theirs = [
        F.scaled_dot_product_attention(q, k, v, seen),
        F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=0.3),
        F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    ]
    torch.testing.assert_close(ours, theirs)

    x, memory = torch.randn(5, 2, 8), torch.randn(7, 2, 6)
    padding = torch.zeros(2, 7)
    padding[1, 4:] = -math.inf
    for batch_first in (False, True):
        module = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=batch_first)
        q, m = (t.transpose(0, 1) if batch_first else t for t in (x, memory))
        options = {"key_padding_mask": padding, "attn_mask": torch.randn(4, 5, 7)}
        for average in (False, True):
            options["average_attn_weights"] = average
            with _AttentionWeights():
                found = module(q, m, m, **options)
            torch.testing.assert_close(found, module(q, m, m, **options))
    single = nn.MultiheadAttention(8, 2, bias=False)
    with _AttentionWeights():
        found = single(x[:, 0], x[:, 0], x[:, 0])
    torch.testing.assert_close(found, single(x[:, 0], x[:, 0], x[:, 0]))


def test_torchs_transformer_has_its_heads_seen():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3)
    x, y = torch.randn(4, 5, 8), torch.zeros(4, 5, dtype=torch.long)
    assert 6 / 5 < head_confidence(model, (x, y)) < 6
    assert head_confidence(model, (x, y)) == pytest.approx(
        6 * head_confidence(model, (x, y), mean=True)
    )
    assert head_importance(model, (x, y)) > 0


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("naswot", "no rectifier"),
        ("hidden_covariance", "name the module whose"),
        ("head_confidence", "no attention that is seen"),
        ("head_importance", "no attention that is seen"),
    ],
)
def test_models_that_a_metric_cannot_read_are_told(metric, message):
    batch = (torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=message):
        METRICS[metric](nn.Linear(4, 2), batch)


def test_a_layer_that_is_not_there_is_told():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    batch = (torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no module 'rnn'; its modules are 0, 1"):
        hidden_covariance(model, batch, layer="rnn")


def test_a_jacobian_of_tokens_is_refused():
    tokens = (torch.tensor([[0, 1]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"floating point, and these are torch.int64"):
        jacobian_covariance(nn.Embedding(4, 2), tokens)
