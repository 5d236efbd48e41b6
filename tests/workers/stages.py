"""Stages of a small checkpoint, in the process of a test."""

from pathlib import Path

import torch

from configs.config import EngineConfig
from configs.schema.model import ModelConfig
from tests.workers.world import CPU
from workers.model.proof.admission import admit
from workers.model.stage_model import StageModel, load
from workers.model.structure import Structure

_admitted: dict[str, Structure] = {}


def structure_of(model: ModelConfig) -> Structure:
    """The structure of the model, which is proven once per config."""
    config = (Path(model.model) / "config.json").read_text()
    if config not in _admitted:
        _admitted[config] = admit(model)
    return _admitted[config]


def load_stage(config: EngineConfig, stage: int, device: torch.device = CPU) -> StageModel:
    """A stage, admitted as at a start."""
    return load(config, stage, device, structure_of(config.model))
