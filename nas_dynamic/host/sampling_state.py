"""The state of a host's own sampling: seeded, in the checkpoints, and one draw an update."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.attach.intercept import intercept
from nas_dynamic.host.options import Options
from nas_dynamic.host.seam import Host, attach

__all__ = [
    "SAMPLING_KEY",
    "GlobalGenerators",
    "SamplingOncePerUpdate",
    "attach_with_sampling",
    "keep_sampling",
    "numpy_state",
]

SAMPLING_KEY = "dynamic_sampling"
"""Where in `optimizer.state_dict()` the state of the sampling is."""


class Sampling(Protocol):
    """What draws the subnets of a training; its state can be put back."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


def keep_sampling(optimizer: torch.optim.Optimizer, sampling: Sampling) -> Callable[[], None]:
    """Save the state of a sampling with that of an optimizer, and load it with it.

    Call it before dynamic training is attached, which then reads a checkpoint first. One without
    the sampling is refused by `optimizer.load_state_dict`, before anything changes.

    Returns:
        What ends it, to be called after `DynamicTraining.detach`.
    """

    def save(state_dict: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return state_dict(*args, **kwargs) | {SAMPLING_KEY: sampling.state_dict()}

    def read(
        load: Callable[..., None], state_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if SAMPLING_KEY not in state_dict:
            raise ValueError(
                "the checkpoint has no state of the sampling: it was written without this "
                "adapter. Load it into the optimizer before dynamic training is attached"
            )
        own = {key: value for key, value in state_dict.items() if key != SAMPLING_KEY}
        before = copy.deepcopy(sampling.state_dict())
        try:
            sampling.load_state_dict(state_dict[SAMPLING_KEY])
            load(own, *args, **kwargs)
        except BaseException:  # all of it is loaded, or nothing
            sampling.load_state_dict(before)
            raise

    ends = [intercept(optimizer, "load_state_dict", read), intercept(optimizer, "state_dict", save)]

    def end() -> None:
        for undo in ends:
            undo()

    return end


def attach_with_sampling(
    host: Host, options: Options, sampling: Sampling
) -> tuple[DynamicTraining, Callable[[], None]]:
    """Attach dynamic training to a host's optimizer, and keep its sampling in the checkpoints.

    Returns:
        The training, and what leaves a plain optimizer.

    Raises:
        ValueError: an option does not suit the host, or the optimizer cannot be attached to.
    """
    end_sampling = keep_sampling(host.optimizer, sampling)
    try:
        training = attach(host, options)
    except BaseException:
        end_sampling()
        raise

    def end() -> None:
        training.detach()
        end_sampling()

    return training, end


class SamplingOncePerUpdate:
    """Attaches to a host that samples in every micro-batch, and lets it draw once an update.

    Every micro-batch of an update begins from the state of the sampling that the first one began
    from, so that the host draws the same again. The state is kept in the optimizer's checkpoints;
    in the middle of an update that is the one before it, so that it is drawn again.

    Args:
        host: of the training.
        options: of it.
        sampling: the host's.

    Attributes:
        training: the `DynamicTraining`.
        end: leaves a plain optimizer.
    """

    def __init__(self, host: Host, options: Options, sampling: Sampling) -> None:
        self._sampling = sampling
        self._began = -1
        self._before: Mapping[str, Any] = {}
        self.training, self.end = attach_with_sampling(host, options, self)

    @property
    def begun(self) -> bool:
        """Whether a subnet has been drawn for the coming update."""
        return self._began == self.training.turn

    def begin(self) -> None:
        """Call before the host draws."""
        if self.begun:
            self._sampling.load_state_dict(self._before)
        else:
            self._before = self._sampling.state_dict()
            self._began = self.training.turn

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state that the coming update begins from."""
        return self._before if self.begun else self._sampling.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._sampling.load_state_dict(state)
        self._began = -1


class GlobalGenerators:
    """Has what draws from Python's `random`, or from NumPy's global generator, draw from a seed.

    For hosts that sample from those. Inside of `with`, the global generators go on from the state
    that they had at its last end; outside of it they are as if it had not been.

    Args:
        seed: of both.

    Example:
        >>> generators = GlobalGenerators(seed=0)
        >>> with generators:
        ...     drawn = [random.choice("abc") for _ in range(3)]
        >>> drawn
        ['b', 'b', 'a']
    """

    def __init__(self, seed: int) -> None:
        self._python: Any = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed).get_state()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    def _swap(self) -> None:
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        self._python, self._numpy = python, legacy

    def state_dict(self) -> dict[str, Any]:
        """Return the states, as plain data."""
        generator = np.random.RandomState()
        generator.set_state(self._numpy)
        return {"python": self._python, "numpy": numpy_state(generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        version, words, gauss = state["python"]
        self._python, self._numpy = (version, tuple(words), gauss), state["numpy"]


def numpy_state(generator: np.random.RandomState) -> dict[str, Any]:
    """Return the state of a generator without arrays: it loads with `weights_only=True`."""
    state: dict[str, Any] = generator.get_state(legacy=False)
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}
