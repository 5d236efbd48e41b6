"""Clients that disconnect at any moment: all blocks are freed."""

import json
import socket
from collections.abc import Callable

import pytest

from tests.end_to_end.daemon import Daemon

NUM_CLIENTS = 12
PATIENCE_S = 30.0
LONG = "Count to nine in words.\n" * 400
TASK, RIGHT = "Count to seven in words.\n", "one two three four five six seven"


def body_of(**fields: object) -> bytes:
    """A request that would run for long."""
    answer = {"max_tokens": 400, "ignore_eos": True, "n": 8}
    return json.dumps({"model": "tdpipe-demo", "prompt": TASK} | answer | fields).encode()


def head_of(body: bytes) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode()


def at_once(client: socket.socket) -> None:
    """Before the first token, most of them in the queue."""
    client.sendall(head_of(body_of()) + body_of())


def in_the_stream(client: socket.socket) -> None:
    """When text has arrived."""
    body = body_of(stream=True)
    client.sendall(head_of(body) + body)
    seen = b""
    while b'"text"' not in seen:
        seen += client.recv(4096)


def unread(client: socket.socket) -> None:
    """Without having read the text that has arrived."""
    body = body_of(stream=True)
    client.sendall(head_of(body) + body)
    client.recv(1)


def in_the_body(client: socket.socket) -> None:
    """Before the whole body is sent."""
    body = body_of()
    client.sendall(head_of(body) + body[: len(body) // 2])


def in_the_prompt(client: socket.socket) -> None:
    """While a long prompt is read."""
    body = body_of(prompt=[LONG] * 8, truncate_prompt_tokens=8, n=1)
    client.sendall(head_of(body) + body)


def in_the_grammar(client: socket.socket) -> None:
    """While a grammar is checked, another one for each client."""
    pattern = f"[a-z]{{1,{client.getsockname()[1]}}}"
    body = body_of(structured_outputs={"regex": pattern})
    client.sendall(head_of(body) + body)


MOMENTS = [at_once, in_the_stream, unread, in_the_body, in_the_prompt, in_the_grammar]


def is_empty(daemon: Daemon) -> bool:
    """Whether nothing is left of any request."""
    load = json.loads(daemon.get("/load")[1])
    counts = ("server_load", "queued_sequences", "waiting_sequences", "live_sequences", "kv_usage")
    return not any(load[count] for count in counts)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_clients_that_disconnect_free_everything(
    demo: Daemon, moment: Callable[[socket.socket], None]
) -> None:
    num_ended = demo.metric("tdpipe_requests_total")
    host, port = demo.url.removeprefix("http://").split(":")
    clients = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(NUM_CLIENTS)]
    for client in clients:
        moment(client)
    for client in clients:
        client.close()
    all_ended = num_ended + NUM_CLIENTS
    # The last request of another test may be counted only now, after its answer has arrived.
    demo.wait_for(lambda: demo.metric("tdpipe_requests_total") >= all_ended, PATIENCE_S)
    demo.wait_for(lambda: is_empty(demo), PATIENCE_S)
    with demo.client() as official:
        answer = official.completions.create(
            model="tdpipe-demo", prompt=TASK, max_tokens=40, temperature=0
        )
    assert answer.choices[0].text == RIGHT
