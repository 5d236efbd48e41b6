"""Pages: reads a part of a table in the order of creation, for the lists of the API."""

import sqlite3
from typing import NamedTuple

import msgspec

from server.openai.fields.batch import Order


class UnknownCursorError(Exception):
    """There is no row with the id after which the page should begin."""


class Page(NamedTuple):
    """Documents in order, each with its id, and whether more follow."""

    rows: list[tuple[str, str]]
    has_more: bool

    def as_list(self) -> bytes:
        """Return the API's list object; the documents are already JSON and are not parsed."""
        return msgspec.json.encode(
            {
                "object": "list",
                "data": [msgspec.Raw(document) for _, document in self.rows],
                "first_id": self.rows[0][0] if self.rows else "",
                "last_id": self.rows[-1][0] if self.rows else "",
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
    """Read rows of a table, after the row with the id `after`. Raises `UnknownCursorError`.

    `table`, `where` and `order` are inserted into the SQL without escaping, so they must not come
    from clients.
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
