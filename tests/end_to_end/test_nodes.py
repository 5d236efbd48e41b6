"""Stages on several hosts: the same answers, in any order of starts."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.cluster import Cluster
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.reference import Reference
from tests.hosts import Hosts, HostsImpossibleError, slow_down
from tests.hub import fake_hub, files_of

NEAR_TIE = 1e-4
LENGTHS = (1, 5, 30, 60, 90, 200)


@pytest.mark.parametrize(
    ("order", "arguments", "delay_ms"),
    [
        pytest.param((0, 1), ["-pp", "2"], 0, id="first node first"),
        pytest.param((1, 0), ["-pp", "2"], 0, id="first node last", marks=pytest.mark.long),
        pytest.param((2, 0, 1), ["-pp", "3"], 0, id="three nodes", marks=pytest.mark.long),
        pytest.param((0, 1), ["-pp", "3"], 20, id="slow link", marks=pytest.mark.long),
        pytest.param(
            (0, 1),
            ["-pp", "2", "--async-scheduling"],
            5,
            id="asynchronous scheduling",
            marks=pytest.mark.long,
        ),
        pytest.param(
            (1, 0), ["-pp", "2", "-tp", "2"], 0, id="ranks of stages", marks=pytest.mark.long
        ),
    ],
)
def test_greedy_tokens_are_those_of_transformers(
    hosts: Hosts, tmp_path: Path, order: tuple[int, ...], arguments: list[str], delay_ms: float
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    common = [str(checkpoint), "--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    prompts = random_prompts("nodes", LENGTHS)
    if delay_ms:
        slow_down(hosts, delay_ms)
    with Cluster(hosts, order, tmp_path, *common, *arguments) as cluster:
        outputs = ask_at_once(cluster.first, prompts, 20)
    reference = Reference(checkpoint, torch.float32)
    assert reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE) == 0


@pytest.mark.long
def test_nodes_that_meet_by_ipv6_answer_like_transformers(hosts: Hosts, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    common = [str(checkpoint), "--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    prompts = random_prompts("nodes", LENGTHS)
    try:
        meeting = ["--master-addr", hosts.ipv6_address(0)]
    except HostsImpossibleError as error:
        pytest.skip(str(error))
    own = {0: meeting, 1: meeting}
    with Cluster(hosts, (1, 0), tmp_path, *common, "-pp", "2", own=own) as cluster:
        outputs = ask_at_once(cluster.first, prompts, 20)
    reference = Reference(checkpoint, torch.float32)
    assert reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE) == 0


@pytest.mark.long
def test_each_node_has_the_model_from_the_hub_or_a_folder_of_its_own(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    prompts = random_prompts("nodes", LENGTHS)
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "-pp", "3"]
    own = {0: ["model"], 1: [str(checkpoint)], 2: ["model"]}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # one disk: the first fetches for both
    with fake_hub(files_of(checkpoint), "model", hosts.own_address) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with Cluster(hosts, (2, 0, 1), tmp_path, *arguments, own=own) as cluster:
            outputs = ask_at_once(cluster.first, prompts, 20)
    reference = Reference(checkpoint, torch.float32)
    assert reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE) == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["--block-size", "32"], "block_size"),
        pytest.param(["--dtype", "float32"], "dtype", marks=pytest.mark.long),
    ],
)
def test_a_node_with_another_setting_ends_and_is_named_on_both(
    hosts: Hosts, tmp_path: Path, setting: list[str], words: str
) -> None:
    cluster = Cluster(hosts, (0, 1), tmp_path, "-pp", "2", own={1: setting})
    first, second = cluster.nodes
    with ExitStack() as stack:
        for node in (first, second):
            stack.push(node.__exit__)
            node.start()
        assert second.wait_end(60) == 1
        first.wait_for(lambda: words in first.log())
        assert first.is_running  # it waits for a node that fits
        assert words in second.log()
