"""Where every weight of a supernet lies in one flat vector."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["ALWAYS", "COLOURS", "SHARED", "Layout"]

COLOURS = 16
"""Channels of the images, of which three are not zero: a product of matrices needs 16."""

SHARED, ALWAYS = 12, 13
"""Bits of weights that every subnet with a path uses, and that every subnet uses. Bit 2e is that of
the 1×1 convolutions of edge e, 2e + 1 that of the 3×3 ones."""

ROW = 4096  # weights of a replica are padded to a multiple


class Layout:
    """Blocks (C_in, C_out): of an edge ten, the 1×1 convolution and the nine taps of the 3×3 one.

    Args:
        channels: width C of the supernet.
        cells: cells N in each stage.

    Attributes:
        size: length of the vector, padding included.
        stem, classifier, bias: where they begin.
        stages: where the first cell of each stage begins.
        strided: where the strided convolution and the shortcut before each stage begin.
        second: where the second convolution before each stage begins.
    """

    def __init__(self, channels: int, cells: int) -> None:
        self.channels, self.cells = channels, cells
        self.widths = [channels, 2 * channels, 4 * channels]
        self.stem, end = 0, 10 * COLOURS * channels
        self.strided, self.second, self.stages = [0], [0], []
        for number, width in enumerate(self.widths):
            if number:
                self.strided.append(end)
                self.second.append(end + 11 * self.widths[number - 1] * width)
                end = self.second[-1] + 10 * width**2
            self.stages.append(end)
            end += cells * 60 * width**2
        self.classifier, self.bias = end, end + 40 * channels
        self.size = -(-(self.bias + 10) // ROW) * ROW

    def flatten(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the flat vector of a state dict of the benchmark's `Supernet`."""
        flat = torch.zeros(self.size, dtype=state["stem"].dtype)
        for name, at, shape in self._convolutions():
            weight = state[name].permute(2, 3, 1, 0).flatten(0, 1)
            self._view(flat, at, shape)[:, : weight.shape[1]] = weight
        flat[self.classifier : self.bias] = state["classifier.weight"].flatten()
        flat[self.bias : self.bias + 10] = state["classifier.bias"]
        return flat

    def unflatten(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a state dict of the benchmark's `Supernet`."""
        state = {}
        for name, at, shape in self._convolutions():
            weight = self._view(flat, at, shape)[:, : 3 if name == "stem" else None]
            side = 3 if shape[0] == 9 else 1
            state[name] = weight.unflatten(0, (side, side)).permute(3, 2, 0, 1).contiguous()
        state["classifier.weight"] = flat[self.classifier : self.bias].view(10, -1).clone()
        state["classifier.bias"] = flat[self.bias : self.bias + 10].clone()
        return state

    def bits(self) -> torch.Tensor:
        """Return the bit of every C² weights, which are all of one set."""
        unit = self.channels**2
        if self.classifier % unit or (10 * COLOURS * self.channels) % unit:
            raise ValueError(f"{self.channels} channels: give a divisor of {10 * COLOURS}")
        bits = torch.full((self.size // unit + 1,), SHARED, dtype=torch.int32)
        for name, at, shape in self._convolutions():
            if name.startswith("stages"):
                edge = int(name.rpartition(".")[2])
                first, count = at // unit, shape[0] * shape[1] * shape[2] // unit
                bits[first : first + count] = 2 * edge + ("conv3x3" in name)
        bits[self.classifier // unit :] = ALWAYS
        return bits

    @staticmethod
    def _view(flat: torch.Tensor, at: int, shape: tuple[int, int, int]) -> torch.Tensor:
        return flat[at : at + shape[0] * shape[1] * shape[2]].view(shape)

    def _convolutions(self) -> Iterator[tuple[str, int, tuple[int, int, int]]]:
        """Yield the name in `Supernet`, where it begins, and (taps, C_in, C_out) as stored."""
        yield "stem", self.stem + COLOURS * self.channels, (9, COLOURS, self.channels)
        for number, width in enumerate(self.widths):
            square = width**2
            for i in range(6 * self.cells):
                at, cell = self.stages[number] + 10 * i * square, f"stages.{number}.{i // 6}"
                yield f"{cell}.conv1x1.{i % 6}", at, (1, width, width)
                yield f"{cell}.conv3x3.{i % 6}", at + square, (9, width, width)
            if number:
                before, at = self.widths[number - 1], self.strided[number]
                name, block = f"reductions.{number - 1}", before * width
                yield f"{name}.conv_a", at + block, (9, before, width)
                yield f"{name}.shortcut", at + 10 * block, (1, before, width)
                yield f"{name}.conv_b", self.second[number] + square, (9, width, width)
