"""A subnet of a trained NNI supernet as a model of its own, with all that it inherits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDSStage, NDSStagePathSampling
from nni.nas.nn.pytorch import ChosenInputs, ModelSpace, Repeat
from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.proxyless import (
    ProxylessMixedInput,
    ProxylessMixedLayer,
    ProxylessMixedRepeat,
)
from nni.nas.oneshot.pytorch.supermodule.sampling import (
    PathSamplingCell,
    PathSamplingInput,
    PathSamplingLayer,
    PathSamplingRepeat,
)
from nni.nas.space import model_context
from torch import nn

from nas_dynamic.adapters.nni.gumbel import GumbelLayer
from nas_dynamic.adapters.nni.space import (
    architecture_of,
    mixed_arguments,
    sample_of,
    search_space,
)
from nas_dynamic.space import Architecture

__all__ = ["extract"]

MADE_FROM = ("trace_args", "trace_kwargs")
"""Where NNI keeps the arguments of a model space."""


def extract(supernet: ModelSpace, architecture: Architecture) -> nn.Module:
    """Return a subnet as a stand-alone model, with copies of all weights and buffers that it uses.

    In evaluation mode it computes what the supernet does with that subnet active, bit for bit. BN
    statistics are those of the supernet, a mixture over subnets: recalibrate them
    (`nas_dynamic.evaluation.recalibrate`) before use. The supernet stays as it is.

    NNI's own `supernet.freeze(sample)` raises for spaces with sliced layers, gives DARTS new
    weights, and shares tensors with the supernet elsewhere. Names of parameters are those of
    `model_space.freeze(sample)`, so that a state dict loads there; but for NDS spaces with loose
    ends or stages of a single cell, whose supernet is not the model that NNI freezes. What is
    extracted is what was trained.

    Args:
        supernet: a model space that a one-shot strategy has mutated, `strategy.supernet`.
        architecture: the subnet; NNI's sample will do.

    Raises:
        ValueError: the model is no supernet, or has no such subnet.
        TypeError: the supernet has modules of a kind that is not known here.

    Example:
        >>> from nni.nas.hub.pytorch import NasBench201
        >>> from nni.nas.strategy import RandomOneShot
        >>> supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
        >>> architecture = dict.fromkeys(search_space(supernet).labels, "conv_1x1")
        >>> subnet = extract(supernet, architecture)
        >>> sum(p.numel() for p in subnet.parameters())
        7246
    """
    if not is_supernet(supernet):
        raise ValueError(
            f"{type(supernet).__name__} is no supernet; give what a one-shot strategy has trained, "
            "such as strategy.supernet"
        )
    plain = architecture_of(architecture, supernet)
    search_space(supernet).validate(plain)
    subnet = _Extraction(sample_of(plain, supernet)).of(supernet)
    vars(subnet).pop("freeze", None)  # of a supernet that SupernetEvaluator has scored
    return subnet


class _Extraction:
    """Copies modules; those of the supernet become what they compute for a sample.

    `copy.deepcopy` does the work: supernet modules and mutables are put into its memo before it,
    with what stands for them, so that a module that is used twice is copied once.
    """

    def __init__(self, sample: dict[str, Any]) -> None:
        self.sample = sample
        self.memo: dict[int, Any] = {}
        self.kinds: dict[type, Callable[[Any], nn.Module]] = {
            PathSamplingLayer: self._chosen,
            ProxylessMixedLayer: self._chosen,
            GumbelLayer: self._chosen,
            PathSamplingInput: self._inputs,
            ProxylessMixedInput: self._inputs,
            Repeat: self._blocks,
            NDSStage: self._blocks,
            PathSamplingRepeat: self._first_blocks,
            NDSStagePathSampling: self._stage,
            ProxylessMixedRepeat: self._blocks,
            PathSamplingCell: lambda module: _Cell(module, self),
        }

    def of(self, module: nn.Module) -> nn.Module:
        """Return a copy of a module."""
        self._prepare(module)
        return copy.deepcopy(module, self.memo)

    def _prepare(self, module: nn.Module) -> None:
        """Fill the memo with what stands for the supernet modules in a module."""
        if id(module) in self.memo:
            return
        if isinstance(module, MixedOperation):
            self.memo[id(module)] = self._sliced(module)
        elif type(module) in self.kinds:
            self.memo[id(module)] = self.kinds[type(module)](module)
        elif isinstance(module, BaseSuperNetModule):
            raise TypeError(
                f"{type(module).__name__} is a supernet module that is not known how to extract; "
                "known are those of RandomOneShot, ENAS, Proxyless and GumbelOneShot"
            )
        else:
            for name, value in vars(module).items():
                # What a space was made from may hold another supernet.
                if name == "_mutables" or (isinstance(module, ModelSpace) and name in MADE_FROM):
                    self.memo[id(value)] = type(value)()
                else:
                    self._prepare_value(value)
            for child in module.children():
                self._prepare(child)

    def _prepare_value(self, value: Any) -> None:
        """Fill the memo with the values of mutables that a module keeps beside its layers."""
        if isinstance(value, Mutable) and not isinstance(value, nn.Module):
            self.memo[id(value)] = value.freeze(self.sample)
        elif isinstance(value, dict):
            self._prepare_value(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                self._prepare_value(item)

    def _chosen(self, module: PathSamplingLayer | DifferentiableMixedLayer) -> nn.Module:
        return self.of(module[self.sample[module.label]])

    def _inputs(self, module: PathSamplingInput | ProxylessMixedInput) -> nn.Module:
        return ChosenInputs(self.sample[module.label], module.reduction)

    def _blocks(self, module: Repeat | ProxylessMixedRepeat) -> nn.Sequential:
        return nn.Sequential(*map(self.of, module.blocks))

    def _first_blocks(self, module: PathSamplingRepeat) -> nn.Sequential:
        depth = module.depth_choice.freeze(self.sample)
        return nn.Sequential(*map(self.of, module.blocks[:depth]))

    def _stage(self, module: NDSStagePathSampling) -> nn.Sequential:
        blocks = self._first_blocks(module)
        if len(blocks) == 1 and module.first_cell_transformation is not None:
            blocks.append(_AlignPrevious(self.of(module.first_cell_transformation)))
        return blocks

    def _sliced(self, module: MixedOperation) -> nn.Module:
        arguments = mixed_arguments(module, self.sample)
        with model_context(self.sample), torch.random.fork_rng(devices=[]):
            operation: nn.Module = module.bound_type(**arguments)
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.enable_grad():  # a slice of a frozen weight is frozen
            inherited = own | module.freeze_weight(**arguments)
        for name, tensor in operation.state_dict(keep_vars=True).items():
            source = inherited.get(name)
            if source is None or source.shape != tensor.shape:
                raise TypeError(
                    f"freeze_weight of {type(module).__name__} gives no {name!r} of shape "
                    f"{tuple(tensor.shape)}, which the layer alone has with {arguments}"
                )
            tensor.requires_grad_(source.requires_grad)
            tensor.data = source.detach().clone(memory_format=torch.contiguous_format)
        return operation.train(module.training)


class _Cell(nn.Module):
    """What a cell computes: NNI's `Cell` with every node in its output, as in the supernet."""

    def __init__(self, cell: PathSamplingCell, extraction: _Extraction) -> None:
        super().__init__()
        self.num_predecessors = cell.num_predecessors
        self.concat_dim = cell.concat_dim
        self.preprocessor = extraction.of(cell.preprocessor)
        self.ops = nn.ModuleList()
        self.inputs: list[list[int]] = []
        """[node][k]: the state that the node's k-th operation takes."""
        for node, i in enumerate(cell.output_node_indices):
            operations, inputs = nn.ModuleList(), []
            for k in range(cell.num_ops_per_node):
                inputs.append(extraction.sample[f"{cell.label}/input_{i}_{k}"][0])
                name = extraction.sample[f"{cell.label}/op_{i}_{k}"]
                # The inputs of a node may share an operation of the supernet; not so here.
                operation = _Extraction(extraction.sample).of(cell.ops[node][inputs[-1]][name])
                operations.append(operation)
            self.ops.append(operations)
            self.inputs.append(inputs)
        self.postprocessor = extraction.of(cell.postprocessor)

    def forward(self, *inputs: Any) -> Any:
        """Return what the next cell takes."""
        predecessors = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states = list(self.preprocessor(predecessors))
        for node, chosen in enumerate(self.inputs):
            operations = cast(nn.ModuleList, self.ops[node])
            states.append(sum(operations[k](states[i]) for k, i in enumerate(chosen)))
        output = torch.cat(states[self.num_predecessors :], self.concat_dim)
        return self.postprocessor(output, predecessors)


class _AlignPrevious(nn.Module):
    """Behind the only cell of an NDS stage: gives what was before it the shape of the stage."""

    def __init__(self, transformation: nn.Module) -> None:
        super().__init__()
        self.transformation = transformation

    def forward(self, cells: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs of the cell before and of the cell."""
        before, last = cells
        return [self.transformation(before), last]
