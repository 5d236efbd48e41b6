"""Writes the table of the router's metrics in docs/router.md: `make metrics-table`."""

import sys

from configs.document_tables import DOCUMENTS, write_table
from router.monitoring.metrics import Metrics
from server.api_table.metrics_table import TARGET, rows_of, table_of

DOCUMENT = DOCUMENTS / "router.md"
GROUPS = {"": ("tdpipe_",), "The router's process (on Linux)": ("process_",)}


def table() -> str:
    """The table of a router's metrics."""
    return table_of(rows_of(Metrics().registry), GROUPS)


def main() -> int:
    """Write the table into the document."""
    write_table(DOCUMENT, TARGET, table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
