"""The profile cache keeps measurements that are still valid at the next start.

Each measurement is a JSON file in `profiles` in the data folder. The file name contains a hash of
everything that must be equal for the measurement to be valid. The cache is optional: a measurement
that cannot be read is repeated, and a failed write is logged and ignored.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from wire.messages import StageCosts
from workers.profiling.stage_fingerprint import StageFingerprint

FOLDER = "profiles"

Thing = Literal["costs", "split"]

log = logging.getLogger("tdpipe")


def load_costs(data_dir: Path, fingerprint: StageFingerprint) -> StageCosts | None:
    """Load the costs for this fingerprint; None if there are none or they are damaged."""
    path = path_of(data_dir, "costs", fingerprint)
    try:
        kept = _read(path, fingerprint)
        return None if kept is None else _valid_costs(msgspec.convert(kept, StageCosts))
    except (OSError, ValueError) as error:
        log.warning("%s is measured again: %s", path, error)
        return None


def save_costs(data_dir: Path, fingerprint: StageFingerprint, costs: StageCosts) -> None:
    """Save the costs for the next start."""
    _write(path_of(data_dir, "costs", fingerprint), fingerprint, msgspec.to_builtins(costs))


def load_split(data_dir: Path, fingerprint: StageFingerprint) -> tuple[int, ...] | None:
    """Load the best number of layers per stage; the fingerprint must be that of any layers."""
    path = path_of(data_dir, "split", fingerprint)
    try:
        kept = _read(path, fingerprint)
        if kept is None:
            return None
        split = msgspec.convert(kept, tuple[int, ...])
        if len(split) != fingerprint.num_stages or min(split) < 1:
            raise ValueError(f"{split} is not a split for {fingerprint.num_stages} stages")
        return split
    except (OSError, ValueError) as error:
        log.warning("%s is measured again: %s", path, error)
        return None


def save_split(data_dir: Path, fingerprint: StageFingerprint, split: Sequence[int]) -> None:
    """Save the split for the next start."""
    _write(path_of(data_dir, "split", fingerprint), fingerprint, list(split))


def path_of(data_dir: Path, thing: Thing, fingerprint: StageFingerprint) -> Path:
    """The path of the file of this measurement."""
    return data_dir / FOLDER / f"{thing}-{fingerprint.key()}.json"


def _read(path: Path, fingerprint: StageFingerprint) -> Any:
    """Read the value, or None if no file exists; `OSError` or `ValueError` if it is unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    kept = json.loads(text)
    if not isinstance(kept, dict) or kept.get("of") != asdict(fingerprint) or "value" not in kept:
        raise ValueError("the file is damaged")
    return kept["value"]


def _write(path: Path, fingerprint: StageFingerprint, value: object) -> None:
    """Write the value atomically: another stage, or the next start, may read at any time."""
    text = json.dumps({"of": asdict(fingerprint), "value": value}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("the measured values cannot be kept in %s for the next start: %s", path, error)


def _valid_costs(costs: StageCosts) -> StageCosts:
    terms = (*costs.seconds, costs.kv_s_per_token, costs.row_s, costs.pair_s)
    is_sound = (
        len(costs.num_tokens) == len(costs.seconds) > 0
        and list(costs.num_tokens) == sorted(set(costs.num_tokens))
        and costs.num_tokens[0] > 0
        and costs.seconds[0] > 0
        and all(math.isfinite(term) and term >= 0 for term in terms)
    )
    if not is_sound:
        raise ValueError("its costs are not valid")
    return costs
