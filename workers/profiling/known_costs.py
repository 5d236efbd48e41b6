"""The known costs: read from the user's table or an earlier start, or measured now."""

import logging
from collections.abc import Callable
from pathlib import Path

from configs.profiles import StepTable, read_steps
from configs.schema.pipeline import PipelineConfig
from wire.messages import StageCosts
from workers.comm.all_gather import all_gather
from workers.profiling import profile_cache
from workers.profiling.cost_fit import fit
from workers.profiling.profiler import Measurement
from workers.profiling.stage_fingerprint import StageFingerprint

log = logging.getLogger("tdpipe")


def find_costs(
    config: PipelineConfig,
    data_dir: Path,
    fingerprint: StageFingerprint,
    measure: Callable[[], Measurement],
) -> StageCosts:
    """Return the costs of steps on this stage; all stages must call this at the same time.

    If one stage must `measure`, all stages of its node do: otherwise a stage would measure while
    the cores that it shares with others are idle. Only some nodes may have a table. Raises
    `ValueError` if the table is of another model or pipeline.
    """
    given, kept = _given(config, fingerprint), None
    if given is None and not config.remeasure:
        kept = profile_cache.load_costs(data_dir, fingerprint)
    are_known = all(all_gather(given is not None or kept is not None, bool))
    if given is not None:
        return given
    if are_known and kept is not None:
        return _logged(kept, f"as measured at an earlier start ({data_dir})")
    measured = measure()
    if not measured.costs.num_tokens:
        return measured.costs
    if not measured.is_plausible:
        log.warning(
            "the measured step costs fit no model: something else may have used this device; they "
            "are not kept, and the next start measures again"
        )
    else:
        profile_cache.save_costs(data_dir, fingerprint, measured.costs)
    return _logged(measured.costs, "measured now")


def _given(config: PipelineConfig, fingerprint: StageFingerprint) -> StageCosts | None:
    """The costs that this node's settings determine, if they do."""
    if config.profile is not None:
        table = read_steps(config.profile)
        check_table(table, fingerprint, str(config.profile))
        return _logged(fit(table.stages[fingerprint.stage]), f"from {config.profile}")
    return None if config.profile_seconds else StageCosts()


def check_table(table: StepTable, fingerprint: StageFingerprint, name: str) -> None:
    """Raise `ValueError`, with one line, if the table is of another model or pipeline.

    Different hardware or versions only cause a warning, because no better figures exist.
    """
    layers = table.notes.get("layers", "").split(",")
    here: dict[str, tuple[str | None, str]] = {
        "model": (table.notes.get("model_hash"), fingerprint.model_hash),
        "dtype": (table.notes.get("dtype"), fingerprint.dtype),
        "number of stages": (str(len(table.stages)), str(fingerprint.num_stages)),
        "layers": (dict(enumerate(layers)).get(fingerprint.stage), fingerprint.layers),
    }
    for what, (theirs, mine) in here.items():
        if theirs != mine:
            raise ValueError(
                f"the profile {name} is of another {what}: {theirs or 'unknown'}, not {mine}"
            )
    for what, mine in (("hardware", fingerprint.hardware), ("torch", fingerprint.torch)):
        if table.notes.get(what) != mine:
            log.warning("the profile %s is of %s %s", name, what, table.notes.get(what))


def _logged(costs: StageCosts, source: str) -> StageCosts:
    if costs.num_tokens:
        some = sorted({0, len(costs.num_tokens) // 2, len(costs.num_tokens) - 1})
        log.info(
            "a step takes %s tokens, %.1f us for a row, %.0f ns for each token of KV, %.1f ns for "
            "each pair of a prompt's; %s",
            ", ".join(f"{1e3 * costs.seconds[i]:.1f} ms for {costs.num_tokens[i]}" for i in some),
            1e6 * costs.row_s,
            1e9 * costs.kv_s_per_token,
            1e9 * costs.pair_s,
            source,
        )
    return costs
