"""Local instances: daemons that the router runs as child processes on its own host.

Each daemon listens on a free port of 127.0.0.1, which it writes to its runtime folder. A daemon
that ends is reported; another one is started if there are fewer than `min_instances` then, at most
one within `scale_cooldown`. All daemons die with the router, even if it is killed
(`daemon.processes.child_process`).
"""

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from configs.schema.part import ENV_PREFIX
from configs.schema.scaling import ScalingConfig
from daemon.healthcheck import PORT_FILE
from daemon.processes import child_process, process_exits
from daemon.runtime_folder import temporary_folder
from daemon.start_error import StartError
from router.actuators.actuator import ActuatorError, GrowthLimit, Report, happens
from router.actuators.membership import Membership

COMMAND = (sys.executable, "-P", "-m", "daemon")
POLL_INTERVAL_S = 0.2
REPLACE_INTERVAL_S = 0.5
READY_TIMEOUT_S = 5.0
# A killed supervisor ends at once, and its children with it, unless the kernel holds it.
KILL_TIMEOUT_S = 10.0

log = logging.getLogger("tdpipe")


@dataclass(eq=False)
class _Daemon:
    """A daemon from its start to its end; its folder has the runtime folder `run`."""

    number: int
    devices: str | None
    folder: Path
    lifetime: ExitStack  # of the folder
    process: asyncio.subprocess.Process | None = None
    name: str = ""
    is_ending: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def run(self) -> Path:
        """Its runtime folder."""
        return self.folder / "run"


class LocalActuator:
    """An `Actuator` that runs `tdpipe serve local_args` for each instance."""

    def __init__(
        self,
        config: ScalingConfig,
        api_key: str | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """With an `api_key`, the daemons demand it."""
        self._config = config
        self._api_key = api_key
        self._command = (*command, *shlex.split(config.local_args))
        groups = config.device_groups
        self._max_instances = min(config.max_instances, len(groups) or config.max_instances)
        self._growth = GrowthLimit(self._max_instances, config.scale_cooldown)
        self._members = Membership(config.min_instances)
        self._daemons: list[_Daemon] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_started = 0
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._http = httpx.AsyncClient(timeout=READY_TIMEOUT_S, trust_env=False)

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """See `Actuator`; starts `min_instances` at once, and replaces those that end."""
        self._members.begin(on_joined, on_gone)
        for _ in range(self._config.min_instances):
            self._start()
        while not await happens(self._ended, REPLACE_INTERVAL_S):
            num_staying = sum(not daemon.is_ending for daemon in self._daemons)
            is_short = num_staying < self._config.min_instances
            if is_short and self._growth.allows(len(self._daemons)):
                try:
                    self._start()
                except (StartError, OSError) as error:
                    log.error("a local instance cannot be started: %s", error)
        if self._error is not None:
            raise self._error

    async def grow(self) -> None:
        """See `Actuator`."""
        is_starting = any(not daemon.name for daemon in self._daemons)
        if not self._ended.is_set() and not is_starting and self._growth.allows(len(self._daemons)):
            self._start()

    async def remove(self, name: str) -> None:
        """See `Actuator`; a daemon that does not end in time is killed."""
        daemon = next((daemon for daemon in self._daemons if daemon.name == name), None)
        if daemon is None:
            raise ActuatorError(f"{name} is not removed: it is none of the local instances")
        await self._stop(daemon)
        await happens(daemon.ended, KILL_TIMEOUT_S)

    def pick(self, names: Sequence[str]) -> str | None:
        """See `Actuator`."""
        return self._members.pick(names)

    async def close(self) -> None:
        """End all daemons, at the same time, and `run`."""
        self._ended.set()
        try:
            stops = [self._stop(daemon) for daemon in self._daemons]
            await asyncio.gather(*stops, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=KILL_TIMEOUT_S)
        finally:
            for daemon in self._daemons:
                _kill(daemon)
            await self._http.aclose()

    def _start(self) -> None:
        used = {daemon.devices for daemon in self._daemons}
        devices = next((group for group in self._config.device_groups if group not in used), None)
        self._num_started += 1
        self._growth.start()
        lifetime = ExitStack()
        folder = lifetime.enter_context(temporary_folder("tdpipe-instance-"))
        daemon = _Daemon(self._num_started, devices, folder, lifetime)
        self._daemons.append(daemon)
        task = asyncio.create_task(self._follow(daemon), name=f"local instance {daemon.number}")
        self._tasks.add(task)
        task.add_done_callback(self._take_end)

    def _take_end(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._ended.set()

    async def _follow(self, daemon: _Daemon) -> None:
        """Start a daemon, report it once it is ready, and again when it has ended."""
        try:
            process = daemon.process = await self._execute(daemon)
            if daemon.is_ending:  # stopped meanwhile
                process.terminate()
            end = asyncio.create_task(process.wait())
            ready = asyncio.create_task(self._wait_ready(daemon))
            try:
                await asyncio.wait((end, ready), return_when=asyncio.FIRST_COMPLETED)
                if not end.done() and ready.result():
                    daemon.name = ready.result()
                    log.info("local instance %d is ready at %s", daemon.number, daemon.name)
                    self._members.join(daemon.name)
                elif not end.done() and not daemon.is_ending:
                    log.error(
                        "local instance %d was not ready within %g s (instance_start_timeout)",
                        daemon.number,
                        self._config.instance_start_timeout,
                    )
                    await self._stop(daemon)
                self._log_end(daemon, await end)
            finally:
                end.cancel()
                ready.cancel()
        except OSError as error:
            log.error("local instance %d cannot be started: %s", daemon.number, error)
        finally:
            _kill(daemon)
            self._daemons.remove(daemon)
            daemon.ended.set()
            daemon.lifetime.close()
            self._members.leave(daemon.name)

    async def _execute(self, daemon: _Daemon) -> asyncio.subprocess.Process:
        log.info("starting local instance %d: %s", daemon.number, shlex.join(self._command[4:]))
        environment = child_process.environment_of_children(None)
        if daemon.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = daemon.devices
        if self._api_key is not None:
            environment[f"{ENV_PREFIX}API_KEY"] = self._api_key
        # The daemon sets it for its own children, by its `num_threads`.
        if "OMP_NUM_THREADS" not in os.environ:
            del environment["OMP_NUM_THREADS"]
        own = ["--host", "127.0.0.1", "--port", "0", "--runtime-dir", str(daemon.run)]
        # This is the loop's thread: on Linux, a child ends with the thread that has started it.
        return await asyncio.create_subprocess_exec(
            *self._command,
            *own,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,
            # Ctrl-C must reach only the router, which ends its daemons in order.
            start_new_session=True,
            env=environment,
        )

    async def _wait_ready(self, daemon: _Daemon) -> str:
        """The daemon's URL once it answers /ready; empty if it does not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.instance_start_timeout):
                while True:
                    with suppress(OSError, httpx.HTTPError):
                        url = f"http://127.0.0.1:{(daemon.run / PORT_FILE).read_text()}"
                        if (await self._http.get(f"{url}/ready")).status_code == 200:
                            return url
                    await asyncio.sleep(POLL_INTERVAL_S)
        return ""

    async def _stop(self, daemon: _Daemon) -> None:
        """SIGTERM, SIGKILL if it does not end in time, and wait until it has ended."""
        daemon.is_ending = True
        if daemon.process is None:  # `_follow` ends it as soon as it is there
            await happens(daemon.ended, KILL_TIMEOUT_S)
            return
        with suppress(ProcessLookupError):
            daemon.process.terminate()
        try:
            async with asyncio.timeout(self._config.instance_stop_timeout):
                await daemon.process.wait()
        except TimeoutError:
            log.warning(
                "local instance %d has not ended within %g s (instance_stop_timeout): killed",
                daemon.number,
                self._config.instance_stop_timeout,
            )
            _kill(daemon)
            await happens(daemon.ended, KILL_TIMEOUT_S)

    def _log_end(self, daemon: _Daemon, status: int) -> None:
        if daemon.is_ending:
            log.info("local instance %d is stopped", daemon.number)
            return
        cause = child_process.reported_failure(daemon.run)
        log.error(
            "local instance %d %s%s%s",
            daemon.number,
            process_exits.describe(status),
            "" if daemon.name else " before it was ready",
            f": {cause}" if cause else "",
        )


def _kill(daemon: _Daemon) -> None:
    if daemon.process is not None and daemon.process.returncode is None:
        with suppress(ProcessLookupError):
            daemon.process.kill()
