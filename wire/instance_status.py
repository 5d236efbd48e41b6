"""The status of an instance: what a router must know of a daemon to send it requests.

A daemon sends it as JSON lines over `GET /instance/status`, when it has changed and at least four
times a second. A macro instance of EcoServe (arXiv 2504.18154) consists of such daemons; its
routing compares what an instance has promised already (seconds of prefill) with what its decoding
requests can spare (slack).
"""

import msgspec

from wire.promises import SLACK_QUANTILES, PrefillCosts, Promises

__all__ = ["SLACK_QUANTILES", "InstanceStatus", "PrefillCosts", "Promises"]


class InstanceStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One status of an instance; the last one replaces all before it.

    `instance` is new for each start of the daemon. An instance that is not `ready` or is `draining`
    gets no new requests. `ttft_slo` and `tpot_slo` are its targets in seconds. The keys (see
    `wire.prefix_keys`) of prompts in its prefix cache are `prefix_added` and `prefix_dropped` since
    the previous status of the same stream; the first status of a stream has all of them.
    """

    instance: str
    ready: bool
    draining: bool = False
    models: tuple[str, ...] = ()
    max_model_len: int = 0
    ttft_slo: float = 0.0
    tpot_slo: float = 0.0
    promises: Promises = Promises()
    prefix_added: tuple[int, ...] = ()
    prefix_dropped: tuple[int, ...] = ()
