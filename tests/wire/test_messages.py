"""The messages: each is decoded as it was encoded, and identified by its tag."""

from types import UnionType
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import messages
from wire.histogram import HistogramFigures
from wire.messages import (
    Event,
    Finished,
    FromServer,
    FromStage,
    Generated,
    Hello,
    Logprobs,
    Message,
    RankExit,
    RopeRule,
    SamplerSetup,
    Sampling,
    ScoredRow,
    StageCosts,
    StageLoss,
    StageLosses,
    StageStats,
    Stats,
    Step,
    Submit,
    ToNode,
    ToServer,
    ToStage,
)
from wire.promises import PrefillCosts, Promises

UNIONS: dict[str, Any] = {
    "FromServer": FromServer,
    "ToServer": ToServer,
    "FromStage": FromStage,
    "ToStage": ToStage,
    "ToNode": ToNode,
    "Event": Event,
}
PAIRS = [(u, m) for u in UNIONS.values() for m in get_args(u) or (u,)]
EVERY_MESSAGE = sorted({m for _, m in PAIRS}, key=lambda m: m.__name__)

int64 = st.integers(-(2**63), 2**63 - 1)
uint64 = st.integers(0, 2**64 - 1)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: int64,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
    str: st.text(max_size=20),
    messages.FinishReason: st.sampled_from(get_args(messages.FinishReason)),
    messages.Phase: st.sampled_from(get_args(messages.Phase)),
    messages.Doing: st.sampled_from(get_args(messages.Doing)),
    messages.MilestoneKind: st.sampled_from(get_args(messages.MilestoneKind)),
    tuple[int, ...]: st.lists(int64, max_size=4).map(tuple),
    tuple[float, ...]: st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
    tuple[tuple[int, bytes], ...]: st.lists(st.tuples(int64, st.binary(max_size=8))).map(tuple),
}


def values(message: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any value of a message, generated from its field types."""
    return st.builds(message, **{f.name: FIELDS[f.type] for f in msgspec.structs.fields(message)})


FIELDS[dict[str, str]] = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)
FIELDS[tuple[bytes, ...]] = st.lists(st.binary(max_size=8), max_size=3).map(tuple)
FIELDS[tuple[str, ...]] = st.lists(st.text(max_size=8), max_size=3).map(tuple)
FIELDS[Sampling] = values(Sampling).map(
    lambda sampling: msgspec.structs.replace(sampling, seed=abs(sampling.seed))
)
FIELDS[Logprobs] = values(Logprobs)
FIELDS[Logprobs | None] = st.none() | FIELDS[Logprobs]
FIELDS[tuple[Logprobs, ...]] = st.lists(FIELDS[Logprobs], max_size=2).map(tuple)
for part in (SamplerSetup, ScoredRow):
    FIELDS[tuple[part, ...]] = st.lists(values(part), max_size=2).map(tuple)  # type: ignore[valid-type]
FIELDS[StageCosts] = values(StageCosts)
FIELDS[RopeRule | None] = st.none() | values(RopeRule)
FIELDS[RankExit | None] = st.none() | values(RankExit)
histograms = values(HistogramFigures)
FIELDS[dict[str, HistogramFigures]] = st.dictionaries(st.text(max_size=5), histograms, max_size=2)
phases = st.sampled_from(get_args(messages.Phase))
FIELDS[dict[messages.Phase, HistogramFigures]] = st.dictionaries(phases, histograms)
FIELDS[dict[messages.Phase, float]] = st.dictionaries(phases, FIELDS[float])
FIELDS[messages.LossCause] = st.sampled_from(get_args(messages.LossCause))
FIELDS[tuple[StageLosses, ...]] = st.lists(values(StageLosses), max_size=3).map(tuple)
FIELDS[StageLoss | None] = st.none() | values(StageLoss)
FIELDS[PrefillCosts] = values(PrefillCosts)
FIELDS[Promises | None] = st.none() | values(Promises)
FIELDS[tuple[StageStats, ...]] = st.lists(values(StageStats), max_size=3).map(tuple)


def defined() -> set[type]:
    """Every message class of the module."""
    return {
        m
        for m in vars(messages).values()
        if isinstance(m, type) and issubclass(m, Message) and m is not Message
    }


def test_every_message_is_in_a_union_and_no_two_share_a_tag() -> None:
    assert set(EVERY_MESSAGE) == defined()
    tags = [m.__struct_config__.tag for m in EVERY_MESSAGE]
    assert sorted(tags) == [m.__name__ for m in EVERY_MESSAGE]


@pytest.mark.parametrize(("union", "message"), PAIRS)
@given(data=st.data())
def test_every_message_round_trips(
    union: UnionType, message: type[Message], data: st.DataObject
) -> None:
    value = data.draw(values(message))
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=union)
    assert type(decoded) is message
    assert decoded == value


@pytest.mark.parametrize("message", EVERY_MESSAGE)
@given(data=st.data())
def test_a_message_cannot_be_changed(message: type[Message], data: st.DataObject) -> None:
    value = data.draw(values(message))
    for field in msgspec.structs.fields(message):
        with pytest.raises(AttributeError):
            setattr(value, field.name, None)


@pytest.mark.parametrize("name", UNIONS)
@given(data=st.data())
def test_a_message_of_another_union_does_not_decode(name: str, data: st.DataObject) -> None:
    known = get_args(UNIONS[name]) or (UNIONS[name],)
    foreign = data.draw(st.sampled_from([m for m in EVERY_MESSAGE if m not in known]))
    packed = msgspec.msgpack.encode(data.draw(values(foreign)))
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(packed, type=UNIONS[name])


@pytest.mark.parametrize(
    "foreign", [None, 1, {}, [], ["Unknown"], ["Submit"], ["Submit", "x", b"", 1], ["Abort", 1.5]]
)
def test_other_values_do_not_decode(foreign: object) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(foreign), type=FromServer)


def test_a_truncated_message_does_not_decode() -> None:
    packed = msgspec.msgpack.encode(Submit(1, b"\1\0\0\0", 5))
    for length in range(len(packed)):
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode(packed[:length], type=FromServer)


def test_an_unknown_finish_reason_does_not_decode() -> None:
    packed = msgspec.msgpack.encode(["Finished", 1, "bored", ""])
    with pytest.raises(msgspec.DecodeError, match="bored"):
        msgspec.msgpack.decode(packed, type=ToServer)


def test_the_largest_seed_of_a_client_can_be_encoded() -> None:
    submit = Submit(1, b"", 1, Sampling(seed=2**64 - 1))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(submit), type=FromServer) == submit


def test_a_message_is_encoded_as_its_tag_and_its_fields_in_order() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Hello(7))) == ["Hello", 7]
    finished = msgspec.msgpack.decode(msgspec.msgpack.encode(Finished(3, "stop")))
    assert finished == ["Finished", 3, "stop", "", False]
    generated = msgspec.msgpack.decode(msgspec.msgpack.encode(Generated(b"ab", b"c")))
    assert generated == ["Generated", b"ab", b"c", None]


def test_optional_fields_have_neutral_defaults() -> None:
    submit = Submit(1, b"", 1)
    assert (submit.min_tokens, submit.stop_token_ids) == (0, ())
    assert submit.sampling == Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=0)
    assert Stats(ready=False, phase="prefill").stages == ()
    assert Step(1, 2, "decode", b"", b"", b"", b"", b"", b"").setups == ()
