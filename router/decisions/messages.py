"""The events and decisions of the router's core; both are journalled."""

from typing import Literal

import msgspec

from wire.instance_status import InstanceStatus

Kind = Literal["online", "offline"]
"""Offline requests (flex and batches) get what the targets of online requests leave over."""


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


# --- events: what the process tells the core -----------------------------------------------------


class Handler(msgspec.Struct, frozen=True):
    """An instance as routers hand it to each other, without a pause in its service.

    `name` is unique; for a daemon it is its URL.
    """

    name: str


class Arrived(_Message, frozen=True):
    """A request, with the estimated tokens of its prompt and of its answer (0: unknown).

    The `prefix_keys` of its prompt are for `tokens_per_key` tokens each. A request of another core
    has arrived `age_s` seconds ago and has waited for `waited_s`. If it `was_sent` to an instance
    there, `num_done` tokens of its answer may be known.
    """

    request_id: int
    num_prompt_tokens: int
    expected_output: int = 0
    kind: Kind = "online"
    prefix_keys: tuple[int, ...] = ()
    tokens_per_key: float = 0.0
    age_s: float = 0.0
    waited_s: float = 0.0
    was_sent: bool = False
    num_done: int = 0


class Broken(_Message, frozen=True):
    """The instance of an open request has failed it, which goes on elsewhere.

    `num_done` tokens of its answer are known; they are fed with the prompt.
    """

    request_id: int
    num_done: int = 0


class Began(_Message, frozen=True):
    """An open request has got its first token."""

    request_id: int


class Ended(_Message, frozen=True):
    """A request has ended: completely answered, refused by its instance, or left by its client."""

    request_id: int


class Joined(_Message, frozen=True):
    """An instance takes part from now on; it gets requests after its first status."""

    handler: Handler


class Leaving(_Message, frozen=True):
    """An instance gets no new requests; it is removed when its open requests have ended."""

    name: str


class Lost(_Message, frozen=True):
    """An instance cannot be reached: it gets no requests until its next status.

    With `is_gone`, it is forgotten. The process reports its open requests as `Broken`.
    """

    name: str
    is_gone: bool = False


class Suspected(_Message, frozen=True):
    """An instance has failed or refused a request: it gets none until its next status."""

    name: str


class Reported(_Message, frozen=True):
    """An instance has sent its status; the one that `begins` a stream tells all prefix keys."""

    name: str
    status: InstanceStatus
    begins: bool = False


class Ticked(_Message, frozen=True):
    """Time has passed; sent at least four times a second."""


InstanceEvent = Joined | Leaving | Lost | Reported | Suspected
Event = Arrived | Broken | Began | Ended | Ticked | InstanceEvent


# --- decisions: what the core tells the process ---------------------------------------------------


class Route(_Message, frozen=True):
    """Send the request to this instance."""

    request_id: int
    name: str


RefusalCode = Literal["queue_full", "no_spare_time", "no_instance"]


class Refuse(_Message, frozen=True):
    """Answer the request with 429 (`queue_full`, `no_spare_time`) or 503 (`no_instance`)."""

    request_id: int
    code: RefusalCode


class Removed(_Message, frozen=True):
    """An instance that was leaving has no open requests any more: it can be stopped."""

    name: str


class Grow(_Message, frozen=True):
    """Another instance is needed: requests wait too long for their first token."""


class Shrink(_Message, frozen=True):
    """One instance fewer is enough: one of these should leave, rather the first than the last.

    The process answers with `Leaving`, unless its platform cannot remove any of them.
    """

    names: tuple[str, ...]


Decision = Route | Refuse | Removed | Grow | Shrink
