"""Triton kernels of the forward pass: images, convolutions, nodes, and the classifier's input.

Activations are [replicas, batch · height · width, channels]. Of a part of the network (a cell, a
reduction, the stem) `nodes` are [4, replicas, positions, C] and the outputs of convolutions `y` are
[edges, replicas, positions, C]. Edge t(t − 1)/2 + s leads from node s to node t. Kernels read what
an edge does from `ops` in device memory, so that one CUDA graph serves every subnet: 0 nothing, 1
skip, 2 convolution 1×1, 3 convolution 3×3, 4 average pool, 5 the shortcut of a reduction (2×2
means, convolution 1×1, neither ReLU nor batch norm); `op & 2` is a convolution with batch norm.

The weights of an edge are 10 blocks [C_in, C_out]: the 1×1 convolution, and the 3×3 one by tap.
Every program takes TILES tiles of BLOCK positions of one replica. Sums are left to the next kernel
as one partial sum a program: without atomics, results do not depend on the order of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-5)


@triton.jit
def partial_means(part_ptr, first, count, C: tl.constexpr, NB: tl.constexpr):
    """Means over `count` positions of two quantities from NB partial sums of each."""
    at = part_ptr + first.to(tl.int64) * (NB * 2 * C)
    at += tl.arange(0, NB)[:, None] * (2 * C) + tl.arange(0, C)[None, :]
    return tl.sum(tl.load(at), 0) / count, tl.sum(tl.load(at + C), 0) / count


@triton.jit
def _statistics(part_ptr, stat_ptr, first, write, count, C: tl.constexpr, NB: tl.constexpr):
    """Mean and 1 / std of a convolution's output; the first program also writes them."""
    mean, square = partial_means(part_ptr, first, count, C, NB)
    variance = square - mean * mean
    rstd = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + EPS)
    if write:
        to = stat_ptr + first.to(tl.int64) * (2 * C) + tl.arange(0, C)
        tl.store(to, mean)
        tl.store(to + C, rstd)
    return mean, rstd


@triton.jit
def halved(x_ptr, at, C: tl.constexpr, SIDE: tl.constexpr):
    """Mean of the 2×2 positions from `at` on of pictures [2 SIDE, 2 SIDE, C]."""
    down: tl.constexpr = 2 * SIDE * C
    total = tl.load(x_ptr + at) + tl.load(x_ptr + at + C)
    return (total + tl.load(x_ptr + at + down) + tl.load(x_ptr + at + down + C)) * 0.25


@triton.jit(do_not_specialize=["s"])
def conv_forward(
    x_ptr,
    w_ptr,
    y_ptr,
    part_ptr,
    ops_ptr,
    s,
    w_stride,
    CI: tl.constexpr,
    CO: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolutions of all edges out of node s, and partial sums of y and y² for batch norm."""
    # The edges of one part are neighbours in the grid: they find their input in the cache.
    edges = tl.num_programs(0) // NB
    pid = tl.program_id(0) // edges
    m = tl.program_id(1)
    t = s + 1 + tl.program_id(0) % edges
    e = t * (t - 1) // 2 + s
    op = tl.load(ops_ptr + e)
    if ((op & 2) != 0) | (op == 5):
        WIDE: tl.constexpr = SIDE * STRIDE
        P: tl.constexpr = NB * TILES * BLOCK
        ci = tl.arange(0, CI)
        co = tl.arange(0, CO)
        i = e * tl.num_programs(1) + m
        x_m = x_ptr + m.to(tl.int64) * (P * STRIDE * STRIDE * CI)
        w_e = w_ptr + m.to(tl.int64) * w_stride + e * (10 * CI * CO)
        w_e += ci[:, None] * CO + co[None, :]
        y_e = y_ptr + i.to(tl.int64) * (P * CO)
        low = tl.where(op == 3, 0, 4)
        high = tl.where(op == 3, 9, tl.where(op == 2, 5, 4))
        first = tl.where(op == 3, 1, -4)
        s1 = tl.zeros([CO], x_ptr.dtype.element_ty)
        s2 = tl.zeros([CO], x_ptr.dtype.element_ty)
        for tile in range(TILES):
            p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            ox = p % SIDE
            oy = (p // SIDE) % SIDE
            if STRIDE == 1:
                base = p
            else:
                base = ((p // (SIDE * SIDE)) * WIDE + oy * STRIDE) * WIDE + ox * STRIDE
            acc = tl.zeros([BLOCK, CO], x_ptr.dtype.element_ty)
            for tap in range(low, high):
                dy = tap // 3 - 1
                dx = tap % 3 - 1
                iy = oy * STRIDE + dy
                ix = ox * STRIDE + dx
                ok = (iy >= 0) & (iy < WIDE) & (ix >= 0) & (ix < WIDE)
                at = (base + dy * WIDE + dx)[:, None] * CI + ci[None, :]
                x = tl.load(x_m + at, mask=ok[:, None], other=0.0)
                if RELU:
                    x = tl.where(x > 0, x, 0.0)
                w = tl.load(w_e + (tap + first) * (CI * CO))
                acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
            if STRIDE == 2:  # noqa: SIM102
                if op == 5:
                    x = halved(x_m, base[:, None] * CI + ci[None, :], CI, SIDE)
                    w = tl.load(w_e)
                    acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
            tl.store(y_e + p[:, None] * CO + co[None, :], acc)
            s1 += tl.sum(acc, 0)
            s2 += tl.sum(acc * acc, 0)
        to = part_ptr + (i * NB + pid).to(tl.int64) * (2 * CO) + co
        tl.store(to, s1)
        tl.store(to + CO, s2)


@triton.jit
def under_window(p, SIDE: tl.constexpr):
    """Count the positions of a picture under the 3×3 window at p."""
    x = p % SIDE
    y = (p // SIDE) % SIDE
    rows = 3 - (y == 0).to(tl.int32) - (y == SIDE - 1).to(tl.int32)
    return rows * (3 - (x == 0).to(tl.int32) - (x == SIDE - 1).to(tl.int32))


@triton.jit
def _edge(total, op, x_m, y_e, mean, rstd, p, SIDE: tl.constexpr, C: tl.constexpr):
    """Add what an edge hands to its target."""
    at = p[:, None] * C + tl.arange(0, C)[None, :]
    if (op & 2) != 0:
        total += (tl.load(y_e + at) - mean[None, :]) * rstd[None, :]
    if op == 5:
        total += tl.load(y_e + at)
    if op == 1:
        total += tl.load(x_m + at)
    if op == 4:
        x = p % SIDE
        y = (p // SIDE) % SIDE
        window = tl.zeros_like(total)
        for k in range(9):
            dy = k // 3 - 1
            dx = k % 3 - 1
            ok = (y + dy >= 0) & (y + dy < SIDE) & (x + dx >= 0) & (x + dx < SIDE)
            window += tl.load(x_m + at + (dy * SIDE + dx) * C, mask=ok[:, None], other=0.0)
        total += window / under_window(p, SIDE).to(total.dtype)[:, None]
    return total


@triton.jit(do_not_specialize=["t"])
def gather_forward(
    nodes_ptr,
    out_ptr,
    y_ptr,
    part_ptr,
    stat_ptr,
    ops_ptr,
    t,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
):
    """Node t: the sum over the edges that lead to it. The last node is written in any case."""
    pid = tl.program_id(0)
    m = tl.program_id(1)
    models = tl.num_programs(1)
    e0 = t * (t - 1) // 2
    op0 = tl.load(ops_ptr + e0)
    op1 = tl.load(ops_ptr + e0 + 1, mask=t > 1, other=0)
    op2 = tl.load(ops_ptr + e0 + 2, mask=t > 2, other=0)
    if ((op0 + op1 + op2) != 0) | (t == 3):
        P: tl.constexpr = NB * TILES * BLOCK
        c = tl.arange(0, C)
        i0 = e0 * models + m
        i1 = i0 + models
        i2 = i1 + models
        mean0 = tl.zeros([C], nodes_ptr.dtype.element_ty)
        rstd0, mean1, rstd1, mean2, rstd2 = mean0, mean0, mean0, mean0, mean0
        if (op0 & 2) != 0:
            mean0, rstd0 = _statistics(part_ptr, stat_ptr, i0, pid == 0, P, C, NB)
        if (op1 & 2) != 0:
            mean1, rstd1 = _statistics(part_ptr, stat_ptr, i1, pid == 0, P, C, NB)
        if (op2 & 2) != 0:
            mean2, rstd2 = _statistics(part_ptr, stat_ptr, i2, pid == 0, P, C, NB)
        x0 = nodes_ptr + m.to(tl.int64) * (P * C)
        x1 = nodes_ptr + (models + m).to(tl.int64) * (P * C)
        x2 = nodes_ptr + (2 * models + m).to(tl.int64) * (P * C)
        y0 = y_ptr + i0.to(tl.int64) * (P * C)
        y1 = y_ptr + i1.to(tl.int64) * (P * C)
        y2 = y_ptr + i2.to(tl.int64) * (P * C)
        for tile in range(TILES):
            p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            total = tl.zeros([BLOCK, C], nodes_ptr.dtype.element_ty)
            total = _edge(total, op0, x0, y0, mean0, rstd0, p, SIDE, C)
            total = _edge(total, op1, x1, y1, mean1, rstd1, p, SIDE, C)
            total = _edge(total, op2, x2, y2, mean2, rstd2, p, SIDE, C)
            at = m.to(tl.int64) * (P * C) + p[:, None] * C + c[None, :]
            tl.store(out_ptr + at, total)


@triton.jit
def node_statistics(
    x_ptr, part_ptr, C: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, NB: tl.constexpr
):
    """Partial sums of x and x² for the last batch norm."""
    pid = tl.program_id(0)
    m = tl.program_id(1)
    c = tl.arange(0, C)
    s1 = tl.zeros([BLOCK, C], x_ptr.dtype.element_ty)
    s2 = tl.zeros([BLOCK, C], x_ptr.dtype.element_ty)
    for tile in range(TILES):
        p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        at = m.to(tl.int64) * (NB * TILES * BLOCK * C) + p[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at)
        s1 += x
        s2 += x * x
    to = part_ptr + (m * NB + pid) * (2 * C) + c
    tl.store(to, tl.sum(s1, 0))
    tl.store(to + C, tl.sum(s2, 0))


@triton.jit
def head_forward(
    x_ptr,
    part_ptr,
    stat_ptr,
    features_ptr,
    above_ptr,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    NB: tl.constexpr,
):
    """Batch norm, ReLU, mean over the pixels; and the share of the pixels above zero."""
    image = tl.program_id(0)
    m = tl.program_id(1)
    batch = tl.num_programs(0)
    c = tl.arange(0, C)
    mean, rstd = _statistics(part_ptr, stat_ptr, m, image == 0, batch * PIXELS, C, NB)
    at = ((m * batch + image) * PIXELS + tl.arange(0, PIXELS)[:, None]) * C + c[None, :]
    normal = (tl.load(x_ptr + at) - mean[None, :]) * rstd[None, :]
    to = (m * batch + image) * C + c
    tl.store(features_ptr + to, tl.sum(tl.where(normal > 0, normal, 0.0), 0) / PIXELS)
    tl.store(above_ptr + to, tl.sum((normal > 0).to(normal.dtype), 0) / PIXELS)


@triton.jit
def augment(
    padded_ptr,
    order_ptr,
    crop_ptr,
    seed_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    WIDE: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cropped, flipped and normalized images; channels from the fourth on are zero."""
    image = tl.program_id(0)
    m = tl.program_id(1)
    batch = tl.num_programs(0)
    draw = tl.load(seed_ptr + m) * batch + image
    n = tl.load(order_ptr + draw)
    crop = tl.load(crop_ptr + draw)
    row = crop & 255
    column = (crop >> 8) & 255
    c = tl.arange(0, CHANNELS)
    colour = c < 3
    scale = tl.load(scale_ptr + c, mask=colour, other=0.0)
    shift = tl.load(shift_ptr + c, mask=colour, other=0.0)
    for first in range(0, SIDE * SIDE, BLOCK):
        p = first + tl.arange(0, BLOCK)
        x = p % SIDE
        x = tl.where((crop >> 16) != 0, SIDE - 1 - x, x)
        at = ((n * WIDE + row + p // SIDE) * WIDE + column + x) * 3
        pixel = tl.load(padded_ptr + at[:, None] + c[None, :], mask=colour[None, :], other=0)
        value = pixel.to(scale.dtype) * scale[None, :] + shift[None, :]
        to = ((m * batch + image) * (SIDE * SIDE) + p[:, None]) * CHANNELS + c[None, :]
        tl.store(out_ptr + to, value)
