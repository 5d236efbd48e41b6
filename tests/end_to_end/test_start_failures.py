"""A failed start ends in one line that names the root cause, and leaves nothing."""

import fcntl
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema.model import DEMO_MODEL
from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.daemon import Daemon
from tests.faults.world import keep_model_code, levered_daemon

Prepare = Callable[[Path], list[str]]


def no_such_folder(_: Path) -> list[str]:
    """A path that does not exist."""
    return ["/nowhere/at/all"]


def truncated_weights(folder: Path) -> list[str]:
    """A checkpoint with weights that were cut short by a broken download."""
    model = folder / "model"
    shutil.copytree(DEMO_MODEL, model)
    weights = model / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:100_000])
    return [str(model)]


def damaged_weights(folder: Path) -> list[str]:
    """A checkpoint in which the first bytes of the weights have changed."""
    model = shutil.copytree(DEMO_MODEL, folder / "model", copy_function=shutil.copyfile)
    with (model / "model.safetensors").open("r+b") as weights:
        weights.seek(64)
        weights.write(b"\0" * 64)
    return [str(model)]


def without_a_tensor(folder: Path) -> list[str]:
    """A sharded checkpoint with one shard missing."""
    model = make_checkpoint(folder / "model", "llama", shard_size="100KB")
    next(iter(sorted(model.glob("*.safetensors")))).unlink()
    return [str(model), "--tokenizer", str(model / TOKENIZER)]


def foreign_family(folder: Path) -> list[str]:
    """A family with attention that cannot be replaced."""
    model = make_checkpoint(folder / "model", "bloom")
    return [str(model), "--tokenizer", str(model / TOKENIZER)]


def no_tokenizer(folder: Path) -> list[str]:
    """A checkpoint without any tokenizer file."""
    return [str(DEMO_MODEL), "--tokenizer", str(folder)]


def another_tokenizer_s_predictor(folder: Path) -> list[str]:
    """The demo model's predictor beside a checkpoint with a tokenizer of its own."""
    model = make_checkpoint(folder / "model", "llama")
    predictor = str(DEMO_MODEL.parent / "predictor")
    return [str(model), "--tokenizer", str(model / TOKENIZER), "--predictor", predictor]


def flags(*arguments: str) -> Prepare:
    """The demo model with these."""
    return lambda _: [*arguments]


# One failure for each process that may meet it, and for each way in which it is reported: by the
# loader, by the checks before the first process starts, by the server, a stage and the engine.
FAILURES: list[tuple[Prepare, list[str]]] = [
    (no_such_folder, ["no folder /nowhere/at/all"]),
    (flags("--dtype", "int3"), ["dtype", "'bfloat16'", "'int3'"]),
    (flags("--prot", "80"), ["--prot", "did you mean --port?"]),
    (flags("-pp", "3", "--layer-split", "3,3"), ["layer_split 3,3", "3 stages"]),
    (flags("-pp", "7"), ["pipeline_parallel_size 7", "6 layers", "7 stages"]),
    (damaged_weights, ["model.safetensors", "truncated or damaged"]),
    (no_tokenizer, ["tokenizer"]),
    (foreign_family, ["stage", "bloom models cannot be served"]),
    (
        flags("--kv-cache-memory-bytes", "100000", "--max-model-len", "2048"),
        ["max_model_len 2048", "kv_cache_memory_bytes"],
    ),
    (another_tokenizer_s_predictor, ["predictor", "another tokenizer"]),
]
# The same processes meet these in the same way, and unit tests cover what they report.
MORE_FAILURES: list[tuple[Prepare, list[str]]] = [
    (flags("--uds", "/nowhere/socket"), ["uds", "cannot listen on /nowhere/socket"]),
    (flags("--predictor", "/nowhere/at/all"), ["predictor", "no folder /nowhere/at/all"]),
    (flags("--max-model-len", "5000"), ["max_model_len 5000", "limit of 2048 tokens"]),
    (flags("--ssl-certfile", "/nowhere.pem"), ["ssl_certfile", "/nowhere.pem"]),
    (flags("--profile", "/etc/hostname"), ["/etc/hostname, line 1", "columns"]),
    (truncated_weights, ["model.safetensors", "truncated or damaged"]),
    (without_a_tensor, ["model-00001-of"]),
    (flags("--layer-split", "4,4"), ["names 8 layers", "the model has 6"]),
    (flags("--kv-cache-memory-bytes", "1000"), ["kv_cache_memory_bytes", "hold one KV block"]),
    (flags("--device", "cuda"), ["device cuda"]),
]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        *FAILURES,
        *(pytest.param(*failure, marks=pytest.mark.long) for failure in MORE_FAILURES),
    ],
)
def test_the_last_line_names_the_root_cause(
    prepare: Prepare, words: list[str], tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, *prepare(tmp_path))
    daemon.start()
    assert daemon.wait_end() != 0
    last_line = daemon.log().strip().splitlines()[-1]
    for word in words:
        assert word in last_line, daemon.log()
    # Nothing is tried again that cannot succeed.
    assert "Traceback" not in daemon.log()
    assert "restarting" not in daemon.log()
    assert not daemon.present()


@pytest.mark.long  # as in tests/engine/test_failed_starts.py
def test_a_stage_that_never_reports_ends_the_start_in_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_model_code(tmp_path / "model-code", monkeypatch)
    daemon, levers = levered_daemon(tmp_path, "--stage-start-timeout", "10")
    levers.hang(1)
    daemon.start()
    assert daemon.wait_end() == 1
    last_line = daemon.log().strip().splitlines()[-1]
    assert "not all 3 stages were ready within 10 s (stage_start_timeout)" in last_line
    assert not daemon.present()


def test_a_folder_has_one_daemon(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = os.open(tmp_path / "run", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon = Daemon(tmp_path)
        daemon.start()
        assert daemon.wait_end() == 1
    finally:
        os.close(lock)
    assert "runs in" in daemon.log().strip().splitlines()[-1]


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = Daemon(tmp_path, "--port", str(port))
        daemon.start()
        assert daemon.wait_end() != 0
    assert f"port {port}" in daemon.log().strip().splitlines()[-1]
