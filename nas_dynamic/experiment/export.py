"""`nas-dynamic export`: a subnet of a trained supernet as a network of its own, in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic.adapters.nni.space import sample_of
from nas_dynamic.complexity import count_macs, count_parameters
from nas_dynamic.evaluation.scoring import evaluate
from nas_dynamic.experiment.data import Images, batch_loader
from nas_dynamic.experiment.load import LoadedRun, example_images
from nas_dynamic.experiment.nni.build import build_space, build_subnet, space_arguments
from nas_dynamic.space import Architecture, architecture_from_json
from nas_dynamic.storage.journal import RunError, environment, read_json
from nas_dynamic.storage.network import save_network

__all__ = ["chosen_architecture", "export_subnet", "read_architecture"]

SEARCH_AGAIN = "remove it, and the same `nas-dynamic search` makes it again"


def chosen_architecture(run: LoadedRun) -> tuple[Architecture, str]:
    """Return the subnet to take, and in words why: that of the last search, or the run's pick."""
    path = run.folder / "search.json"
    if path.exists():
        content = read_json(path, SEARCH_AGAIN)
        if content["seed"] == run.seed:
            architecture = architecture_from_json(content["best"]["architecture"])
            return architecture, "the lowest loss that the last search found"
    subnets = len(run.result.subnets)
    return run.result.pick.architecture, f"the lowest loss of the {subnets} scored subnets"


def read_architecture(text: str) -> Architecture:
    """Return an architecture from JSON, or from a file of JSON.

    The file may be a subnet.json as well.

    Raises:
        RunError: it is no JSON of labels and candidates.
    """
    try:
        content = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
        return architecture_from_json(content.get("architecture", content))
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            '--architecture takes {"label": candidate, …} as JSON, or a file of that, such as a '
            f"subnet.json: {error}"
        ) from error


def export_subnet(
    run: LoadedRun, architecture: Architecture, folder: Path, *, onnx: bool = False
) -> tuple[dict[str, Any], list[Path]]:
    """Write a subnet, with BN statistics of its own, by `save_network`.

    Args:
        run: that it is of.
        architecture: the subnet.
        folder: of the files.
        onnx: write ONNX as well.

    Returns:
        The content of subnet.json, but for how to load, and the files.

    Raises:
        RunError: the space has no such subnet, or torch cannot export it.
    """
    try:
        network = run.extract(architecture)
    except ValueError as error:
        raise RunError(f"{run.folder} has no such subnet: {error}") from error
    images = example_images(run.data, 3)
    description: dict[str, Any] = {
        "architecture": dict(architecture),
        "parameters": count_parameters(network),
        "macs": _macs(network, images[:1]),
        "accuracy": {
            "validation": _accuracy(run, network, run.data.validation),
            "test": _accuracy(run, network, run.data.test),
        },
        "input": {
            "shape": ["images", *images.shape[1:]],
            "values": "(pixel / 255 - mean) / std, of each channel",
            "mean": run.data.train.mean.tolist(),
            "std": run.data.train.std.tolist(),
        },
        "run": {"name": run.config.name, "seed": run.seed},
        "versions": environment(run.config.torch_device)["packages"],
        "load": _rebuilt(run, architecture, network),
    }
    try:
        files = save_network(network, folder, images, description, onnx=onnx)
    except RuntimeError as error:
        raise RunError(f"torch cannot export the subnet: {str(error).splitlines()[0]}") from error
    return description, files


def _accuracy(run: LoadedRun, network: nn.Module, images: Images) -> float:
    batches = batch_loader(images, run.config.scoring.batch_size, workers=run.config.data.workers)
    return evaluate(network, batches)[0]


def _macs(network: nn.Module, images: Any) -> float | None:
    try:
        return count_macs(network, images)
    except RuntimeError:  # what torch cannot count
        return None


def _rebuilt(run: LoadedRun, architecture: Architecture, network: nn.Module) -> Mapping[str, Any]:
    """Return the lines that build the model for `subnet.pt` by NNI, where that is the same model.

    It is not for NDS spaces with loose ends: see `nas_dynamic.adapters.nni.extract`.
    """
    images = example_images(run.data, 3)
    model = build_subnet(run.config, run.data.classes, architecture).eval()
    try:
        model.load_state_dict(network.state_dict())
    except RuntimeError:
        return {}
    with torch.no_grad():
        if not torch.allclose(model(images), network(images), rtol=1e-4, atol=1e-5, equal_nan=True):
            return {}
    module, name, arguments = space_arguments(run.config, run.data.classes)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    sample = sample_of(architecture, build_space(run.config, run.data.classes))
    return {
        "subnet.pt": [
            "import torch",
            f"from {module} import {name}",
            f"network = {name}({given}).freeze({dict(sample)!r})",
            "network.load_state_dict(torch.load('subnet.pt', weights_only=True))",
        ]
    }
