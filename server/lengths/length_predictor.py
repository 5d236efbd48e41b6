"""The length predictor: predicts answer lengths for the engine's scheduler.

A length given by the client takes precedence over `--predictor`. With an encoder, a request is
submitted with the histogram's prediction, and the encoder's prediction follows when it is ready. If
the encoder is late or down, the histogram's prediction is used.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from configs.schema.model import ModelConfig
from configs.schema.runtime import RuntimeConfig
from configs.schema.scheduler import PredictorConfig
from server.lengths.length_histogram import HistogramError, LengthHistogram, LengthQuery
from server.lengths.predictor_client import PredictorClient
from server.metrics import Metrics
from server.text.tokenizer import Tokenizer
from wire.predictor_messages import Answer

SAVE_INTERVAL_S = 30.0
# The number of finished sequences over which the metric for the error of the sum is computed.
ERROR_WINDOW = 256
# The spread of a constant prediction: the spread of lengths in typical traffic.
_CONSTANT_SPREAD = 1.0
_LEAST_SPREAD = 0.01
CLIENT, HISTOGRAM, CONSTANT, ORACLE, ENCODER = (
    "client",
    "histogram",
    "constant",
    "oracle",
    "encoder",
)

logger = logging.getLogger("tdpipe")


class PredictorMismatchError(Exception):
    """The predictor was trained for another tokenizer; the message is one line for the user."""


class ExpectedLength(NamedTuple):
    """An expected number of output tokens, see `wire.messages.Submit`, and its source.

    `length_class` is the class that the encoder has predicted; for other sources it is the length
    rounded up to a power of two.
    """

    predicted_len: int
    spread: float
    source: str
    length_class: str


class LengthPredictor:
    """Predicts lengths for a server; all methods must be called from its asyncio loop."""

    def __init__(
        self, config: PredictorConfig, runtime: RuntimeConfig, model: str, metrics: Metrics
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._path = histogram_path(runtime.data_dir, model)
        self._histogram = _load(self._path)
        self._saved = self._histogram.num_observed
        self._recent = deque[tuple[int, int]](maxlen=ERROR_WINDOW)
        self._encoder = (
            PredictorClient(runtime.predictor_address) if config.predictor_folder else None
        )

    @property
    def has_encoder(self) -> bool:
        """Whether a better prediction may follow, see `ask`."""
        return self._encoder is not None

    def expect(self, asked: LengthQuery, hint: int | None = None) -> ExpectedLength:
        """Return the immediately available prediction; `hint` is the client's own, if any."""
        config = self._config
        if hint is not None:
            return _expected(min(hint, asked.max_tokens), 0.0, CLIENT)
        if config.constant_len is not None:
            return _expected(config.constant_len, _CONSTANT_SPREAD, CONSTANT)
        if config.predictor == ORACLE:
            return _expected(asked.max_tokens, 0.0, ORACLE)
        length = self._histogram.predict(asked)
        return _expected(length.mean, max(_LEAST_SPREAD, length.spread), HISTOGRAM)

    def ask(
        self, prompts: tuple[str, ...], take: Callable[[list[ExpectedLength]], None]
    ) -> Callable[[], None]:
        """Ask the encoder; `take` is called with its predictions if they arrive.

        Returns a function that cancels the question.
        """
        assert self._encoder is not None

        def take_answer(answer: Answer, seconds: float) -> None:
            self._metrics.predictor_latency.observe(seconds)
            columns = zip(answer.predicted_lens, answer.spreads, answer.classes, strict=True)
            take([ExpectedLength(max(1, n), s, ENCODER, str(c)) for n, s, c in columns])

        encoder, question = self._encoder, self._encoder.ask(prompts, take_answer)
        return lambda: encoder.forget(question) if question is not None else None

    def observe(self, asked: LengthQuery, expected: ExpectedLength, output_len: int) -> None:
        """Record a sequence that ended by itself after `output_len` tokens, at least one."""
        self._histogram.observe(asked, output_len)
        metrics = self._metrics
        metrics.predictions.labels(expected.source, expected.length_class).inc()
        predicted = metrics.predicted_tokens.labels(expected.source, expected.length_class)
        predicted.inc(expected.predicted_len)
        metrics.real_tokens.labels(expected.source, expected.length_class).inc(output_len)
        if self._encoder is not None and expected.source == HISTOGRAM:
            metrics.predictor_fallbacks.inc()
        self._recent.append((expected.predicted_len, output_len))
        sum_predicted, sum_real = map(sum, zip(*self._recent, strict=True))
        metrics.prediction_error.set((sum_predicted - sum_real) / sum_real)

    async def run(self) -> None:
        """Receive predictions and save the histogram regularly, until cancelled."""
        receiving = asyncio.create_task(self._encoder.run()) if self._encoder else None
        try:
            while True:
                await asyncio.sleep(SAVE_INTERVAL_S)
                self.save()
        finally:
            if receiving is not None:
                receiving.cancel()
                with suppress(asyncio.CancelledError):
                    await receiving
            self.save()

    def save(self) -> None:
        """Save the histogram if it has changed; a failure, such as a full disk, is only logged."""
        if self._histogram.num_observed == self._saved:
            return
        try:
            self._histogram.save(self._path)
        except OSError as error:
            logger.warning("cannot save the length histogram %s: %s", self._path, error)
        self._saved = self._histogram.num_observed


def check_predictor(config: PredictorConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise `PredictorMismatchError` if the encoder was trained for another tokenizer.

    If the folder contains no predictor, the predictor's own process reports it.
    """
    if config.predictor_folder is None:
        return
    description: dict[str, object] = {}
    with suppress(OSError, ValueError):
        description = json.loads((config.predictor_folder / "predictor.json").read_text())
    counted_in = description.get("tokenizer") if isinstance(description, dict) else None
    if counted_in not in (None, tokenizer.fingerprint):
        raise PredictorMismatchError(
            f"the predictor in {config.predictor_folder} was trained with another tokenizer than "
            f"that of {model.tokenizer or model.model}"
        )
    if counted_in is None and description:
        logger.warning("the predictor does not name the tokenizer it was trained with")


def histogram_path(data_dir: Path, model: str) -> Path:
    """Return the path of this model's length histogram."""
    return data_dir / "lengths" / f"{quote(model, safe='')}.json"


def _load(path: Path) -> LengthHistogram:
    try:
        return LengthHistogram.load(path)
    except (HistogramError, OSError) as error:
        logger.warning("starting with an empty length histogram: %s", error)
        return LengthHistogram()


def _expected(length: float, spread: float, source: str) -> ExpectedLength:
    predicted_len = max(1, round(length))
    return ExpectedLength(predicted_len, spread, source, str(1 << (predicted_len - 1).bit_length()))
