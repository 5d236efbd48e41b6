"""A small world: a tokenizer, an engine that follows a script, a server in a thread."""

import asyncio
import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvloop
import zmq
from msgspec.structs import replace
from starlette.types import ASGIApp
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from configs.config import Config
from daemon.observability.tracing import Tracing
from server.app import build_app
from server.batches.engine_batches import build_batches
from server.batches.service import BatchService
from server.endpoints import build_endpoints
from server.http.drain import Drain
from server.http.errors import ApiError
from server.http.listener import DrainingServer, listen
from server.http.tls import tls_context
from server.lengths.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from server.requests.monitoring.engine_metrics import EngineCollector
from server.text.tokenizer import Tokenizer
from wire.messages import (
    EngineReady,
    Finished,
    FromServer,
    Generated,
    Hello,
    ReportedSteps,
    StageStats,
    Stats,
    Submit,
    ToServer,
    WatchSteps,
)
from wire.sockets import Hub

MODEL = "little"
MAX_MODEL_LEN = 64
PATIENCE_S = 30.0
END, BEGIN = "<|end|>", "<|begin|>"

Message = TypeVar("Message")


def byte_level_tokenizer(*, begin: bool = False) -> Any:
    """A byte-level BPE of some 300 tokens; id 0 is the end, id 1 the begin of a text."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the quick brown fox", "hello world hello"] * 4, trainer)
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=BEGIN)


def byte_fallback_core() -> Core:
    """As Llama 2: words with a mark for the space; a byte without a token is a token `<0xE2>`."""
    words = ["▁hello", "▁", "x", "y", "▁wor", "ld", "</s>"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(words)}
    core = Core(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.add_special_tokens(["</s>"])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def save_model(folder: Path) -> Path:
    """What the server reads of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": 0})
    )
    return folder


TOKENIZER = Tokenizer(byte_level_tokenizer())


def generated(sequence_id: int, *token_ids: int) -> Generated:
    """One step's tokens, all for one sequence."""
    ids = array("q", [sequence_id] * len(token_ids)).tobytes()
    return Generated(ids, array("i", token_ids).tobytes())


def reported(
    after: int, steps: list[tuple[int, int, int, int, int, float, float]]
) -> ReportedSteps:
    """The later ones of steps: stage, id, phase, rows, tokens, begin and end."""
    columns = zip(*steps[after:], strict=True) if steps[after:] else [()] * 7
    types = ("i", "q", "B", "i", "i", "d", "d")
    packed = (array(kind, list(each)).tobytes() for kind, each in zip(types, columns, strict=True))
    return ReportedSteps(after, len(steps), *packed)


def saying(text: str, tokenizer: Tokenizer | None = None) -> Callable[[Submit], list[ToServer]]:
    """A script: every sequence gets this text, a token a step, as far as its max_tokens go.

    As from the engine, nothing comes after a token that ends the sequence.
    """

    def answer(submit: Submit) -> list[ToServer]:
        token_ids = [*(tokenizer or TOKENIZER).encode(text), *submit.stop_token_ids[:1]]
        places = (i for i, id_ in enumerate(token_ids, 1) if id_ in submit.stop_token_ids)
        end = next((i for i in places if i >= submit.min_tokens), len(token_ids) + 1)
        return [
            *(generated(submit.sequence_id, i) for i in token_ids[: min(end, submit.max_tokens)]),
            Finished(submit.sequence_id, "stop" if end <= submit.max_tokens else "length"),
        ]

    return answer


def silent(_submit: Submit) -> list[ToServer]:
    """A script: nothing comes until the test sends it."""
    return []


class FakeEngine:
    """A hub in a thread: answers Hello, follows `script` on Submit, keeps what it received."""

    def __init__(
        self, endpoint: str, script: Callable[[Submit], Iterable[ToServer]] = silent
    ) -> None:
        self.script = script
        self.ready: EngineReady | None = EngineReady(
            2, 40, 16, MAX_MODEL_LEN, attention=("native", "plain"), batch_invariant=True
        )
        self.stats = stats()
        self.answers_hello = True
        self.steps: list[tuple[int, int, int, int, int, float, float]] = []  # a report each
        self.beats = True  # sends its stats four times a second, as an engine does
        self.received: list[FromServer] = []
        self._hello = 0
        self._changed = threading.Condition()
        self._outbox: list[ToServer] = []
        self._hub: Hub[FromServer] = Hub(endpoint, FromServer)
        self._wake_end, self._wake = os.pipe()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fake engine")
        self._thread.start()

    def send(self, *messages: ToServer) -> None:
        """Send to the server."""
        with self._changed:
            self._outbox.extend(messages)
        os.write(self._wake, b"!")

    def wait_for(self, kind: type[Message], count: int = 1) -> list[Message]:
        """The messages of this kind, once there are `count`."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._of(kind)) >= count, PATIENCE_S)
            assert arrived, f"{len(self._of(kind))} of {count} {kind.__name__} came"
            return self._of(kind)

    def introduce(self) -> None:
        """Send what a Hello is answered with."""
        self.send(self.stats, *([self.ready] if self.ready else []))

    def close(self) -> None:
        """End the thread and free the endpoint."""
        self._closing = True
        os.write(self._wake, b"!")
        self._thread.join()
        self._hub.close()
        os.close(self._wake)
        os.close(self._wake_end)

    def _of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.received if isinstance(message, kind)]

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._hub.socket, zmq.POLLIN)
        poller.register(self._wake_end, zmq.POLLIN)
        while not self._closing:
            if self._wake_end in dict(poller.poll(250 if self.beats else None)):
                os.read(self._wake_end, 1)
            if self.beats:
                self._hub.send("server", self.stats)
            for _, message in self._hub.drain():
                self._receive(message)
            with self._changed:
                outbox, self._outbox = self._outbox, []
            for out in outbox:
                if isinstance(out, Stats):
                    self.stats = out
                is_ready = isinstance(out, EngineReady)
                self._hub.send("server", replace(out, hello=self._hello) if is_ready else out)

    def _receive(self, message: FromServer) -> None:
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()
        if isinstance(message, Hello):
            self._hello = message.number
        if isinstance(message, Hello) and self.answers_hello:
            self.introduce()
        elif isinstance(message, WatchSteps):
            self._hub.send("server", reported(message.after, self.steps))
        elif isinstance(message, Submit):
            for out in self.script(message):
                self._hub.send("server", out)


def stats(*, ready: bool = True, uptime_s: float = 1.0, **values: Any) -> Stats:
    """The engine's figures with two stages."""
    stages = tuple(StageStats(i, 100 + i, 0.1, 7, 3, 0.5 + uptime_s / 2, i * 0.9) for i in range(2))
    return Stats(ready, "decode", uptime_s=uptime_s, **({"stages": stages} | values))


def config(folder: Path, **values: Any) -> Config:
    """Settings for a server of the little model."""
    return Config.of(
        **{
            "model": str(folder / "model"),
            "served_model_name": MODEL,
            "runtime_dir": folder,
            "data_dir": folder / "data",
            "port": 0,
            "shutdown_timeout": PATIENCE_S,
            **values,
        }
    )


def make_app(
    settings: Config,
    client: EngineClient,
    drain: Drain,
    tokenizer: Tokenizer = TOKENIZER,
    tracing: Tracing | None = None,
) -> tuple[ASGIApp, LengthPredictor, BatchService]:
    """The app, the predictor, which is to be run if there is an encoder, and the batches."""
    metrics = Metrics(EngineCollector(client), model_name=MODEL)
    predictor = LengthPredictor(settings.predictor, settings.runtime, MODEL, metrics)
    endpoints = build_endpoints(settings, client, tokenizer, metrics, predictor)
    batches = build_batches(settings, client, endpoints.all(), drain, metrics, tracing)
    app = build_app(settings, client, tokenizer, drain, metrics, endpoints, batches, tracing)
    return app, predictor, batches


@dataclass
class Daemon:
    """A served app: where it listens, and the engine behind it."""

    url: str
    engine: FakeEngine
    client: EngineClient
    server: DrainingServer
    drain: Drain
    loop: asyncio.AbstractEventLoop
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=PATIENCE_S))

    def complete(self, **body: Any) -> httpx.Response:
        """POST /v1/completions with the usual fields filled in."""
        return self.http.post(
            f"{self.url}/v1/completions", json={"model": MODEL, "prompt": "hi"} | body
        )

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return self.http.get(self.url + path)

    def stop(self) -> None:
        """What a SIGTERM does."""
        self.loop.call_soon_threadsafe(self.server.stop)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something that has no event of its own has come about."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.002)


@contextmanager
def serving(
    folder: Path,
    script: Callable[[Submit], Iterable[ToServer]] = silent,
    *,
    ready: bool = True,
    tokenizer: Tokenizer = TOKENIZER,
    opens_batches: bool = True,
    tracing: Tracing | None = None,
    **settings: Any,
) -> Iterator[Daemon]:
    """A server in a thread with a fake engine behind it, ready by default."""
    settings_ = config(folder, **settings)
    engine = FakeEngine(settings_.runtime.server_address, script)
    if not ready:
        engine.ready, engine.stats = None, stats(ready=False, stages=())
    started: list[Daemon] = []
    is_up = threading.Event()

    async def serve() -> None:
        client = EngineClient(settings_.runtime.server_address)
        drain = Drain()
        app, predictor, batches = make_app(settings_, client, drain, tokenizer, tracing)
        tls = tls_context(settings_.server.listen)
        server = DrainingServer(
            app,
            client.fail_all,
            drain,
            shutdown_timeout_s=settings_.server.connections.shutdown_timeout,
            send_timeout_s=settings_.server.connections.send_timeout,
            trusted_proxies=settings_.server.listen.forwarded_allow_ips,
            tls=tls,
        )
        listener = listen("127.0.0.1", 0)
        url = f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
        started.append(Daemon(url, engine, client, server, drain, asyncio.get_running_loop()))
        tasks = [asyncio.create_task(c.run()) for c in (client, predictor, batches)]
        if opens_batches:
            await asyncio.wait_for(_opened(batches), PATIENCE_S)
        if ready:
            await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
        is_up.set()
        await server.serve([listener])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert is_up.wait(PATIENCE_S), "the server did not start"
        daemon = started[0]
        yield daemon
    finally:
        if started and thread.is_alive():
            started[0].http.close()
            with suppress(RuntimeError):
                started[0].loop.call_soon_threadsafe(_set_exit, started[0].server)
        thread.join()
        (started[0].engine if started else engine).close()  # a test may have replaced it


def events(response: httpx.Response) -> list[Any]:
    """A stream's events as JSON; its end must be the [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def _opened(batches: BatchService) -> None:
    """Until files and batches are there."""
    while True:
        with suppress(ApiError):
            _ = batches.store
            return
        await asyncio.sleep(0.002)


def _set_exit(server: DrainingServer) -> None:
    server.should_exit = True
