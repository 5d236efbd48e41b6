"""The messages between the server and the predictor."""

import msgspec


class Ask(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Ask for the output lengths of these prompts; no request waits for the answer."""

    request_id: int
    prompts: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The predictions of an `Ask`, one entry per prompt, in order.

    `classes` are the most likely length classes, `predicted_lens` are the mean lengths in tokens
    (weighted over all classes), and `spreads` are the standard deviations of the logarithm of the
    length.
    """

    request_id: int
    classes: tuple[int, ...]
    predicted_lens: tuple[int, ...]
    spreads: tuple[float, ...]
