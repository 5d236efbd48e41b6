"""The results: the cells' measurements, as the table in docs/reliability.md."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.faults.cells import FAULTS, PROCESSES, Cell, why_not

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- make faults: begin -->", "<!-- make faults: end -->"


@dataclass(frozen=True)
class Measured:
    """One cell: seconds from the fault to its detection, and the longest pause that clients saw.

    Where the daemon ended, `gone_s` is the time from its end until nothing was left. A figure that
    does not apply is NaN.
    """

    cell: Cell
    noticed_s: float
    pause_s: float
    gone_s: float


@dataclass
class Results:
    """The results of one run."""

    measured: list[Measured] = field(default_factory=list)

    def table(self) -> str:
        """A line for each fault and process."""
        return "\n".join(self._lines())

    def write(self) -> None:
        """Write it into the document; lines of cells that were not run stay as they are."""
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        old, _, after = rest.partition(END)
        new = self.table().splitlines()
        lines = {_key(line): line for line in [*old.strip().splitlines(), *new]}
        # Faults that no process can have are not among the measured pairs, and come last.
        measured = [
            lines[fault, process]
            for fault in FAULTS
            for process in PROCESSES
            if (fault, process) in lines and not why_not(fault, process)
        ]
        table = "\n".join([*new[:2], *measured, *_impossible_lines()])
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")

    def _lines(self) -> Iterator[str]:
        yield (
            "| fault | process | cells | noticed after, s | longest pause of all streams, s "
            "| nothing left after, s |"
        )
        yield "|---|---|---:|---:|---:|---:|"
        rows: dict[tuple[str, str], list[Measured]] = defaultdict(list)
        for measured in self.measured:
            rows[measured.cell.fault, measured.cell.process].append(measured)
        for fault in FAULTS:
            for process in PROCESSES:
                cells = rows[fault, process]
                if cells:
                    noticed = _spread([cell.noticed_s for cell in cells])
                    pause = _spread([cell.pause_s for cell in cells])
                    gone = _spread([cell.gone_s for cell in cells])
                    yield f"| {fault} | {process} | {len(cells)} | {noticed} | {pause} | {gone} |"
        yield from _impossible_lines()


def _impossible_lines() -> Iterator[str]:
    """A line for each process and reason why it does not have some faults."""
    for process in PROCESSES:
        reasons: dict[str, list[str]] = defaultdict(list)
        for fault in FAULTS:
            if reason := why_not(fault, process):
                reasons[reason].append(fault)
        for reason, faults in reasons.items():
            yield f"| {', '.join(faults)} | {process} | – | {reason} | | |"


def _key(line: str) -> tuple[str, ...]:
    """Fault and process of a line."""
    return tuple(line.removeprefix("| ").split(" | ")[:2])


def _spread(seconds: Sequence[float]) -> str:
    """Median and largest, without NaN."""
    numbers = [second for second in seconds if not math.isnan(second)]
    return f"{median(numbers):.2f} / {max(numbers):.2f}" if numbers else "–"
