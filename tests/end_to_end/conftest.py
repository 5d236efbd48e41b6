"""One daemon as `make serve` starts it, for all tests that do not change it."""

from collections.abc import Iterator

import pytest

from tests.end_to_end.daemon import Daemon


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The default daemon."""
    folder = tmp_path_factory.mktemp("demo")
    with Daemon(folder) as daemon:
        yield daemon
