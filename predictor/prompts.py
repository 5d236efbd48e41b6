"""Reads prompts to send: JSONL, or plain text with one prompt per line."""

from pathlib import Path

import msgspec


class PromptsError(ValueError):
    """The prompts cannot be read; the message is one line for the user."""


class _Line(msgspec.Struct, frozen=True):
    prompt: str


def read_prompts(path: Path) -> list[str]:
    """The prompts in the file's order. Raises `PromptsError`, which names the invalid line.

    The file is JSONL if its first line is a JSON object; then every line must have a "prompt".
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise PromptsError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise PromptsError(f"{path} has no prompts")
    if not _is_object(numbered[0][1]):
        return [line.removesuffix("\r") for _, line in numbered]
    return [_parse(line, f"{path}, line {number}") for number, line in numbered]


def _is_object(line: str) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return False
    return True


def _parse(line: str, place: str) -> str:
    try:
        return msgspec.json.decode(line, type=_Line).prompt
    except msgspec.DecodeError as error:
        raise PromptsError(f"{place}: {error}") from error
