"""What runs leave as JSON: `nas_dynamic.experiment` writes these records, the report reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from nas_dynamic._extras import extra
from nas_dynamic.analysis.ranking import Estimate, comparable_loss
from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.space import Architecture, architecture_from_json
from nas_dynamic.storage.journal import RunError, read_json

with extra("experiment"):
    from pydantic import (
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        ValidationError,
        computed_field,
        field_validator,
    )
    from pydantic.dataclasses import dataclass

__all__ = [
    "Comparison",
    "Cost",
    "GradientPair",
    "SeedResult",
    "Subnet",
    "TrainedUpdate",
    "read_record",
]


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _estimate(value: Any) -> Any:
    return {k: _number(v) for k, v in value.items()} if isinstance(value, dict) else value


Number = Annotated[float, BeforeValidator(_number)]
"""JSON has no NaN, but null."""

Interval = Annotated[Estimate, BeforeValidator(_estimate)]


@dataclass(frozen=True, eq=False)
class Subnet(Score):
    """A subnet with its size and its score.

    Attributes:
        parameters: number of its parameters.
        macs: its multiply-accumulates for one image; None where torch cannot count them.
    """

    parameters: int
    macs: float | None = None

    @field_validator("architecture", mode="before")
    @classmethod
    def _hashable(cls, value: Architecture) -> Architecture:
        return architecture_from_json(value) if isinstance(value, dict) else value

    @field_validator("loss", mode="before")
    @classmethod
    def _diverged(cls, value: Any) -> Any:
        return _number(value)


class Record(BaseModel):
    """Plain data with a fixed schema."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TrainedUpdate(Record):
    """What one update used, and came to.

    Attributes:
        step: its number, from 0.
        lr: its learning rate.
        parameters: of the sampled subnet.
        gamma: γ of that subnet; None without CaLR.
        group: its momentum group; None without momentum separation.
        loss: of its batch; None if not finite.
    """

    step: int
    lr: float
    parameters: int
    gamma: float | None = None
    group: str | None = None
    loss: float | None = None


class GradientPair(Record):
    """The cosine of the gradients of an update and of the next one.

    Attributes:
        step: of the first one.
        groups: their momentum groups.
        cosine: over the parameters that both have a gradient for, before clipping.
    """

    step: int
    groups: tuple[str | None, str | None]
    cosine: float


class Cost(Record):
    """What a training cost, over all its starts.

    Attributes:
        seconds: wall time.
        peak_memory: bytes; None if unknown.
        memory_of: `"device"`, `"process"`, or `"process since its start"`.
        joules: energy; None if nothing could be read.
        energy_of: what the energy is of.
    """

    seconds: float
    peak_memory: int | None = None
    memory_of: str = "process"
    joules: float | None = None
    energy_of: list[str] = []


class SeedResult(Record):
    """One trained supernet, and its scored subnets: result.json of a seed.

    Attributes:
        seed: of the training.
        subnets: those that were scored with inherited weights.
        validation_images: number of images that they were scored on.
        group_by: what momentum separation groups by; None without it.
        cost: of the training.
        updates: number of updates.
        updates_by_group: number of updates of each momentum group.
        trace: some of the updates, evenly spaced.
        pairs: of updates whose gradients were compared.
    """

    seed: int
    subnets: Annotated[list[Subnet], Field(min_length=1)]
    validation_images: int
    group_by: str | None
    cost: Cost
    updates: int
    updates_by_group: dict[str, int]
    trace: list[TrainedUpdate]
    pairs: list[GradientPair]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy of the subnets."""
        return math.fsum(subnet.accuracy for subnet in self.subnets) / len(self.subnets)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pick(self) -> Subnet:
        """The subnet that the supernet ranks first: that of the lowest loss."""
        return min(self.subnets, key=lambda subnet: comparable_loss(subnet.loss))


class Comparison(Record):
    """Two trainings side by side, over the seeds that both have: compare.json.

    Attributes:
        seeds: of the supernets.
        arms: name of a training → measure → its value for each seed; see
            `nas_dynamic.report.measures`. The second one is compared with the first.
        differences: measure → mean over the seeds of what the second one has more, with its
            t-interval.
        seeds_needed: for an interval of the primary measure that tells something, at the spread
            seen; None where there is none.
        subnets: number of subnets whose stand-alone accuracy is known.
        reached: their lowest and their highest stand-alone accuracy.
        tau_of_parameters: Kendall τ of the parameter count to stand-alone accuracy.
        standalone: the subnets with their stand-alone scores.
        standalone_epochs: for which each of them was trained.
        curves: decay of the lr in each arm; None where both have that of a scheduler, or none.
    """

    seeds: list[int]
    arms: dict[str, dict[str, list[Number]]]
    differences: dict[str, Interval]
    seeds_needed: int | None
    subnets: int
    reached: tuple[float, float] | None
    tau_of_parameters: Number
    standalone: list[Subnet] = []
    standalone_epochs: int | None = None
    curves: dict[str, str] | None = None


Kind = TypeVar("Kind", bound=Record)


def read_record(kind: type[Kind], path: Path, remedy: str) -> Kind:
    """Return the record in a file.

    Raises:
        RunError: the file is not of that kind; the message ends in the remedy.
    """
    content = read_json(path, remedy)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "its content"
        raise RunError(
            f"{path} is not what nas-dynamic writes: {place}: {fault['msg']}; {remedy}"
        ) from None
