"""The server's process: `python -m server RUNTIME_DIR`, started by the supervisor."""

import asyncio
import logging
import signal
import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from socket import socket
from ssl import SSLContext

import uvloop

from configs import loader
from configs.config import Config
from configs.schema.server import ListenConfig
from daemon.gc_tuning import GcTuning
from daemon.healthcheck import PORT_FILE
from daemon.observability import log_file, logs, tracing
from daemon.observability.tracing import Tracing
from daemon.processes import child_process
from daemon.processes.process_title import entitle
from daemon.processes.watchdog_file import INTERVAL_S, WatchdogFile
from daemon.start_error import StartError
from server.app import build_app
from server.batches.engine_batches import build_batches
from server.chat.chat_template import ChatTemplateError
from server.endpoints import build_endpoints
from server.http.drain import Drain
from server.http.listener import DrainingServer, listen, url
from server.http.tls import tls_context
from server.http.unix_socket import listen_at
from server.lengths.length_predictor import LengthPredictor, PredictorMismatchError, check_predictor
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from server.requests.monitoring.engine_metrics import EngineCollector
from server.requests.monitoring.stats_log import StatsLog, describe
from server.text.tokenizer import Tokenizer, TokenizerError, keep_torch_out, load_tokenizer

logger = logging.getLogger("tdpipe")


def main(folder: Path) -> int:
    """Serve until a signal; returns the exit status."""
    child_process.tie_to_parent()
    entitle("server")
    log_file.follow()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until there is something to drain
    config = loader.load_saved(folder)
    logs.set_up("server", config.logs)
    if not config.model.trust_remote_code:
        keep_torch_out()
    try:
        tls = tls_context(config.server.listen)
        traces = tracing.begin(config.tracing, "tdpipe")
        with _listen(config.server.listen) as listener:
            tokenizer = load_tokenizer(config.model)
            check_predictor(config.predictor, config.model, tokenizer)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(config, listener, tls, tokenizer, traces))
                if traces is not None:
                    traces.close()
    except (
        StartError,
        TokenizerError,
        ChatTemplateError,
        PredictorMismatchError,
        OSError,
    ) as error:
        child_process.report_failure(config.runtime.folder, str(error))
        return 1
    return 0


def _listen(config: ListenConfig) -> AbstractContextManager[socket]:
    if config.uds is not None:
        return listen_at(config.uds, int(config.uds_permissions, 8))
    return listen(config.host, config.port)


async def _serve(
    config: Config,
    listener: socket,
    tls: SSLContext | None,
    tokenizer: Tokenizer,
    traces: Tracing | None,
) -> None:
    runtime, connections = config.runtime, config.server.connections
    client = EngineClient(
        runtime.server_address,
        config.server.limits.max_stream_interval,
        config.pipeline.stage_start_timeout,
        runtime.secret,
    )
    drain = Drain()
    metrics = Metrics(EngineCollector(client), model_name=config.model.name)
    predictor = LengthPredictor(config.predictor, runtime, config.model.name, metrics)
    endpoints = build_endpoints(config, client, tokenizer, metrics, predictor)
    batches = build_batches(config, client, endpoints.all(), drain, metrics, traces)
    server = DrainingServer(
        build_app(config, client, tokenizer, drain, metrics, endpoints, batches, traces),
        client.fail_all,
        drain,
        shutdown_timeout_s=connections.shutdown_timeout,
        send_timeout_s=connections.send_timeout,
        trusted_proxies=config.server.listen.forwarded_allow_ips,
        tls=tls,
        failure=partial(child_process.reported_failure, runtime.folder),
    )
    _announce_listening(config.server.listen, listener, runtime.folder)
    serving = asyncio.create_task(server.serve([listener]))
    receiving = asyncio.create_task(client.run())
    announcing = asyncio.create_task(_announce_ready(config.model.name, client))
    predicting = asyncio.create_task(predictor.run())
    batching = asyncio.create_task(batches.run())
    reporting = asyncio.create_task(StatsLog(client, config.logs.log_stats_interval).run())
    beating = asyncio.create_task(_beat(WatchdogFile(runtime.folder, "server"), GcTuning()))
    # These tasks never end by themselves: if one does, it has failed, and the process fails.
    tasks = (receiving, predicting, batching, reporting, beating)
    await asyncio.wait((serving, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
    rest = (*tasks, announcing)
    for task in rest:
        task.cancel()
    await asyncio.wait(rest)
    endpoints.close()
    serving.result()


def _announce_listening(config: ListenConfig, listener: socket, folder: Path) -> None:
    where = f"the Unix socket {config.uds}"
    if config.uds is None:
        port = listener.getsockname()[1]
        (folder / PORT_FILE).write_text(str(port))
        where = url(config.host, port, tls=config.ssl_certfile is not None)
    logger.info("listening on %s (OpenAI API under %s/v1)", where, config.root_path)


async def _beat(watchdog_file: WatchdogFile, gc_tuning: GcTuning) -> None:
    while True:
        watchdog_file.beat()
        gc_tuning.tidy()
        await asyncio.sleep(INTERVAL_S)


async def _announce_ready(model: str, client: EngineClient) -> None:
    await client.wait_ready()
    assert client.ready is not None
    logger.info("ready: %s, %s", model, describe(client.ready))


if __name__ == "__main__":
    child_process.leave_with(lambda: main(Path(sys.argv[1])))
