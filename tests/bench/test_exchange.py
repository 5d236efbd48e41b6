"""The exchange: an answer is complete or an OSError."""

import asyncio
import socket

import pytest

from bench.exchange import Address, exchange, fetch
from tests.bench.world import Answer, serving

PATH = "/v1/completions"


def ask(url: str, body: bytes = b'{"a": 1}') -> tuple[int, bytes]:
    """POST `body`; the status and the body of the answer."""
    received = bytearray()

    async def main() -> int:
        address = Address.of(url)
        return await exchange(address, address.post(PATH, body), lambda _, d: received.extend(d))

    return asyncio.run(main()), bytes(received)


def test_every_part_of_the_body_arrives_in_order() -> None:
    with serving(lambda _: Answer([b"one ", b"two ", b"three"])) as server:
        assert ask(server.url) == (200, b"one two three")
        assert server.bodies == [{"a": 1}]


def test_the_status_of_a_refusal_comes_with_its_body() -> None:
    with serving(lambda _: Answer([b"busy"], status=429)) as server:
        assert ask(server.url) == (429, b"busy")


def test_an_answer_that_breaks_off_is_an_error() -> None:
    with (
        serving(lambda _: Answer([b"one"], has_end=False)) as server,
        pytest.raises(ConnectionError, match="closed before the answer's end"),
    ):
        ask(server.url)


def test_an_answer_that_is_not_http_is_an_error() -> None:
    async def main() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"220 mail.example\r\n")
            writer.close()

        listener = await asyncio.start_server(babble, "127.0.0.1", 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            await fetch(Address("127.0.0.1", port), "/")

    with pytest.raises(ConnectionError, match="not an HTTP answer"):
        asyncio.run(main())


def test_a_closed_port_is_an_oserror() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            ask(f"http://127.0.0.1:{unused.getsockname()[1]}")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8199", Address("127.0.0.1", 8199)),
        ("http://host/", Address("host", 80)),
        ("http://host:1/v1/", Address("host", 1)),
        ("https://host/llm/v1", Address("host", 443, is_secure=True, path="/llm")),
        ("http://[::1]:8000", Address("::1", 8000)),
    ],
)
def test_a_url_names_the_server_with_or_without_the_api_below_it(
    url: str, address: Address
) -> None:
    assert Address.of(url) == address


def test_an_ipv6_address_is_bracketed_in_the_request() -> None:
    request = Address.of("http://[::1]:8000").get("/ready")
    assert request.startswith(b"GET /ready HTTP/1.1\r\nhost: [::1]:8000\r\n")
    assert str(Address.of("http://[::1]:8000")) == "http://[::1]:8000"


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host", "http://", "http://host:port"])
def test_a_url_without_an_http_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Address.of(url)
