"""The requests of an input file that have no answer yet, in the order in which they are begun."""

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
    """The file's first `num_in_order` requests come in its order, the rest the longest first.

    But some of them are in memory at one time, and of the rest where each begins. The file has been
    validated. Raises `OSError`.
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
    """What is left of the lines, by powers of two of their longest answers.

    Lines of a kind stay in the file's order: those that share a prompt's beginning are neighbours.
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
    """The requests of the next lines, maybe none; None at the end."""
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
