"""A fused timm supernet as an NNI model space, for NNI's strategies and `dynamic`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.adapters.timm.choices.supernet import LayerChoiceSupernet

with extra("nni"):
    import nni.nas.strategy  # noqa: F401  first: see nas_dynamic.adapters.nni
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace

__all__ = ["TimmModelSpace", "model_space"]


def model_space(supernet: nn.Module) -> TimmModelSpace:
    """Return an NNI model space with the choices, and a copy of the weights, of a supernet.

    Labels and candidates are those of `supernet.space`, so that architectures serve both. What NNI
    has trained goes back by `supernet.load_state_dict(strategy.supernet.model.state_dict())`; then
    `supernet.extract` gives timm models.

    Args:
        supernet: made by `fuse` or `mobile_supernet`.

    Raises:
        TypeError: the supernet has no layer choices, as one that is sliced.
    """
    if not isinstance(supernet, LayerChoiceSupernet):
        raise TypeError(
            f"{type(supernet).__name__} has no layer choices, which NNI's space is made of; "
            "make a supernet by fuse() or mobile_supernet()"
        )
    return TimmModelSpace(supernet)


class TimmModelSpace(ModelSpace):
    """The model space that `model_space` makes; `model` is the timm model with NNI's choices."""

    def __init__(self, supernet: LayerChoiceSupernet) -> None:
        super().__init__()
        model = supernet.plain_copy()
        for label in supernet.space.labels:
            choice: Any = model.get_submodule(label)
            model.set_submodule(label, LayerChoice(dict(choice.items()), label=label))
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the active subnet."""
        return cast(torch.Tensor, self.model(x))
