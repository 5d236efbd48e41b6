"""The requests of an input file that have no answer yet, read as they are wanted."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from server.batches.custom_ids import SortedIds
from server.batches.lines import LineRequest, parse_line, read_lines

CHUNK_LINES, CHUNK_BYTES = 256, 2**20


async def unanswered(path: Path, answered: SortedIds) -> AsyncGenerator[LineRequest]:
    """They come in the file's order, and but some of them are in memory at one time.

    The file has been validated. Raises `OSError`.
    """
    with path.open("rb") as file:
        lines = read_lines(file)
        while (chunk := await asyncio.to_thread(_next_chunk, lines, answered)) is not None:
            for request in chunk:
                yield request


def _next_chunk(
    lines: Iterator[tuple[int, bytes]], answered: SortedIds
) -> list[LineRequest] | None:
    """The requests of the next lines, maybe none; None at the end."""
    requests, num_lines, num_bytes = [], 0, 0
    for _, line in lines:
        request = parse_line(line)
        if request.custom_id not in answered:
            requests.append(request)
            num_bytes += len(line)
        num_lines += 1
        if num_lines == CHUNK_LINES or num_bytes >= CHUNK_BYTES:
            break
    return requests if num_lines else None
