"""The grammar checker: a process of the server's that tries grammars before they are admitted.

A grammar is a client's program. It is compiled and followed for some tokens under the limits that
the last stage keeps to, in a process that is ended when it takes too long, too much memory or a
fall: nothing that a client sends can hold up or take down the server, or get as far as a stage.
"""

import random
import resource
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from configs import lifeline
from configs.grammar_limits import grammar_limits

START_TIMEOUT_S = 60.0
CHECK_TIMEOUT_S = 5.0
# What the process may take, its tokenizer included.
MAX_MEMORY_BYTES = 4 << 30
# Less than a thread of the stages has: what is nested too deeply falls here, not there.
STACK_BYTES = 1 << 20
# Tokens for which a grammar is followed, and the CPU time that the mask of each may take.
NUM_TRIED = 24
MAX_MASK_S = 0.1
MAX_WORDS = 300


class CheckedVocabulary(msgspec.Struct, frozen=True, array_like=True):
    """The tokenizer that grammars are checked for: the tokenizers library's JSON.

    The first of `eos_token_ids`, if there is any, ends its texts.
    """

    serialised: str
    eos_token_ids: tuple[int, ...]


class CheckerError(Exception):
    """No grammar can be checked: the tokenizer is none that grammars can be followed in."""


class GrammarChecker:
    """The process, started with the first check and again after it had to be ended.

    For one thread at a time.
    """

    def __init__(self, vocabulary: CheckedVocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._end: Callable[[], object] = lambda: None

    def check(self, grammar: str) -> str:
        """What is wrong with the grammar, in words that follow its name; empty for nothing.

        Raises `CheckerError`.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()  # somebody else has ended it meanwhile
        connection = self._connection or self._start()
        with suppress(EOFError, OSError):
            connection.send_bytes(grammar.encode())
            if not connection.poll(CHECK_TIMEOUT_S):
                self.close()
                return f"takes longer than {CHECK_TIMEOUT_S:.0f} seconds to prepare"
            return connection.recv_bytes().decode()
        self.close()
        return "is too complex"

    def close(self) -> None:
        """End the process; so does the end of the checker."""
        self._end()
        self._process = self._connection = None

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.grammar_checker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=lifeline.environment_of_children(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection = ours
        self._end = weakref.finalize(self, _end, self._process, ours)
        problem = "the process that checks them did not start"
        with suppress(EOFError, OSError):
            ours.send_bytes(msgspec.msgpack.encode(self._vocabulary))
            if ours.poll(START_TIMEOUT_S):
                problem = ours.recv_bytes().decode()
        if problem:
            self.close()
            raise CheckerError(problem)
        return ours


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()


def complaint(grammar: str, tokenizer: LLTokenizer) -> str:
    """What is wrong with a grammar, empty for nothing: some text of its own is read by it."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=grammar_limits())
    rng = random.Random(0)
    for _ in range(NUM_TRIED):
        began_at = time.thread_time()
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            break
        if time.thread_time() - began_at > MAX_MASK_S:
            return "is too slow to follow"
        token_ids = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        token_ids = token_ids[token_ids != tokenizer.eos_token]
        if not len(token_ids):
            return "" if matcher.is_accepting() else "matches nothing"
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
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    vocabulary = msgspec.msgpack.decode(connection.recv_bytes(), type=CheckedVocabulary)
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
            connection.send_bytes(complaint(grammar, tokenizer).encode())


def _run_in_thread(connection: Connection) -> None:
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=main, args=(connection,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    lifeline.tie_to_parent()
    _run_in_thread(Connection(int(sys.argv[1])))
