"""The digest of prompts in the prefix cache: what it keeps, forgets and tells its followers."""

import json
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from server.requests.prefix_digest import DigestChanges, HashedPrompt, PrefixDigest
from wire.messages import EngineReady
from wire.prefix_keys import KEY_BYTES, prefix_keys

BLOCK_SIZE = 16


def prompt(*keys: int) -> HashedPrompt:
    """A prompt of a token per byte."""
    return HashedPrompt(keys, len(keys) * KEY_BYTES)


def add(digest: PrefixDigest, *keys: int) -> None:
    """A prompt was prefilled."""
    digest.add(prompt(*keys), len(keys) * KEY_BYTES)


def begin(digest: PrefixDigest, num_keys: int) -> None:
    """The stages are ready, with room for so many keys of prompts of a token per byte."""
    digest.begin(EngineReady(1, num_keys * KEY_BYTES // BLOCK_SIZE, BLOCK_SIZE, 100))


def test_the_least_recently_used_prompt_goes_first_and_its_tail_before_its_head() -> None:
    digest = PrefixDigest()
    begin(digest, 4)
    add(digest, 1, 2, 3)
    add(digest, 1, 4)
    assert [key for key in range(6) if key in digest] == [1, 2, 3, 4]
    add(digest, 5)
    assert [key for key in range(6) if key in digest] == [1, 2, 4, 5]
    add(digest, 6)
    assert [key for key in range(7) if key in digest] == [1, 4, 5, 6]


def test_the_tokens_of_the_prompts_say_how_many_fit() -> None:
    digest = PrefixDigest()
    begin(digest, 4)
    digest.add(prompt(1, 2, 3, 4, 5), 5 * KEY_BYTES // 2)  # half a token per byte
    digest.add(prompt(6, 7, 8, 9), 4 * KEY_BYTES // 2)
    assert len(digest) == 8


def test_new_stages_have_an_empty_cache() -> None:
    digest = PrefixDigest()
    begin(digest, 4)
    add(digest, 1, 2)
    with digest.follow() as changes:
        assert changes.take() == ((2, 1), ())
        begin(digest, 4)
        assert changes.take() == ((), (2, 1))
        assert changes.take() == ((), ())


def test_before_the_first_follower_no_prompt_is_hashed() -> None:
    digest = PrefixDigest()
    body = {"prompt": "x" * 2 * KEY_BYTES, "cache_salt": "salt"}
    encoded = json.dumps(body).encode()
    assert digest.hash_prompt(encoded) is None
    with digest.follow():
        hashed = digest.hash_prompt(encoded)
    assert hashed is not None
    assert hashed == digest.hash_prompt(encoded), "a router may come back"
    assert hashed.keys == prefix_keys(body, b"x" * 2 * KEY_BYTES)
    assert hashed.num_bytes == 2 * KEY_BYTES
    assert digest.hash_prompt(b'{"prompt": "short"}') is None


def test_without_a_prefix_cache_there_is_no_digest() -> None:
    digest = PrefixDigest(is_enabled=False)
    with digest.follow():
        assert digest.hash_prompt(json.dumps({"prompt": "x" * 2000}).encode()) is None


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True),
            st.sampled_from(["begin", "take", "follow"]),
        ),
        max_size=30,
    )
)
def test_a_follower_that_applies_the_changes_knows_the_digest(actions: list[object]) -> None:
    digest = PrefixDigest()
    begin(digest, 6)
    known: list[tuple[DigestChanges, set[int]]] = []
    with ExitStack() as stack:
        for action in actions:
            if isinstance(action, list):
                add(digest, *action)
            elif action == "begin":
                begin(digest, 6)
            elif action == "follow":
                known.append((stack.enter_context(digest.follow()), set()))
            else:
                take(known[:1])  # the others are slower
        take(known)
        for _, keys in known:
            assert keys == {key for key in range(10) if key in digest}
            assert len(keys) == len(digest)


def take(known: list[tuple[DigestChanges, set[int]]]) -> None:
    """Apply what has changed."""
    for changes, keys in known:
        added, dropped = changes.take()
        assert keys.isdisjoint(added)
        assert keys.issuperset(dropped)
        keys -= set(dropped)
        keys |= set(added)
