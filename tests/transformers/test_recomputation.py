"""Gradient checkpointing computes layers again in the backward pass: those of the same subnet."""

from __future__ import annotations

import copy

import pytest
import torch

from nas_dynamic.adapters.transformers import elastic_lm
from tests.transformers.models import MODELS, SIZES, tokens

pytestmark = pytest.mark.host

SMALL = {"depth": 2, "width": 16, "ffn": 24}


def gradients(supernet):
    """Of both ends of the space, in one backward pass, with another subnet active."""
    supernet.zero_grad()
    losses = []
    for architecture in (supernet.base, supernet.base | {"ffn": 24}, SMALL):
        supernet.activate(architecture)
        losses.append(supernet(tokens(), labels=tokens()).loss)
    torch.stack(losses).sum().backward()
    assert supernet.architecture == SMALL
    return {name: parameter.grad for name, parameter in supernet.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_several_subnets(name, reentrant):
    model = MODELS[name]().train()
    for module in model.modules():  # GPT-2's would differ from pass to pass
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = elastic_lm(model, **SIZES)
    expected = gradients(plain)
    assert all(gradient is not None for gradient in expected.values())

    plain.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for supernet in (plain, copy.deepcopy(plain), elastic_lm(model, **SIZES)):
        assert supernet.is_gradient_checkpointing
        for parameter, gradient in gradients(supernet).items():
            assert torch.equal(gradient, expected[parameter])
