"""The grammar checker: a process of the server's that tries grammars before they are admitted.

A grammar is a client's program. It is read, compiled and followed for some tokens under the limits
that the last stage keeps to, in a process that is ended when it takes too long, too much memory or
a fall: nothing that a client sends can hold up or take down the server, or get as far as a stage.
"""

import math
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from configs.grammar_limits import grammar_limits
from daemon import child_process, log_file
from server.grammar.grammar_text import is_ebnf, lark_of

START_TIMEOUT_S = 60.0
# Less than a thread of the stages has: what is nested too deeply falls here, not there.
STACK_BYTES = 1 << 20
MAX_WORDS = 300


class CheckedVocabulary(msgspec.Struct, frozen=True, array_like=True):
    """The tokenizer that grammars are checked for: the tokenizers library's JSON, or nothing.

    The first of `eos_token_ids`, if there is any, ends its texts.
    """

    serialised: str
    eos_token_ids: tuple[int, ...]


class CheckLimits(msgspec.Struct, frozen=True, array_like=True):
    """What one grammar may take. Its own are seconds of CPU: a busy machine makes none of it wrong.

    It is followed for `num_tokens`: `max_mask_s` is for each, `max_total_s` for all, `max_cpu_s`
    has what came before in it, and `max_memory_bytes` the tokenizer. The server waits `patience_s`.
    """

    num_tokens: int = 160
    max_mask_s: float = 0.1
    max_total_s: float = 1.0
    max_cpu_s: int = 5
    max_memory_bytes: int = 4 << 30
    patience_s: float = 15.0


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What is wrong with a grammar, in words that follow its name; empty for nothing.

    `lark` is the grammar to be followed where the one that was checked is EBNF, and else empty.
    """

    complaint: str
    lark: str = ""


class CheckerError(Exception):
    """No grammar can be checked: the tokenizer is none that grammars can be followed in."""


class UncheckedError(Exception):
    """The check did not come to its end, or not even begin, and not by the grammar's fault."""


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: Connection


class GrammarChecker:
    """The process, started with the first check and again after it had to be ended.

    For one thread at a time, but for `close`.
    """

    def __init__(self, vocabulary: CheckedVocabulary, limits: CheckLimits | None = None) -> None:
        self._vocabulary = vocabulary
        self._limits = limits or CheckLimits()
        self._child: _Child | None = None
        self._end: Callable[[], object] = lambda: None

    def check(self, grammar: str) -> Verdict:
        """Whether the grammar can be followed. Raises `CheckerError` and `UncheckedError`."""
        if self._child is None or self._child.process.poll() is not None:
            self._child = self._start()
        process, connection = self._child
        with suppress(EOFError, OSError):
            connection.send_bytes(grammar.encode())
            if not connection.poll(self._limits.patience_s):
                process.kill()
            return msgspec.msgpack.decode(connection.recv_bytes(), type=Verdict)
        return Verdict(self._fate(process.wait()))

    def close(self) -> None:
        """End the process; so does the end of the checker. A check under way is lost."""
        self._end()

    def _start(self) -> _Child:
        if not self._vocabulary.serialised:
            raise CheckerError("it is not one of the tokenizers library's")
        self.close()
        with suppress(EOFError, OSError):
            ours, theirs = Pipe()
            with theirs:
                process = child_process.start(
                    "server.grammar.grammar_checker",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                )
            self._end = weakref.finalize(self, _end, process)
            ours.send_bytes(msgspec.msgpack.encode((self._vocabulary, self._limits)))
            if ours.poll(START_TIMEOUT_S):
                problem = ours.recv_bytes().decode()
                if problem:
                    raise CheckerError(problem)
                return _Child(process, ours)
        self.close()
        raise UncheckedError("the process that checks grammars did not start")

    def _fate(self, code: int) -> str:
        """What it says of a grammar that the process has ended over it, and how."""
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            raise UncheckedError("the process that checks grammars was ended")
        if code == -signal.SIGXCPU:
            return f"takes longer than {self._limits.max_cpu_s} seconds to prepare"
        return "is too complex"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def verdict(grammar: str, tokenizer: LLTokenizer, limits: CheckLimits) -> Verdict:
    """Whether a grammar can be followed, and in which words if it is EBNF."""
    if not is_ebnf(grammar):
        return Verdict(complaint(grammar, tokenizer, limits))
    try:
        lark = lark_of(grammar)
    except ValueError as error:
        return Verdict(f"has an EBNF grammar that cannot be read: {str(error)[:MAX_WORDS]}")
    return Verdict(complaint(lark, tokenizer, limits), lark)


def complaint(grammar: str, tokenizer: LLTokenizer, limits: CheckLimits) -> str:
    """What is wrong with a grammar, empty for nothing: some text of its own is read by it."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=grammar_limits())
    rng, began_at = random.Random(0), time.thread_time()
    for number in range(limits.num_tokens):
        resumed_at = time.thread_time()
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            break
        now = time.thread_time()
        if now - resumed_at > limits.max_mask_s or now - began_at > limits.max_total_s:
            return "is too slow to follow"
        token_ids = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        token_ids = token_ids[token_ids != tokenizer.eos_token]
        if not len(token_ids):
            if not matcher.is_accepting():
                return "matches nothing"
            return "" if number else "matches nothing but the empty text"
        matcher.consume_token(int(rng.choice(token_ids)))
    return _words(matcher.get_error())


def _words(error: str) -> str:
    """The library's complaint in one line; it points at places in several."""
    lines = [line.strip() for line in error.splitlines() if line.strip() != "<non-verbose/>"]
    if not lines:
        return ""
    if lines[0].startswith("NoExtension"):
        return "matches nothing"
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    return f"cannot be used: {told.removeprefix('error: ').rstrip('.')[:MAX_WORDS]}"


def main(connection: Connection) -> None:
    """Check what comes until the server is gone."""
    vocabulary, limits = msgspec.msgpack.decode(
        connection.recv_bytes(), type=tuple[CheckedVocabulary, CheckLimits]
    )
    _limit(resource.RLIMIT_AS, limits.max_memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        eos_token_id = next(iter(vocabulary.eos_token_ids), None)
        tokenizer = LLTokenizer(vocabulary.serialised, eos_token=eos_token_id)
    except BaseException as error:  # the library panics where it had not thought of a tokenizer
        connection.send_bytes((str(error).partition("\n")[0] or "unknown reason").encode())
        return
    connection.send_bytes(b"")
    with suppress(EOFError):
        while True:
            grammar = connection.recv_bytes().decode()
            _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + limits.max_cpu_s)
            told = verdict(grammar, tokenizer, limits)
            connection.send_bytes(msgspec.msgpack.encode(told))


def _limit(kind: int, value: int) -> None:
    """What exceeds it ends this process, or fails there."""
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _run_in_thread(connection: Connection) -> None:
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=main, args=(connection,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    child_process.tie_to_parent()
    log_file.follow()
    _run_in_thread(Connection(int(sys.argv[1])))
