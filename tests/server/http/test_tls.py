"""TLS: server certificates, client certificates, and one-line errors for invalid settings."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from configs.schema.server import ListenConfig
from daemon.host.binding import ListenError
from server.http.tls import tls_context
from tests.server.world import MODEL, PATIENCE_S, events, saying, serving


class Authority:
    """A certificate authority and a server's certificate, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self._server = self.authority.issue_cert("127.0.0.1", "localhost")
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.authorities = folder / "authorities.pem"
        self.certificate.write_bytes(b"".join(p.bytes() for p in self._server.cert_chain_pems))
        self.key.write_bytes(self._server.private_key_pem.bytes())
        self.authority.cert_pem.write_to_path(str(self.authorities))

    def files(self) -> dict[str, Path]:
        return {"ssl_certfile": self.certificate, "ssl_keyfile": self.key}

    def client(self, *, with_certificate: bool = False) -> httpx.Client:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if with_certificate:
            self.authority.issue_cert("client@example.org").configure_cert(context)
        return httpx.Client(verify=context, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests, because generating keys takes time."""
    return Authority(tmp_path_factory.mktemp("authority"))


def test_a_client_that_trusts_the_authority_is_served(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, **authority.files()) as daemon, authority.client() as client:
        assert client.get(f"{daemon.url}/v1/models").status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            daemon.get("/v1/models")
        with pytest.raises(httpx.HTTPError):
            httpx.get(daemon.url.replace("https", "http") + "/v1/models")


def test_a_stream_is_complete_over_tls(tmp_path: Path, authority: Authority) -> None:
    script = saying("hello world €")
    with serving(tmp_path, script, **authority.files()) as daemon, authority.client() as client:
        body = {"model": MODEL, "prompt": "hi", "stream": True}
        answer = client.post(f"{daemon.url}/v1/completions", json=body)
    texts = [event["choices"][0]["text"] for event in events(answer)]
    assert "".join(texts) == "hello world €"


def test_a_client_s_certificate_may_be_required(tmp_path: Path, authority: Authority) -> None:
    settings = authority.files() | {"ssl_ca_certs": authority.authorities, "ssl_cert_reqs": 2}
    with serving(tmp_path, **settings) as daemon:
        with authority.client(with_certificate=True) as known:
            assert known.get(f"{daemon.url}/health").status_code == 200
        with authority.client() as unknown, pytest.raises(httpx.HTTPError):
            unknown.get(f"{daemon.url}/health")


def test_key_and_certificate_may_share_a_file(tmp_path: Path, authority: Authority) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(authority.key.read_bytes() + authority.certificate.read_bytes())
    assert tls_context(ListenConfig(ssl_certfile=both)) is not None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_context(ListenConfig()) is None


def encrypted(authority: Authority, file: Path) -> Path:
    """The key under a password."""
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return file


def test_invalid_settings_are_one_line_that_names_the_file(
    tmp_path: Path, authority: Authority
) -> None:
    missing, invalid = tmp_path / "missing.pem", tmp_path / "invalid.pem"
    invalid.write_text("no certificate")
    other = Authority(tmp_path)
    files = authority.files()
    for settings, words in (
        ({"ssl_certfile": missing}, f"cannot read {missing}: No such file"),
        (files | {"ssl_keyfile": missing}, f"cannot read {missing}"),
        (files | {"ssl_ca_certs": missing}, f"cannot read {missing}"),
        (files | {"ssl_ca_certs": invalid}, f"{invalid} has no valid certificates"),
        ({"ssl_certfile": invalid}, f"{invalid}"),
        (files | {"ssl_keyfile": other.key}, "key values mismatch"),
        (files | {"ssl_keyfile": encrypted(authority, tmp_path / "x")}, "the key is encrypted"),
        ({"ssl_keyfile": authority.key}, "TLS requires ssl_certfile"),
        (files | {"ssl_cert_reqs": 2}, "ssl_cert_reqs requires ssl_ca_certs"),
    ):
        with pytest.raises(ListenError) as caught:
            tls_context(ListenConfig(**settings))
        line = str(caught.value)
        assert words in line
        assert len(line.splitlines()) == 1
