"""Paths of Unix sockets."""

from pathlib import Path

# What Linux leaves for a path in a socket's address (unix(7)), without the closing zero.
MAX_UDS_BYTES = 107


def check_uds(path: str | Path) -> None:
    """Raise `ValueError` if no socket can have this path."""
    num_bytes = len(str(path).encode(errors="surrogateescape"))  # as os.fsencode
    if num_bytes > MAX_UDS_BYTES:
        raise ValueError(f"a socket's path has at most {MAX_UDS_BYTES} bytes, not {num_bytes}")
