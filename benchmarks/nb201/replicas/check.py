"""Every kernel against torch in float64, and gradients of whole updates against the supernet.

The kernels' buffers are filled with NaN, an update is run, and what each kernel wrote is computed
again from what it read: so the errors of one are not those of another. What is not to be written
has to be NaN still. Nothing here uses torch's convolutions, batch norms or poolings, except the
gradients of whole updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.nb201.data import MEAN, STD
from benchmarks.nb201.replicas import kernels_weights
from benchmarks.nb201.replicas.kernels_forward import EPS
from benchmarks.nb201.replicas.launches import run_all
from benchmarks.nb201.replicas.layout import COLOURS
from benchmarks.nb201.replicas.network import MAX_NORM, Part
from benchmarks.nb201.replicas.plan import moved_weights, operations_of
from benchmarks.nb201.replicas.reference import Edge, chunks, relative_error
from benchmarks.nb201.replicas.training import Replicas
from benchmarks.nb201.supernet import EDGES, OPERATIONS, Supernet
from benchmarks.nb201.training import WEIGHT_DECAY

__all__ = ["SUBNETS", "Check"]

SUBNETS = ((3, 2, 4, 1, 2, 3), (4, 3, 3, 2, 3, 4), (0, 3, 0, 2, 0, 2), (0,) * 6)
"""Operations of the edges: each on every kind of edge, dead nodes, and no path at all."""

PRODUCTS = ("conv_forward", "gather_backward", "strided_backward", "weight_backward")
LIMITS = {"float64": (1e-9, 1e-9), "float32": (1e-3, 1e-3), "tf32": (3e-2, 1e-3)}
"""Relative error allowed in kernels with products of matrices, and in the others."""

GRADIENTS = {"float64": (1e-9, 0), "float32": (1e-3, 10), "tf32": (2.0, 10)}
"""Relative error allowed in the gradient of an update: so much, or so many times torch's own error
in that precision. Chains of convolutions amplify rounding, in TF32 up to the size of the gradient:
there the errors of each kernel tell more, and of their order the gradients in float32."""


class Check:
    """The greatest errors of the kernels of some replicas, in their precision.

    Args:
        replicas: whose network is run; it begins anew afterwards.
        say: takes a line of the report.

    Attributes:
        good: whether nothing was found to be wrong so far.
    """

    def __init__(self, replicas: Replicas, say: Callable[[str], None] = print) -> None:
        self.replicas, self.say, self.good = replicas, say, True
        self.network, self.layout = replicas.network, replicas.layout
        self.models = sorted({0, self.network.models - 1})
        self.worst: dict[str, tuple[float, str]] = {}
        self._subnet: tuple[int, ...] = ()

    def kernels(self, subnets: tuple[tuple[int, ...], ...] = SUBNETS) -> bool:
        """Check every kernel on some subnets; return whether all is right so far."""
        for _ in range(2):  # so that the momentum is not zero
            run_all(self.replicas.launches)
            self.replicas.step.zero_()
        for subnet in subnets:
            self._run(subnet)
            for part, edges in self._parts():
                for m in self.models:
                    self._check_part(part, list(edges(m)), m)
            for m in self.models:
                self._check_images(m)
                self._check_weight_sums(m)
                self._check_head(m)
            self._check_step()
        limits = LIMITS[self.replicas.plan.precision]
        for kernel, (error, what) in self.worst.items():
            right = error < limits[0 if kernel in PRODUCTS else 1]
            self._conclude(right, f"{kernel}: greatest relative error {error:.1e}, {what}")
        self.replicas.reset()
        return self.good

    def gradients(self, subnets: tuple[tuple[int, ...], ...] = SUBNETS) -> bool:
        """Check gradients and losses of whole updates; return whether all is right so far."""
        least, times = GRADIENTS[self.replicas.plan.precision]
        for subnet in subnets:
            self._run(subnet)
            for m in self.models:
                truth, loss = self._supernet_gradient(m, subnet, torch.float64)
                mine = self.network.grad[m].double()
                errors = relative_error(mine, truth), relative_error(self.network.loss[m], loss)
                own = 0.0
                if times:
                    own = relative_error(
                        self._supernet_gradient(m, subnet, torch.float32)[0], truth
                    )
                right = max(errors) <= max(least, times * own)
                text = f"gradient {errors[0]:.1e}, loss {errors[1]:.1e}, torch's own {own:.1e}"
                self._conclude(right, f"update of {subnet}, replica {m}: {text}")
        self.replicas.reset()
        return self.good

    def graph(self) -> bool:
        """Compare updates by launches with those by the graph; return whether all is right."""
        replicas, after = self.replicas, []
        for capture in (False, True):
            if capture:
                replicas.capture()
            replicas.advance(3)
            after.append(torch.cat([self.network.flat, *self.network.momentum]))
            replicas.reset()
        start = torch.cat([self.network.flat, *self.network.momentum])
        error = relative_error(after[1] - start, (after[0] - start).double())
        self._conclude(error < 0.05, f"three updates by the graph or by launches: {error:.1e}")
        return self.good

    def _conclude(self, right: bool, text: str) -> None:
        self.good &= right
        self.say(f"{'ok   ' if right else 'WRONG'} {self.replicas.plan.precision}: {text}")

    def _run(self, subnet: tuple[int, ...]) -> None:
        """Run an update of a subnet but for its step, over buffers full of NaN."""
        for tensor in self.network.buffers:
            tensor.fill_(math.nan)
        self.network.grad[:, : self.layout.bias + 10] = math.nan
        run_all(self.replicas.prepare)
        live = operations_of([_architecture(subnet)])
        moved = moved_weights(live, "freeze")
        self.network.ops.copy_(torch.tensor([[*live[0], *moved, 0]]))
        self._subnet = subnet
        network = self.network
        run_all([*network.stem, *network.forward, *network.backward, network.step[0]])

    def _add(
        self,
        kernel: str,
        what: str,
        mine: torch.Tensor,
        truth: torch.Tensor | None = None,
        size: torch.Tensor | None = None,
    ) -> None:
        """Note an error, relative to a size in place of the truth; without a truth: no NaN."""
        if truth is None:
            error = 0.0 if bool(mine.isnan().all()) else math.inf
        else:
            error = relative_error(mine, truth, size)
        if error >= self.worst.get(kernel, (-1.0, ""))[0]:
            self.worst[kernel] = error, f"{what}, subnet {self._subnet}"

    def _parts(self) -> Iterator[tuple[Part, Callable[[int], Iterator[Edge]]]]:
        """Yield the parts of the network, and what lists the edges of each for a replica."""
        network, layout = self.network, self.layout
        stem, *reductions = network.before

        def of_stem(m: int) -> Iterator[Edge]:
            yield self._edge(stem, m, 1, 0, network.images, layout.stem, relu=False)

        yield stem, of_stem
        for part in reductions:

            def of_reduction(m: int, part: Part = part) -> Iterator[Edge]:
                x, at = network.cells[part.stage - 1][-1].nodes[3], layout.strided[part.stage]
                short = at + 10 * x.shape[-1] * part.y.shape[-1]
                yield self._edge(part, m, 1, 0, x, at, stride=2)
                yield self._edge(part, m, 2, 0, x, short, stride=2, blocks=1)
                yield self._edge(part, m, 2, 1, part.nodes[1], layout.second[part.stage])

            yield part, of_reduction
        for part in [cell for cells in network.cells for cell in cells]:

            def of_cell(m: int, part: Part = part) -> Iterator[Edge]:
                block = part.y.shape[-1] ** 2
                for target in (1, 2, 3):
                    for s in range(target):
                        at = part.at + 10 * block * (target * (target - 1) // 2 + s)
                        yield self._edge(part, m, target, s, part.nodes[s], at)

            yield part, of_cell

    def _edge(
        self, part: Part, m: int, t: int, s: int, x: torch.Tensor, at: int, **options: int
    ) -> Edge:
        number = t * (t - 1) // 2 + s
        op, side = int(part.ops.view(-1)[number]), self.network.sides[part.stage]
        return Edge(number, t, s, op, x[m].double(), at, size=side, **options)

    def _check_part(self, part: Part, edges: list[Edge], m: int) -> None:
        last = 3 if part in self.network.cells[part.stage] else None
        sources: dict[int, torch.Tensor | None] = {}
        for target in dict.fromkeys(edge.target for edge in edges):
            total = None
            for edge in edges:
                if edge.target == target and (added := self._check_edge(part, edge, m)) is not None:
                    total = added if total is None else total + added
            if total is None and target == last:
                total = torch.zeros_like(part.nodes[target, m], dtype=torch.float64)
            self._add("gather_forward", f"node {target}", part.nodes[target, m], total)
        for edge in edges:
            gradient = self._check_edge_backward(part, edge, m)
            before = sources.get(edge.source)
            if before is not None and gradient is not None:
                gradient = gradient + before
            sources[edge.source] = before if gradient is None else gradient
        for source, truth in sources.items():
            kernel, mine = "gather_backward", part.g[source, m]
            if last is None and source == 0:
                if part.stage == 0:
                    continue  # images have no gradient
                kernel, mine = "strided_backward", self.network.cells[part.stage - 1][-1].g[3, m]
            if truth is None and source == 0:
                truth = torch.zeros_like(mine, dtype=torch.float64)
            self._add(kernel, f"gradient of node {source}", mine, truth)

    def _weights(self, vector: torch.Tensor, edge: Edge, m: int, width: int) -> torch.Tensor:
        size = edge.blocks * edge.x.shape[-1] * width
        return vector[m, edge.at : edge.at + size].view(edge.blocks, -1, width)

    def _check_edge(self, part: Part, edge: Edge, m: int) -> torch.Tensor | None:
        """Check the convolution, and return what the edge adds to its target."""
        y, sums, stat = (x[edge.number, m].double() for x in (part.y, part.sums, part.stat))
        output = None
        if edge.op:
            weights = self._weights(self.network.flat, edge, m, y.shape[-1]).double()
            output = edge.output(edge.x, weights)
        convolves = edge.op in (2, 3, 5)
        what = f"output of operation {edge.op}"
        self._add("conv_forward", what, y, output if convolves else None)
        totals = torch.stack([chunks(y, len(sums)), chunks(y**2, len(sums))], 1)
        size = torch.stack([chunks(y.abs(), len(sums)), totals[:, 1]], 1)
        self._add("conv_forward", "sums", sums, totals if convolves else None, size)
        if not edge.op & 2:
            self._add("gather_forward", "statistics of no norm", stat)
            return y if edge.op == 5 else output
        mean, square = sums.sum(0) / len(y)
        truth = torch.stack([mean, ((square - mean**2).clamp(min=0) + EPS.value).rsqrt()])
        self._add("gather_forward", "statistics", stat, truth)
        return (y - truth[0]) * truth[1]

    def _check_edge_backward(self, part: Part, edge: Edge, m: int) -> torch.Tensor | None:
        """Check norm and weights, and return what the edge hands back to its source."""
        y, stat, gsums = (x[edge.number, m].double() for x in (part.y, part.stat, part.gsums))
        written = self._weights(self.network.grad, edge, m, y.shape[-1])
        d = g = part.g[edge.target, m].double()
        if edge.op & 2:
            normal = (y - stat[0]) * stat[1]
            terms = torch.stack([g, g * normal])
            truth, size = (
                torch.stack([chunks(term, len(gsums)) for term in each], 1)
                for each in (terms, terms.abs())
            )
            self._add("norm_backward", "sums", gsums, truth, size)
            mean_g, mean_gx = gsums.sum(0) / len(y)
            d = stat[1] * (g - mean_g - normal * mean_gx)
        else:
            self._add("norm_backward", "sums of no norm", gsums)
        x = edge.x.requires_grad_()
        weights = self._weights(self.network.flat, edge, m, y.shape[-1]).double().requires_grad_()
        of_x, of_w = None, None
        if edge.op:
            output = edge.output(x, weights)
            of_x, of_w = torch.autograd.grad(output, (x, weights), d, allow_unused=True)
        of_w = torch.zeros_like(weights) if of_w is None else of_w
        self._add("weight_backward", f"weights of operation {edge.op}", written, of_w.detach())
        return of_x

    def _check_images(self, m: int) -> None:
        replicas, network = self.replicas, self.network
        size, seed = network.size, int(replicas.seed_of[m])
        order, crops = (x[0, seed].tolist() for x in (replicas.order, replicas.crop))
        truth = torch.zeros(len(order), size, size, COLOURS, dtype=torch.float64)
        for picture, number, crop in zip(truth, order, crops, strict=True):
            row, column = crop & 255, crop >> 8 & 255
            pixels = replicas.padded[number, row : row + size, column : column + size].cpu()
            pixels = pixels.flip(1) if crop >> 16 else pixels
            picture[..., :3] = pixels * (1 / STD).double() - (MEAN / STD).double()
        self._add("augment", "images", network.images[m], truth.flatten(0, 2).to(network.device))

    def _check_weight_sums(self, m: int) -> None:
        for launch in self.network.backward:
            if getattr(launch, "kernel", None) is kernels_weights.weight_sum:
                sums, grad = launch.arguments[:2]
                truth = sums[:, :, m].double().nansum(1).flatten()  # NaN where there is none
                at = grad.storage_offset()
                mine = self.network.grad[m, at : at + len(truth)]
                self._add("weight_sum", "gradients", mine, truth)

    def _check_head(self, m: int) -> None:
        network, layout = self.network, self.layout
        end = network.cells[2][-1]
        x, sums = end.nodes[3, m].double(), network.head_sums[m].double()
        truth = torch.stack([chunks(x, len(sums)), chunks(x**2, len(sums))], 1)
        size = torch.stack([chunks(x.abs(), len(sums)), truth[:, 1]], 1)
        self._add("node_statistics", "sums", sums, truth, size)
        mean, square = sums.sum(0) / len(x)
        stat = network.head_stat[m].double()
        truth = torch.stack([mean, ((square - mean**2).clamp(min=0) + EPS.value).rsqrt()])
        self._add("head_forward", "statistics", stat, truth)
        normal = (x - stat[0]) * stat[1]
        for name, mine, each in (
            ("features", network.features, normal.relu()),
            ("above", network.above, (normal > 0).double()),
        ):
            self._add("head_forward", name, mine[m], each.unflatten(0, (network.batch, -1)).mean(1))
        features = network.features[m].double().requires_grad_()
        flat = network.flat[m].double().requires_grad_()
        weight = flat[layout.classifier : layout.bias].view(10, -1)
        logits = features @ weight.t() + flat[layout.bias : layout.bias + 10]
        loss = F.cross_entropy(logits, network.classes[m])
        of_features, of_flat = torch.autograd.grad(loss, (features, flat))
        positions = len(x)
        for name, mine, truth in (
            ("loss", network.loss[m], loss.detach()),
            ("gradient", network.grad[m, layout.classifier :], of_flat[layout.classifier :]),
            ("features' gradient", network.feature_g[m], of_features),
            ("mean", network.mean_g[m], (of_features * network.above[m]).sum(0) / positions),
            ("mean with x̂", network.mean_gx[m], (of_features * features).sum(0) / positions),
        ):
            self._add("classifier", name, mine, truth.detach())
        pixels = positions // network.batch
        g = network.feature_g[m].double().repeat_interleave(pixels, 0) / pixels * (normal > 0)
        truth = stat[1] * (g - g.mean(0) - normal * (g * normal).mean(0))
        self._add("head_backward", "gradient of the last node", end.g[3, m], truth)

    def _check_step(self) -> None:
        network = self.network
        every = network.momentum.clone()
        before = [network.flat[m].double().clone() for m in self.models]
        run_all(network.step[1:])
        unit = len(network.flat[0]) // self.layout.channels**2
        bits = network.bits[:unit].repeat_interleave(self.layout.channels**2)
        moved = (network.ops[0, 6] >> bits & 1).double()
        for m, old in zip(self.models, before, strict=True):
            gradient = network.grad[m].double()
            norm = network.norm_sums[m].double().sum().sqrt()
            self._add("square_sum", "norm", norm, gradient.norm())
            gradient = gradient * (MAX_NORM / (norm + 1e-6)).clamp(max=1) + WEIGHT_DECAY * old
            group, beta = int(network.group[0, m]), network.betas[m].double()
            momenta = every[:, m].double()
            momentum = beta * momenta[group] + gradient
            step = -network.lr[0, m].double() * (gradient + beta * momentum) * moved
            # Weights round the step: a hundredth of the weights counts as well.
            size = step.abs() + old.abs() / 100
            self._add("sgd", "step", network.flat[m].double() - old, step, size)
            momenta[group] += (momentum - momenta[group]) * moved
            self._add("sgd", "momentum", network.momentum[:, m], momenta)
            idle = network.flat[m].double() - old
            self._add("sgd", "idle weights", idle * (1 - moved), torch.zeros_like(old))

    def _supernet_gradient(
        self, m: int, subnet: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute gradient and loss of an update by the benchmark's supernet."""
        network, layout = self.network, self.layout
        supernet = Supernet(layout.channels, layout.cells).to(network.device, dtype)
        supernet.load_state_dict(layout.unflatten(network.flat[m]))
        side = network.size
        images = network.images[m].to(dtype).view(-1, side, side, COLOURS)[..., :3]
        cudnn = torch.backends.cudnn
        before, cudnn.allow_tf32 = cudnn.allow_tf32, self.replicas.plan.precision == "tf32"
        logits = supernet(images.permute(0, 3, 1, 2), _architecture(subnet))
        loss = F.cross_entropy(logits, network.classes[m])
        loss.backward()
        cudnn.allow_tf32 = before
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in supernet.named_parameters()
        }
        flat = layout.flatten({name: gradient.cpu() for name, gradient in gradients.items()})
        return flat.double().to(network.device), loss.detach().double()


def _architecture(subnet: tuple[int, ...]) -> dict[str, str]:
    return dict(zip(EDGES, (OPERATIONS[number] for number in subnet), strict=True))
