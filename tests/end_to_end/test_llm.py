"""The offline API with real stages: the daemon's answers without the daemon, and nothing left."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from client.offline import OfflineEngineError
from demo.tasks import held_out
from tdpipe import LLM, SamplingParams
from tests.end_to_end.daemon import END_TIMEOUT_S, ROOT, Daemon, all_gone
from tests.kernels import prepare_data_dir
from tests.processes import words_of

GREEDY = SamplingParams(temperature=0, max_tokens=300)


def children() -> set[psutil.Process]:
    """All processes of this one, those of other tests' daemons too."""
    return set(psutil.Process().children(recursive=True))


def start(folder: Path) -> LLM:
    return LLM(
        pipeline_parallel_size=2, profile_seconds=0.3, data_dir=str(prepare_data_dir(folder))
    )


@pytest.fixture(scope="module")
def others(demo: Daemon) -> set[psutil.Process]:
    """Processes that are not the module's; the daemon of some of its tests runs already."""
    assert demo.is_running
    return children()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, others: set[psutil.Process]) -> Iterator[LLM]:
    """The demo model; the module leaves no process behind, also of those that came later."""
    with start(tmp_path_factory.mktemp("llm")) as llm:
        at_first = children() - others
        assert len(at_first) >= 4, "engine, torchrun and two stages"
        yield llm
        at_last = children() - others
    assert all_gone(list(at_first | at_last), 5.0)


def test_prompts_may_be_vllms_dictionaries(llm: LLM) -> None:
    text = "Count to three in words.\n"
    (plain,) = llm.generate(text, GREEDY, use_tqdm=False)
    given = [{"prompt": text}, {"prompt_token_ids": plain.prompt_token_ids}]
    for output in llm.generate(given, GREEDY, use_tqdm=False):
        assert output.outputs[0].text == plain.outputs[0].text


def test_greedy_answers_are_the_daemon_s(llm: LLM, demo: Daemon) -> None:
    tasks = held_out(16, seed=3)
    outputs = llm.generate([task.prompt for task in tasks], GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == [task.prompt for task in tasks]
    with demo.client() as client:
        for task, output in zip(tasks, outputs, strict=True):
            answer = client.completions.create(
                model="tdpipe-demo", prompt=task.prompt, temperature=0, max_tokens=300
            )
            assert output.outputs[0].text == answer.choices[0].text
            assert output.outputs[0].finish_reason == answer.choices[0].finish_reason
            assert answer.usage is not None
            assert len(output.prompt_token_ids) == answer.usage.prompt_tokens
            assert len(output.outputs[0].token_ids) == answer.usage.completion_tokens


def test_token_ids_are_the_same_prompt_as_their_text(llm: LLM) -> None:
    (by_text,) = llm.generate("Count to seven in words.\n", GREEDY, use_tqdm=False)
    (by_ids,) = llm.generate(by_text.prompt_token_ids, GREEDY, use_tqdm=False)
    (in_list,) = llm.generate([by_text.prompt_token_ids], [GREEDY], use_tqdm=False)
    assert by_ids.prompt is None
    assert by_text.outputs == by_ids.outputs == in_list.outputs
    assert by_text.outputs[0].text == "one two three four five six seven"


def test_an_answer_without_tokens_has_its_length(llm: LLM) -> None:
    (output,) = llm.generate("Hello", SamplingParams(max_tokens=0, n=2), use_tqdm=False)
    assert [(each.text, each.finish_reason) for each in output.outputs] == [("", "length")] * 2


def test_log_probabilities_stand_at_their_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=0, n=2)
    (output,) = llm.generate("Count to three in words.\n", params, use_tqdm=False)
    assert len(output.outputs) == 2
    for answer in output.outputs:
        assert answer.logprobs is not None
        for token_id, place in zip(answer.token_ids, answer.logprobs, strict=True):
            assert place[token_id].rank == 1, "greedy"
        assert answer.cumulative_logprob is not None
        assert -1 < answer.cumulative_logprob < 0
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_a_conversation_is_answered(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Count to three in words."}]
    outputs = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == ["one two three"] * 2
    (single,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert single.outputs == outputs[0].outputs


def test_an_invalid_request_is_a_value_error_and_the_others_continue(llm: LLM) -> None:
    with pytest.raises(ValueError, match="maximum context length"):
        llm.generate(["a", "b"], SamplingParams(max_tokens=100_000), use_tqdm=False)
    with pytest.raises(ValueError, match="token ids"):
        llm.generate([[10**6]], use_tqdm=False)
    with pytest.raises(ValueError, match="empty"):
        llm.generate("", use_tqdm=False)
    assert llm.generate([], use_tqdm=False) == []
    (output,) = llm.generate("Count to three in words.\n", GREEDY, use_tqdm=False)
    assert output.outputs[0].text == "one two three"


def test_a_form_is_kept_to(llm: LLM) -> None:
    """Its checker is a process too, and ends with the module's others."""
    params = SamplingParams.model_validate({"structured_outputs": {"choice": ["yes", "no"]}})
    before = set(psutil.Process().children())
    (output,) = llm.generate("Count to three in words.\n", params, use_tqdm=False)
    (checker,) = set(psutil.Process().children()) - before
    assert output.outputs[0].text in ("yes", "no")
    assert checker.is_running()


@pytest.mark.parametrize("module", ["workers", "engine"])
def test_prompts_outlast_a_stage_and_an_engine_that_are_killed(
    module: str, llm: LLM, others: set[psutil.Process]
) -> None:
    own = sorted(children() - others, key=lambda process: process.create_time())
    victims = [process for process in own if module in words_of(process)]
    victims[-1].kill()  # of the workers, the first is torchrun
    outputs = llm.generate(["Count to three in words.\n"] * 4, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == ["one two three"] * 4


def test_a_missing_model_is_reported_at_once() -> None:
    with pytest.raises(OfflineEngineError, match="no folder /nowhere"):
        LLM("/nowhere/at/all").__enter__()


def test_ctrl_c_ends_a_generation_if_another_thread_receives_it(llm: LLM) -> None:
    """The signal does not interrupt the wait of the main thread then."""
    pressing = threading.Timer(
        0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    )
    pressing.start()
    # Far more tokens than a test has time for.
    params = SamplingParams(max_tokens=2000, ignore_eos=True, n=16)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a"] * 100, params, use_tqdm=False)
    pressing.join()
    (output,) = llm.generate("Count to three in words.\n", GREEDY, use_tqdm=False)
    assert output.outputs[0].text == "one two three"


SCRIPT = """
    import sys
    from tdpipe import LLM, SamplingParams

    with LLM(profile_seconds=0.3, data_dir=sys.argv[1]) as llm:
        print("up", flush=True)
        llm.generate(["a"] * 4, SamplingParams(max_tokens=2000, ignore_eos=True, n=16))
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(signal.SIGINT, "KeyboardInterrupt", id="Ctrl-C"),
        # As `run-batch` in test_run_batch.py.
        pytest.param(signal.SIGKILL, "", id="kill -9", marks=pytest.mark.long),
    ],
)
def test_no_process_is_left_after_its_script(
    tmp_path: Path, number: signal.Signals, words: str
) -> None:
    script = textwrap.dedent(SCRIPT)
    command = [sys.executable, "-c", script, str(prepare_data_dir(tmp_path / "data"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4
        process.send_signal(number)
        _, printed = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode != 0
    assert words in printed
    assert all_gone(children, 10.0)
