"""Differentiable search by single paths: a Gumbel sample of each choice, and a latency limit."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.differentiable import (
    GumbelDartsLightningModule,
    LinearTemperatureScheduler,
)
from nni.nas.oneshot.pytorch.strategy import GumbelDARTS, MutationHook, no_default_hook
from nni.nas.oneshot.pytorch.supermodule.differentiable import (
    DifferentiableMixedLayer,
    GumbelSoftmax,
)
from torch import nn

from nas_dynamic.adapters.nni.policies import PolicySampling
from nas_dynamic.adapters.nni.sampling import Sampling
from nas_dynamic.adapters.nni.space import search_space
from nas_dynamic.calr import CURVES
from nas_dynamic.complexity import AdditiveTable
from nas_dynamic.space import Key, key

__all__ = ["GumbelLayer", "GumbelModule", "GumbelOneShot"]


class GumbelOneShot(GumbelDARTS):
    """Differentiable search whose updates train one subnet each: FBNet with hard samples.

    A batch of the training set updates the weights of one subnet, that of the largest
    logits plus Gumbel noise; a batch of the validation set updates the logits, by the
    straight-through gradient of another such subnet. That computes every candidate's output, and
    only the sampled one's has a graph. NNI's `GumbelDARTS` mixes all candidates in both; its
    `penalty` has no gradient, since NNI makes numbers of the probabilities before.

    The space may have layer choices alone. The sampling is that of torch's global generator.
    `export_top_models` gives the most probable subnet that keeps the limit. Where several
    candidates of a choice share the probability that one of them needs, that may leave much of
    the limit: score some of `draw`, as FBNet does, and take the best.

    Args:
        latency: a table of the latency of subnets; or of any other cost that is additive.
        limit: greatest latency, in the unit of the table.
        strength: the loss of an architecture step is the training's, plus
            `strength · |E / limit − 1|`, E being the expected latency: from above and from below,
            since subnets that leave the limit unspent learn first, and would be taken early.
        temperature: (first, last), annealed from epoch to epoch by sharpDARTS' cosine-power curve;
            or an NNI scheduler.
        max_w: Max-W regularization (sharpDARTS): candidate i is weighted by 1 − max(w) + w_i in
            place of w_i, so that the candidate that leads gains nothing by its own gradient.
        arc_learning_rate: of the logits, whose optimizer is Adam.
        warmup_epochs: epochs before the first architecture step.
        kwargs: `gradient_clip_val`, `log_prob_every_n_step`, `mutation_hooks`: see `GumbelDARTS`.

    Raises:
        ValueError: there is a table without a limit, or no subnet keeps it; or `penalty` is given.

    Source: Wu et al., "FBNet", CVPR 2019; Hundt et al., "sharpDARTS", arXiv 1903.09900; Jang et
    al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, for the straight-through
    gradient; Bender et al., "TuNAS", CVPR 2020, for the absolute difference to the limit.

    Example:
        >>> table = AdditiveTable(1.0, {"layer1": {"conv3": 1.0, "conv5": 3.0}})
        >>> strategy = GumbelOneShot(latency=table, limit=3.0)
    """

    def __init__(
        self,
        *,
        latency: AdditiveTable | None = None,
        limit: float | None = None,
        strength: float = 1.0,
        temperature: tuple[float, float] | LinearTemperatureScheduler = (5.0, 0.5),
        max_w: bool = False,
        arc_learning_rate: float = 0.05,
        warmup_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("penalty") is not None:
            raise ValueError(
                "NNI's penalty has no gradient to the architecture; give latency, an "
                "AdditiveTable, and limit"
            )
        if (latency is None) != (limit is None):
            raise ValueError("latency and limit go together: give both, or neither")
        if latency is not None and limit is not None:
            least = latency.constant + sum(min(t.values()) for t in latency.terms.values())
            if limit < least:
                raise ValueError(f"no subnet keeps limit={limit}: the fastest one has {least:.6g}")
        super().__init__(arc_learning_rate=arc_learning_rate, warmup_epochs=warmup_epochs, **kwargs)
        self.temperature = (
            CosinePowerTemperature(*temperature) if isinstance(temperature, tuple) else temperature
        )
        self.latency, self.limit, self.strength = latency, limit, strength
        self.samples = GumbelSamples(max_w)

    def default_mutation_hooks(self) -> list[MutationHook]:
        """Return what replaces layer choices."""
        return [GumbelLayer.mutate, no_default_hook]

    def configure_softmax(self) -> nn.Module:
        """Return what draws for all choices, so that those of one label have one draw."""
        return self.samples

    def mutate_model(self, model: Any) -> Any:
        """Make the supernet.

        Raises:
            ValueError: the latency table lacks a candidate.
        """
        self._choices = search_space(model).choices
        if self.latency is not None:
            terms = self.latency.terms
            for label, candidates in self._choices.items():
                missing = [c for c in candidates if c not in terms.get(label, {})]
                if missing:
                    raise ValueError(
                        f"the latency table has no entry for {missing[0]!r} of {label!r}; measure "
                        "it for this space, for instance by AdditiveTable.measure"
                    )
        return super().mutate_model(model)

    def configure_oneshot_module(self, training_module: pl.LightningModule) -> GumbelModule:
        """Return the module that trains a supernet: a hook of NNI."""
        return GumbelModule(
            training_module,
            self.temperature,
            logits=self._arch_parameters,
            strategy=self,
            arc_learning_rate=self.arc_learning_rate,
            gradient_clip_val=self.gradient_clip_val,
            log_prob_every_n_step=self.log_prob_every_n_step,
            warmup_epochs=self.warmup_epochs,
        )

    def draw(self, number: int, seed: int = 0) -> list[dict[str, Hashable]]:
        """Return different subnets, drawn by the learned probabilities, that keep the limit.

        Args:
            number: of subnets; fewer are returned where 100 times as many draws give no more.
            seed: of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[Key, dict[str, Hashable]] = {}
        for _ in range(100 * number):
            subnet = {
                label: self._choices[label][
                    int(alpha.detach().cpu().softmax(-1).multinomial(1, generator=generator))
                ]
                for label, alpha in self._arch_parameters.items()
            }
            if self.latency is None or self.limit is None or self.latency(subnet) <= self.limit:
                drawn[key(subnet)] = subnet
            if len(drawn) == number:
                break
        return list(drawn.values())

    def sampling_of(self, module: BaseOneShotLightningModule, seed: int) -> Sampling:
        """Return the sampling of a module of this strategy, for `dynamic`."""
        return PolicySampling(module)


class CosinePowerTemperature(LinearTemperatureScheduler):
    """Falls from a first temperature to a last one by sharpDARTS' cosine-power curve.

    Args:
        init: the first.
        min: the last.
    """

    def step(self, current: int, total: int | None = None) -> float:
        """Return the temperature of an epoch of `total`, counted from 0."""
        if not total or total < 0:
            raise ValueError(f"the temperature needs max_epochs to anneal by, got {total}")
        ratio = CURVES["cosine-power"](min(current / total, 1.0))
        return float(self.min + (self.init - self.min) * ratio)


class GumbelSamples(GumbelSoftmax):
    """Draws the candidate of each choice, and keeps the draws of an architecture step.

    NNI's module sets the temperature, `tau`.

    Args:
        max_w: see `GumbelOneShot`.

    Attributes:
        gates: label → weights of the candidates, shape (candidates,), whose values are 0 and whose
            gradient is that of the sample; None where no architecture step is made.
    """

    def __init__(self, max_w: bool) -> None:
        super().__init__()
        self.max_w = max_w
        self.gates: dict[str, torch.Tensor] | None = None

    def draw(self, label: str, logits: torch.Tensor) -> int:
        """Return the number of a candidate, drawn with the probabilities softmax(logits)."""
        weights = self(logits)
        if self.gates is not None:
            gate = weights - weights.max() if self.max_w else weights
            self.gates[label] = gate - gate.detach()
        return int(weights.argmax())

    @contextmanager
    def straight_through(self) -> Iterator[None]:
        """Have outputs in the context depend on the logits."""
        self.gates = {}
        try:
            yield
        finally:
            self.gates = None


class GumbelLayer(DifferentiableMixedLayer):
    """A layer choice that computes the candidate which was drawn."""

    _chosen: str | None = None

    def resample(self, memo: Sample) -> Sample:
        """Draw a candidate, or take that of the memo."""
        if self.label in memo:
            self._chosen = memo[self.label]
        else:
            self._chosen = self.names[self._softmax.draw(self.label, self._arch_alpha)]
        return {self.label: self._chosen}

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the candidate's output; in an architecture step with a gradient to all logits."""
        if self._chosen is None:
            raise RuntimeError("no subnet is active; call activate(supernet, architecture) before")
        output: torch.Tensor = self[self._chosen](*args, **kwargs)
        gate = (self._softmax.gates or {}).get(self.label)
        if gate is None:
            return output
        for weight, name in zip(gate, self.names, strict=True):
            with torch.no_grad():
                other = output.detach() if name == self._chosen else self[name](*args, **kwargs)
            output = output + weight * other
        return output

    def export_probs(self, memo: Sample) -> Sample:
        """Return the probability of each candidate, without noise."""
        if self.label in memo:
            return {}
        probabilities = self._arch_alpha.detach().softmax(-1).tolist()
        return {self.label: dict(zip(self.names, probabilities, strict=True))}


class GumbelModule(GumbelDartsLightningModule):
    """Trains weights and logits in turn.

    Args:
        training_module: the evaluator's.
        temperature: NNI's scheduler.
        logits: label → logits of the candidates.
        strategy: has the latency table, the limit and the samples.
        kwargs: see `GumbelOneShot`.
    """

    def __init__(
        self,
        training_module: pl.LightningModule,
        temperature: LinearTemperatureScheduler,
        *,
        logits: dict[str, nn.Parameter],
        strategy: GumbelOneShot,
        **kwargs: Any,
    ) -> None:
        super().__init__(training_module, temperature, **kwargs)
        self.logits, self.strategy = logits, strategy

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Make an architecture step, and then a weight step with a subnet of its own."""
        if self.trainer.current_epoch >= self.warmup_epochs:
            self._architecture_step(batch["val"], batch_idx)
        self.resample()
        result = self.training_module.training_step(batch["train"], 2 * batch_idx + 1)
        self.advance_optimization(_loss(result), batch_idx, self.gradient_clip_val)
        self.advance_lr_schedulers(batch_idx)
        if batch_idx % self.log_prob_every_n_step == 0:
            self.log_probs(self.export_probs())
        return result

    def _architecture_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.architecture_optimizers()
        optimizer.zero_grad()
        with self.strategy.samples.straight_through():
            self.resample()
            loss = _loss(self.training_module.training_step(batch, 2 * batch_idx))
            if self.strategy.limit is not None:
                expected = self.expected_latency()
                self.log("latency", expected.detach())
                loss = loss + self.strategy.strength * (expected / self.strategy.limit - 1).abs()
            self.manual_backward(loss)
        optimizer.step()

    def expected_latency(self) -> torch.Tensor:
        """Return the mean latency of subnets as they are drawn, with a gradient."""
        table, choices = self.strategy.latency, search_space(self.model).choices
        assert table is not None
        expected = torch.tensor(table.constant)
        for label, logits in self.logits.items():
            terms = [table.terms[label][candidate] for candidate in choices[label]]
            expected = expected + logits.softmax(-1) @ logits.new_tensor(terms)
        return expected

    def export(self, within_limit: bool = True) -> Sample:
        """Return the most probable subnet; with a limit one that keeps it.

        That is the greatest log-probability less a price for the latency, at the lowest price that
        keeps the limit: no subnet that is as fast is more probable.

        Args:
            within_limit: False for the most probable one of all.
        """
        table, choices = self.strategy.latency, search_space(self.model).choices
        logits = {
            label: alpha.detach().log_softmax(-1).tolist() for label, alpha in self.logits.items()
        }

        def best(price: float) -> Sample:
            chosen = {}
            for label, candidates in choices.items():
                terms = table.terms[label] if table is not None else dict.fromkeys(candidates, 0.0)
                values = [
                    v - price * terms[c] for v, c in zip(logits[label], candidates, strict=True)
                ]
                chosen[label] = candidates[values.index(max(values))]
            return chosen

        limit, found = self.strategy.limit, best(0.0)
        if table is None or limit is None or not within_limit or table(found) <= limit:
            return found
        low, high = 0.0, 1.0 / limit
        while table(best(high)) > limit:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if table(best(middle)) > limit else (low, middle)
        return best(high)


def _loss(result: Any) -> torch.Tensor:
    return result["loss"] if isinstance(result, dict) else result
