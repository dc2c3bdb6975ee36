"""NVIDIA ModelOpt: `dynamic(mtn.convert(model, "autonas"), optimizer, total_steps=T)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.complexity import Complexity, count_macs, lookup
from nas_dynamic.host import Host, Options, takes_options
from nas_dynamic.host.sampling_state import SamplingOncePerUpdate
from nas_dynamic.space import Architecture, SearchSpace

with extra("modelopt"):
    from modelopt.torch.nas.patch import PatchManager
    from modelopt.torch.nas.search_space import SearchSpace as DynamicSpace
    from modelopt.torch.nas.utils import (
        get_subnet_config,
        is_modelopt_patches_enabled,
        no_modelopt_patches,
        select,
    )
    from modelopt.torch.opt.dynamic import DynamicModule
    from modelopt.torch.utils import random as host_random
    from modelopt.torch.utils import unwrap_model

__all__ = ["Attached", "activate", "dynamic", "search_space", "subnet_macs", "subnet_parameters"]


@takes_options
def dynamic(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int = 0,
    **options: Any,
) -> Attached:
    """Train a model that ModelOpt has converted with CaLR and momentum separation.

    ModelOpt goes on sampling in the model's forward pass in training mode, from its own generator,
    which is seeded here. It would sample anew in each micro-batch of an update; from now on the
    micro-batches of one update sample the same subnet. The optimizer's `state_dict` holds the state
    of the sampling with that of the training. ModelOpt has no logger, so nothing is logged:
    `training.last` says what the last update used.

    Args:
        model: converted by `mtn.convert(model, mode="autonas")`, before or after
            `DistributedDataParallel`.
        optimizer: of its parameters.
        seed: of ModelOpt's generator, which is one for the process: the same on all ranks.
        options: see `nas_dynamic.host.Options`. With `total_steps`, optimizer updates in the whole
            training, the decay is the paper's polynomial, and the loop's own lr has to be
            constant; without, CaLR bends the lr schedule that the loop has. `"macs"` takes an
            input that is not known here: give `complexity=subnet_macs(model, images)`.

    Raises:
        TypeError: the model is not converted, or by a mode that samples nothing in training.
        ValueError: an option is illegal, or the optimizer cannot be attached to.
    """
    model = unwrap_model(model)
    manager = PatchManager.get_manager(model) if PatchManager.is_patched(model) else None
    if not getattr(manager, "sample_during_training", False):
        raise TypeError(
            f"{type(model).__name__} samples no subnet in training; convert it with "
            'mtn.convert(model, mode="autonas") first'
        )
    given = Options.of_loop(**options)
    return Attached(model, innermost(optimizer), seed, given)


class Attached(Host):
    """Dynamic training that is attached to a converted model.

    Attributes:
        training: the `DynamicTraining`; `training.last` says what the last update used.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, options: Options
    ) -> None:
        self.model, self.optimizer, self.seed = model, optimizer, seed
        self.space = search_space(model)
        self._sampled: Architecture | None = None
        self._sampling = sampling = SamplingOncePerUpdate(self, options, _Generator())
        self.training = sampling.training
        host_random._get_generator().seed(seed)

        # Functions, not methods: a copy of the model, such as an EMA, copies methods along with
        # the optimizer behind them.
        def begin(module: nn.Module, args: Any) -> None:
            if module is self.model and module.training and is_modelopt_patches_enabled():
                self._sampled = None
                sampling.begin()

        def end(module: nn.Module, args: Any, output: Any) -> None:
            if module is self.model and module.training:
                # Here: a validation before the step would select another one.
                self._sampled = _active(model, self.space)

        self._ends = [
            model.register_forward_pre_hook(begin).remove,
            model.register_forward_hook(end).remove,
            sampling.end,
        ]

    def sampled(self) -> Architecture:
        """Return the subnet of this update."""
        if self._sampled is None or not self._sampling.begun:
            raise RuntimeError(
                "no subnet has been sampled for this update: its loss does not come from a call of "
                "the converted model in training mode; call model.train(), and the model itself"
            )
        return self._sampled

    def complexity(self, measure: Literal["parameters", "macs"]) -> Complexity:
        """Return a look-up of the number of parameters."""
        if measure == "macs":
            raise ValueError(
                "complexity='macs' needs an input: give complexity=subnet_macs(model, images)"
            )
        return subnet_parameters(self.model)

    def detach(self) -> None:
        """Stop: every forward pass in training mode samples anew, as before."""
        for end in self._ends:
            end()


class _Generator:
    """The state of the generator that ModelOpt samples by: one for the process."""

    def state_dict(self) -> dict[str, Any]:
        return {"generator": host_random._get_generator().getstate()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        host_random._get_generator().setstate(state["generator"])


def search_space(model: nn.Module) -> SearchSpace:
    """Return the hyperparameters of a converted model that have a choice."""
    hparams = DynamicSpace(unwrap_model(model)).named_hparams(configurable=True)
    return SearchSpace({name: list(hparam.choices) for name, hparam in hparams})


def activate(model: nn.Module, architecture: Architecture) -> None:
    """Make a converted model compute a subnet in evaluation mode, as `mtn.select` does.

    `model.eval()` calibrates batch norm on what ModelOpt has kept of the training data; to score
    with a calibration of one's own, do so inside `mtn.utils.no_modelopt_patches()`.
    """
    select(model, dict(architecture), strict=False)


def subnet_parameters(model: nn.Module) -> Complexity:
    """Return architecture → number of parameters of the subnet that `mtn.export` would give."""
    model = unwrap_model(model)
    return _measured(model, lambda: float(sum(_parameters(model).values())))


def subnet_macs(model: nn.Module, *inputs: Any) -> Complexity:
    """Return architecture → MACs of one forward pass of the subnet on example inputs."""
    model = unwrap_model(model)
    return _measured(model, lambda: count_macs(model, *inputs))


def _active(model: nn.Module, space: SearchSpace) -> dict[str, Any]:
    config = get_subnet_config(model, configurable=True)
    return {label: config[label] for label in space.labels}


def _measured(model: nn.Module, measure: Callable[[], float]) -> Complexity:
    space, dynamic_space = search_space(model), DynamicSpace(model)

    # ModelOpt's `select` would also note that the model is not in training.
    def measured(architecture: Architecture) -> float:
        active = _active(model, space)
        dynamic_space.select(dict(architecture), strict=False)
        try:
            with no_modelopt_patches(), torch.no_grad():
                return measure()
        finally:
            dynamic_space.select(active, strict=False)

    return lookup(space, measured)


def _parameters(module: nn.Module) -> dict[int, int]:
    """Return parameter → number of its elements that are active; tied ones once."""
    found = {id(p): getattr(module, n).numel() for n, p in module.named_parameters(recurse=False)}
    children = list(module.children())
    if isinstance(module, nn.Sequential) and isinstance(module, DynamicModule):
        depth: Any = module.depth
        children = children[:depth]
    for child in children:
        found |= _parameters(child)
    return found
