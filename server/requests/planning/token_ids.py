"""Token ids of requests: those that the model has no row for are refused in the client's words.

A tokenizer may have tokens at or beyond the end of the embedding (added tokens), and an embedding
may have rows without a token (padding). Only the embedding counts: a row without a token is a legal
input, and a token without a row would be an index error in a stage.
"""

from collections.abc import Sequence

from server.http.errors import ApiError, invalid
from server.requests.engine_client import EngineClient
from server.text.tokenizer import Tokenizer


class TokenIds:
    """Checks token ids against the rows that the stages report, or before against config.json."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer) -> None:
        self._client = client
        self._tokenizer = tokenizer

    @property
    def num_rows(self) -> int:
        """The number of token ids of the model."""
        ready = self._client.ready
        return (ready.vocab_size if ready else 0) or self._tokenizer.vocab_size

    def check(self, field: str, *lists: Sequence[int]) -> None:
        """Raise `ApiError` (400) for an id that the model does not have."""
        self._check(field, lists, self.num_rows)

    def check_encoded(self, field: str, lists: Sequence[Sequence[int]]) -> None:
        """The same for the tokens of texts, which takes no time if all tokens have rows."""
        if self._tokenizer.num_ids > self.num_rows:
            self._check(field, lists, self.num_rows)

    def check_decodable(self, field: str, token_ids: Sequence[int]) -> None:
        """Raise `ApiError` (400) for an id that neither the model nor the tokenizer has."""
        self._check(field, [token_ids], max(self.num_rows, self._tokenizer.num_ids))

    def _check(self, field: str, lists: Sequence[Sequence[int]], limit: int) -> None:
        for token_ids in lists:
            if token_ids and (min(token_ids) < 0 or max(token_ids) >= limit):
                wrong = next(id_ for id_ in token_ids if not 0 <= id_ < limit)
                raise self._unknown(field, wrong, limit)

    def _unknown(self, field: str, token_id: int, limit: int) -> ApiError:
        named = f"token id {token_id}"
        if 0 <= token_id < self._tokenizer.num_ids:
            named = f"the token {self._tokenizer.names([token_id])[0]!r} (id {token_id})"
        message = (
            f"'{field}' contains {named}, which is out of vocabulary: the model has only {limit} "
            f"token ids (0 to {limit - 1})."
        )
        return invalid(message, field, "invalid_value")
