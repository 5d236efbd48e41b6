"""The fingerprint of a vocabulary: lengths are counted in tokens of one tokenizer and no other."""

import hashlib
import json
from collections.abc import Mapping


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """16 hex digits, the same for the same tokens under the same ids."""
    pairs = sorted((token_id, token) for token, token_id in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
