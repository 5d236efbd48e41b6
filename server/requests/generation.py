"""A generation: the lifecycle of one request in the engine, from submission to its last token.

Entering the `async with` block submits the sequences of the request. Leaving the block for any
reason aborts every sequence that has not ended, which frees its KV blocks immediately. Within the
block, `async for` yields the output piece by piece.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

from server.http.errors import ApiError, failed
from server.lengths.length_histogram import LengthQuery
from server.lengths.length_predictor import ExpectedLength, LengthPredictor
from server.metrics import Metrics
from server.requests.choice import Choice, TextReason
from server.requests.deadline import Deadline, sooner_of
from server.requests.engine_client import EngineClient
from server.requests.logprobs import TokenLogprobs
from server.requests.monitoring.request_trace import MAX_TRACED_SEQUENCES, RequestTrace
from server.requests.open_sequence import OpenSequence, QueueTotals
from server.requests.planning.plan import Plan
from server.requests.prefix_digest import HashedPrompt, PrefixDigest
from server.requests.sequence_parts import parts_of
from server.text.bounded_threads import BoundedThreads
from server.text.tokenizer import Tokenizer
from wire.messages import Expect

# The number of prompt tokens whose text is sent to the encoder, which reads the last 512 tokens of
# its own tokenizer.
TAIL_TOKENS = 1024
# Rendering takes about 2 us per log-probability; rendering more than this on the event loop would
# delay other streams noticeably.
MAX_INLINE_LOGPROBS = 4096
NUM_RENDERING_THREADS = 2

Result = TypeVar("Result")


class Piece(NamedTuple):
    """New text of one choice; the last piece of a choice has its finish reason.

    With `plan.returns_tokens`, `token_ids` are the tokens since the previous piece, and `logprobs`
    are their log-probabilities if the request asked for them. If the request asked for prompt
    log-probabilities, `scores` of the first piece of a choice contains those of all prompt tokens
    except the first. With `plan.continuous_usage`, `usage` has the token counts so far.
    """

    choice_index: int
    text: str
    finish_reason: TextReason | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | tuple[()] = ()
    logprobs: list[TokenLogprobs] | tuple[()] = ()
    scores: list[TokenLogprobs] | tuple[()] = ()
    usage: dict[str, Any] | None = None

    @property
    def num_logprobs(self) -> int:
        """The number of log-probabilities in the piece, for `Generation.render`."""
        return sum(
            len(each) * (1 + len(each[-1].tops)) for each in (self.logprobs, self.scores) if each
        )


def takes_long(num_logprobs: int) -> bool:
    """Return whether rendering on the event loop would noticeably delay other requests."""
    return num_logprobs > MAX_INLINE_LOGPROBS


class Generation:
    """Use as `async with`, and inside it `async for piece in generation`.

    Entering submits the sequences without waiting for anything. `on_prefilled` is called when the
    first token is read. If the engine has given up on a sequence, the iterator first yields the
    text so far and then raises `ApiError` (500). With a `trace`, set before entering, the sequences
    become spans.
    """

    def __init__(
        self,
        plan: Plan,
        client: EngineClient,
        tokenizer: Tokenizer,
        metrics: Metrics,
        predictor: LengthPredictor,
        threads: BoundedThreads,
        arrived_at: float,
    ) -> None:
        self.arrived_at = arrived_at
        self.num_choices = plan.num_sequences
        self.num_unfinished = plan.num_sequences if plan.needs_engine else 0
        self._num_completion_tokens = 0
        self._known: list[Piece] = []  # needs no output of the engine
        self._failure: ApiError | None = None
        self.plan = plan
        self._client = client
        self._metrics = metrics
        self._tokenizer = tokenizer
        self._predictor = predictor
        self._queries = [
            LengthQuery(plan.endpoint, len(prompt), max(1, max_tokens))
            for prompt, max_tokens in zip(plan.prompts, plan.max_tokens, strict=True)
        ]
        self._expected: list[ExpectedLength] = []  # per prompt
        self._cancel_prediction: Callable[[], None] = lambda: None
        self.on_prefilled: Callable[[], None] = lambda: None
        self.trace: RequestTrace | None = None
        self._submitted_at = 0.0
        self._threads = threads
        self._inbox = client.inbox()
        self._sequences: list[OpenSequence] = []
        skips = plan.skip_special_tokens
        self._choices = [
            Choice(plan, tokenizer, after)
            for after in (
                tokenizer.prompt_end(prompt, skip_special_tokens=skips) for prompt in plan.prompts
            )
            for _ in range(plan.n)
        ]

    def resume(self) -> list[Piece]:
        """Bring the choices to where another daemon left them; to be called before entering.

        Returns the pieces of the choices that go on, which the client has already.
        """
        resumption = self.plan.resumption
        if resumption is None:
            return []
        pieces = []
        for index, choice in enumerate(self._choices):
            token_ids = list(resumption.output(index))
            text = choice.push(token_ids)
            self._num_completion_tokens += choice.num_tokens
            if index in resumption.finished:
                choice.finish_reason = choice.finish_reason or "stop"
                self.num_unfinished -= 1
            elif token_ids:
                pieces.append(self._piece_of_known(index, text, token_ids))
                if choice.finish_reason is not None:  # by a stop string
                    ending = Piece(index, "", choice.finish_reason, choice.stop_reason)
                    self._known.append(ending)
        return pieces

    async def __aenter__(self) -> Self:
        if self.trace is not None:
            self.trace.prepared(self.plan, self.arrived_at)
        if not self.num_unfinished:
            return self
        self._metrics.prompt_tokens.inc(sum(map(len, self.plan.prompts)))
        for prompt_token_ids in self.plan.prompts:
            self._metrics.request_prompt_tokens.observe(len(prompt_token_ids))
        first_id = self._client.next_ids(self.plan.num_sequences)
        hint, resumption = self.plan.expected_tokens, self.plan.resumption
        self._expected = [self._predictor.expect(query, hint) for query in self._queries]
        self._submitted_at = time.monotonic()
        for index, message in enumerate(self.plan.messages(first_id, self._expected)):
            prompt = self.plan.prompts[index // self.plan.n]
            output = resumption.output(index) if resumption else ()
            sequence = OpenSequence(message, index, self._inbox, prompt, self._queue(), output)
            self._sequences.append(sequence)
            if self.trace is not None and index < MAX_TRACED_SEQUENCES:
                sequence.trace()
            if self._choices[index].finish_reason is None:
                self._client.submit(sequence)
        if self._predictor.has_encoder and hint is None:
            prompts = tuple(self._tail(prompt) for prompt in self.plan.prompts)
            self._cancel_prediction = self._predictor.ask(prompts, self._expect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._cancel_prediction()
        for sequence in self._sequences:
            self._client.abort(sequence)
        if self.trace is not None:
            self._end_trace(self.trace)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._iterate()

    @property
    def has_ended(self) -> bool:
        """Whether no more output will come."""
        return not self.num_unfinished or self._failure is not None

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` when `take_pieces` has output, instead of waking the iterator."""
        self._inbox.listener = listener

    def wait_for_ends(self) -> None:
        """Wake the iterator only when choices end, unless stop strings may end the text."""
        self._inbox.only_ends = not self.plan.stop_strings

    def take_pieces(self) -> list[Piece]:
        """Return a piece for each choice that has new text or has ended; the list may be empty.

        If the engine has given up on a sequence, the text so far is returned first, and the next
        call raises `ApiError` (500).
        """
        if self._failure is not None:
            raise self._failure
        pieces, self._known = self._known, []
        self.num_unfinished -= len(pieces)
        for sequence in self._inbox.take():
            choice = self._choices[sequence.index]
            if choice.finish_reason is not None:
                continue
            piece = self._advance(sequence, choice)
            if piece.text or piece.finish_reason or piece.token_ids or piece.scores:
                pieces.append(piece)
        return pieces

    async def render(self, num_logprobs: int, work: Callable[[], Result]) -> Result:
        """Run `work` on `num_logprobs` log-probabilities, in a thread if it takes long."""
        if takes_long(num_logprobs):
            return await self._threads.run(work, patient=True)
        return work()

    def usage(self) -> dict[str, Any]:
        """Return the token counts so far: each prompt once, and the output of each choice."""
        num_prompt_tokens = sum(map(len, self.plan.prompts))
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }
        if self.plan.reasoning is not None:
            num_reasoning = sum(choice.num_reasoning_tokens for choice in self._choices)
            usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
        return usage

    @property
    def first_token_at(self) -> float | None:
        """When the first token of any choice arrived (monotonic seconds), if one has."""
        arrived = (s.first_token_at for s in self._sequences if s.first_token_at is not None)
        return min(arrived, default=None)

    @property
    def num_cached_tokens(self) -> int:
        """The prompts' tokens that were cached, for the first choice of each prompt."""
        return sum(s.num_cached_tokens for s in self._sequences[:: self.plan.n])

    async def wait(self) -> None:
        """Wait until `take_pieces` has something to return or to raise."""
        if self._failure is None and not self._known:
            await self._inbox.wait()

    async def _iterate(self) -> AsyncIterator[Piece]:
        while self.num_unfinished:
            await self.wait()
            for piece in self.take_pieces():
                yield piece

    def _piece_of_known(self, index: int, text: str, token_ids: list[int]) -> Piece:
        """The piece of tokens from another daemon, whose log-probabilities are not known here."""
        logprobs: list[TokenLogprobs] = []
        if self.plan.sampling.num_logprobs >= 0:
            logprobs = [TokenLogprobs(token_id, 0.0, 1, ()) for token_id in token_ids]
        return Piece(index, text, token_ids=token_ids, logprobs=logprobs)

    def _queue(self) -> QueueTotals | None:
        if self.plan.offline:
            return None
        client = self._client
        return client.low_priority_queue if self.plan.low_priority else client.queue

    def _tail(self, prompt: Collection[int]) -> str:
        """Return the end of a prompt, which says most about the length of the answer."""
        tail = list(prompt)[-TAIL_TOKENS:]
        return self._tokenizer.decode(tail, skip_special_tokens=False)

    def _expect(self, expected: list[ExpectedLength]) -> None:
        """Send the encoder's predictions, one for each prompt, to the engine."""
        self._expected, n = expected, self.plan.n
        for sequence in self._sequences:
            predicted_len, spread, _, _ = expected[sequence.index // n]
            self._client.expect(Expect(sequence.sequence_id, predicted_len, spread))

    def _advance(self, sequence: OpenSequence, choice: Choice) -> Piece:
        before = choice.num_tokens
        is_first = not before and sequence.first_token_at is not None
        if is_first and sequence.first_token_at is not None and not self.plan.low_priority:
            self._metrics.observe_first_token(sequence.first_token_at - self.arrived_at)
        if sequence.first_token_at is not None:
            on_prefilled, self.on_prefilled = self.on_prefilled, lambda: None
            on_prefilled()
        token_ids = sequence.take_tokens()
        text = "" if self.plan.only_scores else choice.push(token_ids)
        num_new = choice.num_tokens - before
        self._num_completion_tokens += num_new
        finished = sequence.finished
        if finished is not None and choice.finish_reason is None:
            if finished.reason not in ("stop", "length"):
                message = finished.message or "The engine gave up on this request."
                self._failure = failed(message, retry=not finished.is_final)
            elif self.plan.only_scores:
                choice.finish_reason = "length"
            else:
                text += choice.flush(finished.reason)
        if choice.finish_reason is not None:
            self._end(sequence, choice)
        piece = Piece(sequence.index, text, choice.finish_reason, choice.stop_reason)
        if self.plan.continuous_usage:
            piece = piece._replace(usage=self.usage())
        if not self.plan.returns_tokens and not sequence.scores:
            return piece
        logprobs, sequence.logprobs = sequence.logprobs, []
        # Scores are complete with the first token, and stay in the sequence until then.
        scores: list[TokenLogprobs] = []
        if is_first:
            scores, sequence.scores = sequence.scores, []
        return piece._replace(
            token_ids=token_ids[:num_new], logprobs=logprobs[:num_new], scores=scores
        )

    def _end(self, sequence: OpenSequence, choice: Choice) -> None:
        self.num_unfinished -= 1
        self._client.abort(sequence)
        if self.trace is not None:
            self._trace_sequence(self.trace, sequence)
        prompt = sequence.index // self.plan.n
        if choice.num_tokens:
            self._metrics.request_generation_tokens.observe(choice.num_tokens)
            self._predictor.observe(
                self._queries[prompt], self._expected[prompt], choice.num_tokens
            )
        num_own = choice.num_tokens - sequence.num_resumed
        if sequence.first_token_at is not None and num_own > 1:
            seconds = sequence.last_token_at - sequence.first_token_at
            self._metrics.observe_per_token(seconds / (num_own - 1))

    def _trace_sequence(self, trace: RequestTrace, sequence: OpenSequence) -> None:
        """Make the spans of a sequence that has just ended, once."""
        marks, sequence.marks = sequence.marks, None
        if marks is None:
            return
        attributes = {
            "tdpipe.sequence.index": sequence.index,
            "tdpipe.sequence.prompt_tokens": len(sequence.prompt_token_ids),
            "tdpipe.sequence.cached_tokens": sequence.num_cached_tokens,
            "tdpipe.sequence.output_tokens": len(sequence.output_ids),
        }
        parts = parts_of(marks, self._submitted_at, time.monotonic())
        trace.sequence_ended(parts, attributes)

    def _end_trace(self, trace: RequestTrace) -> None:
        for sequence in self._sequences:
            self._trace_sequence(trace, sequence)
        reasons = [choice.finish_reason or "aborted" for choice in self._choices]
        trace.generated(self.usage(), reasons, self.first_token_at)


def num_logprobs(pieces: Iterable[Piece]) -> int:
    """Return the number of log-probabilities in all pieces."""
    total = 0
    for piece in pieces:
        if piece.logprobs or piece.scores:  # most pieces have neither, and this runs for each token
            total += piece.num_logprobs
    return total


@dataclass(frozen=True)
class Generations:
    """Creates generations from plans."""

    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    predictor: LengthPredictor
    request_timeout_s: float | None = None
    digest: PrefixDigest = field(default_factory=PrefixDigest)
    threads: BoundedThreads = field(
        default_factory=lambda: BoundedThreads(
            NUM_RENDERING_THREADS, "long answers", 0, "rendering"
        )
    )

    def deadline(self, timeout_s: float | None, *, offline: bool) -> Deadline:
        """Return the deadline: the client's timeout and, for online requests, the server's."""
        return sooner_of(timeout_s, None if offline else self.request_timeout_s)

    def of(self, plan: Plan, prompt: HashedPrompt | None = None) -> Generation:
        """Create a generation for a request that arrives now; entering it submits the sequences.

        The `prompt` gets into the digest when it was prefilled.
        """
        generation = Generation(
            plan,
            self.client,
            self.tokenizer,
            self.metrics,
            self.predictor,
            self.threads,
            time.monotonic(),
        )
        if prompt is not None:
            num_tokens = sum(map(len, plan.prompts))
            generation.on_prefilled = partial(self.digest.add, prompt, num_tokens)
        return generation
