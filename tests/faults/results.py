"""The results: what the cells measured, as the table in docs/reliability.md."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.faults.cells import FAULTS, PROCESSES, Cell, Process, why_not

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- make faults: begin -->", "<!-- make faults: end -->"


@dataclass(frozen=True)
class Measured:
    """One cell: seconds from the fault to the notice, and the longest pause that clients saw.

    Where the daemon ended, `gone_s` from its end until nothing was left. What does not apply is not
    a number.
    """

    cell: Cell
    noticed_s: float
    pause_s: float
    gone_s: float


@dataclass
class Results:
    """Those of one run."""

    measured: list[Measured] = field(default_factory=list)

    def table(self) -> str:
        """A line for each fault and process."""
        return "\n".join(self._lines())

    def write(self) -> None:
        """Put it into the document, where lines of cells that were not run stay as they are."""
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        old, _, after = rest.partition(END)
        lines = {_key(line): line for line in old.strip().splitlines()[2:]}
        head = self.table().splitlines()
        lines |= {_key(line): line for line in head[2:]}
        known = [line for key in _keys() if (line := lines.get(key))]
        table = "\n".join([*head[:2], *known])
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
        for process in PROCESSES:
            for reason, faults in _impossible(process).items():
                yield f"| {', '.join(faults)} | {process} | – | {reason} | | |"


def _impossible(process: Process) -> dict[str, list[str]]:
    """Faults that the process does not have, by the reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for fault in FAULTS:
        if reason := why_not(fault, process):
            reasons[reason].append(fault)
    return reasons


def _key(line: str) -> tuple[str, str]:
    """Fault and process of a line."""
    fault, process = line.split(" | ")[:2]
    return fault.removeprefix("| "), process


def _keys() -> Iterator[tuple[str, str]]:
    """Those of all lines, in their order."""
    yield from ((fault, process) for fault in FAULTS for process in PROCESSES)
    for process in PROCESSES:
        yield from ((", ".join(faults), process) for faults in _impossible(process).values())


def _spread(seconds: Sequence[float]) -> str:
    """Median and largest of those that are numbers."""
    numbers = [second for second in seconds if not math.isnan(second)]
    return f"{median(numbers):.2f} / {max(numbers):.2f}" if numbers else "–"
