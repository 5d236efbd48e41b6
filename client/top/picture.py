"""The picture of the pipeline: figures, a track for each stage, and three charts.

Without colours (`NO_COLOR`, a pipe), tracks have letters for phases and a dot for a bubble.
"""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from client.top.recent import Recent
from wire.pipeline_status import KEPT_S, PipelineStatus, Quantiles

# As on the page: the colours of Okabe and Ito.
_PHASES = {"p": "#e69f00", "d": "#56b4e9", "m": "#2bbf93"}
_NAMES = {"prefill": "p", "decode": "d", "mixed": "m"}
_BUBBLE, _IDLE = "#6b2f33", "#303030"
_STATES = {"ready": "#4cc38a", "engine lost": "#ff8a80"}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_HIGHEST = 7  # of charts, which would touch each other
_LEFT, _RIGHT, _LEAST_COLUMNS = 11, 9, 10
# Columns of a figure.
_FIGURE = 34
# The least top of a chart, so that two waiting sequences are no mountain.
_CHARTS = (
    ("tokens/s", "generated_per_s", 10.0, "#56b4e9"),
    ("sequences", "live", 4.0, "white"),
    ("waiting", "waiting", 4.0, "#ff8a3d"),
    ("KV cache", "kv_usage", 0.1, "#8b97a3"),
)


class Picture:
    """What rich draws; it has as many columns as the terminal has."""

    def __init__(self, recent: Recent, notice: str = "") -> None:
        self._recent, self._notice = recent, notice

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status = self._recent.status
        if status is None:
            yield Text(self._notice or "connecting", style="yellow")
            return
        num_columns = max(_LEAST_COLUMNS, options.max_width - _LEFT - _RIGHT)
        yield _head(self._recent, status)
        yield Text(self._notice or (status.reason if status.state != "ready" else ""), style="red")
        yield _figures(self._recent, status, options.max_width)
        yield Text()
        yield _tracks(self._recent, status, num_columns, in_colour=console.color_system is not None)
        yield Text()
        yield _charts(self._recent, num_columns)


def _head(recent: Recent, status: PipelineStatus) -> Group:
    state = "idle" if is_idle(recent) else status.state
    line = Text.assemble(
        (status.models[0], "bold"), "  ", (state, _STATES.get(status.state, "yellow")), "  "
    )
    if state != "idle":
        line.append(recent.sample.phase, _PHASES[_NAMES[recent.sample.phase]])
    stages = "1 stage" if status.num_stages == 1 else f"{status.num_stages} stages"
    line.append(f"   {stages}, {status.policy}, tdpipe {status.version}", "dim")
    return Group(line)


def _figures(recent: Recent, status: PipelineStatus, width: int) -> Table:
    """Eight figures, as many in a row as there is space for."""
    sample = recent.sample
    bubble = mean_bubble(status)
    kv = f" of {_short(status.kv_tokens)} tokens" if status.kv_tokens else ""
    cells = (
        ("generated", f"{sample.generated_per_s:,.0f}", " tokens/s"),
        ("prompts", f"{sample.prompt_per_s:,.0f}", " tokens/s"),
        ("first token", *_times(status.first_token_s)),
        ("per token", *_times(status.per_token_s)),
        ("open", f"{sample.open_requests:,}", " requests"),
        ("queue", f"{sample.queued:,}", " sequences"),
        ("KV cache", f"{sample.kv_usage:.0%}", kv),
        ("bubbles", "–" if bubble is None else f"{bubble:.0%}", ""),
    )
    in_row = next((number for number in (4, 2) if number * _FIGURE <= width), 1)
    table = Table.grid()
    for _ in range(in_row):
        table.add_column(no_wrap=True, width=min(width, _FIGURE))
    texts = [
        Text.assemble((f"{name:12}", "dim"), (value, "bold"), (unit, "dim"))
        for name, value, unit in cells
    ]
    for begin in range(0, len(texts), in_row):
        table.add_row(*texts[begin : begin + in_row])
    return table


def _short(number: int) -> str:
    """A number with three digits: 1.05M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _times(quantiles: Quantiles | None) -> tuple[str, str]:
    if quantiles is None:
        return "–", ""
    return duration(quantiles.p50), f" p95 {duration(quantiles.p95)}"


def _tracks(recent: Recent, status: PipelineStatus, num_columns: int, *, in_colour: bool) -> Table:
    table = _grid()
    shares = [recent.shares(stage, num_columns) for stage in range(status.num_stages)]
    busy = [[sum(column.values()) for column in stage] for stage in shares]
    work = [min(1.0, max(column)) for column in zip(*busy, strict=True)]
    bubbles = {each.stage: each.bubble for each in status.stages}
    draw = _coloured if in_colour else _lettered
    num_known = recent.known_columns(num_columns)
    for stage, columns in enumerate(shares):
        share = bubbles.get(stage)
        known = zip(columns[:num_known], work, strict=False)
        track = Text(no_wrap=True).join(draw(column, share) for column, share in known)
        bubble = Text("–" if share is None else f"{share:.0%}")
        table.add_row(Text(f"stage {stage}"), track, bubble)
    table.add_row(Text(), _scale(num_columns), Text("bubbles", style="dim"))
    return table


def _coloured(shares: dict[str, float], work: float) -> Text:
    """A bar as high as the share of the most frequent phases, on the colour of a bubble."""
    busy = min(1.0, sum(shares.values()))
    behind = f"on {_BUBBLE}" if work - busy > 0.05 else f"on {_IDLE}"
    if not shares:
        return Text(" ", style=behind)
    phase = max(shares, key=lambda letter: shares[letter])
    return Text(_BLOCKS[max(1, round(8 * busy))], style=f"{_PHASES[phase]} {behind}")


def _lettered(shares: dict[str, float], work: float) -> Text:
    busy = sum(shares.values())
    if shares and busy >= work / 2:
        return Text(max(shares, key=lambda letter: shares[letter]))
    return Text("." if work > 0.05 else " ")


def _scale(num_columns: int) -> Text:
    left = f"-{KEPT_S:.0f} s"
    return Text(f"{left}{'now':>{num_columns - len(left)}}", style="dim")


def _charts(recent: Recent, num_columns: int) -> Table:
    table = _grid()
    for name, field, least_top, colour in _CHARTS:
        values = recent.columns(field, num_columns)
        known = [value for value in values if value is not None]
        top = max(least_top, *known) if known else least_top
        last = known[-1] if known else 0.0
        shown = f"{last:.0%}" if field == "kv_usage" else f"{last:,.0f}"
        table.add_row(Text(name), Text(_line(values, top), style=colour), Text(shown, style="dim"))
    return table


def _line(values: Sequence[float | None], top: float) -> str:
    return "".join(
        " " if value is None else _BLOCKS[max(1 if value else 0, round(_HIGHEST * value / top))]
        for value in values
    )


def _grid() -> Table:
    table = Table.grid()
    table.add_column(width=_LEFT, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(width=_RIGHT, no_wrap=True, justify="right")
    return table


def is_idle(recent: Recent) -> bool:
    """Whether it is ready and has nothing to do."""
    status, sample = recent.status, recent.sample
    is_ready = status is not None and status.state == "ready"
    return is_ready and not (sample.live or sample.waiting or sample.queued)


def mean_bubble(status: PipelineStatus) -> float | None:
    """The mean of the stages' bubbles, or None if none is known."""
    shares = [stage.bubble for stage in status.stages if stage.bubble is not None]
    return sum(shares) / len(shares) if shares else None


def duration(seconds: float) -> str:
    """Seconds or milliseconds, with three digits."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.{1 if seconds < 0.00995 else 0}f} ms"
