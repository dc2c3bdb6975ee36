"""Subnet-aware learning rates and momenta for training weight-sharing supernets."""

from __future__ import annotations

from importlib import metadata

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

try:
    __version__ = metadata.version("nas-dynamic")
except metadata.PackageNotFoundError:  # the sources, not installed
    __version__ = "unknown"
