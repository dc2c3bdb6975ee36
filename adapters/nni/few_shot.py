"""Few-shot NAS in an NNI evaluator: it trains a supernet, splits it, and trains the parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nni
import pytorch_lightning as pl
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.nn.pytorch import ModelSpace
from pytorch_lightning.callbacks import ModelCheckpoint

from nas_dynamic.adapters.nni.complexity import subnet_parameters
from nas_dynamic.adapters.nni.multi_subnet import SamplerModule
from nas_dynamic.adapters.nni.resume import Resumable
from nas_dynamic.adapters.nni.sampling import Sampling
from nas_dynamic.adapters.nni.space import search_space
from nas_dynamic.adapters.nni.training import DynamicCallback
from nas_dynamic.complexity import lookup
from nas_dynamic.grouping import default_label
from nas_dynamic.sampling import partition
from nas_dynamic.space import SearchSpace

if TYPE_CHECKING:
    from nas_dynamic.adapters.nni.strategies import FewShotOneShot

__all__ = ["FewShotEvaluator", "SplitRule", "SubSupernet"]

SplitRule = str | Callable[[ModelSpace], str] | None
"""A label, or a rule from the trained supernet to one; None for `default_label` by parameters."""


class SubSupernet(NamedTuple):
    """A trained supernet of a part of the space.

    Attributes:
        space: the subnets that it was trained for.
        model: the supernet, in NNI's mutated form.
    """

    space: SearchSpace
    model: ModelSpace


@nni.trace
class FewShotEvaluator(Lightning):
    """Trains a supernet as its evaluator does, and then its copies, a sub-space each.

    Args:
        strategy: what samples and how to split; the copies are appended to its `supernets`.
        module: the one-shot module of the supernet.
        trainer: of the supernet; those of the copies are made with the same options.
        data: the other arguments of `Lightning`: loaders or a data module, and `fit_kwargs`.
    """

    def __init__(
        self, strategy: FewShotOneShot, module: SamplerModule, trainer: Trainer, **data: Any
    ) -> None:
        super().__init__(module, trainer, **data)
        self.strategy = strategy
        self._data = {key: value for key, value in data.items() if key != "fit_kwargs"}
        # As they are before the training, for the trainings of the copies.
        self._training_module = copy.deepcopy(module.training_module)
        self._callbacks = copy.deepcopy(_callbacks_of(trainer))

    def evaluate(self, model: ModelSpace) -> None:
        """Train the supernet, split it, and train its copies."""
        if not callable(self.strategy.label):
            self._label(model)  # refused before the training if it cannot be
        super().evaluate(model)
        supernets = self.strategy.supernets = []
        for space in partition(search_space(model), [self._label(model)]):
            copied = copy.deepcopy(model)
            self._evaluator(space, f"supernet_{len(supernets)}").evaluate(copied)
            supernets.append(SubSupernet(space, copied))

    def _label(self, model: ModelSpace) -> str:
        """Return what to split on."""
        space = search_space(model)
        label = self.strategy.label
        if callable(label):
            label = label(model)
        elif label is None:
            label = default_label(space, lookup(space, subnet_parameters(model)))
        if label not in space.choices:
            raise ValueError(
                f"the supernet cannot be split on {label!r}, which is no label of the space; "
                f"labels are {', '.join(map(repr, space.labels))}"
            )
        dynamic = self._dynamic()
        if dynamic is not None and dynamic.options.group_by == label:
            raise ValueError(
                f"group_by={label!r} is the label that the supernet is split on, so that a "
                "sub-supernet has a single momentum group; name another label, or none"
            )
        return label

    def _dynamic(self) -> DynamicCallback | None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, DynamicCallback) and callback.sampling.module is self.module:
                return callback
        return None

    def _evaluator(self, space: SearchSpace, name: str) -> Lightning:
        """Return a new training of a sub-space, whose files go to a folder of this name."""
        module = self.strategy.configure_oneshot_module(copy.deepcopy(self._training_module), space)
        callbacks = [*copy.deepcopy(self._callbacks), module.sampling]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                callback.dirpath = str(Path(callback.dirpath) / name)
        dynamic = self._dynamic()
        if dynamic is not None:
            callbacks.append(DynamicCallback(module.sampling, dynamic.options))
        options: dict[str, Any] = self.trainer.trace_kwargs | {
            "callbacks": callbacks,
            "default_root_dir": Path(self.trainer.default_root_dir) / name,
        }
        if self.strategy.epochs is not None:
            options["max_epochs"] = self.strategy.epochs
        fit_kwargs = {key: v for key, v in self.fit_kwargs.items() if key != "ckpt_path"}
        return Lightning(module, Trainer(**options), fit_kwargs=fit_kwargs, **self._data)


def _callbacks_of(trainer: Trainer) -> list[pl.Callback]:
    """Return the callbacks that the user gave to a traced trainer."""
    given = trainer.trace_kwargs.get("callbacks") or []
    given = [given] if isinstance(given, pl.Callback) else given
    return [c for c in given if not isinstance(c, Sampling | DynamicCallback | Resumable)]
