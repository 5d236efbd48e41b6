"""`--kv-cache-dtype fp8` through the daemon: the tokens do not depend on the schedule.

The twin is one stage with the same kernels: `plain` rounds differently in the last bit of fp32, and
a key between two values of fp8 then becomes the other one.
"""

import json
from pathlib import Path

import pytest

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, ask_one_by_one, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.kernels import shared_library

LENGTHS = [5, 30, 60, 90] * 5
MAX_TOKENS = 40
BLOCK_BYTES = 16 * 2 * 2 * 2 * 32  # tokens, layers, K and V, KV heads, head dim; a byte each


@pytest.mark.long
def test_answers_are_those_of_one_stage_whatever_the_schedule(tmp_path: Path) -> None:
    shared_library()
    checkpoint = make_checkpoint(tmp_path / "model", "llama", hidden_size=128)
    prompts = random_prompts("fp8", LENGTHS)
    common = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "--device", "cpu"]
    roomy = ["-pp", "1", "--kv-cache-dtype", "fp8_e4m3"]
    with Daemon(tmp_path / "roomy", str(checkpoint), *common, *roomy) as daemon:
        want = ask_at_once(daemon, prompts, MAX_TOKENS)
    tight = ["--kv-cache-memory-bytes", str(30 * BLOCK_BYTES), "--predictor", "constant:1"]
    tight += ["--max-num-batched-tokens", "64", "--kv-cache-dtype", "fp8"]
    with Daemon(tmp_path / "tight", str(checkpoint), *common, *tight) as daemon:
        assert "KV cache: float8_e4m3fn" in daemon.log()
        assert ask_one_by_one(daemon, prompts[:2], MAX_TOKENS) == want[:2]
        assert ask_at_once(daemon, prompts, MAX_TOKENS) == want
        assert daemon.metric("tdpipe_preemptions_total") > 0
        (path,) = (tmp_path / "tight").rglob("stage-1.json")  # with --nodes, on another node
        stage = json.loads(path.read_text())
        assert stage["kv_cache_dtype"] == "fp8_e4m3"


@pytest.mark.long
def test_a_bf16_model_is_served_with_e5m2(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", hidden_size=128)
    prompts = random_prompts("e5m2", LENGTHS)
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "bfloat16"]
    arguments += ["--device", "cpu", "--kv-cache-dtype", "fp8_e5m2"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        assert "KV cache: float8_e5m2" in daemon.log()
        assert all(len(ids) == MAX_TOKENS for ids in ask_at_once(daemon, prompts, MAX_TOKENS))
