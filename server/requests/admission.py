"""Admission: limits the requests that wait for their first token; further ones get 429.

Only this module refuses requests because of a full queue. `server.openai.routes.endpoint` calls it
twice for each request: before any costly work, so that refusals stay cheap at any request rate, and
again when the tokens of the prompts are counted.
"""

from configs.schema.server import LimitsConfig
from server.http.errors import too_busy
from server.requests.engine_client import EngineClient


class Admission:
    """Limits two queues of equal size: one for low-priority requests, one for all others.

    Offline work is limited elsewhere (`server.batches.window`) and is not checked here.
    """

    def __init__(self, config: LimitsConfig, client: EngineClient) -> None:
        self._max_sequences = config.max_num_queued_reqs
        self._max_tokens = config.max_num_queued_tokens
        self._client = client

    def check(
        self, num_sequences: int, num_tokens: int | None = None, *, low_priority: bool = False
    ) -> None:
        """Raise `ApiError` (429) unless these sequences fit into the queue.

        `num_tokens` is the number of tokens of all prompts; if the tokens are not counted yet, one
        token per sequence is assumed.
        """
        num_tokens = num_sequences if num_tokens is None else num_tokens
        if num_sequences > self._max_sequences:
            raise too_busy(
                f"Request too large: it asks for {num_sequences} completions, "
                f"{self._max_sequences} may wait.",
                "larger_than_queue",
                retry=False,
            )
        if num_tokens > self._max_tokens:
            raise too_busy(
                f"Request too large: its completions have {num_tokens} tokens of prompts in all, "
                f"{self._max_tokens} may wait.",
                "larger_than_queue",
                retry=False,
            )
        queue = self._client.low_priority_queue if low_priority else self._client.queue
        if queue.num_sequences + num_sequences > self._max_sequences:
            raise too_busy(
                f"The queue is full: {self._max_sequences} may wait. Please retry shortly.",
                "queue_full",
            )
        if queue.num_tokens + num_tokens > self._max_tokens:
            raise too_busy(
                f"The queue is full: {self._max_tokens} tokens of prompts may wait. Please retry "
                "shortly.",
                "queue_full",
            )
