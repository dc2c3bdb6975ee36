"""What of this installation works, and what to do about the rest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from typing import Any, Literal

import torch

__all__ = ["Finding", "examine", "print_findings"]

State = Literal["works", "absent", "broken", "untested"]

PACKAGES = (
    "nas-dynamic torch numpy torchvision nni pytorch-lightning lightning transformers accelerate "
    "mmengine timm scikit-learn setuptools"
)
EXPERIMENT = "nni jinja2 matplotlib pydantic yaml rich sklearn scipy torchvision"
# What is imported, what it is for, the packages and the extra of this project that it takes.
PARTS = (
    ("nas_dynamic.adapters.nni", "NNI experiments", "nni pytorch_lightning", "nni"),
    ("nas_dynamic.adapters.timm", "timm supernets", "timm", "timm"),
    ("nas_dynamic.adapters.lightning", "Lightning modules", "lightning", "lightning"),
    (
        "nas_dynamic.adapters.transformers",
        "Hugging Face's Trainer",
        "transformers accelerate",
        "transformers",
    ),
    ("nas_dynamic.adapters.mmengine", "mmengine runners", "mmengine", "mmengine"),
    ("nas_dynamic.adapters.modelopt", "ModelOpt's autonas", "modelopt", "modelopt"),
    ("nas_dynamic.adapters.archai", "Archai's searches", "archai pandas", "archai"),
    ("nas_dynamic.adapters.whittle", "whittle's strategies", "whittle", "whittle"),
    ("nas_dynamic.experiment.run", "train, compare and export", EXPERIMENT, "nni,experiment"),
    (
        "nas_dynamic.experiment.demo",
        "demo and search",
        f"{EXPERIMENT} lightgbm pymoo",
        "nni,experiment,search",
    ),
    ("nas_dynamic.search", "searches for subnets", "lightgbm pymoo scipy", "search"),
    ("nas_dynamic.search.robot", "searches by RoBoT", "bayes_opt lightgbm pymoo scipy", "robot"),
    (
        "nas_dynamic.adapters.elastic.quantised",
        "bits as choices",
        "torchao",
        "quantisation",
    ),
    ("nas_dynamic.storage.network", "exports to ONNX", "onnxscript", "onnx"),
    ("nas_dynamic.experiment.engine.cluster", "several machines", "ray", "ray"),
    (
        "nas_dynamic.analysis.architecture_table",
        "tables in parquet files",
        "pandas pyarrow",
        "parquet",
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        state: `"absent"` is optional and not installed; `"untested"` is there, but this project
            has no test on it.
        detail: a version, or what is wrong and the remedy.
    """

    name: str
    state: State
    detail: str


def examine() -> Iterator[Finding]:
    """Look at Python, packages, adapters, processors, and one update of each optimizer step."""
    yield _python()
    yield from map(_package, PACKAGES.split())
    for part in PARTS:
        yield _part(*part)
    yield from _locks()
    threads, cpus = torch.get_num_threads(), os.cpu_count()
    yield Finding("CPU threads", "works", f"{threads} of {cpus} processors")
    yield from _accelerators()
    yield _distributed()
    yield _update()


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print them, one a line as they come, and return whether nothing is broken."""
    sound = True
    for finding in findings:
        print(f"{finding.state:9}{finding.name}: {finding.detail}", flush=True)
        sound &= finding.state != "broken"
    return sound


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.platform()}"
    version = ".".join(platform.python_version_tuple()[:2])
    classifiers = _metadata().get_all("Classifier", [])
    prefix = "Programming Language :: Python :: 3."
    tested = [c.rpartition(" ")[2] for c in classifiers if c.startswith(prefix)]
    if tested and version not in tested:
        return Finding("python", "untested", f"{detail}; tested are {', '.join(tested)}")
    return Finding("python", "works", detail)


def _package(name: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "absent", "not installed")
    if importlib.util.find_spec("packaging") is None:
        return Finding(name, "works", f"{version} (not compared: packaging is not installed)")
    from packaging.requirements import Requirement

    for text in _metadata().get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.name == name and not requirement.specifier.contains(version, True):
            wanted = f"{name}{requirement.specifier}"
            detail = f"{version}, and tested is {wanted}: pip install '{wanted}'"
            return Finding(name, "untested", detail)
    return Finding(name, "works", version)


def _metadata() -> Any:
    try:
        return metadata.metadata("nas-dynamic")
    except metadata.PackageNotFoundError:  # the sources, not installed
        return Message()


def _part(module: str, purpose: str, packages: str, extra: str) -> Finding:
    missing = [name for name in packages.split() if importlib.util.find_spec(name) is None]
    if missing:
        detail = f"{purpose} need {', '.join(missing)}: pip install 'nas-dynamic[{extra}]'"
        return Finding(module, "absent", detail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NNI's import is full of them
        try:
            for name in (
                *packages.split(),
                module,
            ):  # a module may import some only where it uses them
                importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises is the finding
            remedy = f"in a new environment: pip install 'nas-dynamic[{extra}]'"
            return Finding(module, "broken", f"{type(error).__name__}: {error}; {remedy}")
    return Finding(module, "works", purpose)


def _locks() -> Iterator[Finding]:
    """Say where NNI's experiments would hang."""
    if importlib.util.find_spec("nni") is not None:
        from nas_dynamic.adapters.nni._locks import lock_problem

        if (problem := lock_problem()) is not None:
            yield Finding("NNI's locks", "broken", problem)


def _accelerators() -> list[Finding]:
    if torch.cuda.is_available():
        numbers = range(torch.cuda.device_count())
        return [finding for n in numbers for finding in gpu_findings(torch.device("cuda", n))]
    if torch.backends.mps.is_available():
        return [Finding("mps", "untested", "Apple GPU")]
    reason = "this torch is built for the CPU" if torch.version.cuda is None else "none is visible"
    return [Finding("accelerator", "absent", f"{reason}; training runs on the CPU")]


def gpu_findings(device: torch.device) -> list[Finding]:
    """Try updates on a device, for some seconds."""
    from nas_dynamic.experiment.doctor.gpu import pooling_error, update_cost, updates_are_identical

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if not updates_are_identical(device):
        detail = "updates differ from those of one optimizer a group; report this, with all lines"
        return [Finding(f"{device}", "broken", f"{name}: {detail}")]
    plain, added = (1e6 * seconds for seconds in update_cost(device))
    cost = f"attachment adds {added:.0f} µs to an update of 500 tensors, a fifth of them trained, "
    cost += f"of {plain:.0f} µs"
    findings = [Finding(f"{device}", "works", f"{name}: updates are right to the bit; {cost}")]
    error = pooling_error(device)
    if error > 1e-3:
        detail = f"this torch's gradient is {error:.0%} off; use the contiguous layout for models "
        detail += "with such pools, or a torch in which pytorch issue 188344 is mended"
        findings.append(Finding(f"{device}, padded average pools", "broken", detail))
    return findings


def _distributed() -> Finding:
    if not torch.distributed.is_available():
        return Finding("DDP", "absent", "this torch is built without torch.distributed")
    if not torch.distributed.is_gloo_available():
        return Finding("DDP", "untested", "this torch has no gloo, which the tests use")
    return Finding("DDP", "works", "gloo; nccl is not tested")


def _update() -> Finding:
    """Make a real update, by the step hooks that everything here stands on."""
    from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation

    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    dynamic = DynamicTraining(
        optimizer,
        architecture=lambda: {"width": 1},
        calr=CaLR(lambda architecture: 1, total_steps=2, bounds=(1, 2)),
        momentum=MomentumSeparation("width"),
    )
    lrs = []
    for _ in range(2):
        parameter.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert dynamic.last is not None
        lrs.append(dynamic.last.lr[0])
    dynamic.detach()
    if lrs != [1.0, 0.5**4]:
        return Finding(
            "update",
            "broken",
            f"the lrs of two updates are {lrs}, not [1.0, 0.0625]; report this, with all lines",
        )
    return Finding("update", "works", "lr and momentum of each update are set by the step hooks")
