"""Bits of each block's weights, as further choices of an elastic supernet."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.adapters.elastic.supernet import Activated, ElasticBlocks
from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.space import Architecture, SearchSpace

with extra("quantisation"):
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig, quantize_

__all__ = ["QuantisedSupernet", "count_bytes"]

BITS = (8, None)


class QuantisedSupernet(Activated):
    """A trained elastic supernet, whose subnets also choose the bits of each block's weights.

    One search then decides about sizes and bits together. A candidate of 8 is int8, symmetric, one
    scale for each output channel, of all linear layers of the block, by torchao; activations stay
    as they are. None is the weights as they are. Embeddings, norms and the head are never
    quantised.

    It computes the very network that `extract` returns: a copy of the subnet, made when it is
    activated or first computed. After a change of the supernet's weights activate again. It is for
    scoring: train the supernet itself.

    Attributes:
        supernet: what it was made from.
        space: the supernet's choices, and `bits1`, `bits2`, … of the blocks, or `bits`.
        base: the largest subnet, not quantised.

    Args:
        supernet: from `elastic_lm` or `elastic_vit`, trained.
        bits: candidates, of 8 and None.
        per_layer: one choice for each block, or one for all.

    Raises:
        TypeError: the supernet is of another kind, or its blocks have no `nn.Linear`, as in GPT-2.
        ValueError: bits that torchao's int8 does not have.

    Source: Sridhar et al., "SimQ-NAS: Simultaneous Quantization Policy and Neural Architecture
        Search", 2023, arXiv 2312.13301.

    Example:
        >>> from nas_dynamic.adapters.timm import elastic_vit
        >>> supernet = elastic_vit("vit_tiny_patch16_224", depth=[10, 12])
        >>> quantised = QuantisedSupernet(supernet, per_layer=False)
        >>> quantised.space.choices
        {'depth': (10, 12), 'bits': (8, None)}
        >>> size = quantised.subnet_bytes()
        >>> size({"depth": 12, "bits": None}) == 4 * supernet.subnet_parameters()({"depth": 12})
        True
        >>> round(size({"depth": 12, "bits": 8}) / size({"depth": 12, "bits": None}), 2)
        0.31
    """

    def __init__(
        self,
        supernet: ElasticBlocks,
        *,
        bits: Sequence[int | None] = BITS,
        per_layer: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(supernet, ElasticBlocks):
            raise TypeError(
                f"bits are chosen for the blocks of a supernet of elastic_lm or elastic_vit, and "
                f"this is a {type(supernet).__name__}"
            )
        unknown = [candidate for candidate in bits if candidate not in BITS]
        if unknown:
            raise ValueError(f"bits {unknown[0]!r} is neither 8 nor None, the weights as they are")
        blocks = _blocks(supernet, supernet.block_path)
        if not any(isinstance(module, nn.Linear) for module in blocks.modules()):
            raise TypeError(
                "the blocks have no nn.Linear, which is what torchao quantises; take another kind "
                "of model, such as a Llama or a Qwen"
            )
        self.supernet = supernet
        depth = supernet.space.depth
        self._labels = [f"bits{n + 1}" if per_layer else "bits" for n in range(depth)]
        self.space = SearchSpace(
            supernet.space.choices | {label: tuple(bits) for label in self._labels}
        )
        largest = None if None in bits else 8
        self.base = supernet.base | dict.fromkeys(self._labels, largest)
        self._subnet: list[nn.Module] = []  # not a part: its weights are copies
        self.activate(self.base)

    def _activated(self) -> None:
        self._subnet = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the active subnet.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError(
                "a quantised subnet is not trained: train the supernet that this was made from, "
                "and call eval() to score"
            )
        if not self._subnet:
            self._subnet = [self.extract(self._architecture).eval()]
        return self._subnet[0](*args, **kwargs)

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return the stand-alone subnet; the weights of its int8 layers are torchao's tensors.

        Its output is that of this supernet in every bit.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        subnet = self._full(architecture)
        quantize_(subnet, self._policy(subnet, architecture), filter_fn=None)
        return subnet

    def policy(self, architecture: Architecture) -> FqnToConfig:
        """Return which layers are int8, as torchao and transformers take it.

        `TorchAoConfig(policy)` is the `quantization_config` with which transformers loads the
        subnet that the supernet extracts and `save_pretrained` wrote, and writes it as int8.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        return self._policy(self._full(architecture), architecture)

    def _full(self, architecture: Architecture) -> nn.Module:
        own = {label: architecture[label] for label in self.supernet.space.labels}
        return self.supernet.extract(own)

    def _policy(self, subnet: nn.Module, architecture: Architecture) -> FqnToConfig:
        path = self.supernet.block_path
        return _int8(
            f"{path}.{number}.{name}"
            for number, block in enumerate(_blocks(subnet, path))
            if architecture[self._labels[number]] == 8
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        )

    def subnet_parameters(self) -> BlockTable:
        """Return architecture → number of parameters of the stand-alone subnet; exact."""
        return self._joined(dict.fromkeys(self._bits(), self.supernet.subnet_parameters()))

    def subnet_bytes(self) -> BlockTable:
        """Return architecture → bytes of the weights of the stand-alone subnet; exact.

        An int8 layer has a byte for each weight, and for each output channel a scale of 4 and a
        zero point of 1.
        """
        dtype = next(self.supernet.parameters()).dtype

        def size(subnet: nn.Module, bits: Hashable) -> float:
            subnet = subnet.to(dtype)
            if bits == 8:
                every = dict.fromkeys(self._labels, bits)
                quantize_(subnet, self._policy(subnet, every), filter_fn=None)
            return count_bytes(subnet)

        tables = {
            bits: self.supernet.subnet_table(functools.partial(size, bits=bits))
            for bits in self._bits()
        }
        return self._joined(tables)

    def _bits(self) -> tuple[Hashable, ...]:
        return self.space.choices[self._labels[0]]

    def _joined(self, tables: dict[Hashable, BlockTable]) -> BlockTable:
        """Return one table from one for each candidate of bits."""
        first = next(iter(tables.values()))
        blocks = {
            width: {
                (*own, bits): value
                for bits, table in tables.items()
                for own, value in table.blocks[width].items()
            }
            for width in first.rest
        }
        layers = [(*own, label) for own, label in zip(first.layers, self._labels, strict=True)]
        return BlockTable(self.space, layers, first.fixed, first.rest, blocks, first.width_label)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._subnet = []
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters; what has several names counts once.

    Of a quantised weight these are its integers, scales and zero points.
    """
    return sum(_bytes(parameter) for parameter in module.parameters())


def _bytes(tensor: torch.Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.nbytes
    return sum(_bytes(getattr(tensor, name)) for name in flatten()[0])


def _int8(layers: Iterable[str]) -> FqnToConfig:
    config = Int8WeightOnlyConfig(set_inductor_config=False, version=2)
    return FqnToConfig(OrderedDict.fromkeys(layers, config))


def _blocks(model: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(model)
