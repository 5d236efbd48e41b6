"""Node facts: whatever would make two nodes disagree is in them, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.config import Config
from configs.schema.model import DEMO_MODEL
from daemon.host.node_facts import facts_of
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("facts") / "model", "llama")
    for file in DEMO_MODEL.glob("*token*.json"):
        shutil.copy(file, folder)
    return folder


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


def test_a_revision_and_the_places_of_model_and_tokenizer_belong_to_a_node(
    checkpoint: Path, tmp_path: Path
) -> None:
    """One node has the hub's id, another one a folder with a copy."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert facts(copy, revision="abc", tokenizer=str(copy)) == facts(checkpoint)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", '{"eos_token": "<other>"}'),
        ("tokenizer_config.json", "no JSON"),
        ("added_tokens.json", "{}"),
    ],
)
def test_another_tokenizer_is_named(
    checkpoint: Path, tmp_path: Path, name: str, contents: str | None
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    if contents is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(contents)
    assert differing(facts(copy), facts(checkpoint)) == {"the tokenizer"}
    assert (f"{name} " in facts(copy)["the tokenizer"]) is (contents is not None)


def test_a_chat_template_and_paths_in_the_tokenizers_settings_are_not_the_tokenizer(
    checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"chat_template": "x", "name_or_path": str(copy)}
    file.write_text(json.dumps(settings, indent=7))
    (copy / "chat_template.jinja").write_text("x")
    assert facts(copy) == facts(checkpoint)


def test_a_tokenizer_without_tokenizer_json_is_compared_too(tmp_path: Path) -> None:
    one, other, none = (
        make_checkpoint(tmp_path / name, "llama") for name in ("one", "other", "none")
    )
    (one / "tokenizer.model").write_text("a")
    (other / "tokenizer.model").write_text("b")
    assert differing(facts(one), facts(other)) == {"the tokenizer"}
    assert facts(none)["the tokenizer"] == "missing"


def test_a_tokenizer_of_the_hub_is_compared_by_its_id_and_revision(checkpoint: Path) -> None:
    one, other = (facts(checkpoint, tokenizer="org/x", revision=r) for r in (None, "abc"))
    assert one["the tokenizer"] == "org/x at main"
    assert differing(one, other) == {"the tokenizer"}
