"""The types of models that the installed transformers knows, without importing it.

The import takes a second, and the stages would find the same after several. The names are keys of a
mapping in the source; where transformers has none, every type counts as known.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from daemon.start_error import StartError

_SOURCES = ("auto_mappings.py", "configuration_auto.py")


def check_type(model: str, config: Mapping[str, Any], *, trusts_code: bool) -> None:
    """Raise `StartError` for a config.json whose type no code is known for."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return  # transformers guesses it by the folder's name
    brings_code = "auto_map" in config
    if (brings_code and trusts_code) or is_known(kind):
        return
    if brings_code:
        raise StartError(
            f"model {model}: its type {kind} needs code that the checkpoint contains; if you trust "
            "it, --trust-remote-code runs it"
        )
    version = metadata.version("transformers")
    raise StartError(
        f"model {model}: transformers {version} has no models of the type {kind} (config.json); a "
        "newer one may"
    )


def is_known(kind: str) -> bool:
    """Whether transformers has models of this type, as far as its source shows it."""
    spec = find_spec("transformers")
    found = [
        Path(folder) / "models" / "auto"
        for folder in (spec and spec.submodule_search_locations) or ()
    ]
    try:
        texts = [(folder / name).read_text("utf-8") for folder in found for name in _SOURCES]
    except OSError:
        return True
    return not texts or any(f'"{kind}"' in text for text in texts)
