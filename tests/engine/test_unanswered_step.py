"""A step whose message is lost on its way: the engine notices it, and asks for new stages."""

import subprocess
import sys
import time
from pathlib import Path

from configs import loader
from configs.config import Config
from daemon.processes import child_process
from tests.engine.world import make_submit
from wire.messages import EngineReady, Heartbeat, Hello, StageReady, Stats, Step, ToServer, ToStage
from wire.sockets import Spoke

PATIENCE_S = 30.0
SILENCE_S = 1.0


def test_a_step_that_was_lost_is_noticed_although_the_stage_is_well(tmp_path: Path) -> None:
    config = Config.of(
        model="none",
        runtime_dir=tmp_path,
        pipeline_parallel_size=1,
        heartbeat_timeout=SILENCE_S,
    )
    loader.save(config, tmp_path)
    # The engine kills the process of a lost stage.
    pretender = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    engine = child_process.start("engine", str(tmp_path), "0")
    runtime = config.runtime
    try:
        with (
            Spoke[ToStage](runtime.stage_address, "stage-0", ToStage) as stage,
            Spoke[ToServer](runtime.server_address, "server", ToServer) as server,
        ):
            stage.send(StageReady(0, 1, 100, 1000))
            server.send(Hello())
            steps, trouble, is_ready = list[Step](), "", False
            deadline, progress = time.monotonic() + PATIENCE_S, 0
            while not trouble and time.monotonic() < deadline:
                progress += 1
                beat = Heartbeat(0, 1, pretender.pid, progress, len(steps), 0.0, doing="idle")
                stage.send(beat)
                server.wait(0.1)
                for message in server.drain():
                    if isinstance(message, EngineReady) and not is_ready:
                        is_ready = True
                        server.send(make_submit(1, [5, 6, 7], 4))
                    if isinstance(message, Stats) and is_ready:
                        trouble = trouble or message.trouble
                steps += [each for each in stage.drain() if isinstance(each, Step)]
            assert len(steps) == 1, "it has had the step, and has not answered"
            assert trouble.startswith(f"no stage has run step {steps[0].step_id} for ")
            assert pretender.wait(PATIENCE_S) != 0
    finally:
        for process in (engine, pretender):
            process.kill()
            process.wait()
