"""Settings of processes: addresses of sockets."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.config import Config
from configs.schema.runtime import RuntimeConfig


@pytest.mark.parametrize("endpoint", ["", "ipc:/x", "http://x", "127.0.0.1:80", " tcp://x:1"])
def test_an_endpoint_is_ipc_or_tcp(endpoint: str) -> None:
    for key in ("server_endpoint", "stage_endpoint"):
        with pytest.raises(ValidationError, match=r"ipc:// or tcp://"):
            Config.of(**{key: endpoint})


def test_without_endpoints_the_sockets_lie_in_the_runtime_folder() -> None:
    config = RuntimeConfig(runtime_dir=Path("/run/x"))
    assert config.server_address == "ipc:///run/x/server.sock"
    assert config.stage_address == "ipc:///run/x/stages.sock"


def test_endpoints_are_taken_as_they_are() -> None:
    config = RuntimeConfig(server_endpoint="tcp://127.0.0.1:1", stage_endpoint="ipc://y")
    assert (config.server_address, config.stage_address) == ("tcp://127.0.0.1:1", "ipc://y")


def test_the_folder_is_not_asked_for_before_it_is_chosen() -> None:
    with pytest.raises(AssertionError, match="runtime_dir"):
        _ = RuntimeConfig().server_address


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("x" * 15, "at least 16 characters"),
        (" " * 20, "at least 16 characters, without spaces around"),
        (f"x{' ' * 20}", "without spaces around"),
        (b"abcdefghijklmnop\xff\xfe".decode(errors="surrogateescape"), "must be text in UTF-8"),
    ],
)
def test_a_secret_that_can_be_guessed_or_is_no_text_is_refused(secret: str, words: str) -> None:
    with pytest.raises(ValidationError) as found:
        Config.of(cluster_secret=secret)
    assert words in str(found.value)
    assert secret.strip() not in str(found.value) or not secret.strip()
    assert Config.of(cluster_secret="a secret of five words").runtime.secret


@pytest.mark.parametrize("key", ["server_endpoint", "stage_endpoint"])
@pytest.mark.parametrize(
    "rest", ["", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:*", "::1:5", "[::1]", "h:1/", "a b:1"]
)
def test_a_tcp_endpoint_has_a_host_and_a_port(key: str, rest: str) -> None:
    with pytest.raises(ValidationError, match=r"is not like tcp://10\.0\.0\.1:29500"):
        RuntimeConfig(**{key: f"tcp://{rest}", "cluster_secret": "x" * 16})


@pytest.mark.parametrize("rest", ["h:1", "*:1", "0.0.0.0:65535", "[::]:7", "[fe80::1%eth0]:7"])
def test_a_tcp_endpoint_may_be_any_address(rest: str) -> None:
    found = RuntimeConfig(stage_endpoint=f"tcp://{rest}", cluster_secret="x" * 16)
    assert found.stage_address == f"tcp://{rest}"
