"""A network as files that need torch alone."""

from __future__ import annotations

import copy
import io
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.storage.journal import writing

__all__ = ["save_network"]

LOADING = {
    "subnet.pt2": "torch.export.load('subnet.pt2').module()  # weights and computation; inference",
    "subnet.pt": "torch.load('subnet.pt', weights_only=True)  # the state dict",
    "subnet.onnx": "onnxruntime.InferenceSession('subnet.onnx')",
}


def save_network(
    network: nn.Module,
    folder: str | Path,
    images: torch.Tensor,
    description: Mapping[str, Any],
    *,
    onnx: bool = False,
) -> list[Path]:
    """Write a network in evaluation mode, so that it is computed without the code that made it.

    `subnet.pt2` is a program of `torch.export`: it has the weights and what is computed with them,
    for any number of images, and loads with torch alone. `subnet.pt` is the state dict, to go on
    training where the model can be built. `subnet.json` is the description, with how to load the
    others. All are there, or none: files of the same names are replaced at the end.

    Args:
        network: a stand-alone model, such as `extract` of a supernet gives; it stays as it is.
        folder: of the files; it is made.
        images: some, shape (images, …), at least 2: the program is traced with the first two, and
            what is read back must compute what the network does for all.
        description: plain data, the content of `subnet.json`.
        onnx: write `subnet.onnx` as well.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: `onnx`, without onnxscript.
        RunError: the files cannot be written.
        RuntimeError: what is read back computes something else; what torch raises where it cannot
            export the network.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> network, images = nn.Linear(3, 2), torch.rand(4, 3)
        >>> [path.name for path in save_network(network, folder, images, {"accuracy": 0.9})]
        ['subnet.pt2', 'subnet.pt', 'subnet.json']
        >>> loaded = torch.export.load(f"{folder}/subnet.pt2").module()
        >>> torch.equal(loaded(images), network(images))
        True
    """
    folder = Path(folder)
    network = copy.deepcopy(network).cpu().eval()
    images = images.detach().cpu()
    temporary = folder / ".subnet.tmp"
    try:
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # of a stop
            temporary.mkdir(parents=True)
            _save_program(network, images, temporary / "subnet.pt2")
            torch.save(network.state_dict(), temporary / "subnet.pt")
            if onnx:
                _save_onnx(network, images, temporary / "subnet.onnx")
            names = [path.name for path in temporary.iterdir()]
            loading = {name: LOADING[name] for name in LOADING if name in names}
            content = {**description, "load": loading | description.get("load", {})}
            (temporary / "subnet.json").write_text(json.dumps(content, indent=1) + "\n")
            files = [folder / name for name in (*loading, "subnet.json")]
            for path in files:
                (temporary / path.name).replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return files


def _save_program(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    dynamic = ({0: torch.export.Dim("images")},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own parts
        program = torch.export.export(network, (images[:2],), dynamic_shapes=dynamic)
        # By way of memory: where a disk is full, torch ends the process instead of raising.
        content = io.BytesIO()
        torch.export.save(program, content)
        path.write_bytes(content.getbuffer())
        computed = torch.export.load(path).module()(images)
        expected = network(images)
    if not torch.allclose(computed, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise RuntimeError(
            "torch.export made a program that computes something else than the network: up to "
            f"{(computed - expected).abs().max():.3g} in an output; does it depend on chance?"
        )


def _save_onnx(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    with extra("onnx"):
        import onnxscript  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images[:2],),
            path,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            verbose=False,
        )
