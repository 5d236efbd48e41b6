"""Compressed bodies: read within the limits, refused when unknown, damaged or cut off."""

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from backports import zstd

from server.http.bodies.content_encoding import ZlibDecoder, ZstdDecoder
from tests.server.world import MODEL, Daemon, saying, serving

BODY = json.dumps({"model": MODEL, "prompt": "hi", "user": "x" * 2000}).encode()


def raw_deflate(data: bytes) -> bytes:
    """Deflate without zlib's header, which some clients send."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "zstd": zstd.compress,
    "identity": bytes,
    "gzip, zstd": lambda data: zstd.compress(gzip.compress(data)),
    "identity, deflate": zlib.compress,
}


def post(daemon: Daemon, encoding: str, body: bytes, path: str = "/v1/completions") -> Any:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    return daemon.http.post(daemon.url + path, content=body, headers=headers)


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_compressed_body_is_read(daemon: Daemon, encoding: str) -> None:
    response = post(daemon, encoding, COMPRESS[encoding](BODY))
    assert response.status_code == 200, response.text
    tokens = post(daemon, encoding, COMPRESS[encoding](b'{"prompt": "hi"}'), "/tokenize")
    assert tokens.json()["count"] == 2


def test_a_body_of_several_members_is_read(daemon: Daemon) -> None:
    for compress, encoding in ((gzip.compress, "gzip"), (zstd.compress, "zstd")):
        parts = b"".join(compress(BODY[at : at + 500]) for at in range(0, len(BODY), 500))
        assert post(daemon, encoding, parts).status_code == 200


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, br", "gzip, gzip, gzip, gzip"])
def test_an_unknown_encoding_is_415_and_names_those_that_are_read(
    daemon: Daemon, encoding: str
) -> None:
    response = post(daemon, encoding, BODY)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert "gzip, deflate, zstd or identity" in response.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_damaged_and_unfinished_data_are_400(daemon: Daemon, encoding: str) -> None:
    whole = COMPRESS[encoding](BODY)
    for wrong in (whole[:-1], whole[: len(whole) // 2], whole[:1], b"", BODY, whole + b"junk"):
        response = post(daemon, encoding, wrong)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "invalid_content_encoding"
        assert encoding in error["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "gzip, zstd"])
def test_a_body_that_expands_without_end_stops_at_the_limit(tmp_path: Path, encoding: str) -> None:
    bomb = COMPRESS[encoding](b'{"model": "' + b" " * (200 << 20))
    with serving(tmp_path, saying("hello"), max_body_bytes=1 << 20) as daemon:
        tracemalloc.start()
        response = post(daemon, encoding, bomb)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert response.status_code == 413
        assert most < 16 << 20
        assert post(daemon, encoding, COMPRESS[encoding](BODY)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "Deflate", "zstd"])
def test_the_pieces_in_which_data_arrive_make_no_difference(encoding: str) -> None:
    rng = random.Random(1)
    data = rng.randbytes(50_000) + b"a" * 300_000
    compressed = COMPRESS[encoding](data)
    for size in (1, 2, 3, 1000, 10**6):
        kind = encoding.lower()
        decoder = ZstdDecoder() if kind == "zstd" else ZlibDecoder(is_gzip=kind == "gzip")
        pieces = [compressed[at : at + size] for at in range(0, len(compressed), size)]
        parts = [part for piece in pieces for part in decoder.write(piece)]
        assert b"".join(parts) == data
        assert max(map(len, parts)) <= 64 * 1024
        assert decoder.is_complete


def test_an_upload_may_be_compressed(tmp_path: Path) -> None:
    form = httpx.Request(
        "POST", "http://x", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}\n" * 1000)}
    )
    content, kind = form.read(), form.headers["content-type"]
    with serving(tmp_path, max_file_bytes=10_000) as daemon:
        for encoding in ("gzip", "deflate", "zstd"):
            headers = {"content-type": kind, "content-encoding": encoding}
            compressed = COMPRESS[encoding](content)
            response = daemon.http.post(
                f"{daemon.url}/v1/files", content=compressed, headers=headers
            )
            assert (response.status_code, response.json()["bytes"]) == (200, 3000)
        headers = {"content-type": kind, "content-encoding": "br"}
        wrong = daemon.http.post(f"{daemon.url}/v1/files", content=content, headers=headers)
        assert wrong.status_code == 415
        headers = {"content-type": kind, "content-encoding": "gzip"}
        large = gzip.compress(content.replace(b"{}\n" * 1000, b" " * (50 << 20)))
        response = daemon.http.post(f"{daemon.url}/v1/files", content=large, headers=headers)
        assert response.status_code == 413
