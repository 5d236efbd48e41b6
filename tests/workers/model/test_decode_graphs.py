"""CUDA graphs with a fake capture: a replay in static memory is the step that runs without it."""

import logging
from array import array
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from configs.config import EngineConfig
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.kernels import triton_backend, triton_operations
from tests.workers.model.test_rope import long_factors
from tests.workers.model.test_stage_model import make_stages
from tests.workers.world import CPU, Ground, History
from workers.device.events import Done
from workers.device.upload import Arrays, PackedUpload
from workers.model.attention.backends import Backend
from workers.model.attention.interface import Form
from workers.model.attention.plain import PlainBackend
from workers.model.batch import Rows, StepBatch, unpack
from workers.model.decode_graphs import (
    MOST_ROWS,
    CudaCapture,
    DecodeBatch,
    GraphLimits,
    is_decode,
    padded,
    padded_sizes,
)
from workers.model.kv_cache import KvCache
from workers.model.stage_model import StageModel
from workers.model.step_runner import StepRunner

BLOCK_SIZE, MAX_LEN = 4, 96
LIMITS = GraphLimits(6, MAX_LEN)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's kernels run on the GPU here: test_gpu.py"
)


class FakeCapture:
    """Remembers the function: a replay runs it again, with whatever it was bound to."""

    def __init__(self) -> None:
        self.num_captured, self.num_replays = 0, 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """As of `Capture`."""
        self.num_captured += 1
        run()

        def replay() -> None:
            self.num_replays += 1
            run()

        return replay

    def used_bytes(self) -> int:
        """As if each graph took 10 bytes, and the first 100 more."""
        return 10 * self.num_captured + 100 * min(1, self.num_captured)


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are split from 32 tokens on, so that short ones have several graphs."""
    triton = pytest.importorskip("workers.model.attention.triton")
    monkeypatch.setattr(triton, "TOKENS_PER_SPLIT", 16)


class Echo:
    """A backend that attends to the token itself only: quick, where results do not matter."""

    name = "echo"

    def __init__(self) -> None:
        self.decode_lengths = triton_backend().decode_lengths  # type: ignore[attr-defined]

    def arrays(self, rows: Rows) -> Arrays:
        """As of `Backend`."""
        return {"slots": rows.new_slots(), "blocks": rows.blocks.astype(np.int32)}

    def step(self, cache: KvCache, batch: StepBatch) -> "Echo":
        """As of `Backend`."""
        assert len(batch.arrays["slots"]) == batch.num_tokens <= len(cache.layers) * MAX_LEN
        return self

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """As of `Attend`."""
        assert key.shape[1] == value.shape[1] > 0 <= layer
        assert form.softcap is None
        return value.repeat_interleave(len(query) // len(value), 0).transpose(0, 1)


def packed_upload() -> PackedUpload:
    """The upload of a GPU to memory of the CPU."""
    return PackedUpload(CPU, make_event=Done, pinned=False)


def make_runner(model: StageModel, attention: Backend, num_blocks: int) -> StepRunner:
    """The runner of a stage, with a cache full of NaN: what was never written shows."""
    cache = KvCache(model.probe(2).shapes, num_blocks, BLOCK_SIZE, model.dtype, CPU)
    return StepRunner(model, attention, cache, BLOCK_SIZE, CPU, packed_upload())


def forget(runner: StepRunner) -> None:
    """Fill the cache with NaN."""
    for tensor in (t for tensors in runner.cache.layers.values() for t in tensors):
        tensor.fill_(float("nan"))


def play(runners: list[StepRunner], ground: Ground) -> list[Tensor]:
    """Prefills, then decodes of 1 to 3 rows with 3 to 33 tokens; the logits of each step."""
    sequences = [ground.sequence([3 + n] * (3 + 14 * n), spare=8) for n in range(3)]
    steps = [[(s, len(s.token_ids)) for s in sequences]]
    steps += [[(s, 1) for s in sequences[first:end]] for first, end in DECODES]
    answers = []
    for shares in steps:
        step = ground.step(shares)
        passed: Tensor | None = None
        for runner in runners:
            inputs = runner.prepare(step)
            passed = runner.run(inputs, passed).clone()
        assert passed is not None
        answers.append(passed)
        for (sequence, _), logits in zip(shares, passed, strict=True):
            sequence.token_ids.append(int(logits.argmax()))
    return answers


DECODES = [(0, 1), (0, 2), (2, 3), (0, 3), (2, 3)]


@pytest.mark.parametrize(
    ("family", "fuses"),
    [
        ("llama", True),
        pytest.param("mixtral", False, marks=pytest.mark.long),
        pytest.param("gemma2", True, marks=pytest.mark.long),
    ],
)
def test_replayed_steps_are_eager_steps(family: str, tmp_path: Path, *, fuses: bool) -> None:
    path = make_checkpoint(tmp_path, family, num_hidden_layers=2)
    stages = make_stages(path, (1, 1), dtype="float32")
    results, caches = [], []
    for captures in (False, True):
        ground = Ground(BLOCK_SIZE, num_blocks=40)
        if captures and fuses:  # the eager steps are those of transformers' own parts
            assert all(stage.fuse(triton_operations()) for stage in stages)
        runners = [make_runner(stage, triton_backend(), ground.num_blocks) for stage in stages]
        capture = FakeCapture()
        if captures:
            for runner in runners:
                runner.capture(capture, GraphLimits(3, 40))
                assert runner.has_graphs
        for runner in runners:
            forget(runner)
        began = capture.num_replays
        results.append(play(runners, ground))
        assert capture.num_replays - began == captures * 2 * len(DECODES)
        caches.append([t for r in runners for pair in r.cache.layers.values() for t in pair])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(got.argmax(-1), want.argmax(-1))
    for want, got in zip(*caches, strict=True):  # padding rows have written nothing
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [({"rope_type": "dynamic", "factor": 4.0}, 16), (long_factors(8), 64)],
    ids=["dynamic", "longrope"],
)
def test_a_replay_takes_the_rope_lengths_of_its_own_step(
    rope: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    path = make_checkpoint(
        tmp_path,
        "llama",
        num_hidden_layers=2,
        max_position_embeddings=longest,
        rope_parameters={"rope_theta": 10_000.0} | rope,
    )
    (stage,) = make_stages(path, (2,), dtype="float32")
    step_lens = [[rope_len] * 2 for rope_len in (8, 60, 9)]
    results = []
    for captures in (False, True):
        runner = make_runner(stage, triton_backend(), 40)
        if captures:
            runner.capture(FakeCapture(), GraphLimits(2, 40))
            assert runner.has_graphs
        forget(runner)
        ground = Ground(BLOCK_SIZE, num_blocks=40)
        sequences = [ground.sequence([5 + n] * (4 + 3 * n), spare=8) for n in range(2)]
        runner.run(runner.prepare(ground.step([(s, len(s.token_ids)) for s in sequences])), None)
        for lens in step_lens:
            for sequence in sequences:
                sequence.token_ids.append(9)
            step = ground.step([(s, 1) for s in sequences])
            step = replace(step, rope_lens=array("i", lens).tobytes())
            inputs = runner.prepare(step)
            assert isinstance(inputs, DecodeBatch) == captures
            results.append(runner.run(inputs, None).clone())
    eager, replayed = results[: len(step_lens)], results[len(step_lens) :]
    for want, got in zip(eager, replayed, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def stage(tmp_path: Path) -> StageModel:
    """A whole small model."""
    path = make_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    (stage,) = make_stages(path, (1,), dtype="float32")
    return stage


def test_the_graph_depends_on_rows_and_on_the_longest(stage: StageModel) -> None:
    ground = Ground(BLOCK_SIZE, num_blocks=200)
    runner = make_runner(stage, Echo(), ground.num_blocks)
    order = []

    def show(keys: list[Any]) -> list[Any]:
        order.extend(keys)
        return keys

    runner.capture(FakeCapture(), LIMITS, show)
    # 8 multiprocessors of two programs each: two KV heads of one row may be split into 8 parts.
    assert order == [(8, 1), (4, 32), (4, 1), (2, 64), (2, 32), (2, 1), (1, 64), (1, 32), (1, 1)]

    def key_of(lengths: list[int], *, samples: bool = True) -> Any:
        shares = []
        for length in lengths:
            sequence = History([1] * (length + (not samples)), list(range(40)), fed=length - 1)
            shares.append((sequence, 1))
        prepared = runner.prepare(ground.step(shares))
        return prepared.key if isinstance(prepared, DecodeBatch) else None

    assert key_of([5]) == key_of([31]) == (1, 1)
    assert key_of([32]) == key_of([63]) == (1, 32)
    assert key_of([64]) == key_of([96]) == (1, 64)
    assert key_of([5, 40]) == (2, 32)
    assert key_of([3, 3, 90]) == (4, 32)
    assert key_of([90] * 5) == key_of([1] * 8) == (8, 1)
    assert key_of([1] * 9) is None
    assert key_of([5], samples=False) is None


def test_only_steps_of_rows_that_feed_and_sample_one_token_are_decodes() -> None:
    ground = Ground(BLOCK_SIZE)
    first, second = ground.sequence([1, 2, 3]), ground.sequence([1] * 6)
    assert not is_decode(unpack(ground.step([(first, 2), (second, 5)]), BLOCK_SIZE))
    step = ground.step([(first, 1), (second, 1)])
    assert is_decode(unpack(step, BLOCK_SIZE))


def test_padding_rows_write_nowhere_and_read_what_the_first_row_has() -> None:
    ground = Ground(BLOCK_SIZE)
    sequences = [ground.sequence([7] * n) for n in (6, 3)]
    for sequence in sequences:
        sequence.fed = len(sequence.token_ids) - 1
    host = unpack(ground.step([(s, 1) for s in sequences]), BLOCK_SIZE)
    wide = padded(host, 8)
    assert wide.rows.begins.tolist() == list(range(9))
    assert wide.token_ids.tolist() == [7, 7, *[0] * 6]
    assert wide.rows.new_slots().tolist() == [*host.rows.new_slots().tolist(), *[-1] * 6]
    assert wide.rope_lens.tolist() == [6, 3, *[0] * 6]
    assert wide.rows.table_begins.tolist()[2:] == [0] * 6
    assert wide.rows.starts.tolist() == [5, 2, *[0] * 6]
    np.testing.assert_array_equal(wide.rows.blocks, host.rows.blocks)


def test_sizes_are_those_of_the_field() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(3) == [1, 2, 4]
    assert padded_sizes(20) == [1, 2, 4, 8, 16, 24]
    assert padded_sizes(MOST_ROWS)[-3:] == [480, 496, 512]
    for rows in range(1, MOST_ROWS + 1):
        assert padded_sizes(rows)[-1] >= rows


def test_what_cannot_be_captured_runs_without_and_the_reason_is_told(
    stage: StageModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(run: Callable[[], None]) -> Any:
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    fails.used_bytes = lambda: 0  # type: ignore[attr-defined]
    for attention, capture, reason in (
        (PlainBackend(), FakeCapture(), "the attention backend plain cannot be captured"),
        (Echo(), fails, "operation not permitted when stream is capturing"),
    ):
        runner = make_runner(stage, attention, 64)
        caplog.clear()
        runner.capture(capture, LIMITS)  # type: ignore[arg-type]
        assert not runner.has_graphs
        assert caplog.messages == [f"decode steps run without CUDA graphs: {reason}"]
        assert runner.estimate_graph_bytes(capture, LIMITS) == 0  # type: ignore[arg-type]


def test_a_replay_that_differs_turns_graphs_off(
    stage: StageModel, caplog: pytest.LogCaptureFixture
) -> None:
    class Stale(FakeCapture):
        def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
            super().__call__(run)
            return lambda: None  # repeats nothing

    runner = make_runner(stage, Echo(), 64)
    runner.capture(Stale(), LIMITS)
    assert not runner.has_graphs
    (message,) = caplog.messages
    assert message.startswith("decode steps run without CUDA graphs: the graph of 8 rows is off by")


def test_time_and_memory_are_told_and_estimated_before(
    stage: StageModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tdpipe")
    runner = make_runner(stage, Echo(), 3)
    assert runner.estimate_graph_bytes(FakeCapture(), LIMITS) == 110 + 8 * 10
    assert not runner.has_graphs
    runner.capture(FakeCapture(), LIMITS)
    assert runner.has_graphs
    assert "captured 9 CUDA graphs of up to 8 rows in" in caplog.text


@pytest.mark.parametrize("reason", [None, "called a synchronizing operation", "in the capture"])
def test_a_capture_follows_a_run_in_which_waiting_is_an_error(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class Graph:
        def capture_begin(self, pool: int, capture_error_mode: str) -> None:
            log.append(f"begin {pool} {capture_error_mode}")

        def capture_end(self) -> None:
            log.append("end")
            if reason:
                raise RuntimeError("the capture was invalidated")

        def replay(self) -> None:
            log.append("replay")

    def run() -> None:
        is_capturing = log[-1].startswith("begin")
        log.append("run")
        if reason is not None and is_capturing == (reason == "in the capture"):
            raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", log.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 5)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    capture = CudaCapture(torch.device("cuda"))
    if reason is not None:
        with pytest.raises(RuntimeError, match=reason):
            capture(run)
        begun = ["begin 5 thread_local", "run", "end"] if reason == "in the capture" else []
        assert log == ["error", "run", "default", *begun]
        return
    capture(run)()
    begun = ["begin 5 thread_local", "run", "end", "replay"]
    assert log == ["error", "run", "default", *begun]


def test_the_setting_has_the_name_that_vllm_gave_it() -> None:
    assert not EngineConfig.of(model="m").pipeline.enforce_eager
    assert EngineConfig.of(model="m", enforce_eager=True).pipeline.enforce_eager
    assert VOCABULARY > 70  # the tokens of `play` are in it
