"""Admission: how much may wait for its first token; requests beyond that get 429.

The one place where a 429 for a full queue is decided. `server.openai.routes.endpoint` asks it twice
for each request: before anything costly is done for it, so that a full queue refuses at any request
rate, and once more when its prompts' tokens are counted.
"""

from configs.server import LimitsConfig
from server.http.errors import too_busy
from server.requests.engine_client import EngineClient


class Admission:
    """The bounds of two queues of equal size: one for low-priority requests, one for all others.

    Offline work is bounded elsewhere (`server.batches.window`) and is not checked here.
    """

    def __init__(self, config: LimitsConfig, client: EngineClient) -> None:
        self._max_sequences = config.max_num_queued_reqs
        self._max_tokens = config.max_num_queued_tokens
        self._client = client

    def check(
        self, num_sequences: int, num_tokens: int | None = None, *, low_priority: bool = False
    ) -> None:
        """Return if the queue has space for these sequences with `num_tokens` of prompts in all.

        Where the tokens are not yet counted, one each is assumed. Raises `ApiError` (429).
        """
        num_tokens = num_sequences if num_tokens is None else num_tokens
        if num_sequences > self._max_sequences:
            raise too_busy(
                f"Request too large: it asks for {num_sequences} completions, "
                f"{self._max_sequences} may wait.",
                retry=False,
            )
        if num_tokens > self._max_tokens:
            raise too_busy(
                f"Request too large: its completions have {num_tokens} tokens of prompts in all, "
                f"{self._max_tokens} may wait.",
                retry=False,
            )
        queue = self._client.low_priority_queue if low_priority else self._client.queue
        if queue.num_sequences + num_sequences > self._max_sequences:
            raise too_busy(
                f"The queue is full: {self._max_sequences} may wait. Please retry shortly."
            )
        if queue.num_tokens + num_tokens > self._max_tokens:
            raise too_busy(
                f"The queue is full: {self._max_tokens} tokens of prompts may wait. Please retry "
                "shortly."
            )
