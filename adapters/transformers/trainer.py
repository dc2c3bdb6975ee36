"""A callback of Hugging Face's `Trainer` that trains a supernet dynamically."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nas_dynamic.attach.innermost import innermost
from nas_dynamic.attach.intercept import intercept
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY
from nas_dynamic.host import Options, takes_options
from nas_dynamic.host.sampling_state import SAMPLING_KEY
from nas_dynamic.host.supernet_callback import SupernetCallback
from nas_dynamic.sampling import Sampler

__all__ = ["DynamicSupernet"]

CARRIED = "dynamic"
"""Where in the state of an optimizer its checkpoint has what is dynamic training's."""

CONSTANT = ("constant", "constant_with_warmup")


class DynamicSupernet(SupernetCallback, TrainerCallback):
    """Trains the supernet of a `Trainer`'s model dynamically, a subnet for each update.

    The supernet is the model or the part of it that has `space`, a `SearchSpace`, and `activate`;
    see `SupernetHost`. Each update trains a subnet that is drawn by a
    seed, the same on all ranks; the micro-batches of one update train the same. The state of it
    all is in the `optimizer.pt` of a checkpoint. What the updates used goes into the logs of
    `logging_steps`, see `nas_dynamic.host.update_log`, but for losses, which no callback sees.

    In evaluation the supernet computes the subnet that was trained last, or one that you activate.

    Args:
        curve: the decay. By default that of the lr schedule, `"scheduler"`, which Trainer has if
            nothing is said; with `lr_scheduler_type="constant"` or `"constant_with_warmup"` the
            polynomial one.
        options: those of `nas_dynamic.host.supernet_callback.SupernetCallback`, as the errors are.
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
        given = {} if curve is None else {"curve": curve}
        super().__init__(sampler=sampler, seed=seed, **options, **given)
        self._curve_given = curve is not None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Attach: the optimizer is built by now, and has loaded its checkpoint."""
        self.stop()
        inner = innermost(others["optimizer"])
        carried = inner.state.pop(CARRIED, None)  # type: ignore[call-overload]
        if state.global_step and carried is None:
            raise ValueError(
                f"the checkpoint of step {state.global_step} has no dynamic training: it was "
                "written without DynamicSupernet, or without its optimizer (save_only_model); "
                "start from its weights without resume_from_checkpoint"
            )
        loaded = inner.state_dict()
        options = self._options_for(args)
        constant = _schedule(args) in CONSTANT
        host = self.start(
            others["model"],
            [inner],
            lambda: state.max_steps,
            options,
            has_scheduler=lambda optimizer: not constant,
        )
        if carried is not None:
            inner.load_state_dict(loaded | carried)

        # Trainer loads an optimizer before any callback can attach to it: a plain one then, also
        # after a training that failed. An entry of its state comes through that.
        def load(method: Callable[..., None], *args: Any, **kwargs: Any) -> None:
            self.stop()
            inner.load_state_dict(*args, **kwargs)

        host.on_stop(intercept(inner, "state_dict", _carry))
        host.on_stop(intercept(inner, "load_state_dict", load))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Draw the subnet of the update, before its first micro-batch."""
        self.draw()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Add to the logs of training what the last update used."""
        if self.log is None or logs is None or "learning_rate" not in logs:
            return
        metrics = self.log.metrics() or {}
        logs.update(metrics)
        state.log_history[-1].update(metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Leave a plain optimizer, which a next training may load."""
        self.stop()

    def _options_for(self, args: TrainingArguments) -> Options:
        if self._curve_given or _schedule(args) in CONSTANT:
            return self.options
        return replace(self.options, curve="scheduler")


def _schedule(args: TrainingArguments) -> str:
    schedule = args.lr_scheduler_type
    return str(getattr(schedule, "value", schedule))


def _carry(state_dict: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the state of an optimizer with what is dynamic training's as an entry of `state`."""
    saved: dict[str, Any] = state_dict(*args, **kwargs)
    carried = {key: saved.pop(key) for key in (CHECKPOINT_KEY, SAMPLING_KEY)}
    return saved | {"state": saved["state"] | {CARRIED: carried}}
