"""The client's API key: what commands such as `tdpipe chat` send to a daemon."""

import os

from configs.schema.part import ENV_PREFIX

KEY_VARIABLE = f"{ENV_PREFIX}API_KEY"


def client_key() -> str | None:
    """The first of the daemon's API keys in the environment: each of them is accepted."""
    return os.environ.get(KEY_VARIABLE, "").partition(",")[0].strip() or None
