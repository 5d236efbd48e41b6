"""The stats log: a line with throughput and load at an interval, while anything happens.

After the last request it writes one more line, and then nothing until the next one.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

from daemon.observability.logs import fields
from server.requests.engine_client import EngineClient
from wire.messages import EngineReady, Stats

logger = logging.getLogger("tdpipe")


class StatsLog:
    """Compares the engine's `Stats` at the ends of intervals."""

    def __init__(self, client: EngineClient, interval_s: float) -> None:
        """With an interval of 0 seconds, nothing is logged."""
        self._client, self._interval_s = client, interval_s
        self._before: Stats | None = None
        self._was_idle = True

    async def run(self) -> None:
        """Log until cancelled."""
        if not self._interval_s:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        while True:
            await asyncio.sleep(self._interval_s)
            now = loop.time()
            self.log(now - began_at)
            began_at = now

    def log(self, seconds: float) -> None:
        """Log a line for the `seconds` since the last call, if there is anything to tell."""
        before, stats = self._before, self._client.stats
        self._before = stats
        if stats is None:
            return
        if before is None or stats.uptime_s < before.uptime_s:
            before = Stats(False, "prefill")  # the counters of an engine process begin at 0
        is_idle = not stats.waiting + stats.live and not _has_worked(before, stats)
        was_idle, self._was_idle = self._was_idle, is_idle
        if not is_idle:
            figures = _figures(before, stats, seconds)
            logger.info("%s", _line(figures), extra=fields(**figures))
        elif not was_idle:
            logger.info("idle: no requests")


def describe(ready: EngineReady) -> str:
    """What the pipeline consists of, in a line."""
    stages = f"{ready.num_stages} stage{'s' * (ready.num_stages > 1)}"
    if devices := ", ".join(_numbered(ready.devices)):
        stages += f" on {devices}"
    parts = [stages]
    if ready.dtype:
        parts.append(f"{ready.dtype} weights")
    if kernels := ", ".join(_numbered(ready.attention)):
        parts.append(f"{kernels} attention")
    parts.append(f"KV cache {ready.num_blocks * ready.block_size} tokens")
    parts.append(f"max_model_len {ready.max_model_len} tokens")
    return ", ".join(parts)


def _numbered(names: tuple[str, ...]) -> list[str]:
    """Each name once, with its number if there are several names."""
    counts = Counter(names)
    return [f"{count} x {name}" if len(counts) > 1 else name for name, count in counts.items()]


def _has_worked(before: Stats, stats: Stats) -> bool:
    counted = (stats.prompt_tokens, stats.generated_tokens, stats.steps)
    return counted != (before.prompt_tokens, before.generated_tokens, before.steps)


def _figures(before: Stats, stats: Stats, seconds: float) -> dict[str, float]:
    """What is logged; a share that is not known is missing."""
    figures = {
        "prompt_tokens_per_s": (stats.prompt_tokens - before.prompt_tokens) / seconds,
        "output_tokens_per_s": (stats.generated_tokens - before.generated_tokens) / seconds,
        "running": stats.live,
        "waiting": stats.waiting,
        "kv_share": stats.blocks_used / max(1, stats.blocks_total),
        "preemptions": stats.preemptions - before.preemptions,
        "stage_restarts": stats.restarts - before.restarts,
    }
    bubble_s, busy_s = (_sum(stats, name) - _sum(before, name) for name in ("bubble_s", "busy_s"))
    if bubble_s + busy_s > 0 and all(stage.has_exact_times for stage in stats.stages):
        figures["bubble_share"] = bubble_s / (bubble_s + busy_s)
    num_asked = stats.prefix_queries - before.prefix_queries
    if num_asked:
        figures["prefix_hit_share"] = (stats.prefix_hits - before.prefix_hits) / num_asked
    return {name: round(value, 3) for name, value in figures.items()}


def _line(figures: Mapping[str, float]) -> str:
    prompt_rate, output_rate = figures["prompt_tokens_per_s"], figures["output_tokens_per_s"]
    parts = [
        f"{prompt_rate:.1f} prompt and {output_rate:.1f} output tokens/s",
        f"{figures['running']:.0f} running and {figures['waiting']:.0f} waiting sequences",
    ]
    shares = {
        "kv_share": "KV cache",
        "bubble_share": "bubbles",
        "prefix_hit_share": "prefix cache hits",
    }
    parts += [f"{text} {figures[name]:.0%}" for name, text in shares.items() if name in figures]
    counts = {"preemptions": "preemptions", "stage_restarts": "restarts of the stages"}
    parts += [f"{figures[name]:.0f} {text}" for name, text in counts.items() if figures[name]]
    return ", ".join(parts)


def _sum(stats: Stats, name: str) -> float:
    return float(sum(getattr(stage, name) for stage in stats.stages))
