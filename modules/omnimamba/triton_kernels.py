"""The state-space dual scan for rows of many short sequences, forward and backward, in Triton.

mamba_ssm's kernels compute the state of every chunk and pass it on through memory: 360 MB a layer, read and written
twice. A sequence of some hundred positions needs no state. Its outputs are a masked matrix product, as in attention:

    y_i = sum over j <= i of (C_i . B_j) exp(l_i - l_j) dt_j x_j,      l the running sum of dt A

C . B is the same for all heads, so it is computed once a layer, in tiles of Q x Q. What is left for a head are products
of tiles. The work grows with the square of a sequence's length: long sequences are better served by mamba_ssm's
kernels. `ssd` is the reference.

Shapes: R positions of the row, S sequences, K chunks of all sequences, T tiles, H heads, P head size, N state size, Q
chunk size. A tile belongs to two chunks of one sequence, of which the rows' is not before the columns'. Every sum has
a fixed order, so results are equal to the bit from run to run.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(a, b):  # type: ignore[no-untyped-def]
    """The product of two tiles, in float32; of float32 tiles without the short cut of TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _log_1_plus(x):  # type: ignore[no-untyped-def]
    """log(1 + x) without the digits that 1 + x loses (Kahan)."""
    rounded = 1.0 + x
    kept = rounded - 1.0
    return tl.where(kept == 0.0, x, tl.log(rounded) * (x / tl.where(kept == 0.0, 1.0, kept)))


@triton.jit
def _decay(later, earlier, causal):  # type: ignore[no-untyped-def]
    """Decay between positions of a chunk from the logs of both; positions outside of the sequence must not overflow."""
    return tl.exp(tl.where(causal, tl.minimum(later - earlier, 0.0), float("-inf")))


@triton.jit
def _rows_of(pointer, rows, stride, first_column, inside, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """W columns of the given rows, (Q, W); zeros outside of the sequence."""
    columns = first_column + tl.arange(0, W)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _chunk(chunks_ptr, chunk, Q: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a chunk, which of them are inside of its sequence, the sequence's first chunk and end, its first tile."""
    place = chunks_ptr + 5 * chunk
    rows = (tl.load(place) + tl.arange(0, Q)).to(tl.int64)
    return rows, rows < tl.load(place + 1), tl.load(place + 2), tl.load(place + 3), tl.load(place + 4)


@triton.jit
def steps(  # type: ignore[no-untyped-def]
    dt_ptr, bias_ptr, rate_ptr, starts_ptr, step_ptr, log_ptr, total_ptr, before_ptr,
    dt_stride, R, K, H, Q: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """dt after softplus and the log decay from the start of its chunk, (H, R); of each chunk, its log decay and that of
    all chunks of the sequence before it, (H, K). For one sequence and G heads."""
    sequence, heads = tl.program_id(0), tl.program_id(1) * G + tl.arange(0, G)
    first, end = tl.load(starts_ptr + 2 * sequence), tl.load(starts_ptr + 2 * sequence + 2)
    chunk = tl.load(starts_ptr + 2 * sequence + 1)
    known = heads < H
    bias, rate = tl.load(bias_ptr + heads, mask=known, other=0.0), tl.load(rate_ptr + heads, mask=known, other=0.0)
    before = tl.zeros((G,), tl.float32)
    for begin in range(first, end, Q):
        rows = (begin + tl.arange(0, Q)).to(tl.int64)
        inside = (rows < end)[:, None] & known[None, :]
        raw = tl.load(dt_ptr + rows[:, None] * dt_stride + heads[None, :], mask=inside, other=0.0).to(tl.float32)
        raw += bias[None, :]
        dt = tl.where(inside, tl.where(raw > 20.0, raw, _log_1_plus(tl.exp(tl.minimum(raw, 20.0)))), 0.0)
        place = heads[None, :].to(tl.int64) * R + rows[:, None]
        tl.store(step_ptr + place, dt, mask=inside)
        tl.store(log_ptr + place, tl.cumsum(dt * rate[None, :], 0), mask=inside)
        total = tl.sum(dt, 0) * rate
        tl.store(total_ptr + heads * K + chunk, total, mask=known)
        tl.store(before_ptr + heads * K + chunk, before, mask=known)
        before += total
        chunk += 1


@triton.jit
def products(  # type: ignore[no-untyped-def]
    B_ptr, C_ptr, chunks_ptr, tiles_ptr, products_ptr, flipped_ptr, B_stride, C_stride,
    N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """C_i . B_j of one tile, and the same transposed."""
    tile, q = tl.program_id(0), tl.arange(0, Q)
    rows, inside, _, _, _ = _chunk(chunks_ptr, tl.load(tiles_ptr + 2 * tile), Q)
    columns, within, _, _, _ = _chunk(chunks_ptr, tl.load(tiles_ptr + 2 * tile + 1), Q)
    C, B = _rows_of(C_ptr, rows, C_stride, 0, inside, N), _rows_of(B_ptr, columns, B_stride, 0, within, N)
    place = tile.to(tl.int64) * (Q * Q) + q[:, None] * Q + q[None, :]
    tl.store(products_ptr + place, _dot(C, tl.trans(B)).to(products_ptr.dtype.element_ty))
    tl.store(flipped_ptr + place, _dot(B, tl.trans(C)).to(products_ptr.dtype.element_ty))


@triton.jit
def _tile(pointer, first_tile, later, earlier, Q: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of two chunks, counted from their sequence's first."""
    q = tl.arange(0, Q)
    tile = (first_tile + later * (later + 1) // 2 + earlier).to(tl.int64)
    return tl.load(pointer + tile * (Q * Q) + q[:, None] * Q + q[None, :])


@triton.jit
def _from_earlier(  # type: ignore[no-untyped-def]
    x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, rows, log_decay, chunk, first, first_tile, head, R, K,
    P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """What the chunks before it in its sequence add to a chunk's outputs, (Q, P)."""
    y = tl.zeros((Q, P), tl.float32)
    for k in range(first, chunk):
        columns = rows - (chunk - k) * Q  # a chunk before another is full
        products = _tile(products_ptr, first_tile, chunk - first, k - first, Q)
        x = tl.load(x_ptr + columns[:, None] * x_stride + head * P + tl.arange(0, P)[None, :])
        total = tl.load(total_ptr + head * K + k)
        weight = tl.exp(total - tl.load(log_ptr + head * R + columns)) * tl.load(step_ptr + head * R + columns)
        y = y * tl.exp(total) + _dot(products, (x * weight[:, None]).to(x.dtype))
    return y * tl.exp(log_decay)[:, None]


@triton.jit
def forward(  # type: ignore[no-untyped-def]
    x_ptr, D_ptr, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, y_ptr, x_stride, R, K, H,
    P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk and head."""
    head, chunk, q = tl.program_id(0), tl.program_id(1), tl.arange(0, Q)
    rows, inside, first, _, first_tile = _chunk(chunks_ptr, chunk, Q)
    step = tl.load(step_ptr + head * R + rows, mask=inside, other=0.0)
    log_decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
    y = _from_earlier(
        x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, rows, log_decay, chunk, first, first_tile, head,
        R, K, P, Q,
    )  # fmt: skip
    products = _tile(products_ptr, first_tile, chunk - first, chunk - first, Q)
    x = _rows_of(x_ptr, rows, x_stride, head * P, inside, P)
    decay = _decay(log_decay[:, None], log_decay[None, :], q[:, None] >= q[None, :])
    y += _dot((products * decay * step[None, :]).to(x.dtype), x) + x.to(tl.float32) * tl.load(D_ptr + head)
    place = y_ptr + rows[:, None] * (H * P) + head * P + tl.arange(0, P)[None, :]
    tl.store(place, y.to(x.dtype), mask=inside[:, None])


@triton.jit
def backward_x(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, D_ptr, step_ptr, log_ptr, total_ptr, before_ptr, flipped_ptr, chunks_ptr,
    dx_ptr, within_ptr, after_ptr, passing_ptr, dstep_ptr, dD_ptr, x_stride, dx_stride, R, K, H,
    P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradients of x, D and, outside of the decays, of dt, for one chunk and head; for the decays' gradients:

    ``within``, of each position's log decay, from pairs of positions within the chunk; ``after``, what each position
    gives to later chunks, times their gradient; ``passing``, of each later chunk, what this one gives to it and to
    those after it.
    """
    head, chunk, q = tl.program_id(0), tl.program_id(1), tl.arange(0, Q)
    rows, inside, first, end, first_tile = _chunk(chunks_ptr, chunk, Q)
    step = tl.load(step_ptr + head * R + rows, mask=inside, other=0.0)
    log_decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
    x = _rows_of(x_ptr, rows, x_stride, head * P, inside, P)

    # 1. From later chunks, the last first: the gradient of dt x.
    dxdt = tl.zeros((Q, P), tl.float32)
    for back in range(0, end - chunk - 1):
        k = end - 1 - back
        later, known, _, _, _ = _chunk(chunks_ptr, k, Q)
        products = _tile(flipped_ptr, first_tile, k - first, chunk - first, Q)
        weight = tl.exp(tl.load(log_ptr + head * R + later, mask=known, other=0.0))
        dy = _rows_of(dy_ptr, later, H * P, head * P, known, P)
        dxdt = dxdt * tl.exp(tl.load(total_ptr + head * K + k)) + _dot(products, (dy * weight[:, None]).to(dy.dtype))
        gap = tl.load(before_ptr + head * K + k) - tl.load(before_ptr + head * K + chunk)
        given = tl.sum(tl.sum(x * dxdt, 1) * tl.exp(gap - log_decay) * step, 0)
        tile = first_tile + (k - first) * (k - first + 1) // 2 + chunk - first
        tl.store(passing_ptr + tile * H + head, given)
    dxdt *= tl.exp(tl.load(total_ptr + head * K + chunk) - log_decay)[:, None]
    tl.store(after_ptr + head * R + rows, tl.sum(x * dxdt, 1) * step, mask=inside)

    # 2. Within the chunk; rows are the earlier positions.
    dy = _rows_of(dy_ptr, rows, H * P, head * P, inside, P)
    products = _tile(flipped_ptr, first_tile, chunk - first, chunk - first, Q)
    mixing = products * _decay(log_decay[None, :], log_decay[:, None], q[:, None] <= q[None, :])
    share = _dot(x, tl.trans(dy)) * mixing * step[:, None]
    tl.store(within_ptr + head * R + rows, tl.sum(share, 0) - tl.sum(share, 1), mask=inside)
    dxdt += _dot(mixing.to(dy.dtype), dy)
    dx = dxdt * step[:, None] + dy.to(tl.float32) * tl.load(D_ptr + head)
    place = dx_ptr + rows[:, None] * dx_stride + head * P + tl.arange(0, P)[None, :]
    tl.store(place, dx.to(x.dtype), mask=inside[:, None])
    tl.store(dstep_ptr + head * R + rows, tl.sum(x * dxdt, 1), mask=inside)
    tl.store(dD_ptr + chunk * H + head, tl.sum(tl.sum(dy.to(tl.float32) * x, 1), 0))


@triton.jit
def backward_earlier(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, before_ptr, x_stride, R, K, H,
    P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """For the decays' gradients: what each position has from earlier chunks, times its gradient."""
    head, chunk = tl.program_id(0), tl.program_id(1)
    rows, inside, first, _, first_tile = _chunk(chunks_ptr, chunk, Q)
    log_decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
    y = _from_earlier(
        x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, rows, log_decay, chunk, first, first_tile, head,
        R, K, P, Q,
    )  # fmt: skip
    dy = _rows_of(dy_ptr, rows, H * P, head * P, inside, P)
    tl.store(before_ptr + head * R + rows, tl.sum(dy * y, 1), mask=inside)


@triton.jit
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


@triton.jit
def backward_products(  # type: ignore[no-untyped-def]
    x_ptr, dy_ptr, step_ptr, log_ptr, before_ptr, chunks_ptr, tiles_ptr, which_ptr, dproducts_ptr, x_stride, R, K, H,
    P: tl.constexpr, Q: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of C . B, the sum over all heads."""
    tile, q = tl.load(which_ptr + tl.program_id(0)), tl.arange(0, Q)
    later, earlier = tl.load(tiles_ptr + 2 * tile), tl.load(tiles_ptr + 2 * tile + 1)
    rows, inside, _, _, _ = _chunk(chunks_ptr, later, Q)
    columns, within, _, _, _ = _chunk(chunks_ptr, earlier, Q)
    dproducts = tl.zeros((Q, Q), tl.float32)
    for head in range(0, H):
        dy = _rows_of(dy_ptr, rows, H * P, head * P, inside, P)
        x = _rows_of(x_ptr, columns, x_stride, head * P, within, P)
        decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
        decay_x = tl.load(log_ptr + head * R + columns, mask=within, other=0.0)
        step = tl.load(step_ptr + head * R + columns, mask=within, other=0.0)
        share = _dot(dy, tl.trans(x))
        if DIAGONAL:
            dproducts += share * _decay(decay[:, None], decay_x[None, :], q[:, None] >= q[None, :]) * step[None, :]
        else:
            gap = tl.load(before_ptr + head * K + later) - tl.load(before_ptr + head * K + earlier)
            dproducts += share * tl.exp(decay)[:, None] * (tl.exp(gap - decay_x) * step)[None, :]
    place = dproducts_ptr + tile.to(tl.int64) * (Q * Q) + q[:, None] * Q + q[None, :]
    tl.store(place, dproducts.to(dproducts_ptr.dtype.element_ty))


@triton.jit
def backward_bc(  # type: ignore[no-untyped-def]
    B_ptr, C_ptr, chunks_ptr, dproducts_ptr, dB_ptr, dC_ptr, B_stride, C_stride, dB_stride, dC_stride,
    N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C in one chunk."""
    chunk = tl.program_id(0)
    rows, inside, first, end, first_tile = _chunk(chunks_ptr, chunk, Q)
    n = tl.arange(0, N)[None, :]
    dC, dB = tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    for k in range(first, chunk + 1):
        columns, within, _, _, _ = _chunk(chunks_ptr, k, Q)
        B = _rows_of(B_ptr, columns, B_stride, 0, within, N)
        dC += _dot(_tile(dproducts_ptr, first_tile, chunk - first, k - first, Q), B)
    tl.store(dC_ptr + rows[:, None] * dC_stride + n, dC.to(dC_ptr.dtype.element_ty), mask=inside[:, None])
    for k in range(chunk, end):
        later, known, _, _, _ = _chunk(chunks_ptr, k, Q)
        C = _rows_of(C_ptr, later, C_stride, 0, known, N)
        dB += _dot(tl.trans(_tile(dproducts_ptr, first_tile, k - first, chunk - first, Q)), C)
    tl.store(dB_ptr + rows[:, None] * dB_stride + n, dB.to(dB_ptr.dtype.element_ty), mask=inside[:, None])
