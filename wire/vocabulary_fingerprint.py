"""The fingerprint of a vocabulary, to check that predicted lengths are for the same tokenizer."""

import hashlib
import json
from collections.abc import Mapping


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return 16 hex digits of a SHA-256, equal for vocabularies with the same tokens and ids."""
    pairs = sorted((token_id, token) for token, token_id in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
