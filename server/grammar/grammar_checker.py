"""The grammar checker: a child process that tests grammars before they are admitted.

A grammar is in effect a program from a client. The process parses and compiles it and advances it
by some tokens, under the limits of the last stage. If this takes too much time or memory, the
process is killed. So no grammar can block or crash the server, or reach a stage unchecked.
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from configs.schema.grammar_limits import grammar_limits
from daemon.observability import log_file
from daemon.processes import child_process
from server.grammar.grammar_text import is_ebnf, lark_of, with_token_ids
from wire.grammar_vocabulary import grammar_tokenizer, named_token_ids

START_TIMEOUT_S = 60.0
# Less than in a stage's threads: a grammar that is nested too deeply crashes here, not in a stage.
STACK_BYTES = 1 << 20
MAX_WORDS = 300


class CheckedVocabulary(msgspec.Struct, frozen=True, array_like=True):
    """The tokenizer for which grammars are checked: the tokenizers library's JSON, or empty.

    `eos_token_id` is the end-of-text token, or None if the tokenizer has none. The model can only
    generate token ids below `vocab_size`.
    """

    serialised: str
    eos_token_id: int | None
    vocab_size: int = 2**31


class CheckLimits(msgspec.Struct, frozen=True, array_like=True):
    """Limits of one check, in CPU seconds, so that a busy machine does not cause refusals.

    The grammar is advanced by `num_tokens` tokens: `max_mask_s` limits the time of each mask,
    `max_total_s` the time of all masks, and `max_cpu_s` also includes parsing and compiling.
    `max_memory_bytes` includes the tokenizer. The server waits `patience_s` of wall-clock time.
    """

    num_tokens: int = 160
    max_mask_s: float = 0.1
    max_total_s: float = 1.0
    max_cpu_s: int = 5
    max_memory_bytes: int = 4 << 30
    patience_s: float = 15.0


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """The result of a check: `complaint` is empty if the grammar is valid.

    A complaint is a predicate that follows the field's name in the error message. `lark` is the
    form for the stages of a grammar in EBNF, or in Lark with names of tokens; otherwise empty.
    """

    complaint: str
    lark: str = ""


class CheckerError(Exception):
    """No grammar can be checked, because the grammar library does not support the tokenizer."""


class UncheckedError(Exception):
    """The check did not start or did not finish, for a reason unrelated to the grammar."""


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: Connection


class GrammarChecker:
    """Starts the process with the first check, and restarts it after it was killed.

    Only one thread at a time may use it, except for `close`.
    """

    def __init__(self, vocabulary: CheckedVocabulary, limits: CheckLimits | None = None) -> None:
        self._vocabulary = vocabulary
        self._limits = limits or CheckLimits()
        self._child: _Child | None = None
        self._end: Callable[[], object] = lambda: None

    def check(self, grammar: str) -> Verdict:
        """Check one grammar. Raises `CheckerError` and `UncheckedError`."""
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
        """Kill the process; a running check is lost. The checker's finalizer does the same."""
        self._end()

    def _start(self) -> _Child:
        if not self._vocabulary.serialised:
            raise CheckerError(
                "structured outputs need a fast tokenizer (tokenizer.json), which this model does "
                "not have"
            )
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
                    raise CheckerError(f"llguidance cannot use the model's tokenizer: {problem}")
                return _Child(process, ours)
        self.close()
        raise UncheckedError("the process that checks grammars did not start")

    def _fate(self, code: int) -> str:
        """Return the complaint if the check ended the process with this exit code."""
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            raise UncheckedError("the process that checks grammars was killed")
        if code == -signal.SIGXCPU:
            return f"takes more than {self._limits.max_cpu_s} CPU seconds to check; simplify it"
        return "exceeds the checker's memory or nesting limit; simplify it"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def verdict(
    grammar: str,
    tokenizer: LLTokenizer,
    vocab_size: int,
    limits: CheckLimits,
    named_ids: Mapping[str, int] | None = None,
) -> Verdict:
    """Check a grammar, after converting EBNF to Lark, and names in Lark to the `named_ids`."""
    if not is_ebnf(grammar):
        lark = with_token_ids(grammar, named_ids or {})
        found = complaint(lark, tokenizer, vocab_size, limits)
        return Verdict(found, lark if lark != grammar else "")
    try:
        lark = lark_of(grammar)
    except ValueError as error:
        return Verdict(f"has an EBNF grammar that cannot be read: {str(error)[:MAX_WORDS]}")
    return Verdict(complaint(lark, tokenizer, vocab_size, limits), lark)


def complaint(grammar: str, tokenizer: LLTokenizer, vocab_size: int, limits: CheckLimits) -> str:
    """Advance a grammar along a random text; return the complaint, empty if it is valid."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=grammar_limits())
    rng, began_at = random.Random(0), time.thread_time()
    for number in range(limits.num_tokens):
        resumed_at = time.thread_time()
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            break
        now = time.thread_time()
        if now - resumed_at > limits.max_mask_s or now - began_at > limits.max_total_s:
            return "is too expensive: its token masks exceed the time limit; simplify it"
        token_ids = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        token_ids = token_ids[token_ids != tokenizer.eos_token]
        if not len(token_ids):
            if not matcher.is_accepting():
                return "matches nothing"
            return "" if number else "matches nothing but the empty text"
        beyond, token_ids = token_ids, token_ids[token_ids < vocab_size]
        if not len(token_ids) and not matcher.is_accepting():
            name = tokenizer.dbg_tokens([int(beyond[0])]).strip("\u27e6\u27e7")
            return (
                f"needs the token {name!r} (id {beyond[0]}), and the model has only {vocab_size} "
                "token ids"
            )
        if not len(token_ids):
            return ""
        matcher.consume_token(int(rng.choice(token_ids)))
    return _words(matcher.get_error())


def _words(error: str) -> str:
    """Reduce the library's error message to one line."""
    lines = [line.strip() for line in error.splitlines() if line.strip() != "<non-verbose/>"]
    if not lines:
        return ""
    if lines[0].startswith("NoExtension"):
        return "matches nothing"
    message = next((line for line in lines if line.startswith("error: ")), lines[0])
    return f"cannot be used: {message.removeprefix('error: ').rstrip('.')[:MAX_WORDS]}"


def main(connection: Connection) -> None:
    """Check grammars until the server closes the connection."""
    vocabulary, limits = msgspec.msgpack.decode(
        connection.recv_bytes(), type=tuple[CheckedVocabulary, CheckLimits]
    )
    _limit(resource.RLIMIT_AS, limits.max_memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        tokenizer = grammar_tokenizer(vocabulary.serialised, eos_token_id=vocabulary.eos_token_id)
        named_ids = named_token_ids(vocabulary.serialised)
    except BaseException as error:  # the library panics on some unsupported tokenizers
        connection.send_bytes((str(error).partition("\n")[0] or "unknown reason").encode())
        return
    connection.send_bytes(b"")
    with suppress(EOFError):
        while True:
            grammar = connection.recv_bytes().decode()
            _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + limits.max_cpu_s)
            result = verdict(grammar, tokenizer, vocabulary.vocab_size, limits, named_ids)
            connection.send_bytes(msgspec.msgpack.encode(result))


def _limit(kind: int, value: int) -> None:
    """Set a resource limit: exceeding it kills this process or makes the allocation fail."""
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
