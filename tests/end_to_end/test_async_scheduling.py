"""Steps that are planned before their tokens are known: the same tokens, whatever happens."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.faults.blow import stages_of
from tests.kernels import shared_library

LENGTHS = [5, 30, 60, 90, 1, 17] * 4
NUM_TOKENS, MANY_TOKENS = 40, 160
BLOCK_BYTES = 16 * 2 * 2 * 2 * 32 * 4  # tokens, layers, K and V, KV heads, head dim, fp32


def sampled(daemon: Daemon, **fields: Any) -> list[Any]:
    """Answers that need the sampler's state: penalties, a grammar, stop strings, log-probs."""
    asked = [
        {"temperature": 1.0, "seed": 7, "presence_penalty": 1.5, "repetition_penalty": 1.2},
        {"temperature": 1.0, "seed": 8, "min_tokens": 12, "logprobs": 2},
        {"temperature": 0.5, "seed": 9, "n": 3, "stop_token_ids": list(range(3, 60))},
        {"temperature": 1.0, "seed": 10, "logit_bias": {"5": 5.0}},
    ]
    (prompt,) = random_prompts("sampled", [20])
    answers = []
    for one in asked:
        body = {"prompt": prompt, "max_tokens": 30} | one | fields
        reply = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        choices = reply.json()["choices"]
        answers.append([(choice["text"], choice["finish_reason"]) for choice in choices])
    return answers


@pytest.mark.parametrize(
    ("policy", "num_stages"),
    [
        ("temporal", "2"),
        pytest.param("td-pipe", "3", marks=pytest.mark.long),
        pytest.param("td-pipe", "1", marks=pytest.mark.long),
        pytest.param("hybrid", "2", marks=pytest.mark.long),
        pytest.param("separate", "2", marks=pytest.mark.long),
    ],
)
def test_answers_are_those_of_synchronous_scheduling(
    policy: str, num_stages: str, tmp_path: Path
) -> None:
    shared_library()
    # With tied weights the last stage has an embedding too.
    changes = {"num_hidden_layers": 3, "tie_word_embeddings": True}
    checkpoint = make_checkpoint(tmp_path / "model", "llama", **changes)
    prompts = random_prompts("async", LENGTHS)
    common = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "--device", "cpu"]
    common += ["--policy", policy]
    with Daemon(tmp_path / "sync", str(checkpoint), *common, "-pp", "1") as daemon:
        want = ask_at_once(daemon, prompts, NUM_TOKENS)
        want_sampled = sampled(daemon)
    tight = ["--kv-cache-memory-bytes", str(24 * BLOCK_BYTES), "--predictor", "constant:1"]
    ahead = ["-pp", num_stages, "--async-scheduling", *tight]
    with Daemon(tmp_path / "ahead", str(checkpoint), *common, *ahead) as daemon:
        assert ask_at_once(daemon, prompts, NUM_TOKENS) == want
        assert sampled(daemon) == want_sampled
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)


@pytest.mark.long
def test_answers_survive_a_killed_stage(tmp_path: Path) -> None:
    """Steps that follow one another are in flight when the stage dies."""
    shared_library()
    checkpoint = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3)
    prompts = random_prompts("async", LENGTHS)
    common = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "--device", "cpu"]
    with Daemon(tmp_path / "sync", str(checkpoint), *common) as daemon:
        want = ask_at_once(daemon, prompts, MANY_TOKENS)
    ahead = ["-pp", "3", "--async-scheduling"]
    with (
        Daemon(tmp_path / "ahead", str(checkpoint), *common, *ahead) as daemon,
        ThreadPoolExecutor(1) as threads,
    ):
        for stage in (2, 0):
            before = daemon.metric("tdpipe_steps_total")
            asked = threads.submit(ask_at_once, daemon, prompts, MANY_TOKENS)
            daemon.wait_for(lambda before=before: daemon.metric("tdpipe_steps_total") > before + 9)
            stages_of(daemon)[stage].kill()
            assert not asked.done()
            assert asked.result(timeout=120) == want
        assert daemon.metric("tdpipe_pipeline_restarts_total") == 2


FORMS: list[dict[str, Any]] = [
    {"structured_outputs": {"choice": ["red", "blue"]}, "n": 4},
    {"structured_outputs": {"choice": ["one two three four", "five"]}, "n": 4},
    {"structured_outputs": {"regex": "[a-c]{3,9}!"}, "ignore_eos": True, "max_tokens": 20},
    {"structured_outputs": {"json": {"type": "object", "properties": {"a": {"enum": [1, 22]}}}}},
]


def test_a_form_that_has_ended_is_fed_in_vain_and_nothing_fails(tmp_path: Path) -> None:
    found = []
    for flags in ([], ["--async-scheduling"]):
        folder = tmp_path / f"flags {len(flags)}"
        with Daemon(folder, "--dtype", "float32", "--device", "cpu", *flags) as daemon:
            answers = []
            for form in FORMS:
                body = {"prompt": "Pick one:", "max_tokens": 60, "temperature": 1, "seed": 3} | form
                reply = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60)
                assert reply.status_code == 200, reply.text
                answers.append([choice["text"] for choice in reply.json()["choices"]])
            assert daemon.metric("tdpipe_pipeline_restarts_total") == 0
            found.append(answers)
    assert found[0] == found[1]
