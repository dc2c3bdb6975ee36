"""Every test that asks for a supernet runs with all of them."""

from __future__ import annotations

import copy

import pytest

from tests.timm.choices.supernets import BUILDERS, built


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


@pytest.fixture
def supernet(name):
    return copy.deepcopy(built(name))
