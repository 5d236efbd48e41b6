"""The stage fingerprint: measured times of a stage are reused only if it is equal.

Each stage writes its fingerprint to the runtime folder, from which `tdpipe profile` reads it.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from configs.config import EngineConfig
from configs.schema.model import ModelConfig
from daemon.version import VERSION
from workers.model.batch_invariance import onednn_limit

log = logging.getLogger("tdpipe")


@dataclass(frozen=True, slots=True)
class StageFingerprint:
    """The hardware of a stage, its part of the model, limits of a step, versions, attention."""

    device: str
    hardware: str
    model_hash: str
    dtype: str
    num_stages: int
    stage: int
    layers: str
    block_size: int
    max_num_batched_tokens: int
    torch: str
    tdpipe: str
    attention: str = ""
    kv_cache_dtype: str = "auto"
    ranks_per_stage: int = 1

    def key(self) -> str:
        """A hash of all fields, for use in file names."""
        return hash_of(json.dumps(asdict(self), sort_keys=True))

    def save(self, folder: Path) -> None:
        """Write the fingerprint to the runtime folder; errors are only logged, e.g. a full disk."""
        try:
            (folder / f"stage-{self.stage}.json").write_text(json.dumps(asdict(self)))
        except OSError as error:
            message = "the fingerprint of stage %d is not kept in %s: %s"
            log.warning(message, self.stage, folder, error)

    @classmethod
    def load(cls, folder: Path, stage: int) -> "StageFingerprint":
        """Read the fingerprint that a stage has written to `folder`; raises `OSError`."""
        return cls(**json.loads((folder / f"stage-{stage}.json").read_text()))


def fingerprint_of(
    config: EngineConfig,
    stage: int,
    layers: Sequence[range] | None,
    dtype: str,
    device: torch.device,
    attention: str,
) -> StageFingerprint:
    """Make the fingerprint of a stage; without `layers`, it is valid for any layers.

    `layers` has a range for each of its virtual stages. `attention` is the attention backend.
    """
    return StageFingerprint(
        device=device.type,
        hardware=describe_hardware(device),
        model_hash=hash_model(config.model),
        dtype=dtype,
        num_stages=config.pipeline.pipeline_parallel_size,
        stage=stage,
        layers="any"
        if layers is None
        else "+".join(f"{part.start}-{part.stop}" for part in layers),
        block_size=config.cache.block_size,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        torch=torch.__version__,
        tdpipe=VERSION,
        attention=attention,
        kv_cache_dtype=config.cache.kv_cache_dtype,
        ranks_per_stage=config.pipeline.tensor_parallel_size,
    )


def hash_model(config: ModelConfig) -> str:
    """A hash of the model's config.json; the weights' values do not change the time of a step."""
    path = Path(config.model) / "config.json"
    if path.is_file():
        return hash_of(path.read_text(encoding="utf-8"))
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    text: str = AutoConfig.from_pretrained(config.model, **source).to_json_string()
    return hash_of(text)


def describe_hardware(device: torch.device) -> str:
    """The name of the GPU, or that of the CPU with its cores, a stage's threads, and a limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = onednn_limit()
    limited = f", at most {limit}" if limit else ""
    return f"{_cpu_model()}, {cores} cores, {torch.get_num_threads()} threads{limited}"


def hash_of(text: str) -> str:
    """A SHA-256 of the text, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
