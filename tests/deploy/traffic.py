"""Requests of many kinds, sent until a block ends, so that every metric has something to tell."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Self

MODEL = "tdpipe-demo"
TIMEOUT_S = 60.0
PAUSE_S = 0.2
NUM_THREADS = 6


class Traffic:
    """Threads that ask these servers in turn; what fails is not repeated, and not an error."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(NUM_THREADS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    def _ask(self, number: int) -> None:
        while not self._ended.wait(PAUSE_S):
            number += 1
            url = self._urls[number % len(self._urls)]
            prompt = f"Count to {number % 90 + 10} in words.\n"
            send(url, prompt=prompt, max_tokens=40, stream=number % 3 == 0)
            if number % 5 == 0:
                send(url, prompt=prompt, max_tokens=-1)


def send(url: str, **fields: Any) -> None:
    """Ask for a completion, and read the answer, whatever it is."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            error.read()
    except OSError:  # the server has just been stopped
        pass
