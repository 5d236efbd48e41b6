"""What stands between the matrix products of a layer, on GPUs: the twins of elementwise.cpp.

RMSNorm, the rotary embedding and gated activations: values are read once and written once, are
fp32 in between, and are rounded where torch rounds them. Sizes and forms are constants of a model,
so that each part of it has one variant; rows and tokens are dimensions of the grid. A row's result
does not depend on the other rows. Written for Triton 3.6 and later.
"""

import os

import triton
import triton.language as tl

# Triton's interpreter cuts values off when it converts them to bfloat16; a GPU rounds them.
IS_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# As elementwise.cpp numbers them.
SILU = tl.constexpr(0)


@triton.jit
def _nearest(value, dtype: tl.constexpr):
    """Fp32 values in another type, rounded to the nearest, ties to even."""
    if IS_INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm(
    rows,  # [num_rows, WIDTH], contiguous
    weight,  # [WIDTH]
    out,
    num_rows,
    EPSILON: tl.constexpr,
    OFFSET: tl.constexpr,  # is added to the weights
    ROUNDS: tl.constexpr,  # whether the normalised values are rounded before the weights
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # the next power of two
    ROWS: tl.constexpr,  # of a program
):
    """Normalise ROWS rows; grid (programs)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    is_there = (row[:, None] < num_rows) & (at[None, :] < WIDTH)
    place = row[:, None] * WIDTH + at[None, :]
    value = tl.load(rows + place, mask=is_there, other=0.0).to(tl.float32)
    mean = tl.sum(value * value, 1) / WIDTH
    value = value * tl.rsqrt(mean + EPSILON)[:, None]
    if ROUNDS:
        value = _nearest(value, out.dtype.element_ty).to(tl.float32)
    scale = tl.load(weight + at, mask=at < WIDTH, other=0.0).to(tl.float32) + OFFSET
    tl.store(out + place, _nearest(value * scale[None, :], out.dtype.element_ty), mask=is_there)


@triton.jit
def _product(value, angle, dtype: tl.constexpr, ROUNDS: tl.constexpr):
    """The product of a rotation, in fp32."""
    product = value * angle[None, :]
    if ROUNDS:
        product = _nearest(product, dtype).to(tl.float32)
    return product


@triton.jit
def _rotate_heads(
    heads,
    cos,
    sin,
    out,
    token,
    first,  # head
    head_stride,
    token_stride,
    angle_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTATED: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    REST_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    half: tl.constexpr = ROTATED // 2
    dtype: tl.constexpr = out.dtype.element_ty
    head = (first + tl.arange(0, TILE)).to(tl.int64)[:, None]
    at = tl.arange(0, HALF_WIDTH)
    is_angle = at < half
    is_there = (head < HEADS) & is_angle[None, :]
    source = heads + head * head_stride + token * token_stride
    target = out + (token * HEADS + head) * DIM
    left = tl.load(source + at[None, :], mask=is_there, other=0.0).to(tl.float32)
    right = tl.load(source + half + at[None, :], mask=is_there, other=0.0).to(tl.float32)
    angle = token * angle_stride + at
    cosine = tl.load(cos + angle, mask=is_angle, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=is_angle, other=0.0).to(tl.float32)
    turned = _product(left, cosine, dtype, ROUNDS) - _product(right, sine, dtype, ROUNDS)
    tl.store(target + at[None, :], _nearest(turned, dtype), mask=is_there)
    cosine = tl.load(cos + half + angle, mask=is_angle, other=0.0).to(tl.float32)
    sine = tl.load(sin + half + angle, mask=is_angle, other=0.0).to(tl.float32)
    turned = _product(right, cosine, dtype, ROUNDS) + _product(left, sine, dtype, ROUNDS)
    tl.store(target + half + at[None, :], _nearest(turned, dtype), mask=is_there)
    if ROTATED < DIM:
        rest = ROTATED + tl.arange(0, REST_WIDTH)[None, :]
        is_rest = (head < HEADS) & (rest < DIM)
        tl.store(target + rest, tl.load(source + rest, mask=is_rest), mask=is_rest)


# Strides are specialised: they are multiples of a head's size, which is divisible by 16 in almost
# every model, and then heads are read in vectors.
@triton.jit
def rotate(
    query,  # element [head, token, i] at head * query_head + token * query_token + i
    key,
    cos,  # [tokens, ROTATED], rows `angle_stride` elements apart; of the type of `query`, or fp32
    sin,
    query_out,  # [tokens, QUERY_HEADS, QUERY_DIM]
    key_out,
    query_head,
    query_token,
    key_head,
    key_token,
    angle_stride,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    QUERY_DIM: tl.constexpr,
    KEY_DIM: tl.constexpr,
    ROTATED: tl.constexpr,  # leading values of a head that are rotated: i with i + ROTATED / 2
    HALF_WIDTH: tl.constexpr,  # the power of two from ROTATED / 2 on
    REST_WIDTH: tl.constexpr,  # and from the number of the other values on
    TILE: tl.constexpr,  # heads of a program
    ROUNDS: tl.constexpr,  # whether the products are rounded before they are added
):
    """Rotate TILE heads of a token; grid (tokens, tiles of the query's and of the key's heads)."""
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tiles: tl.constexpr = (QUERY_HEADS + TILE - 1) // TILE
    if tile < tiles:
        _rotate_heads(
            query,
            cos,
            sin,
            query_out,
            token,
            tile * TILE,
            query_head,
            query_token,
            angle_stride,
            QUERY_HEADS,
            QUERY_DIM,
            ROTATED,
            HALF_WIDTH,
            REST_WIDTH,
            TILE,
            ROUNDS,
        )
    else:
        _rotate_heads(
            key,
            cos,
            sin,
            key_out,
            token,
            (tile - tiles) * TILE,
            key_head,
            key_token,
            angle_stride,
            KEY_HEADS,
            KEY_DIM,
            ROTATED,
            HALF_WIDTH,
            REST_WIDTH,
            TILE,
            ROUNDS,
        )


@triton.jit
def gate(
    gates,  # [rows, WIDTH], contiguous
    ups,  # what they multiply
    out,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Activate BLOCK gates and multiply them; grid (rows, blocks of a row)."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * WIDTH + at
    value = tl.load(gates + place, mask=at < WIDTH, other=0.0).to(tl.float32)
    exponent = value
    if ACTIVATION != SILU:
        # GELU by its tanh formula, x (1 + tanh(y)) / 2 = x / (1 + exp(-2 y)).
        exponent = 1.5957691216057308 * (value + 0.044715 * value * value * value)
    value = value / (1.0 + tl.exp(tl.minimum(-exponent, 88.0)))  # no infinity
    value = _nearest(value, out.dtype.element_ty).to(tl.float32)
    value *= tl.load(ups + place, mask=at < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + place, _nearest(value, out.dtype.element_ty), mask=at < WIDTH)
