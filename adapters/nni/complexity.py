"""The size of the subnets of an NNI supernet: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

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


class _How(NamedTuple):
    """What is counted: of a parameter, by what a subnet uses of it."""

    space: SearchSpace
    size: Callable[[torch.Tensor, torch.Tensor], int]


def _is(one: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], int]:
    return lambda parameter, used: int(parameter is one)


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
    space = search_space(supernet)
    count, _ = _compile(supernet, _How(space, lambda p, used: used.numel() * p.requires_grad))
    # Of a tensor that stands in several places the subnet has one, where it has any.
    places = Counter(p for _, p in supernet.named_parameters(remove_duplicate=False))
    tied = [p for p, number in places.items() if number > 1 and p.requires_grad]
    if not tied:
        return count
    uses = [_compile(supernet, _How(space, _is(w)))[0] for w in tied]
    return lambda a: (
        count(a)
        - sum([w.numel() * max(0, used(a) - 1) for w, used in zip(tied, uses, strict=True)])
    )


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


def _compile(module: nn.Module, how: _How) -> tuple[Count, frozenset[str]]:
    """Return the count of a part of the supernet, and the labels that it depends on."""
    count, labels = _count_of(module, how)
    return _memoised(count, labels, how), labels


def _count_of(module: nn.Module, how: _How) -> tuple[Count, frozenset[str]]:
    if isinstance(module, MixedOperation):
        return _mixed_operation(module, how)
    if isinstance(module, PathSamplingCell):
        return _cell(module, how)
    if isinstance(module, PathSamplingRepeat):
        return _repeat(module, how)
    if isinstance(module, LayerChoice):
        return _layer_choice(module, how)
    if isinstance(module, ProxylessMixedInput):
        return lambda a: 0, frozenset()
    if isinstance(module, BaseSuperNetModule) and not isinstance(
        module, PathSamplingInput | ProxylessMixedRepeat
    ):
        raise TypeError(
            f"{type(module).__name__} is a supernet module whose parameters are not known how to "
            "count; give dynamic(…, complexity=function of an architecture)"
        )
    own = sum(how.size(p, p) for p in module.parameters(recurse=False))
    return _sum(own, list(module.children()), how)


def _sum(constant: int, modules: list[nn.Module], how: _How) -> tuple[Count, frozenset[str]]:
    terms: list[Count] = []
    labels: frozenset[str] = frozenset()
    for module in modules:
        count, used = _compile(module, how)
        if used:
            terms.append(count)
            labels |= used
        else:
            constant += count({})
    return lambda a: sum([term(a) for term in terms], constant), labels


def _memoised(count: Count, labels: frozenset[str], how: _How) -> Count:
    if not labels or math.prod(len(how.space.choices[label]) for label in labels) > _MEMO_LIMIT:
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


def _layer_choice(module: LayerChoice, how: _How) -> tuple[Count, frozenset[str]]:
    branches = {}
    labels = frozenset([module.label])
    for name in module.names:
        branches[name], used = _compile(module[name], how)
        labels |= used
    return lambda a: sum(branches[name](a) for name in _chosen(a[module.label])), labels


def _repeat(module: PathSamplingRepeat, how: _How) -> tuple[Count, frozenset[str]]:
    depth_labels = frozenset(module.depth_choice.simplify())
    blocks = []
    labels = depth_labels
    for block in module.blocks:
        count, used = _compile(block, how)
        blocks.append(count)
        labels |= used
    # Of NDS only: applied to the output of a stage of a single cell.
    transformation = getattr(module, "first_cell_transformation", None)
    single, used = _sum(0, [transformation] if transformation is not None else [], how)
    labels |= used

    depth = _memoised(lambda a: module.depth_choice.freeze(dict(a)), depth_labels, how)

    def count_blocks(architecture: Architecture) -> int:
        deep = depth(architecture)
        total = sum(block(architecture) for block in blocks[:deep])
        return total + (single(architecture) if deep == 1 else 0)

    return count_blocks, labels


def _cell(module: PathSamplingCell, how: _How) -> tuple[Count, frozenset[str]]:
    fixed, labels = _sum(0, [module.preprocessor, module.postprocessor], how)
    # [node][predecessor][operation]; the stand-alone cell has an operation of its own for each
    # of a node's inputs, also where the supernet's share one.
    operations: list[list[dict[str, Count]]] = []
    for node in module.ops:
        operations.append([])
        for edge in node:
            counts = {}
            for name, operation in edge.items():
                counts[name], used = _compile(operation, how)
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


def _mixed_operation(module: MixedOperation, how: _How) -> tuple[Count, frozenset[str]]:
    def count(architecture: Architecture) -> int:
        sliced = module.freeze_weight(**mixed_arguments(module, dict(architecture)))
        parameters = dict(module.named_parameters())
        return sum(
            how.size(parameters[name], tensor)
            for name, tensor in sliced.items()
            if name in parameters and tensor is not None
        )

    return count, frozenset(module.simplify())


def _chosen(value: Hashable) -> tuple[Hashable, ...]:
    return value if isinstance(value, tuple) else (value,)
