"""The image, built and run: `make image-check`. It serves, heals, drains, and tells the truth."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.deploy.containers import (
    STOP_TIMEOUT_S,
    VOLUME,
    Container,
    certificate,
    free_port,
    podman,
)
from tests.deploy.tools import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.long, pytest.mark.timeout(1200)]

MAX_BYTES = 1_600_000_000
PROMPT = "Count to seven in words.\n"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The name of the image; its containers share a volume for their data."""
    name = os.environ.get("IMAGE_UNDER_TEST")
    if not name:
        pytest.skip("no image (make image-check builds it)")
    yield name
    podman("volume", "rm", "--force", VOLUME)


@pytest.fixture(scope="module")
def daemon(image: str) -> Iterator[Container]:
    """A daemon that is ready; tests leave it as it was."""
    # In fp32, an answer after a restart is the same token for token.
    with Container(image, "--dtype", "float32", port=free_port()) as container:
        container.wait_for(container.is_ready)
        yield container


def client(container: Container) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{container.url}/v1", api_key="none", max_retries=0, timeout=60)


def stream(container: Container, num_tokens: int) -> Iterator[str]:
    """The pieces of a greedy answer of so many tokens."""
    chunks = client(container).completions.create(
        model="tdpipe-demo",
        prompt=PROMPT,
        max_tokens=num_tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for chunk in chunks:
        yield chunk.choices[0].text


def test_the_image_for_cpus_is_small_and_has_no_cuda(image: str) -> None:
    assert int(podman("image", "inspect", "--format", "{{.Size}}", image)) <= MAX_BYTES
    program = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    flags = [*os.environ.get("IMAGE_RUN_FLAGS", "").split(), "--network=host", "--entrypoint="]
    packages = podman("run", "--rm", *flags, image, "python3", "-c", program).lower().split()
    assert {"tdpipe", "torch", "transformers"} <= set(packages)
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    assert "pip" not in packages


def test_labels_say_what_it_is(image: str) -> None:
    label = '{{index .Config.Labels "org.opencontainers.image.%s"}}'
    assert podman("image", "inspect", "--format", label % "title", image) == "tdpipe"
    assert podman("image", "inspect", "--format", label % "licenses", image) == "Apache-2.0"
    assert podman("image", "inspect", "--format", label % "version", image).endswith("-cpu")


def test_it_is_not_root_and_cannot_write_into_its_code(daemon: Container) -> None:
    assert daemon.run("id", "-u").stdout.strip() == "10001"
    for target in ("/opt/venv/x", "/etc/x", "/home/tdpipe/x"):
        assert daemon.run("touch", target).returncode != 0, target


def test_the_port_alone_leaves_it_reachable_from_outside(daemon: Container) -> None:
    wanted = f"00000000:{daemon.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    assert any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines)


def test_curl_and_the_openai_client_are_answered(daemon: Container) -> None:
    answer = client(daemon).completions.create(
        model="tdpipe-demo", prompt=PROMPT, max_tokens=40, temperature=0
    )
    assert answer.choices[0].text == "one two three four five six seven"
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shown = subprocess.run(
        ["curl", "-s", "--noproxy", "*", f"{daemon.url}/v1/models"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    assert '"tdpipe-demo"' in shown.stdout


def test_it_has_the_code_of_this_checkout(daemon: Container) -> None:
    """An image of cached layers had that of an earlier build."""
    script = """if True:
    import hashlib, importlib.util, json, pathlib
    root = pathlib.Path(importlib.util.find_spec("daemon").origin).parents[1]
    packages = ("configs", "daemon", "engine", "server", "workers")
    files = [path for name in packages for path in root.glob(f"{name}/**/*.py")]
    digests = {str(f.relative_to(root)): hashlib.md5(f.read_bytes()).hexdigest() for f in files}
    print(json.dumps(digests))
    """
    own = [sys.executable, "-c", script]
    here = subprocess.run(own, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(daemon.run("python3", "-c", script).stdout) == json.loads(here.stdout)


def test_the_health_check_of_the_image_is_the_one_that_follows_the_settings(
    daemon: Container,
) -> None:
    podman("healthcheck", "run", daemon.name)
    assert daemon.health("--ready")


def test_while_the_model_is_loaded_it_is_alive_and_not_ready(image: str) -> None:
    with Container(image, port=free_port()) as container:
        container.wait_for(container.health)
        seen = []

        def is_ready() -> bool:
            is_alive, by_probe = container.health(), container.health("--ready")
            seen.append((is_alive, by_probe))
            return by_probe

        container.wait_for(is_ready)
        assert all(is_alive for is_alive, _ in seen)
        assert [by_probe for _, by_probe in seen] == [False] * (len(seen) - 1) + [True]
        assert len(seen) > 1, "it was ready at once"
        assert container.is_ready()


@pytest.mark.parametrize("victim", ["stage", "engine"])
def test_a_killed_process_is_healed_and_an_open_stream_continues(
    daemon: Container, victim: str
) -> None:
    expected = "".join(stream(daemon, 600))
    pieces = stream(daemon, 600)
    text = "".join(next(pieces) for _ in range(20))
    if victim == "stage":
        process = httpx.get(f"{daemon.url}/health", timeout=30).json()["stages"][1]["pid"]
    else:
        process = daemon.processes("engine")[0]
    # podman may take longer to return than the daemon to heal.
    kill = threading.Thread(target=daemon.kill, args=(process,))
    kill.start()
    if victim == "stage":  # an engine may be back within the second in which its loss is noticed
        daemon.wait_for(lambda: not daemon.is_ready(), 10.0)
        assert not daemon.health("--ready")
    assert daemon.health(), "the orchestrator would end what heals itself"
    kill.join()
    assert process not in daemon.processes(victim)
    text += "".join(pieces)
    assert text == expected
    daemon.wait_for(daemon.is_ready)
    assert daemon.health("--ready")
    assert daemon.state()["RestartCount"] == 0


def test_a_killed_server_is_healed_by_a_restart_of_the_container(image: str) -> None:
    with Container(image, port=free_port(), flags="--restart=on-failure") as container:
        container.wait_for(container.is_ready)
        container.kill(container.processes("server")[0])
        container.wait_for(lambda: container.state()["RestartCount"] == 1)
        container.wait_for(container.is_ready)
        assert "".join(stream(container, 8))


def test_a_stop_drains_and_refuses_what_is_new(image: str) -> None:
    with Container(image, port=free_port()) as container:
        container.wait_for(container.is_ready)
        expected = "".join(stream(container, 1500))
        pieces = stream(container, 1500)
        text = next(pieces)
        stop = threading.Thread(
            target=podman, args=("stop", "--time", str(STOP_TIMEOUT_S), container.name)
        )
        stop.start()
        container.wait_for(lambda: not container.is_ready(), 10.0)
        # Nothing can be started in a container that is being stopped, so it is asked from outside.
        assert httpx.get(f"{container.url}/live", timeout=30).status_code == 200
        with pytest.raises(openai.APIStatusError) as refused:
            next(stream(container, 8))
        assert refused.value.status_code == 503
        assert text + "".join(pieces) == expected
        stop.join(STOP_TIMEOUT_S + 30)
        assert container.state()["ExitCode"] == 0, container.log()


@pytest.mark.parametrize("way", ["unix socket and root path", "TLS"])
def test_the_health_check_finds_other_ways_in(image: str, way: str, tmp_path: Path) -> None:
    if way == "TLS":
        file = certificate(tmp_path)
        flags = f"--volume {file}:/server.pem:ro"
        container = Container(image, "--ssl-certfile", "/server.pem", port=free_port(), flags=flags)
    else:
        container = Container(image, "--uds", "/tmp/http.sock", "--root-path", "/llm", port=None)
    with container:
        container.wait_for(container.health)
        container.wait_for(lambda: container.health("--ready"))


def test_a_router_is_a_command_of_the_same_image(image: str, daemon: Container) -> None:
    arguments = ("route", "--instances", daemon.url)
    with Container(image, *arguments, port=free_port()) as router:
        router.wait_for(router.is_ready)
        podman("healthcheck", "run", router.name)
        assert "".join(stream(router, 8)) == "".join(stream(daemon, 8))


def test_what_cannot_be_served_ends_the_container(image: str) -> None:
    with Container(image, "/models/none", port=free_port()) as container:
        container.wait_for(lambda: not container.state()["Running"], 60.0)
        assert container.state()["ExitCode"] == 1
        assert "there is no folder /models/none" in container.log()
