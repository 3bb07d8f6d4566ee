"""The backward pass of `triton_ssd_forward`; its shapes are explained there."""

import triton
import triton.language as tl

from modules.omnimamba.triton_ssd_forward import chunk_of, decay_between, dot, from_earlier, rows_of, tile_of


@triton.jit
def _add_later(  # type: ignore[no-untyped-def]
    dxdt, x, products, dy_ptr, step, log_decay, log_ptr, total_ptr, before_ptr, passing_ptr, later, known,
    chunk, k, first, first_tile, head, R, K, H, P: tl.constexpr,
):  # fmt: skip
    """The gradient of dt x from chunk k and those after it, counted from the start of k; writes what passes to them."""
    weight = tl.exp(tl.load(log_ptr + head * R + later, mask=known, other=0.0))
    dy = rows_of(dy_ptr, later, H * P, head * P, known, P)
    dxdt = dxdt * tl.exp(tl.load(total_ptr + head * K + k)) + dot(products, (dy * weight[:, None]).to(dy.dtype))
    gap = tl.load(before_ptr + head * K + k) - tl.load(before_ptr + head * K + chunk)
    passing = tl.sum(tl.sum(x * dxdt, 1) * tl.exp(gap - log_decay) * step, 0)
    tile = first_tile + (k - first) * (k - first + 1) // 2 + chunk - first
    tl.store(passing_ptr + tile * H + head, passing)
    return dxdt


@triton.jit
def _finish_x(  # type: ignore[no-untyped-def]
    dxdt, x, products, dy_ptr, D_ptr, step, log_decay, total_ptr, dx_ptr, after_ptr, dstep_ptr, dD_ptr, rows, inside,
    chunk, head, dx_stride, R, K, H, P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Add what comes from within the chunk, whose rows are the earlier positions, and write one head's gradients."""
    q = tl.arange(0, M)
    dxdt *= tl.exp(tl.load(total_ptr + head * K + chunk) - log_decay)[:, None]
    tl.store(after_ptr + head * R + rows, tl.sum(x * dxdt, 1) * step, mask=inside)
    dy = rows_of(dy_ptr, rows, H * P, head * P, inside, P)
    mixing = products * decay_between(log_decay[None, :], log_decay[:, None], q[:, None] <= q[None, :])
    dxdt += dot(mixing.to(dy.dtype), dy)
    dx = dxdt * step[:, None] + dy.to(tl.float32) * tl.load(D_ptr + head)
    place = dx_ptr + rows[:, None] * dx_stride + head * P + tl.arange(0, P)[None, :]
    tl.store(place, dx.to(x.dtype), mask=inside[:, None])
    tl.store(dstep_ptr + head * R + rows, tl.sum(x * dxdt, 1), mask=inside)
    tl.store(dD_ptr + chunk * H + head, tl.sum(tl.sum(dy.to(tl.float32) * x, 1), 0))


@triton.jit(do_not_specialize=["R", "K"])
def backward_x(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, D_ptr, step_ptr, log_ptr, total_ptr, before_ptr, flipped_ptr, chunks_ptr, which_ptr,
    dx_ptr, after_ptr, passing_ptr, dstep_ptr, dD_ptr, x_stride, dx_stride, R, K, H,
    P: tl.constexpr, M: tl.constexpr, Q: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Gradients of x, D and, outside of the decays, of dt, for one chunk and head; for the decays' gradients:

    ``after``, what each position gives to later chunks, times their gradient; ``passing``, of each later chunk, what
    this one gives to it and to those after it.
    """
    head, chunk = tl.program_id(0), tl.load(which_ptr + tl.program_id(1))
    rows, inside, first, end, first_tile = chunk_of(chunks_ptr, chunk, M)
    step = tl.load(step_ptr + head * R + rows, mask=inside, other=0.0)
    log_decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
    x = rows_of(x_ptr, rows, x_stride, head * P, inside, P)
    dxdt = tl.zeros((M, P), tl.float32)
    k = end - 1
    if k > chunk and tl.load(chunks_ptr + 5 * k + 1) - tl.load(chunks_ptr + 5 * k) <= SHORT:  # a short chunk at the end
        later, known, _, _, _ = chunk_of(chunks_ptr, k, SHORT)
        products = tile_of(flipped_ptr, first_tile, k - first, chunk - first, M, SHORT, Q)
        dxdt = _add_later(
            dxdt, x, products, dy_ptr, step, log_decay, log_ptr, total_ptr, before_ptr, passing_ptr, later, known,
            chunk, k, first, first_tile, head, R, K, H, P,
        )  # fmt: skip
        k -= 1
    while k > chunk:
        later, known, _, _, _ = chunk_of(chunks_ptr, k, Q)
        products = tile_of(flipped_ptr, first_tile, k - first, chunk - first, M, Q, Q)
        dxdt = _add_later(
            dxdt, x, products, dy_ptr, step, log_decay, log_ptr, total_ptr, before_ptr, passing_ptr, later, known,
            chunk, k, first, first_tile, head, R, K, H, P,
        )  # fmt: skip
        k -= 1
    products = tile_of(flipped_ptr, first_tile, chunk - first, chunk - first, M, M, Q)
    _finish_x(
        dxdt, x, products, dy_ptr, D_ptr, step, log_decay, total_ptr, dx_ptr, after_ptr, dstep_ptr, dD_ptr, rows,
        inside, chunk, head, dx_stride, R, K, H, P, M,
    )  # fmt: skip


@triton.jit(do_not_specialize=["R", "K"])
def backward_earlier(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, which_ptr, before_ptr, x_stride, R, K, H,
    P: tl.constexpr, M: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """For the decays' gradients: what each position has from earlier chunks, times its gradient."""
    head, chunk = 2 * tl.program_id(0), tl.load(which_ptr + tl.program_id(1))
    second = tl.minimum(head + 1, H - 1)
    rows, inside, first, _, first_tile = chunk_of(chunks_ptr, chunk, M)
    y, y_2 = from_earlier(
        x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, chunk, first, first_tile, head, second,
        R, K, P, M, Q,
    )  # fmt: skip
    dy = rows_of(dy_ptr, rows, H * P, head * P, inside, P)
    dy_2 = rows_of(dy_ptr, rows, H * P, second * P, inside, P)
    decay = tl.exp(tl.load(log_ptr + head * R + rows, mask=inside, other=0.0))
    decay_2 = tl.exp(tl.load(log_ptr + second * R + rows, mask=inside, other=0.0))
    tl.store(before_ptr + head * R + rows, tl.sum(dy * y, 1) * decay, mask=inside)
    tl.store(before_ptr + second * R + rows, tl.sum(dy_2 * y_2, 1) * decay_2, mask=inside)


@triton.jit(do_not_specialize=["R"])
def backward_steps(  # type: ignore[no-untyped-def]
    dt_ptr, bias_ptr, rate_ptr, starts_ptr, chunks_ptr, step_ptr, within_ptr, before_ptr, after_ptr, passing_ptr,
    dstep_ptr, ddt_ptr, drate_ptr, dt_stride, R, H, Q: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Gradients of dt before softplus and of A, for one sequence and G heads.

    The decay at a position counts for all pairs of an earlier and a later one. Pairs that do not count are never added
    and taken off again: their rounding would be larger than what is left.
    """
    sequence, heads = tl.program_id(0), tl.program_id(1) * G + tl.arange(0, G)
    first, end = tl.load(starts_ptr + 2 * sequence), tl.load(starts_ptr + 2 * sequence + 2)
    first_tile = tl.load(chunks_ptr + 5 * tl.load(starts_ptr + 2 * sequence + 1) + 4)
    known = heads < H
    bias, rate = tl.load(bias_ptr + heads, mask=known, other=0.0), tl.load(rate_ptr + heads, mask=known, other=0.0)
    drate = tl.zeros((G,), tl.float32)
    count = tl.cdiv(end - first, Q)
    for chunk in range(0, count):
        rows = (first + chunk * Q + tl.arange(0, Q)).to(tl.int64)
        inside = (rows < end)[:, None] & known[None, :]
        place = heads[None, :].to(tl.int64) * R + rows[:, None]
        to_here = tl.load(within_ptr + place, mask=inside, other=0.0)
        to_here += tl.load(before_ptr + place, mask=inside, other=0.0)
        from_here = tl.load(after_ptr + place, mask=inside, other=0.0)
        dsum = tl.sum(to_here, 0)[None, :] - tl.cumsum(to_here, 0) + to_here + tl.cumsum(from_here, 0) - from_here
        if chunk + 1 < count:  # what passes over the whole chunk
            tile = first_tile + (chunk + 1) * (chunk + 2) // 2
            for earlier in range(0, chunk):
                dsum += tl.load(passing_ptr + (tile + earlier) * H + heads, mask=known, other=0.0)[None, :]
        raw = tl.load(dt_ptr + rows[:, None] * dt_stride + heads[None, :], mask=inside, other=0.0).to(tl.float32)
        ddt = dsum * rate[None, :] + tl.load(dstep_ptr + place, mask=inside, other=0.0)
        ddt *= tl.sigmoid(raw + bias[None, :])
        tl.store(ddt_ptr + rows[:, None] * H + heads[None, :], ddt, mask=inside)
        drate += tl.sum(dsum * tl.load(step_ptr + place, mask=inside, other=0.0), 0)
    tl.store(drate_ptr + sequence * H + heads, drate, mask=known)


@triton.jit(do_not_specialize=["R", "K"])
def backward_products(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, step_ptr, log_ptr, before_ptr, products_ptr, chunks_ptr, tiles_ptr, which_ptr,
    dproducts_ptr, within_ptr, x_stride, R, K, H,
    P: tl.constexpr, M: tl.constexpr, Q: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of C . B, the sum over all heads.

    A tile of a chunk with itself also gives ``within``: the gradients of log decays from pairs of its positions.
    """
    W: tl.constexpr = M if DIAGONAL else Q
    tile = tl.load(which_ptr + tl.program_id(0))
    later, earlier = tl.load(tiles_ptr + 2 * tile), tl.load(tiles_ptr + 2 * tile + 1)
    rows, inside, _, _, _ = chunk_of(chunks_ptr, later, M)
    columns, within, _, _, _ = chunk_of(chunks_ptr, earlier, W)
    row, column = tl.arange(0, M)[:, None], tl.arange(0, W)[None, :]
    place = tile.to(tl.int64) * (Q * Q) + row * Q + column
    dproducts = tl.zeros((M, W), tl.float32)
    if DIAGONAL:
        products = tl.load(products_ptr + place)
    for head in range(0, H):
        dy = rows_of(dy_ptr, rows, H * P, head * P, inside, P)
        x = rows_of(x_ptr, columns, x_stride, head * P, within, P)
        decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
        decay_x = tl.load(log_ptr + head * R + columns, mask=within, other=0.0)
        step = tl.load(step_ptr + head * R + columns, mask=within, other=0.0)
        share = dot(dy, tl.trans(x))
        if DIAGONAL:
            share *= decay_between(decay[:, None], decay_x[None, :], row >= column) * step[None, :]
            dproducts += share
            share *= products
            tl.store(within_ptr + head * R + rows, tl.sum(share, 1) - tl.sum(share, 0), mask=inside)
        else:
            gap = tl.load(before_ptr + head * K + later) - tl.load(before_ptr + head * K + earlier)
            dproducts += share * tl.exp(decay)[:, None] * (tl.exp(gap - decay_x) * step)[None, :]
    tl.store(dproducts_ptr + place, dproducts.to(dproducts_ptr.dtype.element_ty))


@triton.jit
def backward_bc(  # type: ignore[no-untyped-def]
    B_ptr, C_ptr, chunks_ptr, dproducts_ptr, dB_ptr, dC_ptr, B_stride, C_stride, dB_stride, dC_stride,
    N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C in one chunk. Of a tile, rows and columns outside of the sequence were never written."""
    chunk = tl.program_id(0)
    rows, inside, first, end, first_tile = chunk_of(chunks_ptr, chunk, Q)
    n = tl.arange(0, N)[None, :]
    dC, dB = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    for k in range(first, chunk + 1):
        columns, within, _, _, _ = chunk_of(chunks_ptr, k, Q)
        B = rows_of(B_ptr, columns, B_stride, 0, within, N)
        dproducts = tile_of(dproducts_ptr, first_tile, chunk - first, k - first, Q, Q, Q)
        dC += dot(tl.where(within[None, :], dproducts, 0.0).to(B.dtype), B)
    tl.store(dC_ptr + rows[:, None] * dC_stride + n, dC.to(dC_ptr.dtype.element_ty), mask=inside[:, None])
    for k in range(chunk, end):
        later, known, _, _, _ = chunk_of(chunks_ptr, k, Q)
        C = rows_of(C_ptr, later, C_stride, 0, known, N)
        dproducts = tile_of(dproducts_ptr, first_tile, k - first, chunk - first, Q, Q, Q)
        dB += dot(tl.trans(tl.where(known[:, None], dproducts, 0.0).to(C.dtype)), C)
    tl.store(dB_ptr + rows[:, None] * dB_stride + n, dB.to(dB_ptr.dtype.element_ty), mask=inside[:, None])
