"""With every policy, the daemon's greedy tokens are transformers' own, also when KV is tight."""

from pathlib import Path

import pytest
import torch

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference

NEAR_TIE = 1e-4
# Enough that the requests that run together outgrow the KV cache, in any order of arrival.
MAX_TOKENS = 60
NUM_BLOCKS = 20
BLOCK_BYTES = 16 * 2 * 2 * 2 * 16 * 4  # tokens, layers, K and V, KV heads, head dim, fp32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("policies") / "model", "llama", shard_size="300KB"
    )


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint, torch.float32)


PROMPTS = random_prompts("policies", [5, 30, 60, 90, 200] * 3)


@pytest.mark.parametrize(
    "policy",
    [
        ["td-pipe"],
        ["temporal"],
        pytest.param(["separate"], marks=pytest.mark.long),
        pytest.param(["hybrid", "--hybrid", "vllm"], marks=pytest.mark.long),
        pytest.param(["hybrid", "--hybrid", "throttled"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_every_policy_gives_the_same_greedy_tokens(
    policy: list[str], checkpoint: Path, reference: Reference, tmp_path: Path
) -> None:
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "-pp", "2"]
    # Prompts go in chunks, and predictions are so poor that some sequences lose their KV.
    arguments += ["--device", "cpu", "--max-num-batched-tokens", "64", "--predicted-output-len"]
    arguments += ["1", "--kv-cache-memory-bytes", str(NUM_BLOCKS * BLOCK_BYTES)]
    with Daemon(tmp_path, str(checkpoint), *arguments, "--policy", *policy) as daemon:
        outputs = ask_at_once(daemon, PROMPTS, MAX_TOKENS)
        assert daemon.metric("tdpipe_preemptions_total") > 0
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
    near_ties = reference.num_near_ties_of_all(PROMPTS, outputs, NEAR_TIE)
    assert near_ties <= 1, f"{near_ties} near-ties in {len(PROMPTS)} answers"
