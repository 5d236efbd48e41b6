"""The client's key: one of the daemon's own."""

import pytest

from configs.client_key import KEY_VARIABLE, client_key


@pytest.mark.parametrize(
    ("told", "key"),
    [(None, None), ("", None), (" ", None), ("a", "a"), ("a,b", "a"), (" a , b", "a")],
)
def test_any_of_the_daemon_s_keys_will_do(
    told: str | None, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if told is not None:
        monkeypatch.setenv(KEY_VARIABLE, told)
    assert client_key() == key
