"""`tdpipe collect`: sends prompts to a running daemon and records the lengths of its answers."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import msgspec
from tqdm import tqdm

from configs.client_key import KEY_VARIABLE, client_key
from predictor.prompts import PromptsError, read_prompts

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
# A request that a busy daemon refuses (429, 503) is retried for about two minutes.
_BUSY, _TRIES, _PAUSE_S = (429, 503), 120, 1.0


class CollectError(Exception):
    """Nothing can be collected; the message is one line for the user."""


class CollectedAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the output."""

    prompt: str
    output_len: int
    finish_reason: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True)
class CollectTarget:
    """The model to query, and the parameters of the requests."""

    model: str
    tokenizer: str | None
    max_tokens: int
    temperature: float


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code is 0, 1 if requests failed, 2 for invalid input, 130 after
    Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        prompts = list(dict.fromkeys(read_prompts(options.prompts)))[: options.limit]
        done = read_finished(options.out)
        known = {line.prompt for line in done}
        todo = [prompt for prompt in prompts if prompt not in known]
        if len(todo) < len(prompts):
            num_done = len(prompts) - len(todo)
            print(f"{num_done} of {len(prompts)} prompts are already in {options.out}")
        problems = asyncio.run(_collect(options, todo, done))
    except (PromptsError, CollectError) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    if problems:
        print(f"{len(problems)} requests failed, the first with {problems[0]}", file=sys.stderr)
    return FAILED if problems else 0


def read_finished(out: Path) -> list[CollectedAnswer]:
    """The requests of an earlier run; an incomplete last line is cut off.

    Raises `CollectError`.
    """
    try:
        if not out.exists():
            out.touch()
        whole = out.read_bytes().rpartition(b"\n")
        if whole[2]:
            with out.open("r+b") as file:
                file.truncate(len(whole[0]) + len(whole[1]))
        return [msgspec.json.decode(line, type=CollectedAnswer) for line in whole[0].splitlines()]
    except OSError as error:
        raise CollectError(f"cannot write {out}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CollectError(f"{out} has lines that `tdpipe collect` did not write") from error


async def _collect(
    options: argparse.Namespace, prompts: Sequence[str], done: Sequence[CollectedAnswer]
) -> list[str]:
    """Send all prompts; returns the errors of those that the daemon refused."""
    problems: list[str] = []
    limits = httpx.Limits(max_connections=options.concurrency)
    base = options.url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with httpx.AsyncClient(
        base_url=base, timeout=options.timeout, limits=limits, headers=headers
    ) as client:
        target = await _target(client, options)
        _check_same(target, done, options.out)
        left = iter(prompts)
        with (
            options.out.open("ab", buffering=0) as file,
            tqdm(total=len(prompts), unit="req", disable=None) as bar,
        ):

            async def work() -> None:
                for prompt in left:
                    await _collect_one(client, target, prompt, file, problems)
                    bar.update()

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(prompts))):
                        group.create_task(work())
            except* CollectError as errors:
                raise errors.exceptions[0] from None
    return problems


async def _collect_one(
    client: httpx.AsyncClient,
    target: CollectTarget,
    prompt: str,
    file: BinaryIO,
    problems: list[str],
) -> None:
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": target.max_tokens,
        "temperature": target.temperature,
    }
    answer = await _ask(client, "/v1/completions", body)
    if isinstance(answer, str):
        problems.append(answer)
        return
    try:
        finished = CollectedAnswer(
            prompt,
            int(answer["usage"]["completion_tokens"]),
            answer["choices"][0]["finish_reason"],
            target.tokenizer,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CollectError("the daemon's answer has no usage.completion_tokens") from error
    file.write(msgspec.json.encode(finished) + b"\n")


async def _target(client: httpx.AsyncClient, options: argparse.Namespace) -> CollectTarget:
    served = await _ask(client, "/v1/models")
    models = served.get("data") if isinstance(served, dict) else None
    if not models:
        raise CollectError(f"no OpenAI API at {options.url}: /v1/models lists no model")
    by_name = {str(model.get("id")): model for model in models}
    name = options.model or next(iter(by_name))
    if name not in by_name:
        raise CollectError(f"no model {name!r} at {options.url}: {', '.join(by_name)}")
    fingerprint = by_name[name].get("tokenizer_fingerprint")
    return CollectTarget(name, fingerprint, options.max_tokens, options.temperature)


def _check_same(target: CollectTarget, done: Sequence[CollectedAnswer], out: Path) -> None:
    known = {line.tokenizer for line in done if line.tokenizer}
    if target.tokenizer and known - {target.tokenizer}:
        raise CollectError(
            f"{out} has lengths in tokens of another tokenizer ({known.pop()}; this model has "
            f"{target.tokenizer})"
        )


async def _ask(
    client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any] | str:
    """The daemon's JSON object, or a one-line error if it refuses. Raises `CollectError`."""
    for _ in range(_TRIES):
        try:
            method = "GET" if body is None else "POST"
            response = await client.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise CollectError(f"no daemon at {client.base_url}: {reason}") from error
        except httpx.InvalidURL as error:
            raise CollectError(f"{client.base_url} is not a URL: {error}") from error
        if response.status_code not in _BUSY:
            break
        await asyncio.sleep(_PAUSE_S)
    if response.status_code != 200:
        return f"status {response.status_code}: {_message(response)}"
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        return "a response that is not a JSON object"


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:200]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tdpipe collect",
        description="Send prompts to a running daemon and record the lengths of its answers, for "
        "`tdpipe train-predictor`. Prompts that are already in OUT are not sent again.",
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="URL of the daemon [%(default)s]")
    add("--api-key", default=client_key(), help=f"API key [the first in {KEY_VARIABLE}]")
    add("--model", help="name of the model in the API [the first that is served]")
    add("--prompts", type=Path, required=True, help='JSONL with "prompt", or a prompt per line')
    add("--out", type=Path, required=True, help="JSONL to append to, one line per answer")
    add("--concurrency", type=_positive, default=32, help="requests open at one time [32]")
    add("--max-tokens", type=_positive, default=1024, help="longest answer [1024]")
    add("--temperature", type=float, default=0.0, help="sampling temperature [0, greedy]")
    add("--limit", type=_positive, help="maximum number of prompts to send [all]")
    add("--timeout", type=float, default=600.0, help="seconds for one request [600]")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)
