"""Fixtures: one ready server for the tests of a module that leave it as it was."""

from tests.server.conftest import daemon

__all__ = ["daemon"]
