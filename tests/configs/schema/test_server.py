"""Settings of the HTTP server: keys stay secret, and errors are one line."""

import json
import shlex
from pathlib import Path

import pytest

from configs import loader
from configs.config import Config
from configs.loader import ConfigError
from configs.uds import MAX_UDS_BYTES


def load(flags: str) -> Config:
    return loader.load(shlex.split(flags), {})


@pytest.mark.parametrize(
    "flags", ["--api-key one,two", "--api-key one --api-key two", "--api-key 'one, two'"]
)
def test_several_keys_are_typed_with_commas_or_one_by_one(flags: str) -> None:
    assert [key.get_secret_value() for key in load(flags).server.access.api_key] == ["one", "two"]


def test_keys_come_from_the_environment_too() -> None:
    config = loader.load([], {"TDPIPE_API_KEY": "one,two"})
    assert [key.get_secret_value() for key in config.server.access.api_key] == ["one", "two"]


def test_keys_in_yaml_are_a_list_or_have_commas(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    for text in ("[one, two]", "one,two", "\n- one\n- two"):
        file.write_text(f"api_key: {text}\n")
        keys = load(f"--config {file}").server.access.api_key
        assert [key.get_secret_value() for key in keys] == ["one", "two"]


@pytest.mark.parametrize("flag", ["--api-key", "--cluster-secret"])
def test_secrets_are_only_in_the_daemon_s_own_file(flag: str, tmp_path: Path) -> None:
    config = load(f"{flag} here-is-the-secret")
    assert "the-secret" not in json.dumps(loader.non_default(config))
    assert "the-secret" not in repr(config)
    (tmp_path / loader.RESOLVED).write_text("an earlier daemon's, for all to read")
    (tmp_path / loader.RESOLVED).chmod(0o644)
    loader.save(config, tmp_path)
    assert (tmp_path / loader.RESOLVED).stat().st_mode & 0o077 == 0
    assert "the-secret" in (tmp_path / loader.RESOLVED).read_text()
    assert loader.load_saved(tmp_path) == config


@pytest.mark.parametrize("keys", ["''", "'a b'", "a,,b", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(keys: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"--api-key {keys}")
    assert str(caught.value).startswith("api_key: a key is printable ASCII")
    assert "not" not in str(caught.value).removeprefix("api_key: ").replace("not empty", "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (f"--uds /{'x' * MAX_UDS_BYTES}", ["uds", f"at most {MAX_UDS_BYTES} bytes"]),
        ("--uds-permissions 999", ["uds_permissions"]),
        ("--uds-permissions 0o600", ["uds_permissions"]),
        ("--ssl-cert-reqs 3", ["ssl_cert_reqs", "less than or equal to 2"]),
        ("--root-path llm", ["root_path", "begin with /"]),
        ("--max-body-bytes 10", ["max_body_bytes", "greater than or equal to 1024"]),
        ("--log-format xml", ["log_format", "'text' or 'json'"]),
        ("--served-model-name ''", ["served_model_name", "must not be empty"]),
        ("--allow-credentials --allowed-origins '*'", ["allow_credentials", "by name"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(flags: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert [word for word in words if word not in line] == []


def test_a_path_of_just_the_right_length_is_taken() -> None:
    assert load(f"--uds /{'x' * (MAX_UDS_BYTES - 1)}").server.listen.uds is not None


def test_a_root_path_ends_without_a_slash() -> None:
    assert load("--root-path /llm/").server.listen.root_path == "/llm"
    assert load("--root-path /").server.listen.root_path == ""


def test_the_first_name_is_shown_and_all_are_known() -> None:
    config = load("--served-model-name first,second --served-model-name third")
    assert config.model.name == "first"
    assert config.model.names == ("first", "second", "third")
