"""TLS: the server's certificate, and the verification of client certificates."""

import ssl
from pathlib import Path

from configs.schema.server import ListenConfig
from daemon.host.binding import ListenError


def tls_context(config: ListenConfig) -> ssl.SSLContext | None:
    """The context for all connections; None without a certificate. Raises `ListenError`."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile or config.ssl_ca_certs or config.ssl_cert_reqs:
            raise ListenError("TLS requires ssl_certfile")
        return None
    if config.ssl_cert_reqs and config.ssl_ca_certs is None:
        raise ListenError("ssl_cert_reqs requires ssl_ca_certs to verify client certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = config.ssl_keyfile or config.ssl_certfile
    for file in (config.ssl_certfile, key, config.ssl_ca_certs):
        if file is not None:
            _check_readable(file)
    try:
        context.load_cert_chain(config.ssl_certfile, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ListenError(
            f"cannot use the certificate {config.ssl_certfile} and the key {key}: {_explain(error)}"
        ) from error
    if config.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except ssl.SSLError as error:
            raise ListenError(
                f"{config.ssl_ca_certs} has no valid certificates: {_explain(error)}"
            ) from error
    context.verify_mode = ssl.VerifyMode(config.ssl_cert_reqs)
    return context


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ListenError(f"cannot read {file}: {error.strerror}") from error


def _no_password() -> str:
    # Without this callback, OpenSSL would prompt for the password on the terminal.
    raise ValueError("the key is encrypted")


def _explain(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error)
    return str(reason).lower().replace("_", " ")
