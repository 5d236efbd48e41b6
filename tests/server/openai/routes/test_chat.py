"""POST /v1/chat/completions: what the engine is asked, and the answers' golden bodies."""

import asyncio
import json
import re
from pathlib import Path

from server.chat.chat_template import ChatTemplate
from server.grammar.grammars import CheckedGrammars
from server.lengths.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.openai.routes.chat import Chat, ConversationPlanner
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.monitoring.engine_metrics import EngineCollector
from server.requests.planning.planner import Planner
from tests.server.openai.chatting import USER, choice, post, prompt_of, stream, submitted, summed
from tests.server.openai.routes.test_completion_logprobs import logprobs, scripted
from tests.server.templates import QWEN, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, config, generated, saying, stats
from wire.messages import EngineReady, Finished, Generated, Submit, ToServer


def test_the_answer_has_openais_shape(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world €")
    body = post(qwen).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("system_fingerprint").startswith("fp_")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "hello world €",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "token_ids": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "usage": {
            "prompt_tokens": 52,
            "completion_tokens": 7,
            "total_tokens": 59,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world")
    first, *chunks = stream(qwen)
    head = {key: first.pop(key) for key in ("id", "created", "model", "system_fingerprint")}
    assert first == {
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    for chunk in chunks:
        assert chunk | head == chunk
    texts = [chunk["choices"][0]["delta"].pop("content", "") for chunk in chunks]
    assert "".join(texts) == "hello world"
    nothing = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
    *others, last = [chunk["choices"] for chunk in chunks]
    assert others == [[nothing]] * len(others)
    assert last == [nothing | {"finish_reason": "stop", "stop_reason": None}]


def test_a_stream_returns_its_usage_last_where_it_is_asked_for(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    *chunks, last = stream(qwen, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 2


def test_choices_are_named_by_their_index(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    found = post(qwen, n=3).json()["choices"]
    assert [(c["index"], c["message"]["content"]) for c in found] == [
        (i, "hello") for i in range(3)
    ]
    chunks = stream(qwen, n=3)
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert roles == [0, 1, 2]


def test_an_answer_may_be_as_long_as_the_longest_sequence_allows(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    submit = submitted(qwen)
    assert submit.max_tokens == 8192 - len(submit.prompt_token_ids) // 4
    assert submitted(qwen, max_tokens=9).max_tokens == 9
    assert submitted(qwen, max_tokens=9, max_completion_tokens=7).max_tokens == 7


def test_the_sampling_fields_reach_the_engine(qwen: Daemon) -> None:
    submit = submitted(qwen, temperature=0, top_k=7, min_p=0.1, presence_penalty=1, seed=3)
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.0, 7, 0.1)
    assert (sampling.presence_penalty, sampling.seed, submit.offline) == (1.0, 3, False)


def test_flex_has_low_priority_and_is_returned(qwen: Daemon) -> None:
    assert submitted(qwen, service_tier="flex").offline
    assert post(qwen, service_tier="flex").json()["service_tier"] == "flex"
    assert post(qwen, service_tier="auto").json()["service_tier"] == "default"
    assert "service_tier" not in post(qwen).json()


def test_a_batchs_request_has_low_priority(tmp_path: Path) -> None:
    settings = config(tmp_path)
    client, tokenizer = EngineClient(settings.runtime.server_address), chatty(QWEN)
    client.ready, client.stats = EngineReady(2, 40, 16, 8192), stats()
    metrics = Metrics(EngineCollector(client), model_name=MODEL)
    predictor = LengthPredictor(settings.predictor, settings.runtime, MODEL, metrics)
    limits = settings.server.limits
    planner = Planner(settings.model, limits.max_logprobs, client, tokenizer, (0,))
    chat = Chat(
        client,
        Admission(limits, client),
        planner,
        Generations(client, tokenizer, metrics, predictor),
        ConversationPlanner(
            settings.chat, planner, tokenizer, ChatTemplate(tokenizer), CheckedGrammars(tokenizer)
        ),
        tokenizer,
        "fp",
    )
    body = json.dumps({"model": MODEL, "messages": [USER]}).encode()

    async def submitted() -> list[bool]:
        sent: list[Submit] = []
        receiving = asyncio.create_task(client.run())
        await asyncio.sleep(0)  # once begun, it closes its socket at its end
        client.submit = lambda sequence: sent.append(sequence.submit)  # type: ignore[method-assign]
        for offline in (True, False):
            async with (await chat.prepare(body, offline=offline)).generation:
                pass
        receiving.cancel()
        await asyncio.wait([receiving])
        return [message.offline for message in sent]

    assert asyncio.run(submitted()) == [True, False]


def test_the_prompt_is_what_the_template_makes(qwen: Daemon) -> None:
    assert prompt_of(submitted(qwen)) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    without = prompt_of(submitted(qwen, chat_template_kwargs={"enable_thinking": False}))
    assert without.endswith("<think>\n\n</think>\n\n")
    assert prompt_of(submitted(qwen, reasoning_effort="none")) == without


def test_the_last_message_goes_on(qwen: Daemon) -> None:
    qwen.engine.script = saying(" world")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = {"messages": messages, "continue_final_message": True}
    assert prompt_of(submitted(qwen, **body)).endswith("assistant\nhello")
    assert choice(qwen, **body)["message"]["content"] == " world"
    assert choice(qwen, **body, echo=True)["message"]["content"] == "hello world"
    assert summed(stream(qwen, **body, echo=True))["message"]["content"] == "hello world"


def test_what_is_echoed_is_the_prompts_end_however_the_template_joins_parts(qwen: Daemon) -> None:
    qwen.engine.script = saying(" world")
    parts = [{"type": "text", "text": text} for text in ("hello", "my")]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": parts}]
    body = {"messages": messages, "continue_final_message": True, "echo": True}
    assert prompt_of(submitted(qwen, **body)).endswith("assistant\nhello\nmy")
    assert choice(qwen, **body)["message"]["content"] == "hello\nmy world"


def reported(submit: Submit) -> list[ToServer]:
    """A script: "hello world" with log-probabilities."""
    out: list[ToServer] = []
    for token_id in TOKENIZER.encode("hello world"):
        message = generated(submit.sequence_id, token_id)
        tops = [(5, -0.5), (6, -1.5)][: submit.sampling.num_logprobs]
        out.append(Generated(message.sequence_ids, message.token_ids, logprobs([0], tops)))
    return [*out, Finished(submit.sequence_id, "length")]


def test_each_token_has_its_log_probability(qwen: Daemon) -> None:
    qwen.engine.script = reported
    found = choice(qwen, logprobs=True, top_logprobs=2)["logprobs"]
    assert "".join(token["token"] for token in found["content"]) == "hello world"
    assert found["refusal"] is None
    assert {token["logprob"] for token in found["content"]} == {-3.0}
    top = [{"token": TOKENIZER.pieces.text(5), "logprob": -0.5, "bytes": TOKENIZER.pieces.bytes(5)}]
    assert found["content"][0]["top_logprobs"][:1] == top
    assert [len(token["top_logprobs"]) for token in found["content"]] == [2] * len(found["content"])
    streamed = [c["choices"][0]["logprobs"] for c in stream(qwen, logprobs=True, top_logprobs=2)]
    assert [t for part in streamed if part for t in part["content"]] == found["content"]
    assert choice(qwen, logprobs=True)["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_prompt_is_scored(qwen: Daemon) -> None:
    qwen.engine.script = scripted
    body = post(qwen, prompt_logprobs=1, max_tokens=5).json()
    first, *others = body["prompt_logprobs"]
    assert first is None
    assert len(others) == body["usage"]["prompt_tokens"] - 1
    assert all(entry.keys() >= {"5"} for entry in others)


def test_tokens_are_returned_as_ids_too(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world")
    body = post(qwen, return_token_ids=True).json()
    hello = TOKENIZER.encode("hello world")
    assert body["choices"][0]["token_ids"] == [*hello, 0]
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
    chunks = stream(qwen, return_token_ids=True, stream_options={"include_usage": True})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["prompt_token_ids"] == body["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert [id_ for part in parts for id_ in part.get("token_ids", [])] == [*hello, 0]


def test_the_document_has_the_request_and_the_answer(qwen: Daemon) -> None:
    document = qwen.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "messages" in schemas["ChatRequest"]["required"]
    assert "choices" in schemas["ChatCompletion"]["required"]
    assert json.dumps(document["paths"]["/v1/chat/completions"]).count("ChatRequest") == 1


def test_tokens_of_logprobs_may_be_ids(qwen: Daemon) -> None:
    qwen.engine.script = reported
    plain = choice(qwen, logprobs=True, top_logprobs=2)["logprobs"]["content"]
    as_ids = choice(qwen, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True)
    found = as_ids["logprobs"]["content"]
    assert [token["bytes"] for token in found] == [token["bytes"] for token in plain]
    named = [each["token"] for token in found for each in (token, *token["top_logprobs"])]
    assert all(re.fullmatch(r"token_id:\d+", name) for name in named)
    assert [each["token"] for each in found[0]["top_logprobs"]] == ["token_id:5", "token_id:6"]


def test_a_chat_may_ask_for_the_log_probabilities_of_named_tokens(qwen: Daemon) -> None:
    submit = submitted(qwen, logprobs=True, logprob_token_ids=[7, 8, 9])
    assert submit.sampling.num_logprobs == 3
    assert len(submit.sampling.logprob_token_ids) == 12
    assert post(qwen, logprob_token_ids=[7]).status_code == 400
