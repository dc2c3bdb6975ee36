"""A check that the ranks of a distributed training still train the same thing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nas_dynamic.attach.guard import Guard
from nas_dynamic.attach.update_rule import Update
from nas_dynamic.space import candidate_text

if TYPE_CHECKING:
    from nas_dynamic.attach.training import DynamicTraining

__all__ = ["EVERY", "RankAgreement", "check_every", "several_ranks"]

EVERY = 400
"""Steps between two checks: then they take some 10 µs a step on average."""

_WHAT = ("the number of updates", "the architecture", "the momentum group", "the lr", "the weights")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RankAgreement(Guard):
    """Stops a distributed training whose ranks have silently gone apart.

    DDP averages gradients and compares nothing else: ranks that sample different subnets take
    different lrs and momenta, and their weights drift apart without an error. This compares the
    update count, the subnets, the group, the lr and a digest of the weights, by one `all_gather`
    of five numbers a rank, after the first step and after every so many.

    Equal weights have equal digests, and weights that have drifted apart practically never do; it
    reads every weight once. Weights that ranks hold in parts (FSDP) are left out of it.

    Args:
        dynamic: attached to this rank's optimizer. The check is attached after it.
        every: steps between two checks.
        group: process group; all ranks by default.

    Raises:
        ValueError: `every` is no positive number.
        RuntimeError: there is no process group. Later, by `optimizer.step()` on every rank: the
            ranks differ; the message says which ranks, in what, and how.
    """

    def __init__(
        self,
        dynamic: DynamicTraining,
        every: int = EVERY,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        check_every(every)
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group() first, or "
                "leave RankAgreement out in a training of one process"
            )
        self.dynamic = dynamic
        self.every = every
        self.group = group
        # Steps and not updates: all ranks must come here, also where their updates differ.
        self._steps = 0
        dynamic.add_guard(self)

    def detach(self) -> None:
        """Compare no more."""
        self.dynamic.remove_guard(self)

    def check(self) -> None:
        """Compare now. A collective call: every rank has to make it."""
        own = torch.tensor(self._numbers(), device=self._device())
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(gathered, own, group=self.group)
        ranks = torch.stack(gathered).cpu()
        differs = ranks != ranks[0]
        if not differs.any():
            return
        # All ranks have the same numbers, so all of them come here.
        last = self.dynamic.last
        described: list[Any] = [None] * len(gathered)
        dist.all_gather_object(described, _described(last, self.dynamic.updates), group=self.group)
        sentences = []
        for rank in differs.any(dim=1).nonzero().flatten().tolist():
            what = [name for name, differ in zip(_WHAT, differs[rank], strict=True) if differ]
            sentences.append(
                f"rank {rank} differs from rank 0 in {', '.join(what)}: it has made "
                f"{described[rank]}, and rank 0 {described[0]}"
            )
        raise RuntimeError(
            "the ranks have gone apart: "
            + "; ".join(sentences)
            + ". Give the sampler one seed on all ranks, build the model from one seed or load it "
            "on all ranks, and go on from the last checkpoint before this. If ranks are to "
            "differ, train without this check"
        )

    def after_step(self) -> None:
        """Compare after the first step, and after every so many."""
        self._steps += 1
        if self._steps == 1 or self._steps % self.every == 0:
            self.check()

    def _numbers(self) -> list[int]:
        last = self.dynamic.last
        subnets = last and [
            sorted((label, candidate_text(c)) for label, c in s.architecture.items())
            for s in last.subnets
        ]
        return [
            self.dynamic.updates,
            _hash(subnets),
            _hash(last and last.group),
            _hash(last and [float(lr) for lr in last.lr]),
            self._weights(),
        ]

    def _weights(self) -> int:
        """Sum the weights' bits as integers, with wrap-around: exact, in any order."""
        groups = self.dynamic.optimizer.param_groups
        sums = [_bits(p) for group in groups for p in group["params"] if not _in_parts(p)]
        if not sums:
            return 0
        return _hash(torch.stack([s.to(sums[0].device) for s in sums]).tolist())

    def _device(self) -> torch.device:
        if dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def several_ranks() -> bool:
    """Return whether this process is one of several of a distributed training."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def check_every(every: int | None) -> None:
    """Check the steps between two checks of ranks; None is for no checks.

    Raises:
        ValueError: the number is not positive.
    """
    if every is not None and every < 1:
        raise ValueError(
            f"the steps between two checks of the ranks must be 1 or more, got {every}"
        )


def _in_parts(parameter: torch.Tensor) -> bool:
    """Return whether ranks hold a part each: FSDP2's DTensor, or FSDP's flat parameters."""
    return hasattr(parameter, "device_mesh") or getattr(parameter, "_fsdp_flattened", False)


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    tensor = parameter.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def _hash(value: Any) -> int:
    """Return a number of 63 bits that is the same in every process, unlike Python's own hash."""
    digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _described(last: Update | None, updates: int) -> str:
    if last is None:
        return "no update"
    subnets = ", ".join(str(dict(subnet.architecture)) for subnet in last.subnets)
    return f"{updates} updates, the last of {subnets} in group {last.group!r}"
