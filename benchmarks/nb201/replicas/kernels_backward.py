"""Triton kernels of the backward pass; layouts and operations are those of the forward pass."""

from __future__ import annotations

import triton
import triton.language as tl

from benchmarks.nb201.replicas.kernels_forward import partial_means, under_window


@triton.jit
def coefficients(stat_ptr, gpart_ptr, first, count, C: tl.constexpr, NB: tl.constexpr):
    """Return a, b, c such that the gradient before the batch norm is a·g + b·y + c."""
    mean_g, mean_gx = partial_means(gpart_ptr, first, count, C, NB)
    stat = stat_ptr + first.to(tl.int64) * (2 * C) + tl.arange(0, C)
    mean = tl.load(stat)
    rstd = tl.load(stat + C)
    slope = -rstd * rstd * mean_gx
    return rstd, slope, -rstd * mean_g - slope * mean


@triton.jit(do_not_specialize=["t"])
def norm_backward(
    g_ptr,
    y_ptr,
    stat_ptr,
    gpart_ptr,
    ops_ptr,
    t,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
):
    """Partial sums of g and g·x̂ for the batch norms of the edges that lead to node t."""
    edges = tl.num_programs(0) // NB
    pid = tl.program_id(0) // edges
    m = tl.program_id(1)
    e = t * (t - 1) // 2 + tl.program_id(0) % edges
    if (tl.load(ops_ptr + e) & 2) != 0:
        P: tl.constexpr = NB * TILES * BLOCK
        c = tl.arange(0, C)
        i = e * tl.num_programs(1) + m
        stat = stat_ptr + i.to(tl.int64) * (2 * C) + c
        mean = tl.load(stat)
        rstd = tl.load(stat + C)
        s1 = tl.zeros([BLOCK, C], g_ptr.dtype.element_ty)
        s2 = tl.zeros([BLOCK, C], g_ptr.dtype.element_ty)
        for tile in range(TILES):
            p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            at = p[:, None] * C + c[None, :]
            g = tl.load(g_ptr + m.to(tl.int64) * (P * C) + at)
            y = tl.load(y_ptr + i.to(tl.int64) * (P * C) + at)
            s1 += g
            s2 += g * ((y - mean[None, :]) * rstd[None, :])
        to = gpart_ptr + (i * NB + pid).to(tl.int64) * (2 * C) + c
        tl.store(to, tl.sum(s1, 0))
        tl.store(to + C, tl.sum(s2, 0))


@triton.jit
def _edge(
    through,
    beside,
    op,
    g_m,
    y_e,
    w_e,
    a,
    b,
    c0,
    p,
    SIDE: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what the target of an edge hands back: `through` a ReLU, or `beside` any."""
    c = tl.arange(0, C)
    at = p[:, None] * C + c[None, :]
    x = p % SIDE
    y = (p // SIDE) % SIDE
    if (op & 2) != 0:
        low = tl.where(op == 3, 0, 4)
        high = tl.where(op == 3, 9, 5)
        first = tl.where(op == 3, 1, -4)
        for tap in range(low, high):
            dy = tap // 3 - 1
            dx = tap % 3 - 1
            ok = (y - dy >= 0) & (y - dy < SIDE) & (x - dx >= 0) & (x - dx < SIDE)
            q = at - (dy * SIDE + dx) * C
            g = tl.load(g_m + q, mask=ok[:, None], other=0.0)
            out = tl.load(y_e + q, mask=ok[:, None], other=0.0)
            d = a[None, :] * g + b[None, :] * out + c0[None, :]
            d = tl.where(ok[:, None], d, 0.0)
            w = tl.load(w_e + (tap + first) * (C * C) + c[:, None] * C + c[None, :])
            through = tl.dot(
                d, tl.trans(w), through, input_precision=PRECISION, out_dtype=through.dtype
            )
    if op == 1:
        beside += tl.load(g_m + at)
    if op == 4:
        for k in range(9):
            dy = k // 3 - 1
            dx = k % 3 - 1
            ok = (y + dy >= 0) & (y + dy < SIDE) & (x + dx >= 0) & (x + dx < SIDE)
            q = p + dy * SIDE + dx
            g = tl.load(g_m + q[:, None] * C + c[None, :], mask=ok[:, None], other=0.0)
            share = 1.0 / under_window(tl.where(ok, q, p), SIDE).to(g.dtype)
            beside += g * share[:, None]
    return through, beside


@triton.jit(do_not_specialize=["s"])
def gather_backward(
    nodes_ptr,
    g_ptr,
    y_ptr,
    stat_ptr,
    gpart_ptr,
    w_ptr,
    ops_ptr,
    s,
    w_stride,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of node s: the sum over the edges out of it. That of node 0 is always written."""
    pid = tl.program_id(0)
    m = tl.program_id(1)
    models = tl.num_programs(1)
    t0 = s + 1
    t1 = tl.where(s < 2, s + 2, 3)
    e0 = t0 * (t0 - 1) // 2 + s
    e1 = t1 * (t1 - 1) // 2 + s
    e2 = 3 + s
    op0 = tl.load(ops_ptr + e0)
    op1 = tl.load(ops_ptr + e1, mask=s < 2, other=0)
    op2 = tl.load(ops_ptr + e2, mask=s < 1, other=0)
    if ((op0 + op1 + op2) != 0) | (s == 0):
        P: tl.constexpr = NB * TILES * BLOCK
        c = tl.arange(0, C)
        i0 = e0 * models + m
        i1 = e1 * models + m
        i2 = e2 * models + m
        a0 = tl.zeros([C], g_ptr.dtype.element_ty)
        b0, c0, a1, b1, c1, a2, b2, c2 = a0, a0, a0, a0, a0, a0, a0, a0
        if (op0 & 2) != 0:
            a0, b0, c0 = coefficients(stat_ptr, gpart_ptr, i0, P, C, NB)
        if (op1 & 2) != 0:
            a1, b1, c1 = coefficients(stat_ptr, gpart_ptr, i1, P, C, NB)
        if (op2 & 2) != 0:
            a2, b2, c2 = coefficients(stat_ptr, gpart_ptr, i2, P, C, NB)
        g0 = g_ptr + (t0 * models + m).to(tl.int64) * (P * C)
        g1 = g_ptr + (t1 * models + m).to(tl.int64) * (P * C)
        g2 = g_ptr + (3 * models + m).to(tl.int64) * (P * C)
        y0 = y_ptr + i0.to(tl.int64) * (P * C)
        y1 = y_ptr + i1.to(tl.int64) * (P * C)
        y2 = y_ptr + i2.to(tl.int64) * (P * C)
        w_m = w_ptr + m.to(tl.int64) * w_stride
        w0 = w_m + e0 * (10 * C * C)
        w1 = w_m + e1 * (10 * C * C)
        w2 = w_m + e2 * (10 * C * C)
        node = (s * models + m).to(tl.int64) * (P * C)
        for tile in range(TILES):
            p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            at = node + p[:, None] * C + c[None, :]
            through = tl.zeros([BLOCK, C], g_ptr.dtype.element_ty)
            beside = tl.zeros([BLOCK, C], g_ptr.dtype.element_ty)
            through, beside = _edge(
                through, beside, op0, g0, y0, w0, a0, b0, c0, p, SIDE, C, PRECISION
            )
            through, beside = _edge(
                through, beside, op1, g1, y1, w1, a1, b1, c1, p, SIDE, C, PRECISION
            )
            through, beside = _edge(
                through, beside, op2, g2, y2, w2, a2, b2, c2, p, SIDE, C, PRECISION
            )
            x = tl.load(nodes_ptr + at)
            tl.store(g_ptr + at, tl.where(x > 0, through, 0.0) + beside)


@triton.jit
def strided_backward(
    x_ptr,
    out_ptr,
    g_ptr,
    y_ptr,
    stat_ptr,
    gpart_ptr,
    w_ptr,
    w_stride,
    CI: tl.constexpr,
    CO: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of a reduction's input, which has twice the side.

    Edge 0 is the strided convolution to node 1, edge 1 the shortcut to node 2.
    """
    pid = tl.program_id(0)
    m = tl.program_id(1)
    models = tl.num_programs(1)
    WIDE: tl.constexpr = SIDE * 2
    PI: tl.constexpr = NB * TILES * BLOCK
    PO: tl.constexpr = PI // 4
    ci = tl.arange(0, CI)
    co = tl.arange(0, CO)
    a, b, c0 = coefficients(stat_ptr, gpart_ptr, m, PO, CO, NB)
    g1 = g_ptr + (models + m).to(tl.int64) * (PO * CO)
    g2 = g_ptr + (2 * models + m).to(tl.int64) * (PO * CO)
    y = y_ptr + m.to(tl.int64) * (PO * CO)
    w_m = w_ptr + m.to(tl.int64) * w_stride + ci[:, None] * CO + co[None, :]
    for tile in range(TILES):
        p = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        ix = p % WIDE
        iy = (p // WIDE) % WIDE
        image = (p // (WIDE * WIDE)) * (SIDE * SIDE)
        through = tl.zeros([BLOCK, CI], g_ptr.dtype.element_ty)
        for tap in range(9):
            dy = iy + 1 - tap // 3
            dx = ix + 1 - tap % 3
            oy = dy // 2
            ox = dx // 2
            ok = (dy >= 0) & (dx >= 0) & (dy % 2 == 0) & (dx % 2 == 0) & (oy < SIDE) & (ox < SIDE)
            q = (image + oy * SIDE + ox)[:, None] * CO + co[None, :]
            g = tl.load(g1 + q, mask=ok[:, None], other=0.0)
            out = tl.load(y + q, mask=ok[:, None], other=0.0)
            d = a[None, :] * g + b[None, :] * out + c0[None, :]
            d = tl.where(ok[:, None], d, 0.0)
            w = tl.load(w_m + (1 + tap) * (CI * CO))
            through = tl.dot(
                d, tl.trans(w), through, input_precision=PRECISION, out_dtype=through.dtype
            )
        q = (image + (iy // 2) * SIDE + ix // 2)[:, None] * CO + co[None, :]
        w = tl.load(w_m + 10 * CI * CO)
        beside = tl.zeros([BLOCK, CI], g_ptr.dtype.element_ty)
        beside = tl.dot(
            tl.load(g2 + q), tl.trans(w), beside, input_precision=PRECISION, out_dtype=beside.dtype
        )
        at = m.to(tl.int64) * (PI * CI) + p[:, None] * CI + ci[None, :]
        x = tl.load(x_ptr + at)
        tl.store(out_ptr + at, tl.where(x > 0, through, 0.0) + beside * 0.25)


@triton.jit
def head_backward(
    x_ptr,
    g_ptr,
    stat_ptr,
    feature_g_ptr,
    mean_g_ptr,
    mean_gx_ptr,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Gradient of the last node, from that of the features and its means over all positions."""
    image = tl.program_id(0)
    m = tl.program_id(1)
    batch = tl.num_programs(0)
    c = tl.arange(0, C)
    mean = tl.load(stat_ptr + m * (2 * C) + c)
    rstd = tl.load(stat_ptr + m * (2 * C) + C + c)
    share = tl.load(feature_g_ptr + (m * batch + image) * C + c) / PIXELS
    mean_g = tl.load(mean_g_ptr + m * C + c)
    mean_gx = tl.load(mean_gx_ptr + m * C + c)
    at = ((m * batch + image) * PIXELS + tl.arange(0, PIXELS)[:, None]) * C + c[None, :]
    normal = (tl.load(x_ptr + at) - mean[None, :]) * rstd[None, :]
    g = tl.where(normal > 0, share[None, :], 0.0)
    tl.store(g_ptr + at, rstd[None, :] * (g - mean_g[None, :] - normal * mean_gx[None, :]))
