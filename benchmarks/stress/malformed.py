"""Malformed requests as broken and hostile clients send them, reproducible by seed.

Each of them is everything that one connection sends. Some are valid after all, for example if a
mutation changes only a text. None of them asks for many tokens.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

MODEL = "tdpipe-demo"
_CRLF = b"\r\n"
# As JSON, which most of them are not.
_JUNK = (
    *("NaN", "-Infinity", "1e400", "-1e400", "9" * 400, "-0", "1.5", "01", "0x10", "1e-400"),
    *("true", "null", "undefined", '""', "'a'", '"\\u0000"', '"\\ud800"', '"\\x"', '"\n"'),
    *("[]", "{}", "[[]]", "[null]", '{"a": {}}', "[1, [2]]", "[true]", "[,]", "{,}", '{"a" 1}'),
    *("-1", "18446744073709551616", "[-1]", "[1e9]", '["", ""]', '{"type": "x"}', '{"0": "x"}'),
    *('"' + "x" * 10_000 + '"', "[" * 300 + "]" * 300, "[" * 50_000, '{"a":' * 2_000),
    *("[" + "1," * 20_000 + "1]", "[" + '"a",' * 5_000 + '"a"]'),
)
_FIELDS = (
    *("model", "prompt", "messages", "n", "seed", "stop", "temperature", "top_p", "top_k", "min_p"),
    *("logit_bias", "logprobs", "top_logprobs", "echo", "best_of", "suffix", "stream", "user"),
    *("stream_options", "presence_penalty", "frequency_penalty", "repetition_penalty", "timeout"),
    *("allowed_token_ids", "bad_words", "stop_token_ids", "min_tokens", "response_format"),
    *("structured_outputs", "prompt_logprobs", "truncate_prompt_tokens", "priority", "tools"),
    *("tool_choice", "chat_template_kwargs", "documents", "metadata", "service_tier", "no_such"),
)
_PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/batches")


class Malformed(NamedTuple):
    """The bytes of a request, and the kind of their defect.

    If not `is_whole`, the request may be incomplete, so a server may wait for more bytes.
    """

    kind: str
    request: bytes
    is_whole: bool = True


def malformed(count: int, seed: int = 0) -> Iterator[Malformed]:
    """`count` requests, of each kind about the same number."""
    rng = random.Random(f"malformed {seed}")
    kinds = list(_KINDS.items())
    for number in range(count):
        kind, make = kinds[number % len(kinds)]
        yield Malformed(kind, make(rng), kind not in _UNFINISHED)


def _post(path: str, body: bytes, *headers: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    return _head(b"POST", path.encode(), b"content-type: application/json", length, *headers) + body


def _head(method: bytes, target: bytes, *headers: bytes) -> bytes:
    return _CRLF.join((method + b" " + target + b" HTTP/1.1", b"host: x", *headers, b"", b""))


def _values(rng: random.Random) -> dict[str, str]:
    """A request's fields as JSON, with a limit on the answer's length."""
    values = {"model": f'"{MODEL}"', "max_tokens": "2"}
    if rng.random() < 0.5:
        return values | {"prompt": '"Count to nine in words.\\n"'}
    messages = '[{"role": "user", "content": "Count to nine in words."}]'
    return values | {"messages": messages, "max_completion_tokens": "2"}


def _path_of(values: dict[str, str]) -> str:
    return _PATHS["messages" in values]


def _body_of(values: dict[str, str]) -> bytes:
    fields = (f"{json.dumps(name)}: {value}" for name, value in values.items())
    return ("{" + ", ".join(fields) + "}").encode()


def _junk_values(rng: random.Random) -> bytes:
    values = _values(rng)
    path = _path_of(values)
    for field in rng.sample(_FIELDS, rng.randint(1, 3)):
        values[field] = rng.choice(_JUNK)
    return _post(path, _body_of(values))


def _mutated_bytes(rng: random.Random) -> bytes:
    values = _values(rng)
    body = bytearray(_body_of(values))
    for _ in range(rng.randint(1, 8)):
        begin = rng.randrange(len(body))
        end = begin + rng.randint(0, 8)
        body[begin:end] = rng.choice((rng.randbytes(rng.randint(0, 4)), body[begin:end] * 2, b""))
    return _post(_path_of(values), bytes(body))


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((200, 257, 900, 1_000, 5_000, 50_000))
    begin, end = rng.choice((("[", "]"), ('{"a":', "}"), ('{"items":', "}"), ('[{"a":', "}]")))
    value = begin * depth + rng.choice(("1", "")) + end * rng.choice((depth, depth - 1))
    values = _values(rng)
    path = _path_of(values)
    values[rng.choice(("prompt", "messages", "metadata", "tools", "vllm_xargs"))] = value
    return _post(path, rng.choice((_body_of(values), value.encode())))


def _other_encodings(rng: random.Random) -> bytes:
    values = _values(rng) | {"user": '"äöü €"'}
    text = _body_of(values).decode()
    body, *headers = rng.choice(
        (
            (text.encode("utf-16"),),
            (text.encode("utf-32-le"), b"accept-charset: utf-32"),
            (text.encode("latin-1", "replace"),),
            (b"\xef\xbb\xbf" + text.encode(),),
            (text.encode().replace(b"user", b"us\xffer"),),
            (text.encode().replace(b"user", b"us\xed\xa0\x80er"),),
            (text.replace("user", "us\\ud800er").encode(),),
            (text.replace("user", "us\x00er").encode(),),
            (gzip.compress(text.encode(), mtime=0), b"content-encoding: gzip"),
            (text.encode(), b"content-encoding: br"),
            (text.encode("cp500", "replace"), b"content-type: application/json; charset=cp500"),
            (b"",),
            (b"\x00" * 100,),
        )
    )
    return _post(_path_of(values), body, *headers)


def _wrong_lengths(rng: random.Random) -> bytes:
    body = _body_of(_values(rng))
    chunked = b"transfer-encoding: chunked"
    right = b"content-length: %d" % len(body)
    headers = rng.choice(
        (
            (b"content-length: -1",),
            (b"content-length: 0x10",),
            (b"content-length: 1e3",),
            (b"content-length: " + b"9" * 30,),
            (b"content-length: " + b"0" * 5_000 + b"%d" % len(body),),
            (b"content-length: 5, 5",),
            (b"content-length:",),
            (b"content-length: 99999999999",),
            (right, b"content-length: 3"),
            (right, chunked),
            (chunked, right),
            (b"transfer-encoding: gzip",),
            (b"transfer-encoding: chunked, identity",),
            (b"content-length: 1",),
        )
    )
    return _head(b"POST", rng.choice(_PATHS).encode(), *headers) + body


def _wrong_chunks(rng: random.Random) -> bytes:
    body = _body_of(_values(rng))
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    sent = rng.choice(
        (
            b"zz\r\n" + body,
            b"f" * 17 + _CRLF + body,
            b"-5\r\n" + body,
            b"\r\n\r\n" + body,
            b"5" + chunk,
            chunk + b"x" * 50,
            chunk.replace(_CRLF, b"\n") + b"0\n\n",
            b"%x;%b\r\n%b\r\n0\r\n\r\n" % (len(body), b"a" * 100_000, body),
            chunk + b"0\r\n" + b"x: y\r\n" * 20_000 + _CRLF,
            chunk[: len(chunk) // 2] + b"0\r\n\r\n",
            b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
        )
    )
    return _head(b"POST", rng.choice(_PATHS).encode(), b"transfer-encoding: chunked") + sent


def _wrong_heads(rng: random.Random) -> bytes:
    body = _body_of(_values(rng))
    good = _post("/v1/completions", body)
    return rng.choice(
        (
            good.replace(b"host: x", b"x: " + b"y" * 40_000),
            good.replace(b"host: x", b"x: y\r\n" * 10_000),
            good.replace(b"host: x", b"x: \x00\x01"),
            good.replace(b"host: x", b"no colon"),
            good.replace(b"host: x", b"host : x"),
            good.replace(b"host: x", b"host: x\r\n folded"),
            good.replace(b"host: x", b": x"),
            good.replace(b"host: x", b"h\xc3\xb6st: \xff\xfe"),
            good.replace(b"host: x", b"x-request-id: " + b"\x7f" * 50),
            good.replace(b"host: x", b"authorization: Bearer " + b"\xff" * 50),
            good.replace(b"POST", rng.choice((b"PO ST", b"post", b"BREW", b"G\x00T", b""))),
            good.replace(b"HTTP/1.1", rng.choice((b"HTTP/9.9", b"HTTP/1", b"http/1.1", b""))),
            good.replace(b"/v1/completions", b"/" + b"a" * 40_000),
            good.replace(b"application/json", rng.choice((b"text/plain", b"\xff", b"a/b; c=" * 9))),
        )
    )


def _upgrades(rng: random.Random) -> bytes:
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
    websocket = (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", key)
    target = rng.choice(_PATHS).encode()
    h2c = (b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
    return rng.choice(
        (
            _head(b"GET", target, *websocket) + b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
            _head(b"GET", b"/v1/models", *websocket) + rng.randbytes(200),
            _head(b"GET", b"/v1/models", *h2c),
            _post(target.decode(), _body_of(_values(rng)), *websocket),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(40),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",
            _head(b"CONNECT", b"example.org:443"),
            _head(b"OPTIONS", b"*"),
            _post(target.decode(), b"{}", b"expect: 200-maybe"),
        )
    )


def _wrong_paths(rng: random.Random) -> bytes:
    target = rng.choice(
        (
            b"/v1/files/..%2f..%2f..%2fetc%2fpasswd/content",
            b"/v1/files/../../../../etc/passwd",
            b"/v1/files/file-%00/content",
            b"/v1/models/" + b"..%2f" * 200,
            b"/v1/models/%ff%fe",
            b"/docs/..%2f..%2fpyproject.toml",
            b"/v1/files?limit=1e9&after=%00",
            b"/v1/batches?limit=-1&after=" + b"a" * 5_000,
            b"/v1/files?order=NaN&limit=99999999999999999999",
            b"//v1//models",
            b"http://example.org/v1/models",
            b"/v1/models?" + b"a=1&" * 5_000,
            b"*",
            b"",
        )
    )
    return _head(rng.choice((b"GET", b"DELETE", b"POST", b"PUT")), target)


def _wrong_forms(rng: random.Random) -> bytes:
    part = b'--b\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    purpose, file = part % (b"purpose", b"", b"batch"), b'; filename="a.jsonl"'
    body = rng.choice(
        (
            b"",
            b"--b--\r\n",
            purpose + b"--b--\r\n",
            part % (b"file", file, b"{}") * 2 + b"--b--\r\n",
            part % (b"x", b"", b"y") * 50 + b"--b--\r\n",
            purpose + part % (b"file", b'; filename="../../../etc/x\x00"', b"") + b"--b--\r\n",
            part % (b"purpose", b"", b"\xff" * 5_000) + b"--b--\r\n",
            purpose + part % (b"file", file, b"x"),
            b"--b\r\n" + b"x: y\r\n" * 5_000 + _CRLF,
            rng.randbytes(500),
        )
    )
    kind = rng.choice((b"multipart/form-data; boundary=b", b"multipart/form-data", b"text/plain"))
    length = b"content-length: %d" % len(body)
    return _head(b"POST", b"/v1/files", b"content-type: " + kind, length) + body


def _beyond_bounds(rng: random.Random) -> bytes:
    values = _values(rng)
    path = _path_of(values)
    field, value = rng.choice(
        (
            ("n", "1000000000"),
            ("stop", json.dumps(["x" * 10_000] * 4)),
            ("stop", json.dumps(["x"] * 100_000)),
            ("logit_bias", json.dumps({str(i): 1 for i in range(5_000)})),
            ("bad_words", json.dumps(["x"] * 10_000)),
            ("max_tokens", "1000000000"),
            ("prompt", json.dumps("x " * 50_000)),
            ("prompt", json.dumps(["x"] * 5_000)),
            ("prompt", json.dumps([[1] * 10] * 4_000)),
            ("messages", json.dumps([{"role": "user", "content": "x"}] * 20_000)),
            ("tools", json.dumps([{"type": "function", "function": {"name": "x"}}] * 300)),
            ("logprobs", "1000"),
            ("vllm_xargs", json.dumps({str(i): i for i in range(1_000)})),
        )
    )
    return _post(path, _body_of(values | {field: value}))


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 2_000)) + _CRLF * rng.randint(0, 2)


def _cut_off(rng: random.Random) -> bytes:
    values = _values(rng)
    whole = _post(_path_of(values), _body_of(values))
    return whole[: rng.randrange(1, len(whole))]


_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "junk for values": _junk_values,
    "mutated bytes": _mutated_bytes,
    "deep JSON": _nested,
    "other encodings": _other_encodings,
    "wrong lengths": _wrong_lengths,
    "wrong chunks": _wrong_chunks,
    "wrong heads": _wrong_heads,
    "upgrades": _upgrades,
    "wrong paths": _wrong_paths,
    "wrong forms": _wrong_forms,
    "beyond bounds": _beyond_bounds,
    "noise": _noise,
    "cut off": _cut_off,
}
# A server may wait for the rest of these; the client disconnects after `attack.LINGER_S`.
_UNFINISHED = {"wrong lengths", "wrong chunks", "wrong heads", "upgrades", "noise", "cut off"}
