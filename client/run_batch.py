"""`tdpipe run-batch -i IN -o OUT [MODEL ...]`: answers a file of requests without a server.

The lines have the format of a batch, see `server.batches.storage.lines`. Answers are written as
they arrive. If the command is run again after an interruption, it continues with the requests that
have no answer yet.
"""

import argparse
import asyncio
import fcntl
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path

import uvloop
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from client.offline import OfflineEngine, OfflineEngineError
from configs import loader
from configs.config import Config
from daemon.observability import logs
from server.batches.engine_lines import engine_window
from server.batches.storage.answer_writer import AnswerWriter
from server.batches.storage.answers import DamagedAnswersError, LineAnswer, check_is_answers
from server.batches.storage.custom_ids import SortedIds
from server.batches.storage.lines import Rules
from server.batches.unanswered import unanswered
from server.batches.validation import BadInputError, Validation
from server.chat.chat_template import ChatTemplateError
from server.endpoints import PATHS
from server.openai.fields.batch import RequestCounts
from server.requests.engine_client import EngineClient
from server.text.tokenizer import keep_torch_out

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_MAX_PRINTED_ERRORS = 10

log = logging.getLogger("tdpipe")


class UnusableFileError(Exception):
    """The input or the output cannot be used; the message has one line for each reason."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if all requests succeeded, 1 if not, 2 for invalid input."""
    files, flags = _parser().parse_known_args(argv)
    try:
        config = loader.load(flags)
        num_requests = _check_input(files.input, config)
        with _locked(files.input, files.output):
            logs.set_up("tdpipe", config.logs)
            if not config.model.trust_remote_code:
                keep_torch_out()
            return _answer(BatchRun(config, files.input, files.output, num_requests))
    except (loader.ConfigError, UnusableFileError) as error:
        for line in str(error).splitlines():
            print(f"tdpipe: error: {line}", file=sys.stderr)  # noqa: T201 - for the user
        return BAD_INPUT


class BatchRun:
    """One run over one input file."""

    def __init__(self, config: Config, input_: Path, output: Path, num_requests: int) -> None:
        self._config = config
        self._input = input_
        self._output = output
        self._num_requests = num_requests

    async def run(self) -> RequestCounts:
        """Run the requests that have no answer; return the counts of all answers.

        Raises `OfflineEngineError`, and `UnusableFileError` if the output cannot be written.
        """
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            async with AnswerWriter(self._output, self._output) as writer:
                await self._answer_rest(writer)
                return (await writer.progress(self._num_requests)).counts
        except* OSError as errors:
            problem: BaseException = errors
        while isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        raise UnusableFileError(f"cannot write to {self._output}: {problem}")

    async def _answer_rest(self, writer: AnswerWriter) -> None:
        answered = await asyncio.to_thread(writer.answers.custom_ids.sorted)
        if not await self._is_anything_left(answered):
            return
        if len(answered):
            log.info("%s holds %d answers; continuing with the rest", self._output, len(answered))
        async with OfflineEngine(self._config) as engine:
            max_open = self._config.max_open_batch_requests
            window = engine_window(
                engine.endpoints().all(), engine.client, engine.metrics, max_open
            )
            with self._progress(len(answered), engine.client) as advance:

                async def take(answer: LineAnswer) -> None:
                    await writer.add(answer)
                    advance()

                num_in_order = window.num_in_order(self._num_requests)
                async with aclosing(unanswered(self._input, answered, num_in_order)) as requests:
                    await engine.run(window.run(requests, take))

    @contextmanager
    def _progress(self, initial: int, client: EngineClient) -> Iterator[Callable[[], None]]:
        """Show a progress bar; yields a function to call for each answer.

        The bar shows tokens per second and the remaining time. It is not shown with a JSON log.
        """
        interval_s = 0.5 if sys.stderr.isatty() else 30.0
        began_at, generated_before = time.monotonic(), client.num_generated
        bar = tqdm(
            total=self._num_requests,
            initial=initial,
            unit="request",
            mininterval=interval_s,
            disable=self._config.logs.log_format == "json",
        )

        def advance() -> None:
            rate = (client.num_generated - generated_before) / (time.monotonic() - began_at)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update()

        with bar, logging_redirect_tqdm():
            yield advance

    async def _is_anything_left(self, answered: SortedIds) -> bool:
        async with aclosing(unanswered(self._input, answered)) as requests:
            return await anext(requests, None) is not None


def _answer(run: BatchRun) -> int:
    """Run, and return the exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            counts = runner.run(run.run())
    except (OfflineEngineError, ChatTemplateError, UnusableFileError) as error:
        log.error("%s", error)
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        log.error("interrupted; run the same command again to continue")
        return INTERRUPTED
    log.info(
        "%d of %d requests succeeded, %d failed", counts.completed, counts.total, counts.failed
    )
    return FAILED if counts.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tdpipe run-batch",
        usage="tdpipe run-batch -i IN -o OUT [MODEL] [flags of tdpipe serve]",
        description="Answer the requests of a file, one JSON object a line, without a server.",
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="requests")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="answers; requests with an answer in it are not run again",
    )
    return parser


def _check_input(path: Path, config: Config) -> int:
    """Validate the input, and return the number of requests. Raises `UnusableFileError`."""
    if path.exists() and not path.is_file():
        raise UnusableFileError(f"{path} is not a regular file, which is needed to read it twice")
    rules = Rules(PATHS, set(config.model.names), config.server.connections.max_body_bytes)
    validation = Validation(path, rules, sys.maxsize)
    try:
        validation.run()
    except OSError as error:
        raise UnusableFileError(f"cannot read {path}: {error.strerror}") from error
    except BadInputError as error:
        lines = [
            f"{path}, line {each.line}: {each.message}" if each.line else f"{path}: {each.message}"
            for each in error.errors
        ]
        if len(lines) > _MAX_PRINTED_ERRORS:
            lines[_MAX_PRINTED_ERRORS:] = [f"{path}: and more lines like these"]
        raise UnusableFileError("\n".join(lines)) from error
    return validation.num_requests


@contextmanager
def _locked(input_: Path, output: Path) -> Iterator[None]:
    """Lock the output for this run and check its contents. Raises `UnusableFileError`."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(output.open("ab"))
            if output.samefile(input_):
                raise UnusableFileError(f"{output} is also the input")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check_is_answers(output)
        except BlockingIOError as error:
            raise UnusableFileError(f"another run writes to {output}") from error
        except OSError as error:
            raise UnusableFileError(f"cannot write to {output}: {error.strerror}") from error
        except DamagedAnswersError as error:
            raise UnusableFileError(str(error)) from error
        yield
