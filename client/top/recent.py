"""What a viewer has seen of the last 30 s: the last status, the samples and the steps."""

from collections import deque
from dataclasses import dataclass, field

from wire.pipeline_status import KEPT_S, PipelineStatus, Sample


@dataclass(frozen=True, slots=True)
class Span:
    """A step on a stage; `phase` is its letter."""

    phase: str
    began_at: float
    ended_at: float


@dataclass
class Recent:
    """Call `take` with each status of a stream; `status` is the last one."""

    status: PipelineStatus | None = None
    samples: deque[Sample] = field(default_factory=deque)
    spans: list[deque[Span]] = field(default_factory=list)

    def take(self, status: PipelineStatus) -> None:
        """Add what is new, and forget what is too old."""
        self.status = status
        self.samples.extend(status.samples)
        while len(self.spans) < status.num_stages:
            self.spans.append(deque())
        steps = status.steps
        columns = (steps.stages, steps.phases, steps.began_at, steps.ended_at)
        for stage, phase, began_at, ended_at in zip(*columns, strict=True):
            if stage < len(self.spans):
                self.spans[stage].append(Span(phase, began_at, ended_at))
        oldest = status.at - KEPT_S
        while self.samples and self.samples[0].at < oldest:
            self.samples.popleft()
        for spans in self.spans:
            while spans and spans[0].ended_at < oldest:
                spans.popleft()

    @property
    def sample(self) -> Sample:
        """The last sample; there is one with each first status of a stream."""
        return self.samples[-1]

    def known_columns(self, num_columns: int) -> int:
        """The columns that are known: while sequences are live, up to the last step that ended."""
        assert self.status is not None
        ends = [spans[-1].ended_at for spans in self.spans if spans]
        if not ends or not self.sample.live:
            return num_columns
        return min(num_columns, round(num_columns * (1 - (self.status.at - max(ends)) / KEPT_S)))

    def shares(self, stage: int, num_columns: int) -> list[dict[str, float]]:
        """The part of each column of the last 30 s that the stage ran steps, by phase."""
        assert self.status is not None
        column_s, begin = KEPT_S / num_columns, self.status.at - KEPT_S
        shares: list[dict[str, float]] = [{} for _ in range(num_columns)]
        for span in self.spans[stage]:
            first = max(0, int((span.began_at - begin) / column_s))
            last = min(num_columns - 1, int((span.ended_at - begin) / column_s))
            for i in range(first, last + 1):
                left = begin + i * column_s
                part_s = min(span.ended_at, left + column_s) - max(span.began_at, left)
                if part_s > 0:
                    shares[i][span.phase] = shares[i].get(span.phase, 0.0) + part_s / column_s
        return shares

    def columns(self, name: str, num_columns: int) -> list[float | None]:
        """A field of the samples: the greatest value in each column, or that of the one before."""
        assert self.status is not None
        column_s, begin = KEPT_S / num_columns, self.status.at - KEPT_S
        values: list[float | None] = [None] * num_columns
        for sample in self.samples:
            i = min(num_columns - 1, max(0, int((sample.at - begin) / column_s)))
            value = float(getattr(sample, name))
            known = values[i]
            values[i] = value if known is None else max(known, value)
        last: float | None = None
        for i, known in enumerate(values):
            values[i] = last = known if known is not None else last
        return values
