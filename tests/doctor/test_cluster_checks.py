"""Checks between nodes, each on a thread of this process: options of one node stop no other one."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from torch.distributed import HashStore

from configs.config import Config
from doctor import cluster_checks, meeting
from doctor.findings import Finding
from doctor.meeting import Meeting
from tests.checkpoints import make_checkpoint
from tests.end_to_end.daemon import SECRET

TIMEOUT_S = 30.0

needs_ipv6 = pytest.mark.skipif(
    "::1" not in {a.address for a in psutil.net_if_addrs()["lo"]}, reason="no IPv6 here"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checks") / "model", "llama")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "NOTE_TIMEOUT_S", TIMEOUT_S)


def on_each(num_nodes: int, check: Callable[[Meeting], Iterable[Finding]]) -> list[list[Finding]]:
    """The findings of each node."""
    store = HashStore()

    def run(node: int) -> list[Finding]:
        return list(check(Meeting(node, num_nodes, store)))

    with ThreadPoolExecutor(num_nodes) as threads:
        return list(threads.map(run, range(num_nodes)))


@pytest.mark.parametrize("reads", [(True, False, True), (False, True, True)])
def test_files_that_one_node_does_not_read_are_not_compared(
    checkpoint: Path, reads: tuple[bool, ...]
) -> None:
    config = Config.of(model=str(checkpoint))
    found = on_each(3, lambda met: cluster_checks.check_files(met, config, reads=reads[met.node]))
    text = f"files are not compared: --no-hashes was given on node {reads.index(False)}"
    assert found == [[Finding("warning", "model", text)]] * 3


def test_files_that_no_node_reads_are_no_finding(checkpoint: Path) -> None:
    config = Config.of(model=str(checkpoint))
    assert on_each(2, lambda met: cluster_checks.check_files(met, config, reads=False)) == [[], []]


def test_files_that_all_nodes_read_are_compared(checkpoint: Path) -> None:
    config = Config.of(model=str(checkpoint))
    found = on_each(2, lambda met: cluster_checks.check_files(met, config, reads=True))
    assert [finding.level for findings in found for finding in findings] == ["ok", "ok"]


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_nodes_find_and_reach_each_other_with_both_kinds_of_addresses(address: str) -> None:
    config = Config.of(nnodes=2, master_addr=address, cluster_secret=SECRET)
    names = on_each(2, lambda met: cluster_checks.check_names(met, config))
    assert all(address in finding.text for findings in names for finding in findings)
    ports = on_each(2, lambda met: cluster_checks.check_ports(met, config))
    assert [finding.level for findings in ports for finding in findings] == ["ok", "ok"]


def test_another_version_of_nccl_is_an_error_where_gpus_use_it() -> None:
    versions = ("2.28.9", "2.27.3", "", "2.28.9")
    found = on_each(4, lambda met: cluster_checks.check_nccl(met, versions[met.node]))
    text = "NCCL is 2.27.3, on the first node 2.28.9: install the same build of torch"
    assert found == [[], [Finding("error", "versions", text)], [], []]
