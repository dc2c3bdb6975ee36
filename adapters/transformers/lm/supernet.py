"""Elastic language models: depth, width, heads, feed-forward width, attention are choices."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import nn
from transformers import (
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from nas_dynamic.adapters.elastic.supernet import ElasticBlocks, filled
from nas_dynamic.adapters.elastic.table import BlockTable
from nas_dynamic.adapters.transformers.lm.families import Family, family_of
from nas_dynamic.adapters.transformers.lm.modeling_layerwise import set_attention
from nas_dynamic.adapters.transformers.lm.sliced import SLICED
from nas_dynamic.adapters.transformers.lm.space import LayerShape, LmSpace
from nas_dynamic.complexity import count_macs
from nas_dynamic.space import Architecture

__all__ = ["ElasticLM", "elastic_lm"]


def elastic_lm(
    model: PreTrainedModel,
    *,
    depth: Sequence[int] | None = None,
    width: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    ffn: Sequence[int] | None = None,
    attention: Sequence[str] | None = None,
    per_layer: bool = False,
) -> ElasticLM:
    """Make a supernet whose largest subnet is a given language model.

    A subnet computes with the first layers, channels, heads and hidden features; the width of a
    head never changes, and a key and value head keeps the query heads that share it. What is given
    no candidates stays as in the model, and has no label. Candidates include the model's own value.

    Args:
        model: of the class LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or
            GPT2LMHeadModel. It is copied, and left as it is.
        depth: numbers of layers; label `depth`.
        width: widths of the hidden states, `hidden_size`; label `width`.
        heads: numbers of query heads; label `heads`. Without candidates there are as many as fill
            the width, width / width of a head, if they do so in the model.
        ffn: hidden features of the feed-forward part, `intermediate_size`; label `ffn`.
        attention: `"softmax"`, and `"linear"`, see `causal_linear_attention`; label `attention`.
        per_layer: True for choices of each layer: labels `heads1`, `heads2`, …, `ffn1`, ….

    Raises:
        ValueError: candidates that the model cannot be sliced to, or that leave out its own value.
        TypeError: the model is of another class, or has a part that cannot be sliced.

    Source: Cai et al., "LLaMA-NAS: Efficient Neural Architecture Search for Large Language
        Models", 2024, arXiv 2405.18377, for the depth and the feed-forward width; Devvrit et al.,
        "MatFormer", NeurIPS 2024, arXiv 2310.07707, for the slices.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        ...     num_attention_heads=4, num_key_value_heads=2,
        ... )
        >>> supernet = elastic_lm(LlamaForCausalLM(config), depth=[2, 3], width=[16, 32])
        >>> supernet.activate({"depth": 2, "width": 16})
        >>> subnet = supernet.extract(supernet.architecture)
        >>> subnet.config.hidden_size, subnet.config.num_key_value_heads
        (16, 1)
    """
    family = family_of(model)
    config = model.config
    given = {"depth": depth, "width": width, "heads": heads, "ffn": ffn, "attention": attention}
    space = LmSpace(
        config.hidden_size,
        config.num_hidden_layers,
        LayerShape(config.num_attention_heads, family.ffn(config)),
        family.key_value_heads(config),
        family.head_dim(config),
        {name: values for name, values in given.items() if values is not None},
        per_layer,
    )
    family.check(config, space)
    _check_parts(model)
    supernet: Any = copy.deepcopy(model)
    if vars(supernet).pop("_original_forward", None) is not None:
        # Training in mixed precision by accelerate, as Trainer does, leaves a forward that computes
        # under autocast; extracted subnets would not have it.
        del supernet.forward
    for name, module in supernet.named_modules():
        sliced = family.sliced_class(name, module, SLICED)
        if sliced is not None:
            module.__class__ = sliced
    inner, elastic = _ELASTIC[family.plain]
    supernet.base_model.__class__, supernet.__class__ = inner, elastic
    supernet.family, supernet.block_path = family, family.layers
    supernet.space, supernet.base = space, space.base
    supernet.activate(space.base)
    supernet._recompute_the_same()
    return cast(ElasticLM, supernet)


class ElasticLM(ElasticBlocks, PreTrainedModel):
    """A language model of transformers that computes one of its subnets; made by `elastic_lm`.

    Names and shapes of the parameters are those of the model that it was made from, and so is
    `config`: `save_pretrained` writes the largest subnet, with all the weights. What reads the
    layers of the model, or the weight of a layer, gets the active part; `parameters()`,
    `modules()` and `state_dict()` give everything.

    A weight that the subnet uses a part of gets a gradient that is zero elsewhere: to an optimizer
    it is trained as a whole. Only the layers beyond the depth of the subnet are idle.
    """

    space: LmSpace
    family: Family

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """Return the stand-alone subnet, with a copy of the weights.

        It is of the plain class, such as LlamaForCausalLM, where its configuration can say what
        the layers are: all of one shape, in Llama with heads that divide the width, in GPT-2 with
        heads that fill it. Else it is of a class of `modeling_layerwise`, which `save_pretrained`
        writes beside the weights, for `from_pretrained(folder, trust_remote_code=True)`.

        Its logits are the supernet's in every bit. It has the device, dtype and mode of the
        supernet, and what is frozen there is frozen.

        Raises:
            ValueError: it is no architecture of the space.
        """
        config = self.configuration(architecture)
        subnet = self._built(config)
        buffers = dict(self.named_buffers())
        for name, buffer in list(subnet.named_buffers()):
            if buffer.is_meta:  # of rotary embeddings, which no slice changes
                path, _, own = name.rpartition(".")
                # Dynamic ones change with the length of the last sequence, and keep the original.
                value = buffers.get(f"{path}.original_{own}", buffers[name])
                setattr(subnet.get_submodule(path), own, value.clone())
        self._freeze(filled(subnet, self._weights(architecture)))
        if self.can_generate():
            subnet.generation_config = copy.deepcopy(self.generation_config)
        return cast(PreTrainedModel, subnet.train(self.training))

    def configuration(self, architecture: Architecture) -> PretrainedConfig:
        """Return the configuration of the stand-alone subnet.

        Raises:
            ValueError: it is no architecture of the space.
        """
        self.space.validate(architecture)
        return self._configured(*self.space.shape(architecture))

    def subnet_macs(self, tokens: int | None = None) -> BlockTable:
        """Return architecture → multiply-accumulates of a forward pass; exact.

        Attention counts as torch counts it: all pairs of tokens, also those that are masked.

        Args:
            tokens: length of the one sequence; 1024 by default, or what the model takes.
        """
        length = tokens or min(1024, self.config.max_position_embeddings)
        ids = torch.zeros((1, length), dtype=torch.long, device="meta")

        def measure(subnet: Any) -> float:
            # Without one transformers looks at values, which tensors on the meta device lack.
            subnet.config.use_cache = True
            return count_macs(subnet, ids)

        return self.subnet_table(measure)

    def subnet_kv_cache(self, tokens: int = 1, dtype: torch.dtype | None = None) -> BlockTable:
        """Return architecture → bytes of keys and values in the cache of one sequence; exact.

        Args:
            tokens: in the cache.
            dtype: of its entries; that of the supernet by default.
        """
        entry = (self.dtype if dtype is None else dtype).itemsize
        of_a_head = 2 * tokens * self.space.head_dim * entry

        def measure(width: int, layers: Sequence[LayerShape]) -> float:
            return of_a_head * sum(self.space.key_value_heads_of(layer.heads) for layer in layers)

        return BlockTable.measure(self.space, measure)

    def subnet_table(self, measure: Callable[[nn.Module], float]) -> BlockTable:
        """Return architecture → any complexity that is a sum over layers.

        Args:
            measure: the complexity of a stand-alone subnet of one or two layers, on the meta
                device.
        """

        def measured(width: int, layers: Sequence[LayerShape]) -> float:
            return measure(self._built(self._configured(width, layers)))

        return BlockTable.measure(self.space, measured)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Write all the weights, as the model that the supernet was made from."""
        # The configuration that is written names the class of the model.
        elastic = type(self)
        self.__class__ = self.family.plain  # type: ignore[assignment]
        try:
            return self.save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = elastic

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the active part would take the place of the whole."""
        raise RuntimeError(
            "resize the embeddings of the model before elastic_lm(model, …), or of an extracted "
            "subnet"
        )

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        self._recompute_the_same()

    def _recompute_the_same(self) -> None:
        """Let gradient checkpointing compute the subnet of the forward pass again."""
        module: Any
        for module in self.modules():
            function = getattr(module, "_gradient_checkpointing_func", None)
            if function is not None:
                module._gradient_checkpointing_func = functools.partial(self._checkpoint, function)

    def _checkpoint(
        self, checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any
    ) -> Any:
        architecture = self._computed or self._architecture

        def compute(*args: Any) -> Any:
            computed = self._computed or self._architecture
            self._compute(architecture)
            try:
                return function(*args)
            finally:
                self._compute(computed)

        return checkpoint(compute, *args)

    def _configured(self, width: int, layers: Sequence[LayerShape]) -> PretrainedConfig:
        family, space = self.family, self.space
        entries = self.config.to_dict() | family.sizes(space, width, layers[0])
        entries["num_hidden_layers"] = len(layers)
        if entries.get("layer_types") is not None:
            entries["layer_types"] = entries["layer_types"][: len(layers)]
        cls: Any = family.plain.config_class
        if not family.is_plain(space, width, layers):
            cls = family.layerwise.config_class
            del entries["model_type"]
            entries["head_dim"] = space.head_dim
            if family.divides:
                most = range(max(layer.heads for layer in layers), 0, -1)
                entries["num_attention_heads"] = next(n for n in most if width % n == 0)
            entries["layer_key_value_heads"] = [space.key_value_heads_of(n.heads) for n in layers]
            entries["layer_heads"] = [layer.heads for layer in layers]
            entries["layer_ffn"] = [layer.ffn for layer in layers]
            if any(layer.attention != "softmax" for layer in layers):
                entries["layer_attention"] = [layer.attention for layer in layers]
        config = cls(**entries)
        config._attn_implementation = self.config._attn_implementation
        return cast(PretrainedConfig, config)

    def _built(self, config: PretrainedConfig) -> PreTrainedModel:
        """Return a stand-alone subnet without weights."""
        family = self.family
        plain = type(config) is family.plain.config_class
        return _on_meta(family.plain if plain else family.layerwise, config)

    def _select(self, architecture: Architecture) -> None:
        width, shapes = self.space.shape(architecture)
        inner: Any = self.base_model
        inner.depth = len(shapes)
        self.family.resize_outside(self, width)
        layers = operator.attrgetter(self.block_path)(self)
        for layer, shape in zip(layers, shapes, strict=True):
            self.family.resize_layer(layer, self.space, width, shape)
            set_attention(self.family.attention(layer), shape.attention, self.config)


class _ActiveLayers(nn.Module):
    depth: int

    def _active(self, name: str) -> nn.ModuleList:
        return cast(nn.ModuleList, self._modules[name])[: self.depth]


class _LlamaModel(_ActiveLayers, LlamaModel):
    layers = property(lambda self: self._active("layers"))


class _Qwen2Model(_ActiveLayers, Qwen2Model):
    layers = property(lambda self: self._active("layers"))


class _Qwen3Model(_ActiveLayers, Qwen3Model):
    layers = property(lambda self: self._active("layers"))


class _GPT2Model(_ActiveLayers, GPT2Model):
    h = property(lambda self: self._active("h"))


class _ElasticLlama(ElasticLM, LlamaForCausalLM):
    pass


class _ElasticQwen2(ElasticLM, Qwen2ForCausalLM):
    pass


class _ElasticQwen3(ElasticLM, Qwen3ForCausalLM):
    pass


class _ElasticGPT2(ElasticLM, GPT2LMHeadModel):
    pass


_ELASTIC: dict[Any, tuple[Any, Any]] = {
    LlamaForCausalLM: (_LlamaModel, _ElasticLlama),
    Qwen2ForCausalLM: (_Qwen2Model, _ElasticQwen2),
    Qwen3ForCausalLM: (_Qwen3Model, _ElasticQwen3),
    GPT2LMHeadModel: (_GPT2Model, _ElasticGPT2),
}
"""Class of a model → elastic classes of the part with the layers, and of the whole."""

for _inner, _ in _ELASTIC.values():
    # The base of all models notes, for each class that is constructed, which outputs it records.
    PreTrainedModel.__init__(_inner.__new__(_inner), _inner.config_class())


def _on_meta(cls: Any, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return cast(PreTrainedModel, cls(config))


def _check_parts(model: PreTrainedModel) -> None:
    """Check that a model has the parts that its configuration makes."""
    rebuilt = _parts(_on_meta(type(model), model.config))
    own = _parts(model)
    for name in [*own, *rebuilt]:
        one, other = own.get(name, "missing"), rebuilt.get(name, "missing")
        if one != other:
            raise TypeError(
                f"{name or 'the model'} is {one} in the model and {other} in one that transformers "
                "builds with the same configuration: start from a model as from_pretrained or its "
                "constructor makes it, without adapters, quantisation or pruned heads, and with "
                "tie_word_embeddings as its weights are"
            )


def _parts(model: nn.Module) -> dict[str, Any]:
    """Return shapes of the weights, which are tied, and the classes of the layers, by path."""
    parts: dict[str, Any] = {
        name: tuple(tensor.shape) if type(tensor) is torch.Tensor else type(tensor).__name__
        for name, tensor in model.state_dict().items()
    }
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names.setdefault(parameter, name) != name:
            parts[name] = f"tied to {names[parameter]}"
    return parts | {name: type(module).__name__ for name, module in model.named_modules()}
