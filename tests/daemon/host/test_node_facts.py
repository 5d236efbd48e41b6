"""Node facts: whatever would make two nodes disagree is in them, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.config import Config
from daemon.host.node_facts import facts_of
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("facts") / "model", "llama")


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


def facts(model: Path, **settings: Any) -> dict[str, str]:
    return facts_of(Config.of(model=str(model), **settings))


def test_versions_and_the_model_are_there(checkpoint: Path) -> None:
    found = facts(checkpoint)
    assert {"tdpipe", "Python", "torch", "transformers"} <= set(found)
    assert {"the model's config.json", "the model's weights"} <= set(found)


def test_a_copy_at_another_path_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert facts(copy, num_threads=1, device="cpu") == facts(checkpoint, port=9)


@pytest.mark.parametrize("at", [100, -1])
def test_other_weights_are_another_model(checkpoint: Path, tmp_path: Path, at: int) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    path = next(copy.glob("*.safetensors"))
    contents = bytearray(path.read_bytes())
    contents[at] ^= 1
    path.write_bytes(contents)
    assert differing(facts(copy), facts(checkpoint)) == {"the model's weights"}


def test_settings_of_the_stages_are_compared_by_name(checkpoint: Path) -> None:
    one = facts(checkpoint, dtype="float32", max_model_len=100)
    assert differing(one, facts(checkpoint)) == {"dtype", "max_model_len"}
    assert one["max_model_len"] == "100"


def test_the_number_of_nodes_is_compared(checkpoint: Path) -> None:
    """A node that knows of a third one waits for it for ever."""
    secret = "a-secret-of-24-characters"
    two, three = (
        facts(checkpoint, pipeline_parallel_size=3, nnodes=n, cluster_secret=secret) for n in (2, 3)
    )
    assert differing(two, three) == {"nnodes"}
