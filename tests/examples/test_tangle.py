"""The mixture of all subnets: which network it is, and what its gradients are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.adapters.timm import elastic_vit

FOLDER = Path(__file__).parents[2] / "examples" / "tangle"


@pytest.fixture
def mixture(monkeypatch):
    """Return the mixture of a small space, with weights that are far from their start."""
    monkeypatch.syspath_prepend(str(FOLDER))
    example = importlib.import_module("mixture")
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )
    supernet = elastic_vit(model, depth=[1, 2], embed_dim=[4, 8], heads=[1, 2], mlp_ratio=[1, 4])
    for parameter in supernet.parameters():
        parameter.data.normal_(0, 0.5)
    yield example.Mixture(supernet)
    sys.modules.pop("mixture")


def only(space, architecture):
    """Return probabilities of one subnet."""
    return {
        label: torch.tensor([float(c == architecture[label]) for c in candidates])
        for label, candidates in space.choices.items()
    }


def test_without_doubt_it_is_the_subnet(mixture):
    images, space = torch.randn(5, 3, 8, 8), mixture.space
    for architecture in space:
        subnet = mixture.supernet.extract(architecture)
        probabilities = only(space, architecture)
        torch.testing.assert_close(mixture(images, probabilities), subnet(images))
        assert mixture.parameters_of(mixture.told(probabilities)) == sum(
            parameter.numel() for parameter in subnet.parameters()
        )


def padded_mean(mixture, name, probabilities):
    """Return the mean over all subnets of a weight with zeros where they do not use it."""
    supernet, space = mixture.supernet, mixture.space
    own = dict(supernet.named_parameters())
    used = torch.zeros_like(own[name])
    for architecture in space:
        supernet.activate(architecture)
        # A weight is used where the output depends on it.
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for parameter in supernet.parameters():
            parameter.grad = None
        supernet(images).square().sum().backward()
        share = 1.0
        for label, candidate in architecture.items():
            share *= probabilities[label][space.choices[label].index(candidate)]
        if own[name].grad is not None:
            used = used + share * (own[name].grad != 0)
    supernet.activate(supernet.base)
    return own[name] * used


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.proj.weight", "blocks.0.mlp.fc1.weight", "head.weight"]
)
def test_weights_are_means_of_padded_slices_and_so_are_the_gradients(mixture, name):
    choices = mixture.space.choices.items()
    logits = {label: torch.randn(len(c), requires_grad=True) for label, c in choices}
    weight, cells = dict(mixture.supernet.named_parameters())[name], mixture.cells[name]
    shared = importlib.import_module("mixture").Shared

    def mixed():
        shares = cells.shares({label: own.softmax(0) for label, own in logits.items()})
        return shared.apply(weight, shares, cells.of_entry)

    def expected():
        return padded_mean(mixture, name, {label: own.softmax(0) for label, own in logits.items()})

    torch.testing.assert_close(mixed(), expected())
    direction = torch.randn_like(weight)
    found, reference = (
        torch.autograd.grad(
            (make() * direction).sum(), [weight, *logits.values()], materialize_grads=True
        )
        for make in (mixed, expected)
    )
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other)


def test_its_size_is_the_mean_of_the_subnets(mixture):
    logits = {label: torch.randn(len(c)) for label, c in mixture.space.choices.items()}
    probabilities = {label: own.softmax(0) for label, own in logits.items()}
    size, mean = mixture.supernet.subnet_parameters(), 0.0
    for architecture in mixture.space:
        shares = [
            probabilities[label][mixture.space.choices[label].index(candidate)].item()
            for label, candidate in architecture.items()
        ]
        mean += np.prod(shares) * size(architecture)
    assert mixture.parameters_of(mixture.told(probabilities)) == pytest.approx(mean, rel=1e-5)


def test_calr_takes_the_size_of_the_mixture_and_separation_refuses_it(mixture):
    images, told = torch.randn(2, 3, 8, 8), mixture.told(mixture.probabilities())

    def optimizer():
        return torch.optim.AdamW(mixture.supernet.parameters())

    calr = CaLR(mixture.parameters_of, total_steps=8, bounds=(1, 10_000))
    dynamic = DynamicTraining(optimizer(), lambda: told, calr=calr)
    mixture(images, mixture.probabilities()).sum().backward()
    dynamic.optimizer.step()
    assert dynamic.last.complexity == pytest.approx(mixture.parameters_of(told))
    dynamic.detach()
    DynamicTraining(optimizer := optimizer(), lambda: told, momentum=MomentumSeparation("depth"))
    with pytest.raises(ValueError, match="a mixture of subnets, and of no group"):
        optimizer.step()
