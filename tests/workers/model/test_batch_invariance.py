"""Batch invariance: where it is promised, and how oneDNN is limited to keep the promise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.config import EngineConfig
from tests.checkpoints import make_checkpoint
from tests.kernels import shared_library
from tests.workers.stages import load_stage
from tests.workers.world import CPU
from workers.model import batch_invariance
from workers.model.batch_invariance import limit_onednn, may_use_amx, obstacle, onednn_limit
from workers.model.stage_model import StageModel

LIMIT = "ONEDNN_MAX_CPU_ISA"
# A stage: the launch has imported torch, sets the limit, and forks the process that computes.
STAGE = """
import torch
from configs.schema.pipeline import PipelineConfig
from workers import stage_restarts
from workers.model import batch_invariance
batch_invariance.INVARIANT_LIMIT = "SSE41"  # which every CPU has and none has alone
batch_invariance.limit_onednn()
def stage(_):
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(64, 64))
    torch.ops.mkldnn._linear_pointwise(torch.randn(4, 64), weight, None, "none", [], "")
torch.multiprocessing.start_processes(stage, nprocs=1, start_method="fork")
"""


@pytest.fixture
def models(tmp_path: Path) -> dict[str, StageModel]:
    """A model in bf16 and in fp32, with torch's linear layers, and one with experts in fp32."""
    found = {}
    for name, family, dtype in (
        ("bf16", "llama", "bfloat16"),
        ("fp32", "llama", "float32"),
        ("experts", "mixtral", "float32"),
    ):
        path = make_checkpoint(tmp_path / name, family)
        config = EngineConfig.of(model=str(path), dtype=dtype, pipeline_parallel_size=1)
        found[name] = load_stage(config, 0)
    return found


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX, and no limits."""
    for name in batch_invariance.LIMIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(batch_invariance.platform, "machine", lambda: "x86_64")


def test_a_limit_of_the_user_is_kept() -> None:
    environ = {"OTHER": "1"}
    assert onednn_limit(environ) is None
    limit_onednn(environ)
    assert environ == {"OTHER": "1", LIMIT: "AVX512_CORE_BF16"}
    for name in batch_invariance.LIMIT_VARIABLES:
        environ = {name: "avx2"}
        limit_onednn(environ)
        assert environ == {name: "avx2"}
        assert onednn_limit(environ) == "AVX2"


def test_onednn_obeys_the_limit_in_a_stage() -> None:
    if platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available():
        pytest.skip("there are no such instructions, or no oneDNN")
    environ = {k: v for k, v in os.environ.items() if k not in batch_invariance.LIMIT_VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", STAGE],
        env=environ | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "isa:Intel SSE4.1" in result.stdout


def test_the_cpu_s_own_flags_agree() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or onednn_limit() is not None:
        pytest.skip("there is nothing to compare with")
    assert may_use_amx() == (" amx_tile" in cpuinfo.read_text())


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize(
    ("limit", "is_amx"),
    [
        (None, True),
        ("ALL", True),
        ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX", True),
        ("AVX512_CORE_BF16", False),
        ("avx512_core", False),
    ],
)
def test_a_limit_decides_about_amx(
    limit: str | None, is_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setenv(LIMIT, limit)
    assert may_use_amx() == is_amx


@pytest.mark.usefixtures("amx")
def test_with_amx_16_bit_products_need_the_limit(
    models: dict[str, StageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["bf16"].module
    found = obstacle(EngineConfig(), CPU, model)
    assert found == "oneDNN's products depend on it with AMX (see --batch-invariant)"
    monkeypatch.setenv(LIMIT, "AVX512_CORE_AMX")
    assert "which AVX512_CORE_AMX allows" in (obstacle(EngineConfig(), CPU, model) or "")
    monkeypatch.setenv(LIMIT, "AVX512_CORE_BF16")
    assert obstacle(EngineConfig(), CPU, model) is None


@pytest.mark.usefixtures("amx")
def test_packed_layers_promise_it_and_torch_s_fp32_products_do_not(
    models: dict[str, StageModel],
) -> None:
    library = shared_library()
    assert obstacle(EngineConfig(), CPU, models["fp32"].module) == (
        "torch's float32 products depend on it (Linear)"
    )
    for model in models.values():
        model.pack_linears(library)
    assert obstacle(EngineConfig(), CPU, models["fp32"].module) is None
    assert obstacle(EngineConfig(), CPU, models["bf16"].module) is None
    found = obstacle(EngineConfig(), CPU, models["experts"].module)
    assert found == "torch's float32 products depend on it (MixtralTopKRouter)"


def test_without_amx_16_bit_products_promise_it(
    models: dict[str, StageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(batch_invariance.platform, "machine", lambda: "x86_64")
    assert obstacle(EngineConfig(), CPU, models["bf16"].module) is None
    monkeypatch.setattr(batch_invariance.platform, "machine", lambda: "aarch64")
    assert obstacle(EngineConfig(), CPU, models["bf16"].module) == (
        "torch's products were not examined on aarch64"
    )


def test_a_cached_prefix_cuts_a_prompt_which_only_native_attention_does_not_mind(
    models: dict[str, StageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(batch_invariance.platform, "machine", lambda: "x86_64")
    model = models["bf16"].module
    assert obstacle(EngineConfig(), CPU, model, "native") is None
    found = obstacle(EngineConfig.of(policy="td-pipe"), CPU, model, "plain")
    assert found is not None
    assert "--no-enable-prefix-caching" in found
    without = EngineConfig.of(policy="td-pipe", enable_prefix_caching=False)
    assert obstacle(without, CPU, model, "plain") is None


@pytest.mark.parametrize("policy", ["temporal", "hybrid", "separate"])
def test_policies_that_cut_prompts_need_native_attention(
    models: dict[str, StageModel], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(batch_invariance.platform, "machine", lambda: "x86_64")
    model = models["bf16"].module
    config = EngineConfig.of(policy=policy, enable_prefix_caching=False)
    assert obstacle(config, CPU, model, "native") is None
    assert obstacle(config, CPU, model, "plain") == (
        f"plain attention rounds a prompt differently where policy {policy} cuts it to fit the "
        "other rows (see --policy)"
    )


def test_before_the_model_is_loaded_device_and_step_size_are_judged() -> None:
    assert obstacle(EngineConfig(), CPU) is None
    assert obstacle(EngineConfig(), torch.device("cuda")) == (
        "batch invariance is not available on GPUs yet"
    )
    assert obstacle(EngineConfig.of(max_num_batched_tokens=2), CPU) == (
        "steps of 2 tokens cut prompts into single tokens (max_num_batched_tokens)"
    )
    assert obstacle(EngineConfig.of(tensor_parallel_size=2), CPU) is None
    assert obstacle(EngineConfig.of(tensor_parallel_size=3), CPU) == (
        "gloo adds up 3 ranks in an order that depends on the number of rows"
    )


def test_quantised_models_do_not_promise_it(models: dict[str, StageModel]) -> None:
    model = models["bf16"].module
    model.config.quantization_config = {"quant_method": "fp8"}
    assert obstacle(EngineConfig(), CPU, model) == "quantised weights have products of their own"
