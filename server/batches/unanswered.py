"""The requests of an input file that have no answer yet, in the order in which they start."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from server.batches.storage.custom_ids import SortedIds
from server.batches.storage.lines import LineRequest, longest_answer, parse_line, read_lines

CHUNK_LINES, CHUNK_BYTES = 256, 2**20


async def unanswered(
    path: Path, answered: SortedIds, num_in_order: int = sys.maxsize
) -> AsyncGenerator[LineRequest]:
    """Yield the first `num_in_order` requests in the file's order, the rest longest first.

    Memory holds only a few requests at a time, and the file offsets of those sorted by length. The
    file must have been validated. Raises `OSError`.
    """
    with path.open("rb") as file:
        lines = _ordered(file, num_in_order)
        while (chunk := await asyncio.to_thread(_next_chunk, lines, answered)) is not None:
            for request in chunk:
                yield request


def _ordered(file: BinaryIO, num_in_order: int) -> Iterator[bytes]:
    numbered = read_lines(file)
    in_order = (line for _, line in islice(numbered, num_in_order))
    return chain(in_order, _longest_first(file, numbered))


def _longest_first(file: BinaryIO, numbered: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield the remaining lines, sorted by their longest answer in classes of powers of two.

    Lines of one class stay in the file's order, which keeps common prompt prefixes together.
    """
    places = []
    begins_at = file.tell()
    for _, line in numbered:
        num_tokens = longest_answer(parse_line(line).body)
        places.append((-num_tokens.bit_length(), begins_at))
        begins_at = file.tell()
    for _, begins_at in sorted(places):
        file.seek(begins_at)
        yield next(read_lines(file))[1]


def _next_chunk(lines: Iterator[bytes], answered: SortedIds) -> list[LineRequest] | None:
    """Return the unanswered requests of the next lines, possibly none; None at the end."""
    requests, num_lines, num_bytes = [], 0, 0
    for line in lines:
        request = parse_line(line)
        if request.custom_id not in answered:
            requests.append(request)
            num_bytes += len(line)
        num_lines += 1
        if num_lines == CHUNK_LINES or num_bytes >= CHUNK_BYTES:
            break
    return requests if num_lines else None
