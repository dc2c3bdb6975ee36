"""The options of dynamic training: each declared once, and validated once."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nas_dynamic.attach.nonfinite import check_nonfinite
from nas_dynamic.attach.ranks import EVERY, check_every
from nas_dynamic.attach.supported import check_idle
from nas_dynamic.calr import CaLR
from nas_dynamic.complexity import Complexity
from nas_dynamic.momentum import GroupBy, MomentumSeparation

__all__ = ["Options", "takes_options"]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of dynamic training, the same in every adapter and in configurations.

    Attributes:
        calr: set the lr by the complexity of the subnet.
        momentum: keep a momentum for each group of subnets. `"auto"`: where `group_by` is given.
        gamma_max: γ of the smallest subnet; see `CaLR`, as for the next five.
        gamma_min: γ of the largest subnet, 1/γ_max by default.
        curve: the decay; `"scheduler"` bends that of the optimizer's own lr scheduler.
        warmup_steps: updates of linear warm-up.
        total_steps: updates of the weights in the whole training; the host's number by default.
        keep_mean_lr: begin the decay at that lr at which the mean over the decay and its subnets
            is the optimizer's own lr, twice that for γ by rank and a linear decay; False: at the
            optimizer's lr. By default where the host knows that its lr is constant, and γ goes by
            rank.
        anneal: what the decay applies to where an update takes several subnets.
        complexity: `"parameters"` or `"macs"`, or a function of an architecture.
        gamma_by: `"rank"`, of the complexity among subnets that the training draws, which keeps
            the mean lr; or `"complexity"`, the paper's γ.
        bounds: least and greatest complexity of the space, for `gamma_by="complexity"`; found by
            search if not given.
        group_by: label or rule that groups subnets, see `MomentumSeparation`; that of
            `default_rule` if not given.
        max_groups: an update that would open one more momentum group is refused.
        idle: what an update does with parameters outside of the subnet; see `DynamicTraining`, as
            for the next one.
        nonfinite: what a step does whose gradients have an inf or a NaN.
        check_ranks_every: where several processes train, the steps between two checks that they
            train the same subnets and have the same weights, see `RankAgreement`; None for none.
        check_sampled: raise where the gradients contradict the subnet that is told.
        extend: go on with a checkpoint of fewer total steps; see `DynamicTraining`.

    Raises:
        ValueError: names the option and what it may be.

    Example:
        >>> Options(gamma_max=3.0, idle="freeze").gamma_max
        3.0
    """

    calr: bool = True
    momentum: bool | Literal["auto"] = "auto"
    gamma_max: float = 4.0
    gamma_min: float | None = None
    curve: str | Callable[[float], float] = "polynomial"
    warmup_steps: int = 0
    total_steps: int | None = None
    keep_mean_lr: bool | None = None
    anneal: Literal["lr", "loss"] = "lr"
    complexity: Literal["parameters", "macs"] | Complexity = "parameters"
    gamma_by: Literal["rank", "complexity"] = "rank"
    bounds: tuple[float, float] | None = None
    group_by: GroupBy | None = None
    max_groups: int = 64
    idle: Literal["auto", "coast", "freeze"] = "auto"
    nonfinite: Literal["ignore", "raise", "skip"] = "ignore"
    check_ranks_every: int | None = EVERY
    check_sampled: bool = True
    extend: bool = False

    def __post_init__(self) -> None:
        if not callable(self.complexity) and self.complexity not in ("parameters", "macs"):
            raise ValueError(
                "complexity must be 'parameters', 'macs' or a function of an architecture, "
                f"got {self.complexity!r}"
            )
        if self.momentum not in (True, False, "auto"):
            raise ValueError(f"momentum must be True, False or 'auto', got {self.momentum!r}")
        if self.gamma_by not in ("rank", "complexity"):
            raise ValueError(f"gamma_by must be 'rank' or 'complexity', got {self.gamma_by!r}")
        if self.gamma_by == "rank" and self.bounds is not None:
            raise ValueError(
                "bounds are for γ by complexity: give gamma_by='complexity' as well, or no bounds"
            )
        if self.keep_mean_lr and self.curve == "scheduler":
            raise ValueError(
                "keep_mean_lr is for a decay of CaLR's own: curve='scheduler' bends the "
                "scheduler's; give another curve, or no keep_mean_lr"
            )
        check_idle(self.idle)
        check_nonfinite(self.nonfinite)
        check_every(self.check_ranks_every)
        # The rules of the rest are those of the classes that take them.
        MomentumSeparation(
            "" if self.group_by is None else self.group_by, max_groups=self.max_groups
        )
        steps = self.total_steps
        if steps is None and self.curve != "scheduler":
            steps = max(self.warmup_steps, 0) + 1  # any that has room for the warm-up
        self.build_calr(lambda architecture: 1.0, steps, bounds=self.bounds or (1.0, 2.0))

    @property
    def separates(self) -> bool:
        """Whether groups are to have momenta of their own."""
        return self.group_by is not None if self.momentum == "auto" else self.momentum

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Return options by their names.

        Raises:
            TypeError: there is no such option.
            ValueError: names the option and what it may be.
        """
        names = [option.name for option in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise TypeError(
                    f"there is no option {name!r}{hint}; options are {', '.join(names)}"
                )
        return cls(**options)

    @classmethod
    def of_loop(cls, **options: Any) -> Options:
        """Return options for a host that does not know how many updates it makes.

        Without `total_steps` the decay is that of the lr scheduler that the loop has.
        """
        curve = options.get("curve") or (
            "polynomial" if options.get("total_steps") else "scheduler"
        )
        return cls.of(**options | {"curve": curve})

    def build_calr(self, complexity: Complexity, total_steps: int | None, **reference: Any) -> CaLR:
        """Return CaLR by these options; `reference` is its `bounds` or its `population`."""
        return CaLR(
            complexity,
            total_steps=total_steps,
            gamma_max=self.gamma_max,
            gamma_min=self.gamma_min,
            curve=self.curve,
            warmup_steps=self.warmup_steps,
            anneal=self.anneal,
            **reference,
        )


def takes_options(function: Function) -> Function:
    """Show the options of `Options` in the signature of a function that takes `**options`."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=option.type,
        )
        for option in dataclasses.fields(Options)
        if option.name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function
