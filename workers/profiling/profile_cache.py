"""The profile cache: what was measured at one start and is still valid at the next.

One JSON file for each measurement, in `profiles` of the data folder, under a hash of all that must
be equal. The cache is optional: what cannot be read is measured again, and a failed write is logged
and ignored.
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
    """The costs that are kept for this fingerprint."""
    path = path_of(data_dir, "costs", fingerprint)
    try:
        kept = _read(path, fingerprint)
        return None if kept is None else _valid_costs(msgspec.convert(kept, StageCosts))
    except (OSError, ValueError) as error:
        log.warning("%s is measured again: %s", path, error)
        return None


def save_costs(data_dir: Path, fingerprint: StageFingerprint, costs: StageCosts) -> None:
    """Keep the costs for the next start."""
    _write(path_of(data_dir, "costs", fingerprint), fingerprint, msgspec.to_builtins(costs))


def load_split(data_dir: Path, fingerprint: StageFingerprint) -> tuple[int, ...] | None:
    """The best layers of each stage that were found; the fingerprint is that of any layers."""
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
    """Keep the split for the next start."""
    _write(path_of(data_dir, "split", fingerprint), fingerprint, list(split))


def path_of(data_dir: Path, thing: Thing, fingerprint: StageFingerprint) -> Path:
    """The file of this measurement."""
    return data_dir / FOLDER / f"{thing}-{fingerprint.key()}.json"


def _read(path: Path, fingerprint: StageFingerprint) -> Any:
    """The kept value, None where there is none. Raises `OSError`, and `ValueError` when damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    kept = json.loads(text)
    if not isinstance(kept, dict) or kept.get("of") != asdict(fingerprint) or "value" not in kept:
        raise ValueError("the file is damaged")
    return kept["value"]


def _write(path: Path, fingerprint: StageFingerprint, value: object) -> None:
    """Atomically: another stage, or the next start, may read at any moment."""
    text = json.dumps({"of": asdict(fingerprint), "value": value}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("the measured values cannot be kept for the next start: %s", error)


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
