"""Fixtures: one ready server for the tests of a module that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.server.world import Daemon, saying, serving


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A server whose engine says "hello world €" to everything."""
    with serving(tmp_path_factory.mktemp("daemon"), saying("hello world €")) as daemon:
        yield daemon
