"""The offline interface `LLM`: the same engine and stages as in a daemon, without HTTP.

The connection to the engine runs in a separate thread with its own event loop, so that the class
works in scripts and in notebooks, which already have an event loop.
"""

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import uvloop
from pydantic import TypeAdapter
from tqdm import tqdm

from client.offline import OfflineEngine
from client.request_output import CompletionOutput, RequestOutput
from client.sampling_params import SamplingParams
from configs import loader
from configs.schema.model import DEMO_MODEL
from server.endpoints import Endpoints
from server.http.errors import ApiError
from server.openai.fields.conversation import ChatMessage, Conversation
from server.requests.retry import ask_until_final

# How often a waiting caller checks for signals: one that arrives just before the wait begins, or in
# another thread, does not interrupt it.
SIGNAL_CHECK_S = 0.1

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = dict[str, Any]
Result = TypeVar("Result")


_MESSAGES = TypeAdapter(list[ChatMessage])


class LLM:
    """A model that runs inside a `with` block; its processes end with the block.

    `settings` have the same names as in `tdpipe serve`. The constructor raises `ConfigError` for
    invalid settings; entering the block raises `OfflineEngineError` if the model cannot be loaded.
    """

    def __init__(self, model: str = str(DEMO_MODEL), **settings: Any) -> None:
        self._config = loader.validate({"log_level": "warning", **settings, "model": model})
        self._engine = OfflineEngine(self._config)
        self._endpoints: Endpoints | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit_requested = asyncio.Event()
        self._is_exiting = False
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run_thread, name="tdpipe")

    def __enter__(self) -> Self:
        """Start, and wait until the engine is ready."""
        self._thread.start()
        try:
            _result(self._started)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every process and wait for it."""
        self._is_exiting = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the thread has ended by itself
                self._loop.call_soon_threadsafe(self._exit_requested.set)
        while self._thread.is_alive():
            self._thread.join(SIGNAL_CHECK_S)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete one prompt or several (strings or token ids); return the outputs in order.

        A single `params` applies to all prompts; a list must have one for each prompt. Without
        `params`, the model's sampling defaults apply (setting `generation_config`). Raises
        `ValueError` for an invalid prompt or params, before anything is generated for that prompt,
        and `OfflineEngineError` if the engine has failed permanently.
        """
        each = _as_prompts(prompts)
        return self._run(self._generate(each, _for_each(params, len(each)), use_tqdm))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, rendered by the model's chat template.

        The answers are plain text: tool calls and reasoning are not parsed. Raises the same errors
        as `generate`.
        """
        conversations = [
            Conversation(
                messages=list(each),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs or {},
            )
            for each in _as_conversations(messages)
        ]
        all_params = _for_each(params, len(conversations))
        return self._run(self._chat(conversations, all_params, use_tqdm))

    async def _chat(
        self, conversations: list[Conversation], params: list[SamplingParams | None], use_tqdm: bool
    ) -> list[RequestOutput]:
        assert self._endpoints is not None
        template = self._endpoints.chat_template
        texts = [await template.render_text(conversation) for conversation in conversations]
        prompts = [await template.encode(text) for text in texts]
        outputs = await self._generate(prompts, params, use_tqdm)
        for output, text in zip(outputs, texts, strict=True):
            output.prompt = text
        return outputs

    async def _generate(
        self,
        prompts: Sequence[str | list[int]],
        params: list[SamplingParams | None],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(prompts)
        indices = iter(range(len(prompts)))
        with _ProgressBar(len(prompts), use_tqdm) as advance:

            async def work() -> None:
                for i in indices:
                    ask = partial(self._ask, prompts[i], params[i])
                    outputs[i] = await ask_until_final(self._engine.client, ask)
                    advance(outputs[i])

            async with _first_error_only() as group:
                for _ in range(min(len(prompts), self._config.max_open_batch_requests)):
                    group.create_task(work())
        return [output for output in outputs if output is not None]

    async def _ask(self, prompt: str | list[int], params: SamplingParams | None) -> RequestOutput:
        assert self._endpoints is not None
        body = ({} if params is None else params.fields()) | {
            "model": self._config.model.name,
            "prompt": prompt,
            "return_token_ids": True,
        }
        # The same path as a request over HTTP, so that both behave the same.
        reply = await self._endpoints.completions.prepare(msgspec.json.encode(body), offline=True)
        wants_logprobs = params is not None and params.logprobs is not None
        async with reply.generation as generation:
            output = RequestOutput(
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=list(generation.plan.prompts[0]),
                outputs=[
                    CompletionOutput(
                        i,
                        # If there is no token to generate, there is no piece that would set it.
                        finish_reason=None if generation.num_unfinished else "length",
                        logprobs=[] if wants_logprobs else None,
                    )
                    for i in range(generation.num_choices)
                ],
            )
            tokenizer, skips = self._engine.tokenizer, generation.plan.skip_special_tokens
            after = tokenizer.prompt_end(output.prompt_token_ids, skip_special_tokens=skips)
            prompt_texts = tokenizer.token_texts(skip_special_tokens=isinstance(prompt, str))
            texts = [
                tokenizer.token_texts(skip_special_tokens=skips, after=after)
                for _ in output.outputs
            ]
            async for piece in generation:
                output.take(piece, tokenizer.pieces, prompt_texts, texts)
            output.num_cached_tokens = generation.num_cached_tokens
        return output

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` in the loop's thread, and cancel it if the caller is interrupted."""
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise RuntimeError("an LLM can only be used inside its `with` block")
        future: Future[Result] | None = None
        try:
            future = asyncio.run_coroutine_threadsafe(self._engine.run(work), self._loop)
            return _result(future)
        except ApiError as error:
            kind = ValueError if error.status < 500 else RuntimeError
            raise kind(str(error)) from error
        finally:
            if future is not None:
                future.cancel()  # after a Ctrl-C

    def _run_thread(self) -> None:
        """The thread's main function."""
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self._run_until_exit())
        # `__enter__` raises it in the caller's thread.
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)

    async def _run_until_exit(self) -> None:
        if self._is_exiting:
            return
        entering = asyncio.ensure_future(self._enter_and_wait())
        leaving = asyncio.ensure_future(self._exit_requested.wait())
        # Ctrl-C may be pressed while the model is still being loaded.
        await asyncio.wait((entering, leaving), return_when=asyncio.FIRST_COMPLETED)
        entering.cancel()
        leaving.cancel()
        await asyncio.wait((entering, leaving))
        if not entering.cancelled():
            entering.result()

    async def _enter_and_wait(self) -> None:
        async with self._engine as engine:
            self._endpoints = engine.endpoints()
            self._started.set_result(None)
            await self._exit_requested.wait()


def _result(future: Future[Result]) -> Result:
    """Wait for a result such that Ctrl-C always ends the wait. Raises what the work raised."""
    while not wait((future,), SIGNAL_CHECK_S).done:
        pass
    return future.result()


class _ProgressBar:
    """A progress bar with prompts and tokens per second."""

    def __init__(self, num_prompts: int, is_wanted: bool) -> None:
        self._bar = tqdm(
            total=num_prompts, unit="prompt", disable=None if is_wanted else True, delay=0.5
        )
        self._num_tokens = 0

    def __enter__(self) -> Callable[[RequestOutput | None], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _advance(self, output: RequestOutput | None) -> None:
        assert output is not None
        self._num_tokens += sum(len(each.token_ids) for each in output.outputs)
        seconds = self._bar.format_dict["elapsed"] or 1.0
        self._bar.set_postfix_str(f"{self._num_tokens / seconds:.0f} tokens/s", refresh=False)
        self._bar.update()


@asynccontextmanager
async def _first_error_only() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises its first error, not an exception group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise next(_leaf_errors(errors)) from None


def _leaf_errors(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaf_errors(each)
    else:
        yield error


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[str | list[int]]:
    """Convert prompts to a list of strings or lists of token ids. Raises `ValueError`."""
    if isinstance(prompts, str | dict):
        return [_plain_prompt(prompts)]
    each: list[Any] = list(prompts)
    is_one = bool(each) and isinstance(each[0], int)
    return [_plain_prompt(each)] if is_one else [_plain_prompt(prompt) for prompt in each]


def _plain_prompt(prompt: Any) -> str | list[int]:
    """Convert a prompt to a string or token ids; vLLM's dictionaries are accepted too."""
    if isinstance(prompt, dict):
        given = [prompt[key] for key in ("prompt_token_ids", "prompt") if key in prompt]
        if len(given) != 1 or len(prompt) != 1:
            raise ValueError("a prompt dictionary must have either 'prompt' or 'prompt_token_ids'")
        (prompt,) = given
    if isinstance(prompt, str):
        return prompt
    token_ids = list(prompt)
    if not all(isinstance(token_id, int) for token_id in token_ids):
        raise ValueError("a prompt must be a string or a sequence of token ids")
    return token_ids


def _as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Iterable[Message]]:
    """Return the conversations as a list. Raises `ValueError` for an invalid message."""
    each: list[Any] = list(messages)
    conversations = [each] if each and isinstance(each[0], dict) else each
    for conversation in conversations:
        _MESSAGES.validate_python(list(conversation))
    return conversations


def _for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams | None]:
    """Return the params of each prompt. Raises `ValueError` for a wrong type or number."""
    if isinstance(params, dict) or not isinstance(params, SamplingParams | Sequence | None):
        raise ValueError(f"params must be SamplingParams, not {type(params).__name__}")
    if params is None or isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(f"got params for {len(params)} of {num_prompts} prompts")
    return list(params)
