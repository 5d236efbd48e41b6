"""Paths of Unix sockets."""

import os
from pathlib import Path

# What Linux leaves for a path in a socket's address (unix(7)), without the closing zero.
MAX_UDS_BYTES = 107


def check_uds(path: str | Path) -> None:
    """Raise `ValueError` if no socket can have this path."""
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_UDS_BYTES:
        raise ValueError(f"a socket's path has at most {MAX_UDS_BYTES} bytes, not {num_bytes}")
