"""Kernel launches: compiled in threads, run one by one or captured as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton

__all__ = ["Launch", "capture", "compile_all", "default_tile", "programs_of", "run_all"]


class Launch:
    """One launch of a kernel, always with the same arguments.

    Args:
        kernel: of Triton.
        grid: numbers of programs.
        arguments: tensors and numbers.
        warps: of a program.
        stages: of its loops' pipelines.
        constants: what the kernel is compiled for.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        warps: int = 4,
        stages: int = 1,
        **constants: Any,
    ) -> None:
        self.kernel, self.grid, self.arguments = kernel, grid, arguments
        self.options = constants | {"num_warps": warps, "num_stages": stages}

    def __call__(self) -> None:
        """Run it."""
        self.kernel[self.grid](*self.arguments, **self.options)

    def compile(self) -> None:
        """Compile the kernel, if that was not done before, without running it."""
        self.kernel.warmup(*self.arguments, grid=self.grid, **self.options)


Launches = Sequence[Callable[[], None]]


def run_all(launches: Launches) -> None:
    for launch in launches:
        launch()


def compile_all(launches: Launches, threads: int = 16) -> None:
    """Compile the kernels in threads: one by one it takes a minute."""
    try:
        with ThreadPoolExecutor(threads) as pool, triton.AsyncCompileMode(pool):
            for launch in launches:
                if isinstance(launch, Launch):
                    launch.compile()
    except Exception as error:  # an interface without promises; the first run compiles the rest
        warnings.warn(f"kernels compile one by one: {error!r}", stacklevel=2)


def capture(launches: Launches) -> Callable[[], None]:
    """Return what replays some launches, which it runs once before."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run_all(launches)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all(launches)
    return graph.replay


def programs_of(positions: int, each: int, most: int) -> int:
    """Choose a number of programs for some positions: a power of two that divides them."""
    programs = 1
    while 2 * programs * each <= positions and 2 * programs <= most:
        if positions % (2 * programs):
            break
        programs *= 2
    return programs


def default_tile(name: str, wide: int) -> tuple[int, int, int]:
    """Choose positions of a tile, warps and pipeline stages: by the registers of sm_90 code."""
    warps = 4 if wide <= 32 else 8
    if name in ("conv_forward", "gather_backward", "strided_backward"):
        stages = 1 if wide > 32 and name == "gather_backward" else 2
        return (128 if wide <= 16 else 64), warps, stages
    if name == "weight_backward":
        return 64, warps, 2
    return max(2048 // wide, 16), 4, 1
