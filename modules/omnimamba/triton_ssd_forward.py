"""The state-space dual scan for rows of many short sequences, forward and backward, in Triton.

mamba_ssm's kernels compute the state of every chunk and pass it on through memory: 360 MB a layer, written and read.
A sequence of some hundred positions needs no state. Its outputs are a masked matrix product, as in attention:

    y_i = sum over j <= i of (C_i . B_j) exp(l_i - l_j) dt_j x_j,      l the running sum of dt A

C . B is the same for all heads, so it is computed once a layer, in tiles of Q x Q. What is left for a head are products
of tiles. The work grows with the square of a sequence's length: long sequences are better served by mamba_ssm's
kernels. `ssd` is the reference.

Shapes: R positions of the row, S sequences, K chunks of all sequences, T tiles, H heads, P head size, N state size, Q
chunk size, M rows of a chunk that a program computes: all, or 16 where a sequence's last chunk is not longer. A tile
belongs to two chunks of one sequence, of which the rows' is not before the columns'. Every sum has a fixed order, so
results are equal to the bit from run to run.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b):  # type: ignore[no-untyped-def]
    """The product of two tiles, in float32; of float32 tiles without the short cut of TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def log_1_plus(x):  # type: ignore[no-untyped-def]
    """log(1 + x) without the digits that 1 + x loses (Kahan)."""
    rounded = 1.0 + x
    kept = rounded - 1.0
    return tl.where(kept == 0.0, x, tl.log(rounded) * (x / tl.where(kept == 0.0, 1.0, kept)))


@triton.jit
def decay_between(later, earlier, causal):  # type: ignore[no-untyped-def]
    """Decay between positions of a chunk from the logs of both; positions outside of the sequence must not overflow."""
    return tl.exp(tl.where(causal, tl.minimum(later - earlier, 0.0), float("-inf")))


@triton.jit
def rows_of(pointer, rows, stride, first_column, inside, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """W columns of the given rows; zeros outside of the sequence."""
    columns = first_column + tl.arange(0, W)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def chunk_of(chunks_ptr, chunk, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a chunk, which of them are inside of its sequence, the sequence's first chunk and end, its first tile."""
    place = chunks_ptr + 5 * chunk
    rows = (tl.load(place) + tl.arange(0, M)).to(tl.int64)
    return rows, rows < tl.load(place + 1), tl.load(place + 2), tl.load(place + 3), tl.load(place + 4)


@triton.jit(do_not_specialize=["R", "K"])
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
        dt = tl.where(inside, tl.where(raw > 20.0, raw, log_1_plus(tl.exp(tl.minimum(raw, 20.0)))), 0.0)
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
    rows, inside, _, _, _ = chunk_of(chunks_ptr, tl.load(tiles_ptr + 2 * tile), Q)
    columns, within, _, _, _ = chunk_of(chunks_ptr, tl.load(tiles_ptr + 2 * tile + 1), Q)
    C, B = rows_of(C_ptr, rows, C_stride, 0, inside, N), rows_of(B_ptr, columns, B_stride, 0, within, N)
    place = tile.to(tl.int64) * (Q * Q) + q[:, None] * Q + q[None, :]
    tl.store(products_ptr + place, dot(C, tl.trans(B)).to(products_ptr.dtype.element_ty))
    tl.store(flipped_ptr + place, dot(B, tl.trans(C)).to(products_ptr.dtype.element_ty))


@triton.jit
def tile_of(  # type: ignore[no-untyped-def]
    pointer, first_tile, later, earlier, ROWS: tl.constexpr, COLUMNS: tl.constexpr, Q: tl.constexpr
):
    """The first rows and columns of the tile of two chunks, counted from their sequence's first."""
    tile = (first_tile + later * (later + 1) // 2 + earlier).to(tl.int64)
    return tl.load(pointer + tile * (Q * Q) + tl.arange(0, ROWS)[:, None] * Q + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def _add_earlier(  # type: ignore[no-untyped-def]
    y, products, x_ptr, x_stride, step_ptr, log_ptr, total_ptr, columns, k, head, R, K, P: tl.constexpr
):
    """``y`` of a later chunk after it has seen chunk k. Both are counted from the end of the chunk seen last."""
    x = tl.load(x_ptr + columns[:, None] * x_stride + head * P + tl.arange(0, P)[None, :])
    total = tl.load(total_ptr + head * K + k)
    weight = tl.exp(total - tl.load(log_ptr + head * R + columns)) * tl.load(step_ptr + head * R + columns)
    return y * tl.exp(total) + dot(products, (x * weight[:, None]).to(x.dtype))


@triton.jit
def from_earlier(  # type: ignore[no-untyped-def]
    x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, chunk, first, first_tile, head, second,
    R, K, P: tl.constexpr, M: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """What the chunks before it in its sequence add to a chunk's outputs of two heads, up to its own decays, (M, P).

    Two heads share each tile: reading tiles and x from the L2 cache is what limits these kernels.
    """
    y, y_2 = tl.zeros((M, P), tl.float32), tl.zeros((M, P), tl.float32)
    for k in range(first, chunk):
        columns, _, _, _, _ = chunk_of(chunks_ptr, k, Q)  # a chunk before another is full
        products = tile_of(products_ptr, first_tile, chunk - first, k - first, M, Q, Q)
        y = _add_earlier(y, products, x_ptr, x_stride, step_ptr, log_ptr, total_ptr, columns, k, head, R, K, P)
        y_2 = _add_earlier(y_2, products, x_ptr, x_stride, step_ptr, log_ptr, total_ptr, columns, k, second, R, K, P)
    return y, y_2


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    y, products, x_ptr, x_stride, D_ptr, step_ptr, log_ptr, y_ptr, rows, inside, head, R, H,
    P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Add what comes from within the chunk, and write one head's outputs."""
    q = tl.arange(0, M)
    step = tl.load(step_ptr + head * R + rows, mask=inside, other=0.0)
    log_decay = tl.load(log_ptr + head * R + rows, mask=inside, other=0.0)
    x = rows_of(x_ptr, rows, x_stride, head * P, inside, P)
    mixing = products * decay_between(log_decay[:, None], log_decay[None, :], q[:, None] >= q[None, :]) * step[None, :]
    y = y * tl.exp(log_decay)[:, None] + dot(mixing.to(x.dtype), x) + x.to(tl.float32) * tl.load(D_ptr + head)
    place = y_ptr + rows[:, None] * (H * P) + head * P + tl.arange(0, P)[None, :]
    tl.store(place, y.to(x.dtype), mask=inside[:, None])


@triton.jit(do_not_specialize=["R", "K"])
def forward(  # type: ignore[no-untyped-def]
    x_ptr, D_ptr, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, which_ptr, y_ptr, x_stride, R, K, H,
    P: tl.constexpr, M: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk and two heads; the last of an odd number is computed twice."""
    head, chunk = 2 * tl.program_id(0), tl.load(which_ptr + tl.program_id(1))
    second = tl.minimum(head + 1, H - 1)
    rows, inside, first, _, first_tile = chunk_of(chunks_ptr, chunk, M)
    y, y_2 = from_earlier(
        x_ptr, x_stride, step_ptr, log_ptr, total_ptr, products_ptr, chunks_ptr, chunk, first, first_tile, head, second,
        R, K, P, M, Q,
    )  # fmt: skip
    products = tile_of(products_ptr, first_tile, chunk - first, chunk - first, M, M, Q)
    _finish(y, products, x_ptr, x_stride, D_ptr, step_ptr, log_ptr, y_ptr, rows, inside, head, R, H, P, M)
    _finish(y_2, products, x_ptr, x_stride, D_ptr, step_ptr, log_ptr, y_ptr, rows, inside, second, R, H, P, M)
