"""Subnet-aware learning rates and momenta for training weight-sharing supernets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas_dynamic._checkout import find_adapters
from nas_dynamic._extras import imported_late

if TYPE_CHECKING:
    from nas_dynamic.attach.training import DynamicTraining
    from nas_dynamic.attach.update_rule import Subnet, Update
    from nas_dynamic.calr import CaLR
    from nas_dynamic.grouping import ComplexityBins
    from nas_dynamic.momentum import MomentumSeparation
    from nas_dynamic.sampling import FairSampler, SandwichSampler, UniformSampler, partition
    from nas_dynamic.space import Architecture, SearchSpace

__all__ = [
    "Architecture",
    "CaLR",
    "ComplexityBins",
    "DynamicTraining",
    "FairSampler",
    "MomentumSeparation",
    "SandwichSampler",
    "SearchSpace",
    "Subnet",
    "UniformSampler",
    "Update",
    "partition",
]

MODULES = {
    "attach.training": ["DynamicTraining"],
    "attach.update_rule": ["Subnet", "Update"],
    "calr": ["CaLR"],
    "grouping": ["ComplexityBins"],
    "momentum": ["MomentumSeparation"],
    "sampling": ["FairSampler", "SandwichSampler", "UniformSampler", "partition"],
    "space": ["Architecture", "SearchSpace"],
}
"""Imported when they are asked for: torch takes seconds, which `nas-dynamic --help` need not."""

find_adapters()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    return imported_late(__name__, MODULES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("nas-dynamic")
    except metadata.PackageNotFoundError:  # the sources, not installed
        return "unknown"
