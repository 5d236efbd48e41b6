"""EcoServe's adaptive routing: Algorithm 1 of arXiv 2504.18154 (docs/papers.md, section 3).

The instance that got the last request is tried first, then the others in turn. An instance gets the
request if three checks pass: the prompts that it got since its last prefill slot, with this one,
take at most the TTFT target; the mean slack of its decoding requests covers the same seconds; and
the KV of the prompt fits. If none passes, the request waits.
"""

from collections.abc import Sequence

from router.decisions.instance import Instance, Request, alone_s


class EcoServe:
    """The paper's rule, with its constants."""

    look_ahead = 0
    hopeless_after: float | None = None

    def choose(self, request: Request, members: Sequence[Instance], now: float) -> Instance | None:
        """See `Rule.choose`."""
        return next((i for i in members if self._admits(i, request, now)), None)

    def _admits(self, instance: Instance, request: Request, now: float) -> bool:
        status = instance.status
        assert status is not None
        slot_s = instance.slot_s() + alone_s(status.promises.costs, request.num_to_feed)
        if status.ttft_slo and slot_s > status.ttft_slo and instance.open:
            return False
        if status.tpot_slo and instance.mean_slack_s(now) < slot_s:
            return False
        return request.num_to_feed <= instance.free_kv_tokens()
