"""The page: a part of a table in the order of creation, as the API lists it."""

import sqlite3
from typing import NamedTuple

import msgspec

from server.openai.fields.batch import Order


class UnknownCursorError(Exception):
    """There is nothing with the id that a page shall begin after."""


class Page(NamedTuple):
    """Documents in order, each with its id, and whether more follow."""

    rows: list[tuple[str, str]]
    has_more: bool

    def as_list(self) -> bytes:
        """The API's list of them; they are JSON already, and never parsed."""
        return msgspec.json.encode(
            {
                "object": "list",
                "data": [msgspec.Raw(document) for _, document in self.rows],
                "first_id": self.rows[0][0] if self.rows else None,
                "last_id": self.rows[-1][0] if self.rows else None,
                "has_more": self.has_more,
            }
        )


def read_page(
    connection: sqlite3.Connection,
    table: str,
    where: str,
    values: tuple[object, ...],
    after: str | None,
    limit: int,
    order: Order,
) -> Page:
    """Some rows of a table, after the one with this id. Raises `UnknownCursorError`.

    `table`, `where` and `order` are ours, never the client's words.
    """
    bound = {"asc": 0, "desc": 2**63 - 1}[order]
    if after is not None:
        row = connection.execute(f"SELECT seq FROM {table} WHERE id = ?", (after,)).fetchone()
        if row is None:
            raise UnknownCursorError(after)
        (bound,) = row
    beyond = ">" if order == "asc" else "<"
    rows = connection.execute(
        f"SELECT id, document FROM {table} WHERE seq {beyond} ? AND {where} "
        f"ORDER BY seq {order} LIMIT ?",
        (bound, *values, limit + 1),
    ).fetchall()
    return Page(rows[:limit], len(rows) > limit)
