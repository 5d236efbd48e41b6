"""The table in docs/metrics.md is the one that the code writes."""

import re

from prometheus_client import CollectorRegistry, Counter, Gauge

from configs.document_tables import has_table
from server.api_table.metrics_table import DOCUMENT, TARGET, MetricRow, rows_of, table, table_of


def test_the_document_has_the_current_table() -> None:
    assert has_table(DOCUMENT, TARGET, table()), "make metrics-table writes it"


def test_metrics_are_named_as_on_the_page_and_have_their_labels() -> None:
    registry = CollectorRegistry()
    Counter("a_things", "Things", ["kind", "size"], registry=registry)
    Gauge("b_things", "Things now", registry=registry)
    assert rows_of(registry) == [
        MetricRow("a_things_total", "counter", ("kind", "size"), "Things"),
        MetricRow("b_things", "gauge", (), "Things now"),
    ]


def test_rows_are_grouped_by_their_longest_prefix_in_the_order_of_the_prefixes() -> None:
    names = ["t_x", "t_a_1", "t_b", "t_a_2"]
    rows = [MetricRow(name, "gauge", (), "") for name in names]
    text = table_of(rows, {"": ("t_b",), "Rest": ("t_",), "A": ("t_a_2", "t_a")})
    assert re.findall(r"^\| (?:\*\*|`)(\w+)", text, re.MULTILINE) == [
        *("t_b", "Rest", "t_x", "A", "t_a_2", "t_a_1")
    ]


def test_every_metric_says_what_it_means() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| (.*) \|$", table(), re.MULTILINE)
    assert len(rows) > 60
    assert [name for name, meaning in rows if not meaning] == []
