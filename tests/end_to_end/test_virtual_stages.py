"""With virtual stages the tokens are transformers' own, whatever comes between."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference
from tests.faults.blow import stages_of
from tests.kernels import shared_library

NUM_LAYERS = 9
LENGTHS = (5, 30, 60, 90, 1, 17, 150, 333) * 2
NEAR_TIE = 1e-4
NUM_TOKENS, MANY_TOKENS = 60, 160
TOKEN_BYTES = 2 * 2 * 16 * 4  # of one layer: K and V, KV heads, head dim, fp32
COMMON = ("--dtype", "float32", "--device", "cpu")


@pytest.mark.parametrize(
    ("num_stages", "num_slices", "policy"),
    [
        pytest.param(2, 2, "td-pipe", marks=pytest.mark.long),
        (3, 3, "temporal"),
        pytest.param(1, 2, "td-pipe", marks=pytest.mark.long),
        pytest.param(1, 3, "temporal", marks=pytest.mark.long),
        pytest.param(2, 3, "hybrid", marks=pytest.mark.long),
        pytest.param(3, 2, "td-pipe", marks=pytest.mark.long),
        pytest.param(3, 3, "separate", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("kv", ["ample", "tight"])
def test_greedy_tokens_are_those_of_transformers(
    num_stages: int, num_slices: int, policy: str, kv: str, tmp_path: Path
) -> None:
    """With a tight cache, sequences are preempted; the longest prompts go in chunks."""
    shared_library()
    # With tied weights the last slice has an embedding too.
    changes = {"num_hidden_layers": NUM_LAYERS, "tie_word_embeddings": True}
    checkpoint = make_checkpoint(tmp_path / "model", "llama", **changes)
    prompts = random_prompts("virtual", LENGTHS)
    flags = ["-pp", str(num_stages), "--virtual-pipeline-size", str(num_slices)]
    flags += ["--tokenizer", str(checkpoint / TOKENIZER), "--max-num-batched-tokens", "128"]
    flags += ["--policy", policy, "--trace", str(tmp_path / "trace.json")]
    if kv == "tight":
        of_stage = -(-NUM_LAYERS // num_stages)
        flags += ["--kv-cache-memory-bytes", str(400 * of_stage * TOKEN_BYTES)]
        flags += ["--predictor", "constant:1"]
    with Daemon(tmp_path, str(checkpoint), *COMMON, *flags) as daemon:
        outputs = ask_at_once(daemon, prompts, NUM_TOKENS)
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
        assert daemon.metric("tdpipe_pipeline_restarts_total") == 0
        if kv == "tight" and policy == "td-pipe":
            assert daemon.metric("tdpipe_preemptions_total") > 0
    reference = Reference(checkpoint, torch.float32)
    assert reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE) == 0


@pytest.mark.long
def test_answers_survive_a_killed_stage(tmp_path: Path) -> None:
    shared_library()
    checkpoint = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=NUM_LAYERS)
    prompts = random_prompts("virtual", LENGTHS)
    flags = ["--tokenizer", str(checkpoint / TOKENIZER), "-pp", "3"]
    flags += ["--virtual-pipeline-size", "2"]
    with (
        Daemon(tmp_path, str(checkpoint), *COMMON, *flags) as daemon,
        ThreadPoolExecutor(1) as threads,
    ):
        want = ask_at_once(daemon, prompts, MANY_TOKENS)
        for stage in (2, 0):
            before = daemon.metric("tdpipe_steps_total")
            asked = threads.submit(ask_at_once, daemon, prompts, MANY_TOKENS)
            daemon.wait_for(lambda before=before: daemon.metric("tdpipe_steps_total") > before + 9)
            stages_of(daemon)[stage].kill()
            assert not asked.done()
            assert asked.result(timeout=120) == want
        assert daemon.metric("tdpipe_pipeline_restarts_total") == 2
    reference = Reference(checkpoint, torch.float32)
    assert reference.num_near_ties_of_all(prompts, want, NEAR_TIE) == 0
