"""NNI one-shot experiments: `strategy = dynamic(RandomOneShot())`."""

from __future__ import annotations

from nas_dynamic._extras import extra

with extra("nni"):
    # First: NNI's strategies are placeholders if nni.nas.oneshot is imported before them.
    import nni.nas.strategy  # noqa: F401

from nas_dynamic.adapters.nni.complexity import subnet_macs, subnet_parameters
from nas_dynamic.adapters.nni.extract import extract
from nas_dynamic.adapters.nni.gumbel import GumbelOneShot
from nas_dynamic.adapters.nni.search import SupernetEvaluator
from nas_dynamic.adapters.nni.space import activate, search_space
from nas_dynamic.adapters.nni.strategies import (
    FairOneShot,
    FewShotOneShot,
    SamplerOneShot,
    SandwichOneShot,
)
from nas_dynamic.adapters.nni.supernet import Supernet
from nas_dynamic.adapters.nni.training import DynamicCallback, dynamic

__all__ = [
    "DynamicCallback",
    "FairOneShot",
    "FewShotOneShot",
    "GumbelOneShot",
    "SamplerOneShot",
    "SandwichOneShot",
    "Supernet",
    "SupernetEvaluator",
    "activate",
    "dynamic",
    "extract",
    "search_space",
    "subnet_macs",
    "subnet_parameters",
]
