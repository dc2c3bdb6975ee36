"""Triton kernels of the weights: their gradients, and SGD with clipping and Nesterov momentum."""

from __future__ import annotations

import triton
import triton.language as tl

from benchmarks.nb201.replicas.kernels_backward import coefficients
from benchmarks.nb201.replicas.kernels_forward import halved


@triton.jit(do_not_specialize=["first", "edges", "blocks"])
def weight_backward(
    x_ptr,
    g_ptr,
    y_ptr,
    stat_ptr,
    gpart_ptr,
    ops_ptr,
    out_ptr,
    first,
    edges,
    blocks,
    CI: tl.constexpr,
    CO: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    P: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial gradients of the weights of edges from `first` on, of all cells of a stage.

    A program takes a row of three taps. Of one cell there are `blocks` blocks of weights.
    """
    parts = tl.num_programs(0) // (3 * edges)
    pid = tl.program_id(0) // (3 * edges)
    z = tl.program_id(0) % (3 * edges)
    m = tl.program_id(1)
    models = tl.num_programs(1)
    cell = tl.program_id(2).to(tl.int64)
    ky = z % 3
    e = first + z // 3
    op = tl.load(ops_ptr + e)
    live = (op == 3) | ((op == 2) & (ky == 1))
    if STRIDE == 2:
        live = live | ((op == 5) & (ky == 1))
    if live:
        WIDE: tl.constexpr = SIDE * STRIDE
        t = tl.where(e == 0, 1, tl.where(e < 3, 2, 3))
        s = e - t * (t - 1) // 2
        ci = tl.arange(0, CI)
        co = tl.arange(0, CO)
        # Cells have 6 edges, and 3 nodes of their own: the fourth is the next one's first.
        x_m = x_ptr + (cell * (3 * models) + s * models + m) * (P * STRIDE * STRIDE * CI)
        g_m = g_ptr + (cell * (3 * models) + t * models + m) * (P * CO)
        i = (cell * 6 + e) * models + m
        a = tl.zeros([CO], g_ptr.dtype.element_ty)
        b, c0 = a, a
        if (op & 2) != 0:
            a, b, c0 = coefficients(stat_ptr, gpart_ptr, i, P, CO, NB)
        left = tl.zeros([CI, CO], g_ptr.dtype.element_ty)
        middle = tl.zeros([CI, CO], g_ptr.dtype.element_ty)
        right = tl.zeros([CI, CO], g_ptr.dtype.element_ty)
        for tile in range(TILES):
            p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            ox = p % SIDE
            oy = (p // SIDE) % SIDE
            q = p[:, None] * CO + co[None, :]
            d = tl.load(g_m + q)
            if (op & 2) != 0:
                y = tl.load(y_ptr + i * (P * CO) + q)
                d = a[None, :] * d + b[None, :] * y + c0[None, :]
            if STRIDE == 1:
                base = p
            else:
                base = ((p // (SIDE * SIDE)) * WIDE + oy * STRIDE) * WIDE + ox * STRIDE
            at = base[:, None] * CI + ci[None, :]
            if op == 5:
                if STRIDE == 2:
                    x = halved(x_m, at, CI, SIDE)
                    middle = tl.dot(
                        tl.trans(x), d, middle, input_precision=PRECISION, out_dtype=middle.dtype
                    )
            else:
                at += (ky - 1) * (WIDE * CI)
                iy = oy * STRIDE + ky - 1
                ix = ox * STRIDE
                row = (iy >= 0) & (iy < WIDE)
                x = tl.load(x_m + at, mask=row[:, None], other=0.0)
                if RELU:
                    x = tl.where(x > 0, x, 0.0)
                middle = tl.dot(
                    tl.trans(x), d, middle, input_precision=PRECISION, out_dtype=middle.dtype
                )
                if op == 3:
                    ok = row & (ix > 0)
                    x = tl.load(x_m + at - CI, mask=ok[:, None], other=0.0)
                    if RELU:
                        x = tl.where(x > 0, x, 0.0)
                    left = tl.dot(
                        tl.trans(x), d, left, input_precision=PRECISION, out_dtype=left.dtype
                    )
                    ok = row & (ix < WIDE - 1)
                    x = tl.load(x_m + at + CI, mask=ok[:, None], other=0.0)
                    if RELU:
                        x = tl.where(x > 0, x, 0.0)
                    right = tl.dot(
                        tl.trans(x), d, right, input_precision=PRECISION, out_dtype=right.dtype
                    )
        out = out_ptr + ((cell * parts + pid) * models + m) * (blocks * CI * CO)
        out += (e - first) * (10 * CI * CO) + ci[:, None] * CO + co[None, :]
        if op == 3:
            out += (1 + 3 * ky) * (CI * CO)
            tl.store(out, left)
            tl.store(out + CI * CO, middle)
            tl.store(out + 2 * CI * CO, right)
        else:
            tl.store(out, middle)


@triton.jit(do_not_specialize=["first"])
def weight_sum(
    part_ptr,
    g_ptr,
    ops_ptr,
    first,
    g_stride,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the weights of all cells of a stage; zeros where the subnet has none."""
    m = tl.program_id(1).to(tl.int64)
    models = tl.num_programs(1)
    cell = tl.program_id(2).to(tl.int64)
    total = tl.num_programs(0) * BLOCK  # weights of a cell
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block = tl.program_id(0) * BLOCK // SIZE
    slot = block % 10
    op = tl.load(ops_ptr + first + block // 10)
    g = tl.zeros([BLOCK], g_ptr.dtype.element_ty)
    if ((op == 3) & (slot > 0)) | (((op == 2) | (op == 5)) & (slot == 0)):
        for part in range(PARTS):
            g += tl.load(part_ptr + ((cell * PARTS + part) * models + m) * total + at)
    tl.store(g_ptr + m * g_stride + cell * total + at, g)


@triton.jit
def square_sum(g_ptr, part_ptr, stride, blocks, NB: tl.constexpr, BLOCK: tl.constexpr):
    """Partial sums of the squared gradients of every replica."""
    pid = tl.program_id(0)
    m = tl.program_id(1)
    total = tl.zeros([BLOCK], g_ptr.dtype.element_ty)
    for i in range(pid, blocks, NB):
        g = tl.load(g_ptr + m.to(tl.int64) * stride + i * BLOCK + tl.arange(0, BLOCK))
        total += g * g
    tl.store(part_ptr + m * NB + pid, tl.sum(total, 0))


@triton.jit
def sgd(
    p_ptr,
    g_ptr,
    momentum_ptr,
    part_ptr,
    ops_ptr,
    bit_ptr,
    lr_ptr,
    beta_ptr,
    group_ptr,
    stride,
    decay,
    largest,
    UNIT: tl.constexpr,
    NB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clip by each replica's norm, decay weights, take a step by the momentum of its group.

    Number 6 of `ops` has a bit for each set of weights that the update moves; `bit_ptr` has the
    number of that bit for each UNIT of weights. The others, and their momentum, are left alone.
    """
    m = tl.program_id(1)
    models = tl.num_programs(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    moves = ((tl.load(ops_ptr + 6) >> tl.load(bit_ptr + i // UNIT)) & 1) != 0
    norm = tl.sqrt(tl.sum(tl.load(part_ptr + m * NB + tl.arange(0, NB)), 0))
    share = largest / (norm + 1e-6)
    share = tl.where(share > 1.0, 1.0, share)
    lr = tl.load(lr_ptr + m)
    beta = tl.load(beta_ptr + m)
    group = tl.load(group_ptr + m)
    at = m.to(tl.int64) * stride + i
    kept = momentum_ptr + (group * models + m).to(tl.int64) * stride + i
    p = tl.load(p_ptr + at, mask=moves, other=0.0)
    g = tl.load(g_ptr + at, mask=moves, other=0.0) * share + decay * p
    momentum = beta * tl.load(kept, mask=moves, other=0.0) + g
    tl.store(kept, momentum, mask=moves)
    tl.store(p_ptr + at, p - lr * (g + beta * momentum), mask=moves)
