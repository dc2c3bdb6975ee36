"""Masks of a supernet's weights, which change while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nas_dynamic import DynamicTraining

__all__ = ["Pruning"]


class Pruning:
    """Gradual pruning by magnitude, layer by layer, with connections that grow again.

    After every `every`-th update from `begin` to `end` each layer keeps its greatest weights: the
    share that is pruned rises from 0 to `sparsity` by a cubic, as of Zhu and Gupta. Of those that a
    layer may keep, a share of `regrow` at the begin, of none at the end, goes to pruned weights:
    those of the greatest gradient, summed since the last change of the masks, as by RigL.

    What is pruned is 0, and so is its momentum in every momentum group. So a weight that grows
    again starts at 0 without momentum, whichever group is updated next, and pruned weights stay at
    0 as well where idle parameters coast.

    Attach dynamic training before, and do so before its first update: a momentum group that is
    opened later starts from the state at attachment.

    Args:
        dynamic: the attached training.
        weights: what is pruned.
        sparsity: share of each layer that is pruned in the end.
        begin: update that the first change of the masks follows.
        end: update that the last one follows.
        every: updates from one to the next.
        regrow: share of the kept weights of a layer.
    """

    def __init__(
        self,
        dynamic: DynamicTraining,
        weights: Sequence[torch.Tensor],
        *,
        sparsity: float,
        begin: int,
        end: int,
        every: int,
        regrow: float = 0.0,
    ) -> None:
        self.dynamic, self.sparsity, self.regrow = dynamic, sparsity, regrow
        self.begin, self.end, self.every = begin, end, every
        self.masks = {weight: torch.ones_like(weight, dtype=torch.bool) for weight in weights}
        self.gradients = {weight: torch.zeros_like(weight) for weight in weights}
        self.updates = 0
        self.hook = dynamic.optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.updates += 1
        for weight, gradient in self.gradients.items():
            if weight.grad is not None:  # it is of the subnet
                gradient += weight.grad
        self._mask([optimizer.state])  # the group that was updated
        since, length = self.updates - self.begin, self.end - self.begin
        if since == length or (0 <= since < length and since % self.every == 0):
            progress = since / length
            for weight in self.masks:
                self._change(weight, progress)
            self._mask([*self.dynamic.states.values()])

    def _change(self, weight: torch.Tensor, progress: float) -> None:
        """Prune and regrow a layer."""
        mask, gradient = self.masks[weight], self.gradients[weight]
        pruned = self.sparsity * (1 - (1 - progress) ** 3)
        kept = max(1, round((1 - pruned) * weight.numel()))
        empty = int((~mask).sum())
        grown = min(round(self.regrow * (1 - progress) * kept), empty, kept - 1)
        chosen = torch.zeros_like(mask)
        magnitude = weight.abs().masked_fill(~mask, -1.0).flatten()
        chosen.view(-1)[magnitude.topk(min(kept - grown, int(mask.sum()))).indices] = True
        grows = gradient.abs().masked_fill(mask, -1.0).flatten()
        chosen.view(-1)[grows.topk(grown).indices] = True
        mask.copy_(chosen)
        gradient.zero_()

    def _mask(self, states: Sequence[Any]) -> None:
        """Set pruned weights to 0, and their entries in states that have the weight's shape."""
        for weight, mask in self.masks.items():
            weight.mul_(mask)
            for state in states:
                for value in state.get(weight, {}).values():
                    if torch.is_tensor(value) and value.shape == weight.shape:
                        value.mul_(mask)

    def fixed(self, dynamic: DynamicTraining) -> Pruning:
        """Return the same masks for another training; they change no more."""
        other = Pruning(dynamic, [*self.masks], sparsity=self.sparsity, begin=0, end=0, every=1)
        other.masks = self.masks
        return other

    def kept(self, weights: Sequence[torch.Tensor]) -> int:
        """Return how many entries of these weights are kept."""
        return sum(int(self.masks[weight].sum()) for weight in weights)
