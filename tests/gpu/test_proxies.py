"""Training-free metrics on the device that a model is on."""

from __future__ import annotations

import copy

import pytest
import torch

from nas_dynamic.search.proxies import METRICS
from tests.search.proxies.test_metrics import Attention, convolutional, images
from tests.search.proxies.test_models import OF_IMAGES, SEQUENCE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("name", METRICS)
def test_metrics_on_the_device_are_those_of_the_cpu(name):
    if name == "hidden_covariance":
        model, batch = torch.nn.GRU(6, 4, batch_first=True), SEQUENCE
    elif name in OF_IMAGES:
        model, batch = convolutional(), images()
    else:
        model, batch = Attention("fused"), SEQUENCE
    expected = METRICS[name](model, batch)
    on_device, rng = copy.deepcopy(model).cuda(), torch.cuda.get_rng_state()
    assert METRICS[name](on_device, batch) == pytest.approx(expected, rel=1e-2)
    assert torch.equal(torch.cuda.get_rng_state(), rng)
    assert all(p.is_cuda and p.grad is None for p in on_device.parameters())
