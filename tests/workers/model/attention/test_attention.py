"""Attention in all its forms, against a twin that writes every score out."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels import shared_library, triton_backend
from tests.workers.world import CPU, Ground
from workers.model.attention.backends import Backend
from workers.model.attention.interface import (
    Form,
    UnsupportedModelError,
    forward_context,
    paged_attention,
)
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend, attend_one
from workers.model.attention.probe import Probe
from workers.model.kv_cache import KvCache, LayerShape

# Windows and chunks: of one token, inside the spans, beyond them, and a layer with both.
LIMITS = [
    *((window, None) for window in (None, 1, 5, 100)),
    *((None, chunk) for chunk in (1, 4, 100)),
    (3, 4),
]
NAMES = ("scaling", "sliding_window", "chunk_size", "softcap", "with_sinks")
FORMS: list[dict[str, Any]] = [
    dict(zip(NAMES, (scaling, window, chunk, cap, sinks), strict=True))
    for scaling, (window, chunk), cap, sinks in product(
        [None, 0.3], LIMITS, [None, 2.0], [False, True]
    )
]
# (new tokens, all tokens): a prompt, a decode, a chunk in the middle, the very first token
SPANS = [(9, 9), (1, 9), (4, 9), (1, 1)]
HEADS = [(4, 4), (4, 2), (6, 1)]
NO_FORM = Form(None, None, None, None)


@pytest.fixture(params=["plain", "native", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that runs on a CPU, Triton's in its interpreter."""
    if request.param == "triton":
        if torch.cuda.is_available():
            pytest.skip("Triton's kernels run on the GPU here, see tests/workers/test_gpu.py")
        return triton_backend()
    return PlainBackend() if request.param == "plain" else NativeBackend(shared_library())


def twin(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Softmax by hand, one head and one token after the other."""
    heads, new, dim = query.shape
    total = key.shape[1]
    out = torch.zeros(heads, new, value.shape[2])
    scale = 1 / math.sqrt(dim) if form.scaling is None else form.scaling
    for head, i in product(range(heads), range(new)):
        kv_head = head // (heads // key.shape[0])
        at = total - new + i
        window, chunk = form.sliding_window or total, form.chunk_size or total
        seen = [to for to in range(at + 1) if to > at - window and to // chunk == at // chunk]
        scores = []
        for to in seen:
            score = float(query[head, i] @ key[kv_head, to]) * scale
            if form.softcap is not None:
                score = math.tanh(score / form.softcap) * form.softcap
            scores.append(math.exp(score))
        whole = sum(scores) + (0 if form.sinks is None else math.exp(float(form.sinks[head])))
        for to, weight in zip(seen, scores, strict=True):
            out[head, i] += weight / whole * value[kv_head, to]
    return out


def make(seed: int, heads: int, kv_heads: int, new: int, total: int) -> tuple[Tensor, ...]:
    """Random query, key and value; values are wider than keys."""
    make = torch.Generator().manual_seed(seed)
    return (
        torch.randn(heads, new, 8, generator=make),
        torch.randn(kv_heads, total, 8, generator=make),
        torch.randn(kv_heads, total, 10, generator=make),
    )


def make_form(heads: int, settings: dict[str, Any]) -> Form:
    """A form, with a sink for every head where it has sinks."""
    sinks = torch.linspace(-1, 2, heads) if settings["with_sinks"] else None
    names = ("scaling", "sliding_window", "softcap")
    return Form(*(settings[name] for name in names), sinks, settings["chunk_size"])


@pytest.mark.parametrize(("new", "total"), SPANS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_attention_is_its_twin_in_every_form(
    heads: int, kv_heads: int, new: int, total: int
) -> None:
    query, key, value = make(1, heads, kv_heads, new, total)
    for settings in FORMS:
        form = make_form(heads, settings)
        got = attend_one(query, key, value, form)
        torch.testing.assert_close(got, twin(query, key, value, form), msg=str(settings))


def test_a_token_does_not_see_what_comes_after_it() -> None:
    query, key, value = make(2, 4, 2, 6, 6)
    for settings in FORMS:
        form = make_form(4, settings)
        whole = attend_one(query, key, value, form)
        for seen in range(1, 7):
            part = attend_one(query[:, :seen], key[:, :seen], value[:, :seen], form)
            torch.testing.assert_close(whole[:, :seen], part)


@pytest.mark.parametrize("settings", FORMS[::5])
def test_scattered_blocks_attend_as_contiguous_ones(
    settings: dict[str, Any], backend: Backend
) -> None:
    heads, kv_heads, block_size = 4, 2, 4
    form = make_form(heads, settings)
    ground = Ground(block_size)
    totals = [11, 3, 17]
    sequences = [ground.sequence([0] * total) for total in totals]
    tensors = [make(seed, heads, kv_heads, n, n) for seed, n in enumerate(totals)]
    shape = LayerShape(kv_heads, 8, 10)
    cache = KvCache({5: shape}, ground.num_blocks, block_size, torch.float32, CPU)
    for keys_or_values in cache.layers[5]:
        keys_or_values.fill_(float("nan"))  # reading a slot that was never written will show
    # A prompt in chunks of 7 beside decodes: the three advance at different speeds.
    while any(s.fed < len(s.token_ids) for s in sequences):
        shares = [
            (s, min(pace, len(s.token_ids) - s.fed))
            for s, pace in zip(sequences, [7, 1, 6], strict=True)
        ]
        spans = [(s.fed, s.fed + n) for s, n in shares]
        batch = ground.batch([(s, n) for s, n in shares if n], backend)
        query, key, value = (
            torch.cat([t[i][:, a:b] for t, (a, b) in zip(tensors, spans, strict=True)], dim=1)
            for i in range(3)
        )
        got = backend.step(cache, batch).attend(5, query, key, value, form)
        assert got.shape == (batch.num_tokens, heads, 10)
        parts = iter(torch.split(got, [b - a for a, b in spans if a < b]))
        for (q, k, v), (a, b) in zip(tensors, spans, strict=True):
            if a < b:
                want = attend_one(q[:, a:b], k[:, :b], v[:, :b], form).transpose(0, 1)
                torch.testing.assert_close(next(parts), want)


def test_a_row_does_not_depend_on_the_batch(backend: Backend) -> None:
    small, large = Ground(seed=1), Ground(seed=2)
    query, key, value = make(3, 4, 2, 7, 7)
    results = []
    for ground, others in ((small, 0), (large, 3)):
        cache = KvCache({0: LayerShape(2, 8, 10)}, 64, 4, torch.float32, CPU)
        filler = [make(9, 4, 2, others, others)] if others else []
        parts = [*filler, (query, key, value)]
        lengths = [part[0].shape[1] for part in parts]
        batch = ground.batch([(ground.sequence([0] * n), n) for n in lengths], backend)
        q, k, v = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
        results.append(backend.step(cache, batch).attend(0, q, k, v, NO_FORM)[others:])
    assert torch.equal(*results)


def test_tokens_beyond_the_batch_are_copies_that_are_not_stored(backend: Backend) -> None:
    # The model may be given the only token twice, see StageModel.forward.
    ground = Ground()
    cache = KvCache({0: LayerShape(2, 8, 10)}, 64, 4, torch.float32, CPU)
    for tensor in cache.layers[0]:
        tensor.zero_()
    batch = ground.batch([(ground.sequence([0]), 1)], backend)
    query, key, value = make(4, 4, 2, 2, 2)
    got = backend.step(cache, batch).attend(0, query, key, value, NO_FORM)
    assert int(cache.layers[0][0].abs().sum(dim=(1, 3)).count_nonzero()) == 1
    want = attend_one(query[:, :1], key[:, :1], value[:, :1], NO_FORM).transpose(0, 1)
    torch.testing.assert_close(got, torch.cat([want, want]))
    assert torch.equal(got[0], got[1])


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_keys_of_another_type_than_the_queries_are_refused(
    backend: Backend, cache_dtype: torch.dtype
) -> None:
    if backend.name == "plain":
        pytest.skip("torch refuses it")
    cache = KvCache({3: LayerShape(2, 8, 10)}, 4, 4, cache_dtype, CPU)
    ground = Ground()
    batch = ground.batch([(ground.sequence([0] * 6), 6)], backend)
    query, key, value = make(5, 4, 2, 6, 6)
    with pytest.raises(UnsupportedModelError, match="layer 3 attends with 2 types at once"):
        backend.step(cache, batch).attend(3, query.half(), key, value, NO_FORM)


class Layer(nn.Module):
    """An attention layer as transformers passes it."""

    layer_idx = 3


def interface(probe: Probe | None = None, mask: object = None, **keywords: object) -> Tensor:
    """The interface for transformers, with the tensors that it passes."""
    query, key, value = (t[None] for t in make(5, 4, 2, 6, 6))
    probe = Probe(num_layers=4) if probe is None else probe
    with forward_context(probe, probe):
        answer, weights = paged_attention(Layer(), query, key, value, mask, **keywords)  # type: ignore[arg-type]
    assert weights is None
    return answer


def test_transformers_gets_its_own_order_of_dimensions() -> None:
    probe = Probe(num_layers=4)
    query, key, value = make(5, 4, 2, 6, 6)
    form = Form(0.5, 3, 2.0, torch.arange(4.0))
    answer = interface(
        probe, scaling=0.5, sliding_window=3, softcap=2.0, s_aux=form.sinks, dropout=0.0
    )
    assert answer.shape == (1, 6, 4, 10)
    torch.testing.assert_close(answer[0].transpose(0, 1), twin(query, key, value, form))
    assert probe.shapes == {3: LayerShape(2, 8, 10)}


def test_an_unknown_keyword_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedModelError, match="alibi_slopes, more"):
        interface(alibi_slopes=torch.ones(4), more=1)


def test_an_unknown_keyword_without_a_value_is_ignored() -> None:
    plain = interface()
    assert torch.equal(interface(alibi=None, bias=False, use_cache=True), plain)


def test_a_mask_or_a_call_without_a_context_is_refused() -> None:
    query, key, value = (t[None] for t in make(5, 4, 2, 6, 6))
    with pytest.raises(UnsupportedModelError, match="a context"):
        paged_attention(Layer(), query, key, value, None)
    with pytest.raises(UnsupportedModelError, match="a mask of its own"):
        interface(mask=torch.zeros(1, 1, 6, 6))
