"""The router's process (`tdpipe route`): one HTTP interface for many daemons."""

import asyncio
import json
import logging
import ssl
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from socket import socket

import uvloop

from configs.commands import ROUTE
from configs.loader import ConfigError, load_command, non_default
from configs.output_files import OutputFileError
from configs.schema.route import InstancesConfig, RouteConfig
from daemon.gc_tuning import GcTuning
from daemon.healthcheck import PORT_FILE
from daemon.host import resource_limits
from daemon.observability import log_file, logs, tracing
from daemon.observability.tracing import Tracing
from daemon.runtime_folder import occupied
from daemon.start_error import StartError
from daemon.version import VERSION
from router.actuators.actuator import ActuatorError
from router.actuators.registry import make_actuator
from router.batches.batches import build_batches
from router.decisions.core import RouterCore
from router.fleets import Fleets
from router.front.answer import Desk
from router.front.app import GENERATIONS, build_app
from router.front.event_stream import KeptMemory
from router.inquiry import TokenRatio
from router.journal import Journal
from router.monitoring.metrics import Metrics
from router.monitoring.stats_log import StatsLog
from router.scaler import Scaler
from router.status_reader import StatusReader
from router.upstream.address import Address, client_tls
from router.upstream.instance_link import InstanceLink
from router.upstream.pool import Pool
from server.http.drain import Drain
from server.http.listener import DrainingServer, listen, url
from server.http.tls import tls_context
from server.http.unix_socket import listen_at

TICK_S = 0.25

logger = logging.getLogger("tdpipe")


def main(argv: Sequence[str]) -> int:
    """Run `tdpipe route ARGV`; returns the exit code."""
    try:
        config = load_command(ROUTE, argv, version=VERSION)
        if config.scaling.actuator == "fixed" and not config.instances.instances:
            raise ConfigError("instances: give the URLs of the daemons, --instances URL,URL,...")
        terminal = log_file.begin(config.logs.log_file) if config.logs.log_file else None
    except (ConfigError, log_file.LogFileError) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)  # noqa: T201 - no log is set up yet
        return 2
    logs.set_up("router", config.logs, terminal)
    changed = json.dumps(non_default(config))
    logger.info("tdpipe %s, settings that differ from the defaults: %s", VERSION, changed)
    resource_limits.raise_open_files()
    try:
        serve(config)
    except (StartError, ActuatorError, OSError) as error:
        logger.error("%s", error)
        return 1
    logger.info("stopped")
    return 0


def serve(config: RouteConfig) -> None:
    """Serve until a signal.

    Raises `StartError`, `ActuatorError`, and `OSError` for files that are unusable.
    """
    tls = tls_context(config.listen)
    traces = tracing.begin(config.tracing, "tdpipe-router")
    instance_tls = _instance_tls(config.instances)
    folder = config.process.runtime_dir
    with (
        occupied(folder, config) if folder else nullcontext(),
        _listen(config) as listener,
        _journal(config) as journal,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        router = Router(config, journal, instance_tls, traces)
        runner.run(router.run(listener, tls, GcTuning().tidy))
    if traces is not None:
        traces.close()


class Router:
    """All parts of one router."""

    def __init__(
        self,
        config: RouteConfig,
        journal: Journal | None,
        instance_tls: ssl.SSLContext | None,
        traces: Tracing | None = None,
    ) -> None:
        self._config, self._tls, self._traces = config, instance_tls, traces
        self.metrics, self.drain = Metrics(), Drain()
        key = config.instances.instance_api_key
        self._api_key = key.get_secret_value() if key else None
        actuator = make_actuator(config.scaling, config.instances.instances, self._api_key)
        self.scaler = Scaler(actuator)
        make_core = partial(RouterCore, config.core)
        self.fleets = Fleets(
            make_core,
            self.metrics,
            self.scaler,
            journal,
            patience_s=config.routing.no_instance_timeout,
        )
        self.server: DrainingServer | None = None
        self._name = uuid.uuid4().hex
        self._readers: dict[str, tuple[StatusReader, asyncio.Task[None]]] = {}

    async def run(
        self,
        listener: socket,
        tls: ssl.SSLContext | None = None,
        tidy: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve until a signal, or until a part fails; `tidy` is called four times a second."""
        connections = self._config.connections
        desk = Desk(
            self.fleets,
            self.drain,
            self.metrics,
            TokenRatio(),
            KeptMemory(self._config.instances.max_resume_bytes, self.metrics),
            self._config.instances.max_attempts,
            connections.request_timeout,
            self._traces,
        )
        batches = build_batches(self._config, desk, GENERATIONS)
        self.server = server = DrainingServer(
            build_app(self._config, desk, self.release, batches),
            self.fleets.fail_all,
            self.drain,
            shutdown_timeout_s=connections.shutdown_timeout,
            send_timeout_s=connections.send_timeout,
            trusted_proxies=self._config.listen.forwarded_allow_ips,
            tls=tls,
        )
        self._log_start(listener)
        serving = asyncio.create_task(server.serve([listener]))
        ticking = asyncio.create_task(self._tick(tidy))
        discovering = asyncio.create_task(self.scaler.run(self.join, self.fleets.forget))
        batching = asyncio.create_task(batches.run())
        # These never end by themselves: if one does, it has failed, and the process fails.
        tasks = (ticking, discovering, batching)
        try:
            await asyncio.wait((serving, *tasks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(*tasks)
        for task in (*tasks, serving):
            if not task.cancelled():
                task.result()

    async def _end(self, *tasks: asyncio.Task[None]) -> None:
        all_tasks = [*tasks, *(reading for _, reading in self._readers.values())]
        for task in all_tasks:
            task.cancel()
        await asyncio.wait(all_tasks)
        for link in self.fleets.links.values():
            link.close()
        await self.scaler.close()

    def join(self, name: str) -> None:
        """Let an instance take part; its name is its URL."""
        if name in self.fleets.links:
            return
        timeout_s = self._config.instances.connect_timeout
        link = InstanceLink(name, Pool(Address.of(name, self._api_key), timeout_s, self._tls))
        if name in self._readers:  # of a link that has just been dropped
            self._readers.pop(name)[1].cancel()
        self.fleets.add(link)
        stale_after_s = self._config.routing.stale_after
        reader = StatusReader(link, self.fleets, stale_after_s, self._name)
        self._readers[name] = reader, asyncio.create_task(reader.run())

    def release(self, name: str, pause_s: float) -> None:
        """Leave an instance to other routers for so many seconds. Raises `KeyError`."""
        reader, _ = self._readers[name]
        reader.release(pause_s)
        self.fleets.release(name)

    async def _tick(self, tidy: Callable[[], object]) -> None:
        stats_log = StatsLog(self.fleets, self._config.logs.log_stats_interval)
        while True:
            tidy()
            stats_log.tick()
            self.fleets.tick()
            for name in [name for name in self._readers if name not in self.fleets.links]:
                self._readers.pop(name)[1].cancel()
            for _, reading in self._readers.values():
                if reading.done():
                    reading.result()  # a reader never ends by itself: it has failed
            await asyncio.sleep(TICK_S)

    def _log_start(self, listener: socket) -> None:
        config = self._config.listen
        where = f"the Unix socket {config.uds}"
        if config.uds is None:
            port = listener.getsockname()[1]
            folder = self._config.process.runtime_dir
            if folder:
                (folder / PORT_FILE).write_text(str(port))
            where = url(config.host, port, tls=config.ssl_certfile is not None)
        logger.info("listening on %s (OpenAI API under %s/v1)", where, config.root_path)


def _listen(config: RouteConfig) -> AbstractContextManager[socket]:
    where = config.listen
    if where.uds is not None:
        return listen_at(where.uds, int(where.uds_permissions, 8))
    return listen(where.host, where.port)


def _journal(config: RouteConfig) -> AbstractContextManager[Journal | None]:
    path = config.instances.journal
    if path is None:
        return nullcontext()
    try:
        return Journal(path, config.core)
    except OutputFileError:
        raise
    except OSError as error:
        raise OSError(f"cannot write the journal {path}: {error.strerror}") from error


def _instance_tls(config: InstancesConfig) -> ssl.SSLContext | None:
    if config.instances and not any(name.startswith("https://") for name in config.instances):
        return None
    try:
        return client_tls(config.instance_ca_certs)
    except OSError as error:  # SSLError too
        raise OSError(f"cannot use the certificates {config.instance_ca_certs}: {error}") from error
