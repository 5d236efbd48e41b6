"""The client's key: what a command that asks a daemon shows it."""

import os

from configs.part import ENV_PREFIX

KEY_VARIABLE = f"{ENV_PREFIX}API_KEY"


def client_key() -> str | None:
    """The first of the daemon's own keys, if it is told here: any of them will do."""
    return os.environ.get(KEY_VARIABLE, "").partition(",")[0].strip() or None
