"""The fingerprint: by `system_fingerprint` a client sees that what answers has changed."""

import hashlib

import msgspec

from configs.schema import Config
from daemon.version import VERSION


def system_fingerprint(config: Config) -> str:
    """The same for the same software with the same weights, cut in the same way."""
    parts = [VERSION, config.model, config.revision, config.dtype, config.pipeline_parallel_size]
    return f"fp_{hashlib.blake2s(msgspec.json.encode(parts), digest_size=5).hexdigest()}"
