"""Attention over the paged KV cache on GPUs, in Triton.

Rows of one new token and rows of more are computed by kernels of their own, so that each gets the
tiles that suit it. Grids depend on the padded sizes of a step only: an entry of -1 is padding. The
query heads that share a KV head are packed into one tile (grouped queries), so that each key and
value is read once for all of them.

The tensors are as in `workers.model.attention.interface` and `workers.model.kv_cache`; all integers
are int32. Written for Triton 3.6 and later.
"""

import triton
import triton.language as tl

# The score of a token that a query does not see; finite, so that no difference is NaN.
NEVER = tl.constexpr(-1e30)
# KV_FORMAT: 0 for a cache in the type of the activations. fp8 is stored as bytes and converted with
# integers, because GPUs before compute capability 8.9 have no instructions for it.
E4M3, E5M2 = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def narrowed(values, FORMAT: tl.constexpr):
    """Values as the cache stores them: to the nearest, ties to even, and fp8 saturates.

    Denormal values of fp8 are rounded by an addition of floats, to one whose last bit is theirs.
    """
    if FORMAT == 0:
        found = values
    else:
        shift: tl.constexpr = 20 if FORMAT == E4M3 else 21  # mantissa bits that are lost
        most: tl.constexpr = 0x43E00000 if FORMAT == E4M3 else 0x47600000  # 448 and 57,344
        # The smallest of the normal values.
        smallest: tl.constexpr = 0x3C800000 if FORMAT == E4M3 else 0x38800000
        unit_bits: tl.constexpr = 0x46800000 if FORMAT == E4M3 else 0x43000000  # 2^14 and 2^7
        exponent: tl.constexpr = 120 << 23 if FORMAT == E4M3 else 112 << 23
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        is_nan = size > 0x7F800000
        size = tl.minimum(size, most)
        normal = (size + ((1 << (shift - 1)) - 1) + ((size >> shift) & 1) - exponent) >> shift
        unit = tl.full(size.shape, unit_bits, tl.int32).to(tl.float32, bitcast=True)
        small = (size.to(tl.float32, bitcast=True) + unit).to(tl.int32, bitcast=True) - unit_bits
        rounded = tl.where(size < smallest, small, normal)
        found = (tl.where(is_nan, 0x7F, rounded) | ((bits >> 24) & 0x80)).to(tl.uint8)
    return found


@triton.jit
def widened(stored, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """What the cache stores in the type `dtype` of the activations; fp8 is exact in all of them."""
    if FORMAT == 0:
        found = stored
    elif FORMAT == E5M2:
        found = (stored.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    else:
        bits = stored.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        half = tl.where((bits & 0x7F) == 0x7F, 0x7E00, half).to(tl.uint16)  # NaN
        found = half.to(tl.float16, bitcast=True) * 256.0  # its exponent counts from 8 less
    return found.to(dtype)


# Strides of activations change with the number of tokens: none of them is worth another variant.
@triton.jit(do_not_specialize=["key_head", "key_token", "value_head", "value_token"])
def write_kv(
    key,
    value,
    keys,
    values,
    slots,  # [tokens]: block x BLOCK_SIZE + offset, or -1
    key_head,
    key_token,
    value_head,
    value_token,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,  # the next power of two
    VALUE_WIDTH: tl.constexpr,
    KV_FORMAT: tl.constexpr,
):
    """Write the key and the value of one token and KV head; grid (tokens, KV heads)."""
    token, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    place = ((slot // BLOCK_SIZE).to(tl.int64) * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    at = tl.arange(0, KEY_WIDTH)
    from_key = key + head * key_head + token.to(tl.int64) * key_token + at
    row = tl.load(from_key, mask=at < KEY_DIM, other=0.0)
    tl.store(keys + place * KEY_DIM + at, narrowed(row, KV_FORMAT), mask=at < KEY_DIM)
    at = tl.arange(0, VALUE_WIDTH)
    from_value = value + head * value_head + token.to(tl.int64) * value_token + at
    row = tl.load(from_value, mask=at < VALUE_DIM, other=0.0)
    tl.store(values + place * VALUE_DIM + at, narrowed(row, KV_FORMAT), mask=at < VALUE_DIM)


@triton.jit
def last_hidden(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The last token before those that queries at `position` see; negative if they see all.

    Comparing with the first one that they see instead spills registers on sm_86.
    """
    hidden = position - WINDOW if WINDOW else position // CHUNK * CHUNK - 1
    if WINDOW and CHUNK:
        hidden = tl.maximum(hidden, position // CHUNK * CHUNK - 1)
    return hidden


@triton.jit
def _attend_range(
    query,  # [M, KEY_WIDTH], in registers
    position,  # [M]
    most,
    total,
    acc,
    keys,
    values,
    blocks,  # the block table of the row
    kv_head,
    low,
    high,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    CHUNK: tl.constexpr,  # 0: none
    HAS_SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    KV_FORMAT: tl.constexpr,
):
    """Add the tokens low:high of a row to the running soft maximum of M queries."""
    of_key, of_value = tl.arange(0, KEY_WIDTH), tl.arange(0, VALUE_WIDTH)
    for begin in range(low, high, TILE):
        at = begin + tl.arange(0, TILE)
        is_there = at < high
        block = tl.load(blocks + at // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
        place = (block * KV_HEADS + kv_head) * BLOCK_SIZE + at % BLOCK_SIZE
        key = tl.load(
            keys + place[None, :] * KEY_DIM + of_key[:, None],
            mask=is_there[None, :] & (of_key[:, None] < KEY_DIM),
            other=0,
        )
        key = widened(key, KV_FORMAT, query.dtype)
        score = tl.dot(query, key, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            # tanh(x) = 2 sigmoid(2 x) - 1
            score = softcap * (2.0 / (1.0 + tl.exp(-2.0 * score / softcap)) - 1.0)
        sees = is_there[None, :] & (at[None, :] <= position[:, None])
        if WINDOW or CHUNK:
            sees = sees & (at[None, :] > last_hidden(position[:, None], WINDOW, CHUNK))
        score = tl.where(sees, score, NEVER)
        now = tl.maximum(most, tl.max(score, 1))
        weight = tl.where(sees, tl.exp(score - now[:, None]), 0.0)
        shrink = tl.exp(most - now)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(
            values + place[:, None] * VALUE_DIM + of_value[None, :],
            mask=is_there[:, None] & (of_value[None, :] < VALUE_DIM),
            other=0,
        )
        value = widened(value, KV_FORMAT, query.dtype)
        acc = acc * shrink[:, None]
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        most = now
    return most, total, acc


@triton.jit(do_not_specialize=["query_head", "query_token"])
def attend_tiles(
    query,
    keys,
    values,
    out,
    sinks,  # [heads] float32
    tile_rows,  # [tiles]: the row, or -1
    tile_begins,  # [tiles]: the first token of the tile, counted from the row's first new one
    begins,
    starts,
    tables,
    blocks,
    query_head,
    query_token,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a KV head
    BLOCK_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    TOKENS: tl.constexpr,  # of a tile; TOKENS x GROUP <= LANES
    LANES: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    UPCAST: tl.constexpr,  # before products: the interpreter has none of 16-bit floats
):
    """Attend for a tile of a row's new tokens and the heads of a group; grid (tiles, KV heads)."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tile_rows + tile)
    if row < 0:
        return
    first, end = tl.load(begins + row), tl.load(begins + row + 1)
    start, tile_begin = tl.load(starts + row), tl.load(tile_begins + tile)
    lane = tl.arange(0, LANES)
    within, head = tile_begin + lane // GROUP, kv_head * GROUP + lane % GROUP
    is_real = (lane < TOKENS * GROUP) & (first + within < end)
    position = tl.where(is_real, start + within, -1)
    of_key, of_value = tl.arange(0, KEY_WIDTH), tl.arange(0, VALUE_WIDTH)
    token = (first + within).to(tl.int64)
    queries = tl.load(
        query + (head * query_head + token * query_token)[:, None] + of_key[None, :],
        mask=is_real[:, None] & (of_key[None, :] < KEY_DIM),
        other=0.0,
    )
    if UPCAST:
        queries = queries.to(tl.float32)
    most = tl.full([LANES], NEVER, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    if HAS_SINKS:
        most = tl.load(sinks + head, mask=is_real, other=NEVER)
        total = tl.where(is_real, 1.0, 0.0)
    acc = tl.zeros([LANES, VALUE_WIDTH], tl.float32)
    low = 0
    if WINDOW or CHUNK:
        low = tl.maximum(last_hidden(start + tile_begin, WINDOW, CHUNK) + 1, 0) // TILE * TILE
    high = start + tl.minimum(tile_begin + TOKENS, end - first)
    most, total, acc = _attend_range(
        queries,
        position,
        most,
        total,
        acc,
        keys,
        values,
        blocks + tl.load(tables + row),
        kv_head,
        low,
        high,
        scale,
        softcap,
        KV_HEADS,
        BLOCK_SIZE,
        KEY_DIM,
        VALUE_DIM,
        KEY_WIDTH,
        VALUE_WIDTH,
        WINDOW,
        CHUNK,
        HAS_SOFTCAP,
        TILE,
        PRECISION,
        KV_FORMAT,
    )
    acc = acc / tl.where(is_real, total, 1.0)[:, None]
    tl.store(
        out + (token * (KV_HEADS * GROUP) + head)[:, None] * VALUE_DIM + of_value[None, :],
        acc.to(out.dtype.element_ty),
        mask=is_real[:, None] & (of_value[None, :] < VALUE_DIM),
    )


@triton.jit(do_not_specialize=["query_head", "query_token"])
def attend_splits(
    query,
    keys,
    values,
    parts,  # [rows, heads, SPLITS, VALUE_DIM] float32: weighted values
    tops,  # [rows, heads, SPLITS, 2] float32: the largest score, and the sum of weights
    decode_rows,  # [rows]: the row, or -1
    begins,
    starts,
    tables,
    blocks,
    query_head,
    query_token,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,  # at least GROUP
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    UPCAST: tl.constexpr,  # before products: the interpreter has none of 16-bit floats
):
    """Attend for a row of one token over one part of its tokens; grid (rows, KV heads, SPLITS)."""
    number, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(decode_rows + number)
    if row < 0:
        return
    token, last = tl.load(begins + row).to(tl.int64), tl.load(starts + row)
    low = 0
    if WINDOW or CHUNK:
        low = tl.maximum(last_hidden(last, WINDOW, CHUNK) + 1, 0) // TILE * TILE
    span = tl.cdiv(tl.cdiv(last + 1 - low, SPLITS), TILE) * TILE
    low += split * span
    high = tl.minimum(low + span, last + 1)
    lane = tl.arange(0, LANES)
    head, is_real = kv_head * GROUP + lane, lane < GROUP
    of_key, of_value = tl.arange(0, KEY_WIDTH), tl.arange(0, VALUE_WIDTH)
    queries = tl.load(
        query + (head * query_head + token * query_token)[:, None] + of_key[None, :],
        mask=is_real[:, None] & (of_key[None, :] < KEY_DIM),
        other=0.0,
    )
    if UPCAST:
        queries = queries.to(tl.float32)
    most, total, acc = _attend_range(
        queries,
        tl.where(is_real, last, -1),
        tl.full([LANES], NEVER, tl.float32),
        tl.zeros([LANES], tl.float32),
        tl.zeros([LANES, VALUE_WIDTH], tl.float32),
        keys,
        values,
        blocks + tl.load(tables + row),
        kv_head,
        low,
        high,
        scale,
        softcap,
        KV_HEADS,
        BLOCK_SIZE,
        KEY_DIM,
        VALUE_DIM,
        KEY_WIDTH,
        VALUE_WIDTH,
        WINDOW,
        CHUNK,
        HAS_SOFTCAP,
        TILE,
        PRECISION,
        KV_FORMAT,
    )
    place = (number * (KV_HEADS * GROUP) + head) * SPLITS + split
    tl.store(
        parts + place[:, None] * VALUE_DIM + of_value[None, :],
        acc,
        mask=is_real[:, None] & (of_value[None, :] < VALUE_DIM),
    )
    tl.store(tops + 2 * place, most, mask=is_real)
    tl.store(tops + 2 * place + 1, total, mask=is_real)


@triton.jit
def combine_splits(
    parts,
    tops,
    out,
    sinks,
    decode_rows,
    begins,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_WIDTH: tl.constexpr,
):
    """Combine the parts of one row and head; grid (rows, heads)."""
    number, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(decode_rows + number)
    if row < 0:
        return
    split, at = tl.arange(0, SPLIT_WIDTH), tl.arange(0, VALUE_WIDTH)
    place = (number * HEADS + head) * SPLITS + split
    most = tl.load(tops + 2 * place, mask=split < SPLITS, other=NEVER)
    total = tl.load(tops + 2 * place + 1, mask=split < SPLITS, other=0.0)
    top = tl.max(most, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head)
        top = tl.maximum(top, sink)
    weight = tl.exp(most - top)
    whole = tl.sum(total * weight, 0)
    if HAS_SINKS:
        whole += tl.exp(sink - top)
    part = tl.load(
        parts + place[:, None] * VALUE_DIM + at[None, :],
        mask=(split[:, None] < SPLITS) & (at[None, :] < VALUE_DIM),
        other=0.0,
    )
    result = tl.sum(part * weight[:, None], 0) / whole
    token = tl.load(begins + row).to(tl.int64)
    tl.store(
        out + (token * HEADS + head) * VALUE_DIM + at,
        result.to(out.dtype.element_ty),
        mask=at < VALUE_DIM,
    )
