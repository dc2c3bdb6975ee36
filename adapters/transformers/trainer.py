"""A callback of Hugging Face's `Trainer` that trains a supernet dynamically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.attach.intercept import intercept
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY
from nas_dynamic.host import Options, takes_options
from nas_dynamic.sampling import Sampler
from nas_dynamic.supernet_host import SAMPLING_KEY, SupernetHost, find_supernet
from nas_dynamic.update_log import UpdateLog

__all__ = ["DynamicSupernet"]

CARRIED = "dynamic"
"""Where in the state of an optimizer its checkpoint has what is dynamic training's."""

CONSTANT = ("constant", "constant_with_warmup")


class DynamicSupernet(TrainerCallback):
    """Trains the supernet of a `Trainer`'s model dynamically, a subnet for each update.

    The supernet is the model or the part of it that has `space`, a `SearchSpace`, and `activate`;
    see `nas_dynamic.supernet_host.SupernetHost`. Each update trains a subnet that is drawn by a
    seed, the same on all ranks; the micro-batches of one update train the same. The state of it
    all is in the `optimizer.pt` of a checkpoint. What the updates used goes into the logs of
    `logging_steps`, see `nas_dynamic.update_log`, but for losses, which no callback sees.

    In evaluation the supernet computes the subnet that was trained last, or one that you activate.

    Args:
        curve: the decay. By default that of the lr schedule, `"scheduler"`, which Trainer has if
            nothing is said; with `lr_scheduler_type="constant"` or `"constant_with_warmup"` the
            polynomial one.
        sampler: draws the subnet of each update; uniformly by default. One that draws several
            needs a model or a Trainer that sums the losses of `weighted_subnets`.
        seed: of the default sampler.
        options: see `nas_dynamic.host.Options`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is not what it may be.
    """

    @takes_options
    def __init__(
        self,
        *,
        curve: str | Callable[[float], float] | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.options = Options.of(**options, **({} if curve is None else {"curve": curve}))
        self._curve_given = curve is not None
        self._sampler, self._seed = sampler, seed
        self.host: SupernetHost | None = None
        self._log: UpdateLog | None = None

    @property
    def training(self) -> DynamicTraining | None:
        """What is attached, in a training, or was in the last."""
        return None if self.host is None else self.host.training

    def weighted_subnets(self) -> Iterator[float]:
        """Have the supernet compute each subnet of this update in turn; yield its loss's weight.

        For a `compute_loss`, or a model's forward, whose update takes several subnets:

            loss = sum(w * self.loss_of(inputs) for w in dynamic.weighted_subnets())
        """
        assert self.host is not None, "weighted_subnets() is for training steps"
        return self.host.weighted_subnets()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Attach: the optimizer is built by now, and has loaded its checkpoint."""
        self.on_train_end(args, state, control)
        supernet, inner = find_supernet(others["model"], [others["optimizer"]])
        carried = inner.state.pop(CARRIED, None)  # type: ignore[call-overload]
        if state.global_step and carried is None:
            raise ValueError(
                f"the checkpoint of step {state.global_step} has no dynamic training: it was "
                "written without DynamicSupernet, or without its optimizer (save_only_model); "
                "start from its weights without resume_from_checkpoint"
            )
        host = SupernetHost(
            supernet,
            inner,
            lambda: state.max_steps,
            sampler=self._sampler,
            seed=self._seed,
        )
        loaded = inner.state_dict()
        host.start(self._options_for(args))
        if carried is not None:
            inner.load_state_dict(loaded | carried)

        # Trainer loads an optimizer before any callback can attach to it: a plain one then, also
        # after a training that failed. An entry of its state comes through that.
        def load(method: Callable[..., None], *args: Any, **kwargs: Any) -> None:
            host.stop()
            inner.load_state_dict(*args, **kwargs)

        host.on_stop(intercept(inner, "state_dict", _carry))
        host.on_stop(intercept(inner, "load_state_dict", load))
        self.host, self._log = host, UpdateLog(host.training)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Draw the subnet of the update, before its first micro-batch."""
        assert self.host is not None
        self.host.draw()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Add to the logs of training what the last update used."""
        if self._log is None or logs is None or "learning_rate" not in logs:
            return
        metrics = self._log.metrics() or {}
        logs.update(metrics)
        state.log_history[-1].update(metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Leave a plain optimizer, which a next training may load."""
        if self.host is not None:
            self.host.stop()

    def _options_for(self, args: TrainingArguments) -> Options:
        schedule = args.lr_scheduler_type
        if self._curve_given or getattr(schedule, "value", schedule) in CONSTANT:
            return self.options
        return replace(self.options, curve="scheduler")


def _carry(state_dict: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the state of an optimizer with what is dynamic training's as an entry of `state`."""
    saved: dict[str, Any] = state_dict(*args, **kwargs)
    carried = {key: saved.pop(key) for key in (CHECKPOINT_KEY, SAMPLING_KEY)}
    return saved | {"state": saved["state"] | {CARRIED: carried}}
