"""A fused timm supernet as an NNI model space, for NNI's strategies and `dynamic`."""

from __future__ import annotations

import copy
from typing import Any

import torch

from nas_dynamic._extras import extra

with extra("nni"):
    import nni.nas.strategy  # noqa: F401  first: see nas_dynamic.adapters.nni
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace

__all__ = ["TimmModelSpace", "model_space"]


def model_space(supernet: Any) -> TimmModelSpace:
    """An NNI model space with the choices, and a copy of the weights, of a supernet.

    Labels and candidates are those of `supernet.space`, so that architectures serve both. What NNI
    has trained goes back by `supernet.load_state_dict(strategy.supernet.model.state_dict())`; then
    `supernet.extract` gives timm models.

    Args:
        supernet: made by `fuse` or `mobile_supernet`.

    Raises:
        TypeError: the supernet has no layer choices, as one that is sliced.
    """
    if not hasattr(supernet, "choices"):
        raise TypeError(
            f"{type(supernet).__name__} has no layer choices, which NNI's space is made of; "
            "make a supernet by fuse() or mobile_supernet()"
        )
    return TimmModelSpace(supernet)


class TimmModelSpace(ModelSpace):
    """The model space that `model_space` makes; `model` is the timm model with NNI's choices."""

    def __init__(self, supernet: Any) -> None:
        super().__init__()
        model = copy.deepcopy(supernet)
        for label, choice in model.choices().items():
            model.set_submodule(label, LayerChoice(dict(choice.items()), label=label))
        model.__class__ = supernet.timm_class
        model._forward_pre_hooks.clear()  # an attached sampling is the supernet's
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the active subnet."""
        return self.model(x)
