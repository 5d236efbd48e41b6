"""The loop: the only module in the engine that reads the clock.

It waits on the sockets, passes each event with its time to the scheduler, writes it to the journal
and sends the resulting messages. It also checks the stages' heartbeats and sends `Stats` to the
server.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Self

import msgspec
import numpy as np
import zmq

from configs.config import EngineConfig
from configs.schema.runtime import RuntimeConfig
from daemon.gc_tuning import GcTuning
from daemon.host.addresses import numeric_endpoint
from daemon.processes import child_process
from daemon.processes.cpu_waits import CpuWaits
from daemon.processes.process_exits import ExitFile
from daemon.processes.ranks import socket_name
from daemon.processes.watchdog_file import INTERVAL_S, WatchdogFile
from daemon.restart_limit import RestartLimit
from engine.nodes import Nodes
from engine.promises import Announcements, Promiser
from engine.scheduler import Outgoing, Scheduler
from engine.stage_losses import LossCounter, Trouble
from engine.stage_time import StageTime
from engine.stage_watch import StageWatch
from engine.stats import collect
from engine.trace.journal import Journal
from engine.trace.recent_steps import RecentSteps
from engine.trace.recorder import Recorder
from wire.messages import (
    Abort,
    EngineReady,
    Event,
    FromServer,
    FromStage,
    Heartbeat,
    Hello,
    NodeState,
    StageFailed,
    StageLost,
    StageReady,
    StageTimes,
    Step,
    ToServer,
    WatchSteps,
)
from wire.sockets import Hub

SERVER = "server"
STATS_INTERVAL_S = INTERVAL_S
DROPPED_LOG_INTERVAL_S = 60.0
MAX_REFUSALS = 256
"""Refused nodes whose reason is remembered."""

log = logging.getLogger("tdpipe")


class EngineFailedError(Exception):
    """The engine cannot continue; the message is one line for the user."""


def times_of(beat: Heartbeat) -> StageTimes:
    """The seconds of the steps that a heartbeat reports."""
    began_at, ended_at = (np.frombuffer(column) for column in (beat.began_at, beat.ended_at))
    return StageTimes(beat.stage, beat.epoch, beat.step_ids, (ended_at - began_at).tobytes())


class Loop:
    """The engine process.

    Raises `zmq.ZMQError` if an address is in use, and `OSError` if a file cannot be opened.
    `incarnation` is the number of engine processes that this daemon started before this one. If it
    is above 0, an existing journal is continued, and the trace gets a new file (`NAME.2.json` for
    incarnation 1).
    """

    def __init__(
        self,
        config: EngineConfig,
        runtime: RuntimeConfig,
        incarnation: int = 0,
        nodes: Nodes | None = None,
    ) -> None:
        self._pipeline, self._folder, self._nodes = config.pipeline, runtime.folder, nodes
        self._scheduler = Scheduler(config)
        self._promiser = Promiser(self._scheduler)
        self._announcements = Announcements(self._scheduler, self._promiser)
        self._engine = time.time_ns()
        self._began_at = time.monotonic()
        self._waiting_for_stages_since: float | None = self._began_at
        self._busy_s = 0.0
        self._next_stats_at = 0.0
        self._dropped_logged, self._next_dropped_log_at = 0, 0.0
        self._ready: EngineReady | None = None
        self._hello = 0
        self._trouble = ""
        self._refusals: dict[str, str] = {}  # those that were logged, by the node's name
        self._outbox: list[ToServer] = []
        same_host = runtime.stage_address.startswith("ipc://")
        self._restarts = RestartLimit(config.pipeline)
        self._exit_file, self._losses = ExitFile(runtime.folder), LossCounter()
        self._lost_at = self._began_at  # later exits belong to the next loss
        self._watch = StageWatch(
            config.pipeline.pipeline_parallel_size,
            STATS_INTERVAL_S,
            config.pipeline.heartbeat_timeout,
            config.pipeline.heartbeat_timeout + config.pipeline.distributed_timeout_seconds,
            same_host=same_host,
            ranks_per_stage=config.pipeline.tensor_parallel_size,
            find_exit=lambda pids: self._exit_file.first_of(pids, self._lost_at),
            are_starved=CpuWaits().are_starved if same_host else lambda _: False,
        )
        num_stages, num_ranks = (
            config.pipeline.pipeline_parallel_size,
            config.pipeline.tensor_parallel_size,
        )
        self._rank_names = [
            socket_name("stage", stage, rank)
            for stage in range(num_stages)
            for rank in range(num_ranks)
        ]
        self._sampling_rank = socket_name("stage", num_stages - 1, 0)
        num_slices = config.pipeline.virtual_pipeline_size
        self._stage_time = StageTime(num_stages, same_host=same_host, num_slices=num_slices)
        self._recent_steps = RecentSteps(self._began_at, same_host=same_host)
        with ExitStack() as stack:
            self._server: Hub[FromServer] = stack.enter_context(
                Hub(runtime.server_address, FromServer, runtime.secret)
            )
            self._stages: Hub[FromStage] = stack.enter_context(
                Hub(numeric_endpoint(runtime.stage_address), FromStage, runtime.secret)
            )
            self._journal = (
                stack.enter_context(Journal(runtime.journal, config, append=incarnation > 0))
                if runtime.journal
                else None
            )
            self._recorder: Recorder | None = None
            if runtime.trace:
                stem = (
                    f"{runtime.trace.stem}.{incarnation + 1}" if incarnation else runtime.trace.stem
                )
                recorder = Recorder(
                    runtime.trace.with_stem(stem),
                    config.pipeline.pipeline_parallel_size,
                    self._began_at,
                    same_host=same_host,
                    num_slices=num_slices,
                )
                self._recorder = stack.enter_context(closing(recorder))
            self._exits = stack.pop_all()

    def run(self) -> None:
        """Run until a signal or a failure.

        Raises `EngineFailedError` or `ImpossibleSettingsError`.
        """
        # The watchdog file is created only now, because reading a journal may take long.
        watchdog_file, gc_tuning = WatchdogFile(self._folder, "engine"), GcTuning()
        poller = zmq.Poller()
        poller.register(self._server.socket, zmq.POLLIN)
        poller.register(self._stages.socket, zmq.POLLIN)
        while True:
            wakes_at = min(self._next_stats_at, self._announcements.due_at)
            poller.poll(max(0, int((wakes_at - time.monotonic()) * 1000)))
            woken_at = time.monotonic()
            for sender, from_stage in self._stages.drain():
                self._take_from_stage(sender, from_stage)
            for _, from_server in self._server.drain():
                self._take_from_server(from_server)
            self._busy_s += time.monotonic() - woken_at
            if woken_at >= self._next_stats_at:
                self._next_stats_at = woken_at + STATS_INTERVAL_S
                watchdog_file.beat()
                gc_tuning.tidy()
                self._check_stages()
                self._send_stats()
            elif woken_at >= self._announcements.due_at:
                self._send_stats(records=False)
            self._flush()

    def _take_from_node(self, sender: str, state: NodeState) -> None:
        if self._nodes is None:
            return
        now = time.monotonic()
        order = self._nodes.take(state, now)
        self._log_refusal(sender, order.refusal)
        broken = self._nodes.find_broken(now)
        if broken is not None:
            cause, trouble = broken.cause, Trouble(broken.reason)
            if cause is not None:
                trouble = Trouble.of_node(cause)
            self._lose_stages(broken.epoch, trouble)
            order = msgspec.structs.replace(order, ended_epoch=broken.epoch)
        self._stages.send(sender, order)

    def _log_refusal(self, sender: str, refusal: str) -> None:
        """Log why a node is refused, once, although it is told four times a second."""
        if refusal and self._refusals.get(sender) != refusal:
            log.error("%s", refusal)
        self._refusals.pop(sender, None)
        if refusal:
            self._refusals[sender] = refusal
            if len(self._refusals) > MAX_REFUSALS:  # a node that starts again has another name
                del self._refusals[next(iter(self._refusals))]

    def _take_from_stage(self, sender: str, message: FromStage) -> None:
        if isinstance(message, Heartbeat):
            self._take_heartbeat(message)
        elif isinstance(message, NodeState):
            self._take_from_node(sender, message)
        elif isinstance(message, StageFailed):
            self._take_failure(message)
        else:
            if isinstance(message, StageReady) and not message.tensor_rank:
                log.info("stage %d is ready: %d KV blocks", message.stage, message.num_blocks)
            self._handle(message)

    def _take_heartbeat(self, beat: Heartbeat) -> None:
        now = time.monotonic()
        pipeline = self._scheduler.pipeline
        if pipeline is not None and beat.epoch > pipeline.epoch:
            # torchrun restarted the group before the next check; the stages send heartbeats again.
            self._lose_stages(pipeline.epoch, self._watch.death(pipeline.epoch))
        self._watch.observe(beat, now)
        if not beat.tensor_rank:  # the other ranks of a stage run the same steps
            self._stage_time.observe(beat, now)
            self._recent_steps.observe(beat, now)
            self._record(lambda recorder: recorder.observe(beat, now))
            if beat.step_ids and beat.exact:
                self._handle(times_of(beat))
        if beat.progress and not self._scheduler.knows(beat.stage, beat.tensor_rank, beat.epoch):
            # The rank was ready for the previous engine process.
            self._stages.send(socket_name("stage", beat.stage, beat.tensor_rank), Hello())

    def _take_failure(self, failed: StageFailed) -> None:
        trouble = Trouble.of_failure(failed)
        if self._scheduler.is_over(failed.epoch):
            return
        if failed.is_apart:
            # The stages could not connect to each other; they retry until stage_start_timeout.
            self._trouble = trouble.reason
        else:
            self._lose_stages(failed.epoch, trouble, failed.step_id)

    def _take_from_server(self, message: FromServer) -> None:
        if isinstance(message, WatchSteps):
            self._outbox.append(self._recent_steps.after(message.after, time.monotonic()))
            return
        if not isinstance(message, Hello):
            # Messages before the first Hello are for the previous engine; the server repeats them.
            if self._hello:
                self._handle(message)
            return
        self._abort_all()
        self._hello = message.number
        if self._ready is not None and self._scheduler.pipeline is not None:
            self._send_ready(self._ready)

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        answer = self._scheduler.handle(event, now)
        self._stage_time.follow(self._scheduler.pipeline, now)
        self._announcements.follow(event, now)
        if self._journal is not None:
            self._journal.write(event, now, answer)
        self._record(lambda recorder: recorder.launch(answer, now))
        for message in answer:
            self._send(message)

    def _send(self, message: Outgoing) -> None:
        if isinstance(message, Step):
            self._send_step(message)
            return
        if isinstance(message, StageLost):
            self._end_stages(message.epoch, Trouble(message.reason))
            return
        if isinstance(message, EngineReady):
            self._waiting_for_stages_since, self._trouble = None, ""
            log.info(
                "KV cache: %d blocks of %d tokens = %d tokens; longest sequence %d tokens",
                message.num_blocks,
                message.block_size,
                message.num_blocks * message.block_size,
                message.max_model_len,
            )
            self._send_ready(message)
            return
        self._outbox.append(message)

    def _send_ready(self, ready: EngineReady) -> None:
        self._ready = ready
        self._outbox.append(msgspec.structs.replace(ready, hello=self._hello))

    def _send_step(self, step: Step) -> None:
        """Send a step to every rank, with `setups` only to the one that samples."""
        self._recent_steps.launch(step)
        ranks, last = self._rank_names, self._sampling_rank
        payload = self._stages.encode(step)
        others = payload
        if step.setups and len(ranks) > 1:
            others = self._stages.encode(msgspec.structs.replace(step, setups=()))
        for name in ranks:
            if not self._stages.send_encoded(name, payload if name == last else others):
                # The step cannot return without this rank; the stage watch will detect it.
                log.error("cannot send step %d to %s: not connected", step.step_id, name)

    def _flush(self) -> None:
        """Send the messages collected in this pass to the server, as one ZeroMQ message.

        A message that cannot be delivered is lost. The engine then aborts all sequences and takes a
        new engine number, so that the server submits its open requests again.
        """
        if self._outbox and not self._server.send(SERVER, *self._outbox) and self._hello:
            self._abort_all()
            self._engine, self._hello = time.time_ns(), 0
            self._next_stats_at = 0.0  # send Stats now: they carry the new number
        self._outbox.clear()

    def _abort_all(self) -> None:
        for sequence in self._scheduler.pool.open_sequences():
            self._handle(Abort(sequence.sequence_id))

    def _check_stages(self) -> None:
        """Detect a lost stage. Raises `EngineFailedError` after `stage_start_timeout`."""
        # This check runs even before all stages are ready: a stage may wait for a `Step` that the
        # previous engine sent only to other stages.
        epoch = self._watch.newest_epoch
        if not self._scheduler.is_over(epoch):
            trouble = self._watch.find_trouble(epoch, self._scheduler.awaited_step)
            if trouble is not None:
                self._lose_stages(epoch, trouble)
        if self._scheduler.pipeline is not None:
            return
        now = time.monotonic()
        if self._waiting_for_stages_since is None:
            self._waiting_for_stages_since = now
        if now - self._waiting_for_stages_since > self._pipeline.stage_start_timeout:
            reason = self._why_not_ready(now)
            raise EngineFailedError(
                f"not all {self._pipeline.pipeline_parallel_size} stages were ready within "
                f"{self._pipeline.stage_start_timeout:g} s (stage_start_timeout)"
                f"{reason and f'; {reason}'}; see the messages of the stages in the log, or raise "
                "stage_start_timeout if loading is slow"
            )

    def _why_not_ready(self, now: float) -> str:
        """The newest trouble, and the nodes that are waited for."""
        missing = ""
        if self._nodes is not None and self._scheduler.pipeline is None:
            missing = self._nodes.missing(now)
        return "; ".join(filter(None, (self._trouble, missing)))

    def _lose_stages(self, epoch: int, trouble: Trouble, step_id: int = -1) -> None:
        if child_process.reported_failure(self._folder) is not None:
            return  # nothing is restarted: the supervisor is about to end the daemon
        counters = self._scheduler.counters
        num_poison_requests = counters.poison_requests
        self._handle(StageLost(epoch, trouble.reason, step_id))
        if counters.poison_requests > num_poison_requests:
            self._restarts.forget()
        self._end_stages(epoch, trouble)

    def _end_stages(self, epoch: int, trouble: Trouble) -> None:
        """Kill the stages of a lost group; torchrun then restarts the group.

        All stages get SIGKILL: when one is gone, torchrun sends only SIGTERM to the others, and
        would wait for a stage that hangs.
        """
        if self._nodes is not None:
            self._nodes.end(epoch)
        self._losses.count(trouble, time.time())
        self._lost_at = time.monotonic()
        for pid in self._watch.pids(epoch) if self._watch.same_host else ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        lost, now = StageLost(epoch, trouble.reason), self._lost_at
        self._record(lambda recorder: recorder.lose(lost, now))
        self._count_restart(trouble)
        log.error("%s; restarting the stages, open requests continue afterwards", trouble)

    def _count_restart(self, trouble: Trouble) -> None:
        """Count a restart; raises `EngineFailedError` if there were too many recently."""
        self._trouble = trouble.reason
        if self._restarts.are_used_up():
            log.error("%s", trouble)
            raise EngineFailedError(f"{trouble.reason}; {self._restarts}")
        self._restarts.count()

    def _send_stats(self, *, records: bool = True) -> None:
        now = time.monotonic()
        uptime_s = now - self._began_at
        pipeline = self._scheduler.pipeline
        ratios = pipeline.correction.ratios() if pipeline else {}
        stages = self._watch.stats(now, ratios, self._stage_time)
        dropped = self._server.num_dropped + self._stages.num_dropped
        self._log_dropped(dropped, now)
        stats = collect(
            self._scheduler,
            now,
            stages,
            uptime_s,
            self._busy_s,
            self._why_not_ready(now),
            self._engine,
            dropped,
            self._stage_time,
            self._losses,
            self._watch.starved_s,
            self._promiser.promises(now),
        )
        self._announcements.note_sent(now)
        self._outbox.append(stats)
        if records:
            self._record(lambda recorder: recorder.sample(stats))

    def _log_dropped(self, dropped: int, now: float) -> None:
        """Warn at most once a minute that messages were dropped.

        A stage or server with a wrong secret shows no other symptom than waiting.
        """
        if dropped > self._dropped_logged and now >= self._next_dropped_log_at:
            num_new, self._dropped_logged = dropped - self._dropped_logged, dropped
            self._next_dropped_log_at = now + DROPPED_LOG_INTERVAL_S
            log.warning(
                "dropped %d messages: malformed, or sent without the cluster_secret; check that "
                "all processes use the same cluster_secret",
                num_new,
            )

    def _record(self, note: Callable[[Recorder], None]) -> None:
        """Write to the trace, if enabled; a full disk ends the trace, not the service."""
        if self._recorder is None:
            return
        try:
            note(self._recorder)
        except OSError as error:
            recorder, self._recorder = self._recorder, None
            log.error("the trace %s ends here: %s", recorder.path, error)
            with suppress(OSError):
                recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()
