"""Resumption: what an answer consists of that another daemon has begun and could not complete.

A router has all tokens of a resumable stream. It sends them with the original request, and the
answer continues after them: the text that follows tokens 1..k depends only on these tokens.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.http.errors import invalid
from server.openai.fields.sampling import SamplingFields
from server.requests.planning.token_ids import TokenIds

FIELD = "tdpipe_resume"


@dataclass(frozen=True)
class Resumption:
    """The part of an answer that the client has.

    `outputs` has the tokens of the choices that have begun, by index; those in `finished` have
    ended. `sequence_number` is that of the last event of a response, if it is known.
    """

    reply_id: str
    created: int
    outputs: Mapping[int, Sequence[int]]
    finished: frozenset[int]
    sequence_number: int | None = None

    def output(self, index: int) -> Sequence[int]:
        """The tokens of a choice."""
        return self.outputs.get(index, ())


def resumption_of(
    fields: SamplingFields, max_tokens: Sequence[int], token_ids: TokenIds, *, only_scores: bool
) -> Resumption | None:
    """Return what a request resumes, or None; `max_tokens` is per prompt.

    Raises `ApiError` (400) unless it can be the beginning of the request's answer.
    """
    resume = fields.tdpipe_resume
    if resume is None:
        return None
    outputs: dict[int, list[int]] = {}
    finished: set[int] = set()
    for at, choice in enumerate(resume.choices):
        param = f"{FIELD}.choices[{at}]"
        if choice.index >= len(max_tokens) * fields.n:
            message = f"'{param}.index' is {choice.index}, which no choice of the answer has."
            raise invalid(message, f"{param}.index", "invalid_value")
        if choice.index in outputs or choice.index in finished:
            message = f"'{param}.index' is {choice.index} for the second time."
            raise invalid(message, f"{param}.index", "invalid_value")
        limit = 0 if only_scores else max_tokens[choice.index // fields.n]
        if len(choice.token_ids) > limit:
            message = f"'{param}.token_ids' has more than the {limit} tokens of the choice."
            raise invalid(message, f"{param}.token_ids", "invalid_value")
        token_ids.check(f"{param}.token_ids", choice.token_ids)
        if choice.token_ids:
            outputs[choice.index] = choice.token_ids
        if choice.finished:
            finished.add(choice.index)
    number = resume.sequence_number
    return Resumption(resume.id, resume.created, outputs, frozenset(finished), number)


def id_and_created(resumption: Resumption | None, prefix: str) -> tuple[str, int]:
    """The id of a reply and the Unix time of its creation: new ones, or those that it has had."""
    if resumption is None:
        return f"{prefix}{uuid.uuid4().hex}", int(time.time())
    return resumption.reply_id, resumption.created
