"""Stages on several hosts: the same answers, in any order of starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.cluster import Cluster
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.reference import Reference
from tests.hosts import Hosts, HostsImpossibleError

NEAR_TIE = 1e-4
LENGTHS = (1, 5, 30, 60, 90, 200)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(3) as three:
            yield three
    except HostsImpossibleError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "first-last"])
def test_greedy_tokens_are_those_of_transformers(
    hosts: Hosts, tmp_path: Path, order: tuple[int, ...]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    arguments = [str(checkpoint), "--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    prompts = random_prompts("nodes", LENGTHS)
    with Cluster(hosts, order, tmp_path, *arguments, "-pp", "2") as cluster:
        outputs = ask_at_once(cluster.first, prompts, 20)
    reference = Reference(checkpoint, torch.float32)
    assert not sum(
        reference.num_near_ties(prompt, got, NEAR_TIE)
        for prompt, got in zip(prompts, outputs, strict=True)
    )
