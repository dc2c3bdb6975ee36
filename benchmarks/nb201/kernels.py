"""The supernet's layers, by torch or by compiled code for narrow networks on one CPU core."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

__all__ = ["SIMD", "TORCH", "Kernels"]

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


class Kernels(Protocol):
    """The layers. Each set of kernels has its own layout between `enter` and `leave`."""

    def enter(self, images: torch.Tensor) -> torch.Tensor:
        """Lay out activations of images (batch, channels, height, width)."""

    def convolve(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        stride: int = 1,
        rectify: bool = True,
        normalize: bool = True,
    ) -> torch.Tensor:
        """Apply ReLU, convolution by weight (out, in, kernel, kernel), batch norm.

        The padding is kernel // 2; batch norm has the batch's statistics, no affine parameters.
        """

    def average_pool(self, x: torch.Tensor) -> torch.Tensor:
        """Pool averages, 3×3 with stride 1; the padding does not count."""

    def halve(self, x: torch.Tensor) -> torch.Tensor:
        """Pool averages, 2×2 with stride 2."""

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Apply batch norm, ReLU, mean over pixels: features (batch, channels)."""


class _Torch:
    """Torch's own layers, for any device and shape."""

    def enter(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    def convolve(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        stride: int = 1,
        rectify: bool = True,
        normalize: bool = True,
    ) -> torch.Tensor:
        x = F.conv2d(F.relu(x) if rectify else x, weight, None, stride, weight.shape[-1] // 2)
        return F.batch_norm(x, None, None, training=True) if normalize else x

    def average_pool(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            # Some releases of torch forget the padding in the gradient of channels_last.
            x = x.contiguous()
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def halve(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(x, None, None, training=True)).mean((2, 3))


class _Simd:
    """Compiled by the system's C compiler at first use; activations are (channels, height, width,
    batch). With 8 to 32 channels, two to four times as fast as torch's convolutions on one core.
    """

    def enter(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) % 32:
            raise ValueError(
                f"these kernels need batches of a multiple of 32 images, got {len(images)}; "
                "use --kernels torch"
            )
        return images.permute(1, 2, 3, 0).contiguous()

    def convolve(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        stride: int = 1,
        rectify: bool = True,
        normalize: bool = True,
    ) -> torch.Tensor:
        for channels in (len(weight), len(x)) if x.requires_grad else (len(weight),):
            if channels % 8:
                raise ValueError(
                    f"these kernels need a multiple of 8 channels, got {channels}; "
                    "use --kernels torch"
                )
        return _SimdConvolution.apply(x, weight, stride, rectify, normalize)

    def average_pool(self, x: torch.Tensor) -> torch.Tensor:
        return _SimdPool.apply(x)

    def halve(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, ::2] + x[:, 1::2]
        return (rows[:, :, ::2] + rows[:, :, 1::2]) / 4

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        normal = F.batch_norm(x.flatten(1).unsqueeze(0), None, None, training=True)
        return F.relu(normal).view(x.shape).mean((1, 2)).t()


class _SimdConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride, rectify, normalize):
        channels, height, width, batch = x.shape
        out = x.new_empty(len(weight), height // stride, width // stride, batch)
        inverse_std = x.new_empty(len(weight)) if normalize else None
        shape = (ctypes.c_int * 7)(
            channels, len(weight), height, width, batch, weight.shape[-1], stride
        )
        _call("forward", x, weight, out, inverse_std, torch.empty_like(weight), shape, rectify)
        ctx.save_for_backward(x, weight, out, inverse_std)
        ctx.shape, ctx.rectify = shape, rectify
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, weight, out, inverse_std = ctx.saved_tensors
        gradient = gradient.contiguous()
        before_norm = gradient if inverse_std is None else torch.empty_like(gradient)
        x_gradient = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weight_gradient, scratch = torch.empty_like(weight), torch.empty_like(weight)
        gradients = (gradient, before_norm, x_gradient, weight_gradient)
        _call("backward", x, weight, out, inverse_std, *gradients, scratch, ctx.shape, ctx.rectify)
        return x_gradient, weight_gradient, None, None, None


class _SimdPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = torch.empty_like(x)
        _call("box_sum", x, *_pool_weights(*x.shape[1:3]), out, *x.shape)
        return out

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        out = torch.empty_like(gradient)
        ones, share = _pool_weights(*gradient.shape[1:3])
        _call("box_sum", gradient, share, ones, out, *gradient.shape)
        return out


@functools.cache
def _pool_weights(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ones, and one over the number of pixels under the window, (height, width)."""
    ones = torch.ones(height, width)
    return ones, F.avg_pool2d(ones[None], 3, 1, 1)[0].mul_(9).reciprocal_()


def _call(name: str, *arguments: torch.Tensor | ctypes.Array | int | None) -> None:
    getattr(_library(), name)(
        *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments)
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """Load simd.c, compiled for this machine unless that was done before."""
    source = Path(__file__).with_name("simd.c")
    key = hashlib.sha256(source.read_bytes() + repr((FLAGS, platform.uname())).encode())
    path = source.parent / "__pycache__" / f"simd-{key.hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{id(path)}")
        command = ["cc", *FLAGS, "-o", str(partial), str(source), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", error)
            raise RuntimeError(
                f"{' '.join(command)} failed; install a C compiler, or use --kernels torch: "
                f"{detail}"
            ) from error
        partial.replace(path)
    return ctypes.CDLL(str(path))


TORCH: Kernels = _Torch()
SIMD: Kernels = _Simd()
