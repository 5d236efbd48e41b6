"""One daemon for all cells, and the table of their measurements."""

from collections.abc import Iterator

import pytest

from tests.faults.clients import FULL, SMALL
from tests.faults.results import Results
from tests.faults.world import World, keep_model_code


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make faults ARGS=--write`."""
    parser.addoption("--write", action="store_true", help="the table into docs/reliability.md")


@pytest.fixture(scope="session")
def _model_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        keep_model_code(tmp_path_factory.mktemp("model-code"), patch)
        yield


@pytest.fixture(scope="session")
def world(
    _model_code: None, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[World]:
    """It survives the faults, or is started again. The long tests ask it more."""
    is_short = pytestconfig.getoption("markexpr") == "not long"
    with World.begin(tmp_path_factory.mktemp("faults"), SMALL if is_short else FULL) as world:
        yield world


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """The results of this run."""
    results = Results()
    yield results
    if results.measured:
        print(f"\n{results.table()}")  # noqa: T201
        if request.config.getoption("--write", default=False):
            results.write()
