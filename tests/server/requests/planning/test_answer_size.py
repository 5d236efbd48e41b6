"""The answer's size: no sane request is refused, and no other is begun."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.http.errors import ApiError
from server.openai.fields.sampling import SamplingFields
from server.requests.planning import answer_size
from server.requests.planning.answer_size import LOGPROB_BYTES, MAX_ANSWER_BYTES
from server.requests.planning.plan import Plan
from server.requests.planning.planner import Planner
from tests.server.openai.chatting import USER, post
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, config, saying, serving
from wire.messages import Submit

CONTEXT = 131_072


class Ready:
    """A client of an engine that accepts long sequences."""

    max_model_len = CONTEXT
    vocab_size = 0

    @property
    def ready(self) -> "Ready":
        return self


def plan(
    num_prompts: int,
    num_tokens: int,
    max_tokens: int | None = 16,
    num_logprobs: int = -1,
    *,
    offline: bool = False,
    **fields: Any,
) -> Plan:
    """What the planner makes of so many prompts of so many tokens."""
    reported = SamplingFields(model=MODEL, **fields)
    planner = Planner(config(Path("/")).model, 20, Ready(), TOKENIZER, ())  # type: ignore[arg-type]
    planning = planner.plan(
        reported,
        [[5] * num_tokens] * num_prompts,
        endpoint="chat",
        max_tokens=max_tokens,
        default_max_tokens=None,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=-1 if reported.prompt_logprobs is None else reported.prompt_logprobs,
        offline=offline,
    )
    return asyncio.run(planning)


@pytest.mark.parametrize(
    "asked",
    [
        # lm-evaluation-harness: echo, with log-probabilities of many prompts.
        {"num_prompts": 128, "num_tokens": 2048, "max_tokens": 1, "prompt_logprobs": 1},
        {"num_prompts": 64, "num_tokens": 2048, "max_tokens": 1, "prompt_logprobs": 5},
        {"num_prompts": 1, "num_tokens": CONTEXT - 16, "prompt_logprobs": 1},
        {"num_prompts": 1, "num_tokens": 500, "max_tokens": 4096, "num_logprobs": 20, "n": 8},
        {"num_prompts": 1, "num_tokens": CONTEXT - 16, "return_token_ids": True, "n": 32},
        {"num_prompts": 4096, "num_tokens": 30, "num_logprobs": 5},
        {"num_prompts": 4096, "num_tokens": 30, "max_tokens": 4096},
    ],
)
def test_what_is_asked_for_in_earnest_is_returned(asked: dict[str, Any]) -> None:
    wanted = asked.get("max_tokens", 16)
    assert list(plan(**asked).max_tokens) == [wanted] * asked["num_prompts"]


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("asked", "param", "size"),
    [
        (
            {"num_prompts": 8, "num_tokens": 1000, "prompt_logprobs": 20, "n": 128},
            "prompt_logprobs",
            1313,
        ),
        (
            {"num_prompts": 1, "num_tokens": 500, "max_tokens": 4096, "num_logprobs": 20, "n": 64},
            "logprobs",
            336,
        ),
        (
            {
                "num_prompts": 1,
                "num_tokens": CONTEXT,
                "max_tokens": 0,
                "return_token_ids": True,
                "n": 128,
            },
            "return_token_ids",
            128,
        ),
        # They add up.
        (
            {
                "num_prompts": 1,
                "num_tokens": 65_536,
                "max_tokens": 40_000,
                "num_logprobs": 8,
                "prompt_logprobs": 10,
            },
            "prompt_logprobs",
            66,
        ),
    ],
)
def test_what_would_fill_the_memory_is_refused(
    asked: dict[str, Any], param: str, size: int, *, offline: bool
) -> None:
    with pytest.raises(ApiError) as refused:
        plan(**asked, offline=offline)
    error = json.loads(refused.value.body())["error"]
    assert (refused.value.status, error["param"]) == (400, param)
    assert str(refused.value) == (
        f"'{param}' makes the answer too large: it would have some {size} MiB, and 64 MiB are "
        "allowed. Please ask for fewer log-probabilities, or fewer or shorter completions or "
        "prompts."
    )


def test_an_answer_of_no_given_length_is_as_long_as_can_be_returned() -> None:
    most = MAX_ANSWER_BYTES // LOGPROB_BYTES
    assert plan(1, 1000, None).max_tokens == [CONTEXT - 1000]
    assert plan(1, 1000, None, num_logprobs=0).max_tokens == [CONTEXT - 1000]
    assert plan(1, 1000, None, num_logprobs=5).max_tokens == [CONTEXT - 1000]
    assert plan(1, 1000, None, num_logprobs=20).max_tokens == [most // 21]
    assert plan(1, 1000, None, num_logprobs=20, n=128).max_tokens == [most // 21 // 128]
    scored = plan(1, 1000, None, num_logprobs=0, prompt_logprobs=0, n=32)
    assert scored.max_tokens == [(most - 32_000) // 32]
    with pytest.raises(ApiError, match="'logprobs' makes"):
        plan(1, 1000, None, num_logprobs=20, min_tokens=most // 20)


@pytest.mark.parametrize("prompt", ["the quick", TOKENIZER.encode("the quick")])
def test_an_echo_is_measured_though_nothing_is_generated(
    prompt: str | list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_size, "MAX_ANSWER_BYTES", 9 * 100)
    with serving(tmp_path) as daemon:
        asked: dict[str, Any] = {"prompt": prompt, "echo": True, "max_tokens": 0}
        assert daemon.complete(**asked, n=100).status_code == 200
        assert param_of(daemon, **asked, n=101) == "echo"
        assert param_of(daemon, **asked, n=10, logprobs=1) == "logprobs"
        assert not daemon.engine.wait_for(Submit, 0)


def param_of(daemon: Daemon, **body: Any) -> Any:
    """The field at fault."""
    response = daemon.complete(**body)
    assert response.status_code == 400
    return response.json()["error"]["param"]


def test_the_beginning_of_a_message_is_measured_with_each_of_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_size, "MAX_ANSWER_BYTES", 2 * 5)
    with serving(tmp_path, saying("hi"), tokenizer=chatty(CHATML)) as daemon:
        asked = {
            "messages": [USER, {"role": "assistant", "content": "hello"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
            "max_tokens": 1,
            "echo": True,
        }
        assert post(daemon, **asked, n=2).status_code == 200
        response = post(daemon, **asked, n=3)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "echo")
