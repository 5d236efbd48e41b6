"""End tokens: the tokens that end an answer, from all the places that name them.

A model's generation_config.json, config.json and tokenizer often name different ones, and the chat
template ends a turn with a token that may be in none of them: each alone lets some models run on.
"""

import logging
from collections.abc import Sequence

from server.chat.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat template"

log = logging.getLogger("tdpipe")


def find_end_tokens(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The ids of the end tokens; logs each with the places that name it.

    A token that the model has no row for is left out, because it cannot be generated.
    """
    turn = end_of_turn(tokenizer, template)
    places: dict[int, list[str]] = {}
    for place, token_ids in (
        *tokenizer.end_token_ids.items(),
        (CHAT_TEMPLATE, () if turn is None else (turn,)),
    ):
        for token_id in dict.fromkeys(token_ids):
            places.setdefault(token_id, []).append(place)
    known = [token_id for token_id in places if token_id < tokenizer.vocab_size]
    for token_id in places.keys() - known:
        log.warning(
            "end token %s is left out: the model has only %d token ids",
            _described(tokenizer, token_id, places[token_id]),
            tokenizer.vocab_size,
        )
    if known:
        described = [_described(tokenizer, token_id, places[token_id]) for token_id in known]
        log.info("answers end with %s", "; ".join(described))
    else:
        log.warning("the model has no end token: answers end only at their limit of tokens")
    return tuple(known)


def end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The token with which the chat template ends an answer, if it is a token of its own.

    White space before it is allowed. At the end of a conversation comes first: before a next
    message, gpt-oss writes `<|end|>`, which also ends its reasoning.
    """
    for after in template.after_answer():
        token_id = _first_token(after.strip(), tokenizer)
        if token_id is not None:
            return token_id
    return None


def _first_token(text: str, tokenizer: Tokenizer) -> int | None:
    """The special token at the beginning of a text, or any added token that is all of it."""
    begun = [
        special for special in tokenizer.special_tokens if special and text.startswith(special)
    ]
    if begun:
        return tokenizer.special_tokens[max(begun, key=len)]
    return tokenizer.added_tokens.get(text)


def _described(tokenizer: Tokenizer, token_id: int, places: Sequence[str]) -> str:
    (name,) = tokenizer.names([token_id])
    return f"{name or 'a token without text'} ({token_id}, by {', '.join(places)})"
