"""With tensor parallelism the greedy tokens are transformers' own, whatever is lost meanwhile."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import gguf_files
from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference

NEAR_TIE = 1e-4
MAX_TOKENS = 24
LENGTHS = (1, 2, 3, 7, 16, 17, 31, 40, 64, 100, 150, 333)


@pytest.mark.parametrize(
    ("family", "num_stages", "num_ranks"),
    [
        ("mixtral", 2, 2),
        *(
            pytest.param(family, *size, marks=pytest.mark.long)
            for family in ("llama", "qwen3", "gemma2", "mixtral")
            for size in ((2, 1), (1, 2), (2, 2))
            if (family, size) != ("mixtral", (2, 2))
        ),
    ],
)
def test_the_tokens_are_those_of_transformers(
    family: str, num_stages: int, num_ranks: int, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", family, shard_size="300KB")
    prompts = random_prompts(family, LENGTHS)
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    arguments += ["-pp", str(num_stages), "-tp", str(num_ranks)]
    # The two longest prompts go in chunks.
    arguments += ["--device", "cpu", "--max-num-batched-tokens", "128"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        outputs = ask_at_once(daemon, prompts, MAX_TOKENS)
    reference = Reference(checkpoint, torch.float32)
    near_ties = reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE)
    assert near_ties <= 1, f"{near_ties} near-ties in {len(prompts)} answers"


@pytest.mark.long
def test_pickled_weights_are_divided_too(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    reference = Reference(checkpoint, torch.float32)
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    prompts = random_prompts("pickled", LENGTHS)
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--load-format", "pt"]
    arguments += ["--dtype", "float32", "-pp", "2", "-tp", "2", "--device", "cpu"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        outputs = ask_at_once(daemon, prompts, MAX_TOKENS)
    assert reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE) <= 1


@pytest.mark.long
def test_the_weights_of_a_gguf_file_are_divided_too(tmp_path: Path) -> None:
    file = gguf_files.write_gguf(tmp_path / "small.gguf", "Q8_0")
    gguf_files.reference(file, torch.float32).save_pretrained(tmp_path / "whole")
    reference = Reference(tmp_path / "whole", torch.float32)
    prompt = list(range(5, 30))
    arguments = ["--dtype", "float32", "-pp", "1", "-tp", "2", "--device", "cpu"]
    with Daemon(tmp_path, str(file), *arguments) as daemon, daemon.client() as client:
        answer = client.completions.create(
            model=client.models.list().data[0].id,
            prompt=prompt,
            max_tokens=MAX_TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
    ids = answer.choices[0].model_dump()["token_ids"]
    assert len(ids) == MAX_TOKENS
    assert reference.num_near_ties(prompt, ids, NEAR_TIE) <= 1


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Two stages of two ranks, with the demo model."""
    arguments = ["-pp", "2", "-tp", "2", "--device", "cpu", "--num-threads", "1"]
    with Daemon(tmp_path_factory.mktemp("ranks"), *arguments, "--max-restarts", "9") as running:
        yield running


def ask(daemon: Daemon, while_running: Callable[[], object]) -> list[str]:
    """The texts of two long answers, which are open while the function runs."""

    async def ask_all() -> list[str]:
        async with daemon.async_client() as client:
            running = [
                asyncio.create_task(
                    client.completions.create(
                        model="tdpipe-demo",
                        prompt=f"Count to {number} in words.\n",
                        max_tokens=200,
                        temperature=0,
                        extra_body={"ignore_eos": True},
                    )
                )
                for number in ("five", "nine")
            ]
            await asyncio.sleep(0.3)
            await asyncio.to_thread(while_running)
            answers = await asyncio.wait_for(asyncio.gather(*running), 90)
            return [answer.choices[0].text for answer in answers]

    return asyncio.run(ask_all())


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon) -> list[str]:
    """The texts when nothing happens."""
    return ask(daemon, lambda: None)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "stage 1 rank 1 was killed by SIGKILL"),
        (signal.SIGSTOP, "stage 1 rank 1 was silent"),
    ],
)
def test_requests_survive_the_loss_of_one_rank(
    number: signal.Signals, words: str, daemon: Daemon, undisturbed: list[str]
) -> None:
    last = daemon.descendants()["stage"][-1]
    assert ask(daemon, lambda: last.send_signal(number)) == undisturbed
    daemon.wait_ready()
    assert words in daemon.log()
    assert len(daemon.descendants()["stage"]) == 4
    assert not last.is_running() or last.status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_requests_survive_the_loss_of_the_engine(daemon: Daemon, undisturbed: list[str]) -> None:
    stages = daemon.descendants()["stage"]
    assert ask(daemon, daemon.descendants()["engine"][0].kill) == undisturbed
    daemon.wait_ready()
    assert daemon.descendants()["engine"][0].is_running()
    assert len(stages) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-tp", "8"], "heads (num_key_value_heads), which 8 ranks cannot share evenly"),
        (["-tp", "2", "--async-scheduling"], "cannot be used with tensor_parallel_size above 1"),
    ],
)
def test_what_cannot_be_divided_ends_the_start(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    refused = Daemon(tmp_path, "-pp", "1", "--device", "cpu", *arguments)
    with pytest.raises(AssertionError, match="the daemon ended"), refused:
        pass
    assert words in refused.log()
