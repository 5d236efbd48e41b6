"""The client's API key: one of the daemon's keys."""

import pytest

from configs.client_key import KEY_VARIABLE, client_key


@pytest.mark.parametrize(
    ("variable", "key"),
    [(None, None), ("", None), (" ", None), ("a", "a"), ("a,b", "a"), (" a , b", "a")],
)
def test_the_first_of_the_daemon_s_keys_is_sent(
    variable: str | None, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(KEY_VARIABLE, variable)
    assert client_key() == key
