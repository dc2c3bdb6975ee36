"""Losses by which subnets learn from a teacher, against their formulas."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nas_dynamic.adapters.transformers import (
    attention_features,
    elastic_lm,
    logits_loss,
    relation_loss,
)
from tests.transformers.models import MODELS, PLAIN, SIZES, gpt2, llama, random_subnets, tokens

pytestmark = pytest.mark.host


def divergence(teacher, student):
    """KL of two rows of scores, written out."""
    p, q = teacher.detach().softmax(-1), student.detach().softmax(-1)
    return float((p * (p.log() - q.log())).sum())


def test_logits_loss_is_the_mean_divergence():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 7, generator=generator, dtype=torch.float64)
    rows = zip(teacher.flatten(0, 1) / 3, student.flatten(0, 1) / 3, strict=True)
    expected = 9 * sum(divergence(t, s) for t, s in rows) / 10
    assert float(logits_loss(student, teacher, temperature=3)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"student are \(2, 5, 7\), of the teacher \(2, 5, 6\)"):
        logits_loss(student, teacher[..., :6])


def test_relation_loss_is_the_mean_divergence_of_relations():
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(2, 5, 8, generator=generator, requires_grad=True) for _ in range(3)]
    teacher = [torch.randn(2, 5, 12, generator=generator, requires_grad=True) for _ in range(3)]
    expected = []
    for s, t in zip(student, teacher, strict=True):
        for sequence in range(2):
            for head in range(4):
                of_student = s[sequence, :, 2 * head : 2 * head + 2]
                of_teacher = t[sequence, :, 3 * head : 3 * head + 3]
                expected += [
                    divergence(of_teacher[i] @ of_teacher.T / 3**0.5, q @ of_student.T / 2**0.5)
                    for i, q in enumerate(of_student)
                ]
    loss = relation_loss(student, teacher, heads=4)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    loss.backward()
    assert all(tensor.grad is not None for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)
    with pytest.raises(ValueError, match="3 relation heads do not divide 8 features"):
        relation_loss(student, teacher, heads=3)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_active_subnet(name):
    model, ids = MODELS[name](), tokens()
    supernet = elastic_lm(model, **PLAIN[name])
    for architecture in random_subnets(supernet, 3):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        with attention_features(supernet) as features:
            supernet(tokens(seed=2))
            supernet(ids)  # the last pass counts
        with attention_features(subnet, subnet.config.num_hidden_layers - 1) as alone:
            subnet(ids)
        assert len(features) == 3
        assert all(torch.equal(one, other) for one, other in zip(features, alone, strict=True))
        queries = subnet.config.num_attention_heads * supernet.space.head_dim
        assert features[0].shape == (*ids.shape, queries)


def test_in_place_distillation_from_the_largest_subnet():
    """The layers that only the teacher has get the gradient of its own loss alone."""
    supernet, ids = elastic_lm(gpt2(), **SIZES), tokens()
    with attention_features(supernet) as teacher_features:
        teacher = supernet(ids, labels=ids)
    teacher.loss.backward(retain_graph=True)
    before = {name: p.grad.clone() for name, p in supernet.named_parameters()}
    supernet.activate({"depth": 2, "width": 32, "ffn": 24})
    with attention_features(supernet) as features:
        student = supernet(ids)
    loss = logits_loss(student.logits, teacher.logits)
    (loss + relation_loss(features, teacher_features, heads=2)).backward()
    after = {name: p.grad for name, p in supernet.named_parameters()}
    last = [name for name in before if name.startswith("transformer.h.2.")]
    assert last
    assert all(torch.equal(before[name], after[name]) for name in last)
    first = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(before[first][:32, :24], after[first][:32, :24])
    assert torch.equal(before[first][32:], after[first][32:])


def test_a_frozen_teacher_of_another_size():
    teacher, ids = llama(num_hidden_layers=4, hidden_size=96, head_dim=16), tokens()
    supernet = elastic_lm(llama(), **SIZES)
    supernet.activate({"depth": 1, "width": 16, "ffn": 24})
    with attention_features(teacher) as wanted, torch.no_grad():
        logits = teacher(ids).logits
    losses = []
    optimizer = torch.optim.Adam(supernet.parameters(), lr=3e-3)
    for _ in range(20):
        with attention_features(supernet) as features:
            own = supernet(ids).logits
        loss = logits_loss(own, logits) + relation_loss(features, wanted, heads=1)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_features_under_gradient_checkpointing():
    supernet = elastic_lm(llama(), **SIZES).train()
    weight = supernet.model.layers[0].mlp.up_proj._parameters["weight"]
    found = []
    for options in (None, {"use_reentrant": False}):
        if options:
            supernet._set_gradient_checkpointing(
                gradient_checkpointing_func=functools.partial(checkpoint, **options)
            )
        with torch.no_grad(), attention_features(supernet) as wanted:
            supernet(tokens(seed=2))
        with attention_features(supernet) as features:
            supernet(tokens())
        found += torch.autograd.grad(relation_loss(features, wanted, heads=2), weight)
    assert torch.equal(*found)
    assert found[0].abs().max() > 0
    supernet._set_gradient_checkpointing(
        gradient_checkpointing_func=functools.partial(checkpoint, use_reentrant=True)
    )
    with attention_features(supernet), pytest.raises(RuntimeError, match="use_reentrant=False"):
        supernet(tokens())
