"""tdpipe doctor: what is well is said, and what is not is named."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from configs.config import Config
from doctor import node_checks
from doctor.command import main
from doctor.findings import Finding
from doctor.links import LOCAL_HOP_S, Link, LinkTimes, predict
from tests.checkpoints import make_checkpoint
from tests.end_to_end.daemon import ROOT, SECRET
from tests.hosts import Hosts, slow_down
from tests.hub import fake_hub, files_of

TIMEOUT_S = 120.0
SLOW_MS = 20.0
LOOPBACK = ("127.0.0.1", 0)
ABOUT_ONE_NODE = {"versions", "devices", "limits", "ports"}
ABOUT_TWO = ABOUT_ONE_NODE | {"names", "clocks", "model", "links", "pipeline"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("doctor") / "model", "llama")


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the doctor adds to it


def test_one_node_is_checked_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "-pp", "3", "--port", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == ABOUT_ONE_NODE
    assert any("3 stages on CPUs" in line for line in lines)


def test_a_hub_id_is_fetched(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tdpipe.py"), "doctor", "--device", "cpu"]
    command += ["--port", "0", "org/model"]
    with fake_hub(files_of(checkpoint)) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=True
        )
    assert {line.split()[1] for line in result.stdout.splitlines()} == ABOUT_ONE_NODE
    assert "fetching org/model, " in result.stderr
    assert list(tmp_path.glob("hub/*/snapshots/*/model.safetensors"))


def test_a_model_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--port", "0", str(tmp_path / "none")]) == 1
    assert f"error    model        model: there is no folder {tmp_path}" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if node_checks.torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--device", "cuda"]) == 1
    assert "error    devices      device is cuda, but torch" in capsys.readouterr().out


def test_wrong_flags_are_named_as_serve_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nnodes", "2"]) == 2
    assert "cluster_secret" in capsys.readouterr().err


def test_the_ports_of_a_daemon_that_runs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--nnodes", "2", "--cluster-secret", SECRET]
    with socket.create_server(LOOPBACK) as http, socket.create_server(LOOPBACK) as engine:
        ports = [str(listener.getsockname()[1]) for listener in (http, engine)]
        assert main([*flags, "--port", ports[0], "--master-port", ports[1]]) == 1
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert [line.split()[1] for line in errors] == ["ports", "ports"]
    assert f"port {ports[0]} is already in use on 127.0.0.1; stop what uses it" in errors[0]
    assert f"port {ports[1]} (master_port) is in use on 127.0.0.1; stop what uses it" in errors[1]
    assert "give another --master-port on all nodes" in errors[1]


def test_a_master_addr_of_another_host_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--nnodes", "2", "--cluster-secret", SECRET, "--port", "0"]
    assert main([*flags, "--master-addr", "198.51.100.7"]) == 1
    found = capsys.readouterr().out
    assert "error    ports        master_addr 198.51.100.7: this host has no such address" in found


def test_what_the_daemon_would_not_start_with_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--device", "cpu", "--port", "0", "--chat-template", "/nowhere/x"]) == 1
    found = capsys.readouterr().out
    assert "error    start        chat_template: /nowhere/x does not exist" in found


def test_a_limit_on_open_files_that_the_daemon_raises_is_no_shortage() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 4096:
        pytest.skip("the hard limit is low here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = list(node_checks.check_node(Config.of(device="cpu", port=0)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [finding for finding in found if "files may be open" in finding.text]


def test_the_memory_bandwidth_is_that_of_a_machine() -> None:
    assert 1e8 < node_checks.memory_bandwidth(Config.of(device="cpu")) < 1e14


@pytest.mark.parametrize(("hop_s", "level"), [(0.001, "ok"), (0.1, "warning")])
def test_the_bubble_is_what_hops_add_to_the_steps(
    checkpoint: Path, hop_s: float, level: str
) -> None:
    num_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    nodes = {"nnodes": 2, "cluster_secret": SECRET}
    config = Config.of(model=str(checkpoint), pipeline_parallel_size=4, **nodes)
    link = Link(LinkTimes(hop_s / 2, hop_s, 1.0), LinkTimes(hop_s / 2, 2 * hop_s, 1.0))
    finding = predict(config, [link], bytes_per_s=num_bytes / 4 / 0.01)  # steps of 10 ms
    hops_s = hop_s + 2 * LOCAL_HOP_S + hop_s / 2  # the last one takes the tokens to the first node
    bubble = hops_s / (0.04 + hops_s)
    assert finding.level == level
    assert f"at most {bubble:.0%} of a decode phase" in finding.text


@pytest.mark.parametrize("num_nodes", [2, 3])
def test_virtual_stages_hop_more_often_and_from_the_last_node_to_the_first(
    checkpoint: Path, num_nodes: int
) -> None:
    config = Config.of(
        model=str(checkpoint),
        pipeline_parallel_size=num_nodes,
        virtual_pipeline_size=2,
        nnodes=num_nodes,
        cluster_secret=SECRET,
    )
    there, back = LinkTimes(0.001, 0.004, 1.0), LinkTimes(0.001, 0.016, 1.0)
    links = [Link(there, back)] * (1 if num_nodes == 2 else 3)
    # Two rounds, the activations that return between them, and the tokens.
    last_s = 0.016 if num_nodes == 2 else 0.004
    hops_s = 2 * (num_nodes - 1) * 0.004 + last_s + 0.001
    finding = predict(config, links, bytes_per_s=1e9)
    assert f"with hops of {1000 * hops_s:.1f} ms in sum" in finding.text


def test_the_version_of_the_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(node_checks, "DRIVER", file)
    for line, version in [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22", "550.54.14"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release", "580.65"),
    ]:
        file.write_text(f"{line}\nGCC version:  gcc version 11.4.0\n")
        found, *_ = node_checks.check_node(Config.of(device="cpu", port=0))
        assert found.text.endswith(f", NVIDIA driver {version}")


def run_on(hosts: Hosts, flags: Sequence[Sequence[str]]) -> list[tuple[int, list[Finding]]]:
    """The exit code and the findings on each host, with flags of its own."""

    def run(rank: int) -> tuple[int, list[Finding]]:
        command = [*hosts.under(rank), sys.executable, str(ROOT / "tdpipe.py"), "doctor"]
        command += ["--nnodes", str(len(flags)), "--node-rank", str(rank)]
        command += ["--master-addr", hosts.address(0)]
        command += [
            "--cluster-secret",
            SECRET,
            "--device",
            "cpu",
            "--port",
            "0",
            *["--headless"][:rank],
        ]
        result = subprocess.run(
            [*command, *flags[rank]],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return result.returncode, [parse(line) for line in result.stdout.splitlines()]

    with ThreadPoolExecutor(len(flags)) as threads:
        return list(threads.map(run, range(len(flags))))


def parse(line: str) -> Finding:
    level, about, text = line.split(None, 2)
    found: Any = level
    return Finding(found, about, text)


def test_two_nodes_find_reach_and_measure_each_other(hosts: Hosts, checkpoint: Path) -> None:
    results = run_on(hosts, [[str(checkpoint)]] * 2)
    assert [code for code, _ in results] == [0, 0], results
    first, second = [findings for _, findings in results]
    assert {finding.about for finding in first} == ABOUT_TWO - {"clocks"}
    assert {finding.about for finding in second} == ABOUT_TWO - {"links", "pipeline"}
    links = [finding.text for finding in first if finding.about == "links"]
    assert [text.partition(":")[0] for text in links] == ["node 0 to node 1", "node 1 to node 0"]
    assert {f.level for f in first + second if f.about not in ("names", "limits", "pipeline")} == {
        "ok"
    }


@pytest.mark.long
def test_the_latency_of_each_link_is_measured(hosts: Hosts, checkpoint: Path) -> None:
    slow_down(hosts, SLOW_MS)
    results = run_on(hosts, [[str(checkpoint), "-pp", "3"]] * 3)
    links = [f.text for _, findings in results for f in findings if f.about == "links"]
    latencies = {text.partition(":")[0]: float(text.split()[5]) for text in links}
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)]
    assert set(latencies) == {f"node {first} to node {second}" for first, second in pairs}
    slow = {name for name, ms in latencies.items() if ms > SLOW_MS}
    assert slow == {f"node {first} to node {second}" for first, second in pairs[:4]}


@pytest.mark.long
def test_a_link_that_gloo_cannot_use_keeps_no_node_waiting(
    hosts: Hosts, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that is connected to has no error of its own."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    results = run_on(hosts, [[str(checkpoint)]] * 2)
    assert [code for code, _ in results] == [1, 1]
    for _, findings in results:
        assert any("GLOO_SOCKET_IFNAME is lo, and card0 has" in f.text for f in findings)


@pytest.mark.long
def test_a_node_with_another_setting_is_named_on_both(hosts: Hosts, checkpoint: Path) -> None:
    results = run_on(hosts, [[str(checkpoint)], [str(checkpoint), "--dtype", "float16"]])
    assert [code for code, _ in results] == [1, 1]
    for _, findings in results:
        (problem,) = [finding.text for finding in findings if finding.level == "error"]
        assert 'dtype is "float16", on the first node "auto"' in problem
