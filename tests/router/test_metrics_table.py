"""The table of metrics in docs/router.md is the one that the code writes."""

import re

from configs.document_tables import has_table
from router.monitoring.metrics import Metrics
from router.monitoring.metrics_table import DOCUMENT, table
from server.api_table.metrics_table import TARGET


def test_the_document_has_the_current_table() -> None:
    assert has_table(DOCUMENT, TARGET, table()), "make metrics-table writes it"


def test_every_metric_of_the_page_is_in_the_table() -> None:
    page = re.findall(r"^# TYPE (\S+) (\S+)$", Metrics().render().decode(), re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", table(), re.MULTILINE)
    assert sorted(rows) == sorted(page)
