"""M supernets side by side: their buffers, and the launches of an update.

Kernels read from device memory what the edges do, so that the launches are the same for every
subnet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.nb201.replicas import kernels_backward, kernels_forward, kernels_weights
from benchmarks.nb201.replicas.launches import Launch, default_tile, programs_of
from benchmarks.nb201.replicas.layout import COLOURS, Layout
from benchmarks.nb201.supernet import OPERATIONS
from benchmarks.nb201.training import WEIGHT_DECAY

__all__ = ["PRECISIONS", "Network", "Part"]

PRECISIONS = {
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
    "float64": (torch.float64, "ieee"),
}
"""Type of all numbers, and precision of products of matrices."""

POSITIONS, PARTS, NORM_PARTS, WEIGHT_PARTS = 128, 64, 128, 16
"""Positions of a program at least, programs of a replica at most, those of the norm of its
gradient and of its weights' gradients."""

MAX_NORM, STEM, REDUCTION = 5.0, (3, 0, 0), (3, 5, 3)
"""Clipping as in `Training`, and what the edges of the stem and of a reduction do."""


@dataclass(eq=False)
class Part:
    """Nodes and edges of a cell, a reduction or the stem, from its node 0 on.

    Attributes:
        stage: its number.
        ops: what the edges do.
        at: where the weights of edge 0 would begin in the flat vector.
        nodes: [nodes, M, positions, C].
        y: outputs of the convolutions, [edges, M, positions, C].
        sums: partial sums of y and y², [edges, M, programs, 2, C].
        stat: mean and 1 / std of y, [edges, M, 2, C].
        g: gradients of the nodes.
        gsums: partial sums of g and g·x̂, as `sums`.
    """

    stage: int
    ops: torch.Tensor
    at: int
    nodes: torch.Tensor
    y: torch.Tensor
    sums: torch.Tensor
    stat: torch.Tensor
    g: torch.Tensor
    gsums: torch.Tensor


class Network:
    """M supernets at one batch size.

    Args:
        layout: of the weights.
        flat: weights of every replica, [M, layout.size].
        batch: images of each replica.
        size: of the images in pixels.
        precision: of `PRECISIONS`.
        betas: momentum coefficient of each replica; none where it is not trained.

    Attributes:
        images: [M, batch · size², COLOURS]; the channels from the fourth on are zero.
        ops: of the subnet, [1, 8]: six edges, and in number 6 the weights that the update moves.
        classes, lr, group: of the update; [M, batch], [1, M], [1, M].
        loss, right: mean loss and share of right answers of each replica.
        stem, forward, backward, step: launches.
        buffers: what launches write for others; they may hold anything before an update.
    """

    def __init__(
        self,
        layout: Layout,
        flat: torch.Tensor,
        batch: int,
        size: int,
        precision: str,
        betas: list[float] | None = None,
    ) -> None:
        self.dtype, self.products = PRECISIONS[precision]
        self.layout, self.models, self.batch, self.size = layout, len(flat), batch, size
        self.flat, self.device = flat.to(self.dtype), flat.device
        self.trained = betas is not None
        self.buffers: list[torch.Tensor] = []
        models, last = self.models, layout.widths[-1]
        self.sides = [size, size // 2, size // 4]
        self.positions = [batch * side**2 for side in self.sides]
        self.programs = [programs_of(p, POSITIONS, PARTS) for p in self.positions]
        self.images = self._zeros(models, self.positions[0], COLOURS)
        self.ops = self._zeros(1, 8, dtype=torch.int32)
        self.classes = self._zeros(models, batch, dtype=torch.int64)
        self.loss, self.right = self._zeros(models), self._zeros(models)
        self.features, self.above = (self._buffer(models, batch, last) for _ in range(2))
        self.head_sums = self._buffer(models, self.programs[-1], 2, last)
        self.head_stat = self._buffer(models, 2, last)
        if betas is not None:
            self.betas = torch.tensor(betas, dtype=self.dtype, device=self.device)
            self.bits = layout.bits().to(self.device)
            self.grad = torch.zeros_like(self.flat)
            self.momentum = self._zeros(len(OPERATIONS), *self.flat.shape)
            self.lr = self._zeros(1, models)
            self.group = self._zeros(1, models, dtype=torch.int32)
            self.feature_g = self._buffer(models, batch, last)
            self.mean_g, self.mean_gx = (self._buffer(models, last) for _ in range(2))
            self.norm_sums = self._buffer(models, NORM_PARTS)
        self.before: list[Part] = []
        self.cells: list[list[Part]] = []
        for stage in range(3):
            self._make_stage(stage)
        self.stem, self.forward = self._stem(), self._forward()
        self.backward = self._backward() if self.trained else []
        self.step = self._step() if self.trained else []

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype or self.dtype, device=self.device)

    def _buffer(self, *shape: int) -> torch.Tensor:
        self.buffers.append(self._zeros(*shape))
        return self.buffers[-1]

    def _make_stage(self, stage: int) -> None:
        """Make the parts of a stage: the stem or a reduction in `before`, and its cells.

        Nodes of a stage: an unused one in place of what comes before, two of the stem or the
        reduction, then three a cell, whose last is the next cell's first.
        """
        layout, models, cells = self.layout, self.models, self.layout.cells
        c, p, programs = layout.widths[stage], self.positions[stage], self.programs[stage]
        nodes = self._buffer(3 * cells + 3, models, p, c)
        g = self._buffer(*nodes.shape) if self.trained else nodes

        def edges(*shape: int) -> list[torch.Tensor]:
            y = self._buffer(*shape, models, p, c)
            sums, stat = (self._buffer(*shape, models, n, c) for n in (2 * programs, 2))
            gsums = self._buffer(*sums.shape) if self.trained else sums
            unfold = [x.unflatten(-2, (programs, 2)) for x in (sums, gsums)]
            return [y, unfold[0], stat, unfold[1]]

        y, sums, stat, gsums = edges(3)
        kinds = REDUCTION if stage else STEM
        ops = torch.tensor([*kinds, 0, 0, 0, 0, 0], dtype=torch.int32, device=self.device)
        first = 0 if stage else 1  # the stem leads to what is node 2 here
        self.before.append(Part(stage, ops, 0, nodes[first:], y, sums, stat, g[first:], gsums))
        # Without a backward pass the cells share what only that reads.
        own = cells if self.trained else 1
        y, sums, stat, gsums = edges(own, 6)
        self.cells.append([])
        for cell in range(cells):
            of_edges = [x[cell % own] for x in (y, sums, stat, gsums)]
            begin, at = 2 + 3 * cell, layout.stages[stage] + cell * 60 * c**2
            part = Part(stage, self.ops, at, nodes[begin:], *of_edges[:3], g[begin:], of_edges[3])
            self.cells[stage].append(part)

    def _tiles(self, kernel: Any, ci: int, co: int, each: int) -> dict[str, int]:
        """Choose tiles for programs of `each` positions."""
        block, warps, stages = default_tile(kernel.__name__, max(ci, co))
        block = min(block, each & -each)
        return {"BLOCK": block, "TILES": each // block, "warps": warps, "stages": stages}

    def _weights(self, at: int) -> torch.Tensor:
        return self.flat.view(-1)[at:]

    def _conv(
        self,
        part: Part,
        s: int,
        edges: int,
        x: torch.Tensor,
        at: int,
        stride: int = 1,
        relu: bool = True,
    ) -> Launch:
        kernel, ci, co = kernels_forward.conv_forward, x.shape[-1], part.y.shape[-1]
        programs, positions = self.programs[part.stage], self.positions[part.stage]
        return Launch(
            kernel,
            (programs * edges, self.models),
            *(x, self._weights(at), part.y, part.sums, part.ops, s, self.layout.size),
            **{"CI": ci, "CO": co, "SIDE": self.sides[part.stage], "STRIDE": stride},
            **{"RELU": relu, "NB": programs, "PRECISION": self.products},
            **self._tiles(kernel, ci, co, positions // programs),
        )

    def _by_position(
        self, kernel: Any, stage: int, *arguments: Any, edges: int = 1, **constants: Any
    ) -> Launch:
        """Launch a kernel whose programs share the positions of a stage, of some edges."""
        c, programs = self.layout.widths[stage], self.programs[stage]
        return Launch(
            kernel,
            (programs * edges, self.models),
            *arguments,
            **{"C": c, "NB": programs} | constants,
            **self._tiles(kernel, c, c, self.positions[stage] // programs),
        )

    def _gather(self, part: Part, t: int) -> Launch:
        return self._by_position(
            kernels_forward.gather_forward,
            part.stage,
            *(part.nodes, part.nodes[t], part.y, part.sums, part.stat, part.ops, t),
            SIDE=self.sides[part.stage],
        )

    def _stem(self) -> list[Callable[[], None]]:
        stem = self.before[0]
        conv = self._conv(stem, 0, 1, self.images, self.layout.stem, relu=False)
        return [conv, self._gather(stem, 1)]

    def _second(self, stage: int) -> int:
        """Where edge 0's weights would begin if edge 2's were the second convolution's."""
        return self.layout.second[stage] - 20 * self.layout.widths[stage] ** 2

    def _end(self, stage: int, of: str = "nodes") -> torch.Tensor:
        """Return the output node of a stage, or its gradient."""
        return getattr(self.cells[stage][-1], of)[3]

    def _forward(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for stage in range(3):
            if stage:
                part, at = self.before[stage], self.layout.strided[stage]
                found += [
                    self._conv(part, 0, 2, self._end(stage - 1), at, stride=2),
                    self._gather(part, 1),
                    self._conv(part, 1, 1, part.nodes[1], self._second(stage)),
                    self._gather(part, 2),
                ]
            for cell in self.cells[stage]:
                for s in range(3):
                    conv = self._conv(cell, s, 3 - s, cell.nodes[s], cell.at)
                    found += [conv, self._gather(cell, s + 1)]
        end, kernel = self._end(2), kernels_forward.head_forward
        head = (end, self.head_sums, self.head_stat, self.features, self.above)
        sizes = {"C": self.layout.widths[2], "PIXELS": self.sides[2] ** 2}
        return [
            *found,
            self._by_position(kernels_forward.node_statistics, 2, end, self.head_sums),
            Launch(kernel, (self.batch, self.models), *head, **sizes, NB=self.programs[2]),
            self.classify,
        ]

    def classify(self) -> None:
        """Compute the loss, and where the network is trained the gradients behind the pooling."""
        layout = self.layout
        weight = self.flat[:, layout.classifier : layout.bias].unflatten(1, (10, -1))
        bias = self.flat[:, layout.bias : layout.bias + 10]
        logits = torch.baddbmm(bias[:, None], self.features, weight.transpose(1, 2))
        logp = logits.log_softmax(-1)
        self.loss.copy_(logp.gather(2, self.classes[:, :, None]).mean((1, 2)).neg_())
        self.right.copy_((logits.argmax(-1) == self.classes).to(self.dtype).mean(1))
        if not self.trained:
            return
        index = self.classes[:, :, None]
        d = logp.exp().scatter_add_(2, index, -torch.ones_like(index, dtype=self.dtype))
        d /= self.batch
        grad = self.grad[:, layout.classifier : layout.bias].unflatten(1, (10, -1))
        grad.copy_(torch.bmm(d.transpose(1, 2), self.features))
        self.grad[:, layout.bias : layout.bias + 10].copy_(d.sum(1))
        torch.bmm(d, weight, out=self.feature_g)
        # Means over all pixels of the gradient behind the ReLU, and of it times x̂: k·[x̂ > 0] and
        # k·ReLU(x̂), with k the features' gradient over the pixels.
        self.mean_g.copy_((self.feature_g * self.above).sum(1) / self.positions[2])
        self.mean_gx.copy_((self.feature_g * self.features).sum(1) / self.positions[2])

    def _norm(self, part: Part, t: int) -> Launch:
        arguments = (part.g[t], part.y, part.stat, part.gsums, part.ops, t)
        return self._by_position(kernels_backward.norm_backward, part.stage, *arguments, edges=t)

    def _gather_back(self, part: Part, s: int, at: int) -> Launch:
        return self._by_position(
            kernels_backward.gather_backward,
            part.stage,
            *(part.nodes, part.g, part.y, part.stat, part.gsums, self._weights(at), part.ops, s),
            self.layout.size,
            SIDE=self.sides[part.stage],
            PRECISION=self.products,
        )

    def _backward(self) -> list[Callable[[], None]]:
        layout = self.layout
        head = (self._end(2), self._end(2, "g"), self.head_stat)
        found: list[Callable[[], None]] = [
            Launch(
                kernels_backward.head_backward,
                (self.batch, self.models),
                *(*head, self.feature_g, self.mean_g, self.mean_gx),
                C=layout.widths[2],
                PIXELS=self.sides[2] ** 2,
            )
        ]
        for stage in (2, 1, 0):
            for cell in reversed(self.cells[stage]):
                for t in (3, 2, 1):
                    found += [self._norm(cell, t), self._gather_back(cell, t - 1, cell.at)]
            first = self.cells[stage][0]
            found += self._weight_gradients(first, first.nodes, first.at, 0, 6, 60)
            part = self.before[stage]
            if stage:
                x, at, second = self._end(stage - 1), layout.strided[stage], self._second(stage)
                found += [self._norm(part, 2), self._gather_back(part, 1, second)]
                found += [self._norm(part, 1), self._strided_back(part, x, at)]
                after = layout.second[stage]
                found += self._weight_gradients(part, part.nodes, after, 2, 1, 10)
                found += self._weight_gradients(part, x, at, 0, 2, 11, stride=2)
            else:
                found.append(self._norm(part, 1))
                x, at = self.images, layout.stem
                found += self._weight_gradients(part, x, at, 0, 1, 10, relu=False)
        return found

    def _strided_back(self, part: Part, x: torch.Tensor, at: int) -> Launch:
        kernel, ci, co = kernels_backward.strided_backward, x.shape[-1], part.y.shape[-1]
        programs, out = self.programs[part.stage], self._end(part.stage - 1, "g")
        return Launch(
            kernel,
            (programs, self.models),
            *(x, out, part.g, part.y, part.stat, part.gsums, self._weights(at), self.layout.size),
            **{"CI": ci, "CO": co, "SIDE": self.sides[part.stage], "NB": programs},
            PRECISION=self.products,
            **self._tiles(kernel, ci, co, 4 * self.positions[part.stage] // programs),
        )

    def _weight_gradients(
        self,
        part: Part,
        x: torch.Tensor,
        at: int,
        first: int,
        edges: int,
        blocks: int,
        stride: int = 1,
        relu: bool = True,
    ) -> list[Launch]:
        """Of some edges of a part, and if that is a cell, of all cells of its stage."""
        kernel, ci, co = kernels_weights.weight_backward, x.shape[-1], part.y.shape[-1]
        cells = self.layout.cells if edges == 6 else 1
        positions = self.positions[part.stage]
        programs = programs_of(positions, 1024, WEIGHT_PARTS)
        sums = self._buffer(cells, programs, self.models, blocks * ci * co)
        block = min(1024, ci * co & -(ci * co))
        return [
            Launch(
                kernel,
                (programs * 3 * edges, self.models, cells),
                *(x, part.g, part.y, part.stat, part.gsums, part.ops, sums, first, edges, blocks),
                **{"CI": ci, "CO": co, "SIDE": self.sides[part.stage], "STRIDE": stride},
                **{"P": positions, "RELU": relu, "NB": self.programs[part.stage]},
                PRECISION=self.products,
                **self._tiles(kernel, ci, co, positions // programs),
            ),
            Launch(
                kernels_weights.weight_sum,
                (blocks * ci * co // block, self.models, cells),
                *(sums, self.grad.view(-1)[at:], part.ops, first, self.layout.size),
                **{"SIZE": ci * co, "PARTS": programs, "BLOCK": block},
            ),
        ]

    def _step(self) -> list[Callable[[], None]]:
        size, block = self.layout.size, 2048
        state = (self.flat, self.grad, self.momentum, self.norm_sums, self.ops, self.bits)
        return [
            Launch(
                kernels_weights.square_sum,
                (NORM_PARTS, self.models),
                *(self.grad, self.norm_sums, size, size // block),
                **{"NB": NORM_PARTS, "BLOCK": block},
            ),
            Launch(
                kernels_weights.sgd,
                (size // block, self.models),
                *(*state, self.lr, self.betas, self.group, size, WEIGHT_DECAY, MAX_NORM),
                **{"UNIT": self.layout.channels**2, "NB": NORM_PARTS, "BLOCK": block},
            ),
        ]
