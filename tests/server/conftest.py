"""Fixtures: one ready server for the tests of a module that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.server.templates import QWEN, chatty, with_long_context
from tests.server.world import Daemon, saying, serving


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A server whose engine answers every request with "hello world €"."""
    with serving(tmp_path_factory.mktemp("daemon"), saying("hello world €")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A server that chats, with Qwen's template."""
    folder = tmp_path_factory.mktemp("qwen")
    with serving(folder, saying("hello world €"), tokenizer=chatty(QWEN)) as daemon:
        yield with_long_context(daemon)
