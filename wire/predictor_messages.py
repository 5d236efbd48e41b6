"""The predictor's door: what crosses between it and the server."""

import msgspec


class Ask(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How long will the answers to these prompts be? Nobody waits for it: it may come late."""

    request_id: int
    prompts: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """For each prompt in order: the most likely class of lengths, the mean in tokens over all
    classes as likely as they are, and the standard deviation of the logarithm."""

    request_id: int
    classes: tuple[int, ...]
    predicted_lens: tuple[int, ...]
    spreads: tuple[float, ...]
