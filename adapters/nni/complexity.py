"""The size of the subnets of an NNI supernet: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.proxyless import ProxylessMixedInput, ProxylessMixedRepeat
from nni.nas.oneshot.pytorch.supermodule.sampling import (
    PathSamplingCell,
    PathSamplingInput,
    PathSamplingRepeat,
)
from torch import nn

from nas_dynamic.adapters.nni.space import activate, mixed_arguments, search_space
from nas_dynamic.complexity import Complexity, count_macs, lookup
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["complexity_of", "subnet_macs", "subnet_parameters"]

_MEMO_LIMIT = 16384
"""A part of a supernet is looked up as a whole if it has at most this many variants."""

Count = Callable[[Architecture], int]


def subnet_parameters(supernet: ModelSpace) -> Count:
    """Return a count of the parameters of a stand-alone subnet, without building it.

    The supernet is walked once; what depends on no choice is folded into a constant, and every
    part with few variants is counted once for each. A count then takes microseconds, for sliced
    layers and variable depth as well, where a table of one term for each choice would be wrong.

    Args:
        supernet: a model space that a one-shot strategy has mutated.

    Returns:
        architecture → number of parameters, equal to that of `model_space.freeze(...)`; but for
        stages of a single cell in NDS spaces, whose supernet aligns shapes with a layer that the
        frozen model does without. There it is the supernet's.

    Raises:
        TypeError: a supernet module of a kind that is not known here.
    """
    count, _ = _compile(supernet, search_space(supernet))
    return count


def subnet_macs(supernet: ModelSpace, *inputs: torch.Tensor) -> Complexity:
    """Return the multiply-accumulates of a subnet, by a forward pass on the meta device.

    That takes some 10 ms for each subnet.

    Args:
        supernet: a model space that a one-shot strategy has mutated.
        inputs: example inputs, of which only shape and dtype count. The result is for one
            example of their leading dimension.
    """
    shadow = copy.deepcopy(supernet).to("meta")
    examples = [x[:1].to("meta") for x in inputs]

    def macs(architecture: Architecture) -> float:
        activate(shadow, architecture)
        return count_macs(shadow, *examples)

    return macs


def complexity_of(
    measure: Literal["parameters", "macs"] | Complexity,
    supernet: ModelSpace,
    space: SearchSpace,
    trainer: pl.Trainer,
) -> Complexity:
    """Return a complexity by its name, as a fast look-up; or the user's own, as it is.

    MACs are counted at the shape of the trainer's first training batch.

    Raises:
        ValueError: an unknown name, or batches whose inputs are no tensor.
    """
    if measure == "parameters":
        return lookup(space, subnet_parameters(supernet))
    if measure == "macs":
        return lookup(space, subnet_macs(supernet, _first_inputs(trainer)))
    if not callable(measure):
        raise ValueError(
            "complexity must be 'parameters', 'macs' or a function of an architecture, "
            f"got {measure!r}"
        )
    return measure


def _first_inputs(trainer: pl.Trainer) -> torch.Tensor:
    trainer.fit_loop.setup_data()
    loader: Any = trainer.train_dataloader
    if isinstance(loader, dict):  # of strategies that train on the validation set as well
        loader = loader["train"]
    batch = next(iter(loader))
    inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not torch.is_tensor(inputs):
        raise ValueError(
            "complexity='macs' needs batches of (inputs, targets) with a tensor of inputs; "
            "give a function of an architecture instead"
        )
    return inputs


def _compile(module: nn.Module, space: SearchSpace) -> tuple[Count, frozenset[str]]:
    """Return the count of a part of the supernet, and the labels that it depends on."""
    count, labels = _count_of(module, space)
    return _memoised(count, labels, space), labels


def _count_of(module: nn.Module, space: SearchSpace) -> tuple[Count, frozenset[str]]:
    if isinstance(module, MixedOperation):
        return _mixed_operation(module)
    if isinstance(module, PathSamplingCell):
        return _cell(module, space)
    if isinstance(module, PathSamplingRepeat):
        return _repeat(module, space)
    if isinstance(module, LayerChoice):
        return _layer_choice(module, space)
    if isinstance(module, ProxylessMixedInput):
        return lambda a: 0, frozenset()
    if isinstance(module, BaseSuperNetModule) and not isinstance(
        module, PathSamplingInput | ProxylessMixedRepeat
    ):
        raise TypeError(
            f"{type(module).__name__} is a supernet module whose parameters are not known how to "
            "count; give dynamic(…, complexity=function of an architecture)"
        )
    own = sum(p.numel() for p in module.parameters(recurse=False) if p.requires_grad)
    return _sum(own, list(module.children()), space)


def _sum(
    constant: int, modules: list[nn.Module], space: SearchSpace
) -> tuple[Count, frozenset[str]]:
    terms: list[Count] = []
    labels: frozenset[str] = frozenset()
    for module in modules:
        count, used = _compile(module, space)
        if used:
            terms.append(count)
            labels |= used
        else:
            constant += count({})
    return lambda a: sum([term(a) for term in terms], constant), labels


def _memoised(count: Count, labels: frozenset[str], space: SearchSpace) -> Count:
    if not labels or math.prod(len(space.choices[label]) for label in labels) > _MEMO_LIMIT:
        return count
    ordered = sorted(labels)
    memo: dict[tuple[Hashable, ...], int] = {}

    def look_up(architecture: Architecture) -> int:
        key = tuple([architecture[label] for label in ordered])
        value = memo.get(key)
        if value is None:
            value = memo[key] = count(architecture)
        return value

    return look_up


def _layer_choice(module: LayerChoice, space: SearchSpace) -> tuple[Count, frozenset[str]]:
    branches = {}
    labels = frozenset([module.label])
    for name in module.names:
        branches[name], used = _compile(module[name], space)
        labels |= used
    return lambda a: sum(branches[name](a) for name in _chosen(a[module.label])), labels


def _repeat(module: PathSamplingRepeat, space: SearchSpace) -> tuple[Count, frozenset[str]]:
    depth_labels = frozenset(module.depth_choice.simplify())
    blocks = []
    labels = depth_labels
    for block in module.blocks:
        count, used = _compile(block, space)
        blocks.append(count)
        labels |= used
    # Of NDS only: applied to the output of a stage of a single cell.
    transformation = getattr(module, "first_cell_transformation", None)
    single, used = _sum(0, [transformation] if transformation is not None else [], space)
    labels |= used

    depth = _memoised(lambda a: module.depth_choice.freeze(dict(a)), depth_labels, space)

    def count_blocks(architecture: Architecture) -> int:
        deep = depth(architecture)
        total = sum(block(architecture) for block in blocks[:deep])
        return total + (single(architecture) if deep == 1 else 0)

    return count_blocks, labels


def _cell(module: PathSamplingCell, space: SearchSpace) -> tuple[Count, frozenset[str]]:
    fixed, labels = _sum(0, [module.preprocessor, module.postprocessor], space)
    # [node][predecessor][operation]; the stand-alone cell has an operation of its own for each
    # of a node's inputs, also where the supernet's share one.
    operations: list[list[dict[str, Count]]] = []
    for node in module.ops:
        operations.append([])
        for edge in node:
            counts = {}
            for name, operation in edge.items():
                counts[name], used = _compile(operation, space)
                labels |= used
            operations[-1].append(counts)
    picks = []
    for node, i in enumerate(module.output_node_indices):
        for k in range(module.num_ops_per_node):
            picks.append((node, f"{module.label}/input_{i}_{k}", f"{module.label}/op_{i}_{k}"))
    labels |= {label for _, *pair in picks for label in pair}

    def count(architecture: Architecture) -> int:
        total = fixed(architecture)
        for node, input_label, op_label in picks:
            predecessor: int = architecture[input_label][0]  # type: ignore[index]
            total += operations[node][predecessor][str(architecture[op_label])](architecture)
        return total

    return count, labels


def _mixed_operation(module: MixedOperation) -> tuple[Count, frozenset[str]]:
    def count(architecture: Architecture) -> int:
        sliced = module.freeze_weight(**mixed_arguments(module, dict(architecture)))
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        return sum(
            tensor.numel()
            for name, tensor in sliced.items()
            if name in trainable and tensor is not None
        )

    return count, frozenset(module.simplify())


def _chosen(value: Hashable) -> tuple[Hashable, ...]:
    return value if isinstance(value, tuple) else (value,)
