"""A pytest plugin that lets vLLM's HTTP tests run without vLLM, against a tdpipe daemon.

`tests.utils.RemoteOpenAIServer` starts the daemon instead, and every module of vLLM that a test
imports is a stand-in. Tests that use vLLM's classes in the process, not a server, are deselected.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Self
from unittest.mock import MagicMock

import pytest

from benchmarks.daemon_run import serving

MODEL_VARIABLE, TEMPLATE_VARIABLE = "TESTED_DAEMON_MODEL", "TESTED_DAEMON_TEMPLATE"
DATA_VARIABLE = "TESTED_DAEMON_DATA"  # a folder that all daemons use, one after the other
# Flags that vLLM and tdpipe have in common; the others are about vLLM's engine.
_TAKEN = ("--max-model-len", "--max-logprobs", "--root-path", "--api-key", "--chat-template")
_SWITCHES = ("--enable-tokenizer-info-endpoint", "--disable-fastapi-docs")
_SERVERS = {"server", "client", "async_client", "default_server", "shared_server"}


def _values(args: Sequence[str], flag: str) -> list[str]:
    """The values of a flag, up to the next flag."""
    values: list[str] = []
    for word in args[args.index(flag) + 1 :] if flag in args else ():
        if word.startswith("--"):
            break
        values.append(word)
    return values


def _adapter_name(word: str) -> str:
    """The name of an adapter, from `name=path` or JSON; it is served as the model itself."""
    return str(json.loads(word)["name"]) if word.startswith("{") else word.partition("=")[0]


class RemoteOpenAIServer:
    """A tdpipe daemon in place of `vllm serve`; the model of the test is only a name."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(
        self, model: str, args: Sequence[str], env_dict: Mapping[str, str] | None = None, **_: Any
    ) -> None:
        adapters = list(map(_adapter_name, _values(args, "--lora-modules")))
        names = _values(args, "--served-model-name") or [model]
        self.model = names[0]
        flags = ["--served-model-name=" + ",".join([*names, *adapters])]
        for flag in _TAKEN:
            flags += [f"{flag}={value}" for value in _values(args, flag)[:1]]
        flags += [flag for flag in _SWITCHES if flag in args]
        if "--enable-auto-tool-choice" in args and "--chat-template" not in args:
            flags.append(f"--chat-template={os.environ[TEMPLATE_VARIABLE]}")
        flags.append(f"--data-dir={os.environ[DATA_VARIABLE]}")
        if env_dict and "VLLM_API_KEY" in env_dict:
            flags.append(f"--api-key={env_dict['VLLM_API_KEY']}")
        self._folder = tempfile.TemporaryDirectory(prefix="tdpipe-vllm-tests-")
        place = Path(self._folder.name) / "daemon"
        model_path = Path(os.environ[MODEL_VARIABLE])
        self._daemon: AbstractContextManager[str] = serving(model_path, 1, flags, place)
        self.url_root = ""

    def __enter__(self) -> Self:
        self.url_root = self._daemon.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._daemon.__exit__(*error)
        self._folder.cleanup()

    def url_for(self, *parts: str) -> str:
        """The URL of a path."""
        return "/".join([self.url_root, *(part.strip("/") for part in parts)])

    def get_client(self, **settings: Any) -> Any:
        """A client of openai's library."""
        return self._client("OpenAI", settings)

    def get_async_client(self, **settings: Any) -> Any:
        """An asynchronous client of openai's library."""
        return self._client("AsyncOpenAI", settings)

    def _client(self, kind: str, settings: dict[str, Any]) -> Any:
        import openai

        defaults = {"base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY}
        return getattr(openai, kind)(**{**defaults, "max_retries": 0, "timeout": 600} | settings)


class _StandIn(ModuleType):
    """A module in which every name is a mock."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():
            return []  # more flags for a kind of hardware
        value: Any = type(name, (MagicMock,), {}) if name[:1].isupper() else MagicMock(name=name)
        setattr(self, name, value)
        return value


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds vLLM's modules, and those of its test helpers."""

    _PACKAGES = ("vllm", "tests.utils", "tests.models", "tests.reasoning", "cloudpickle")

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        known = any(name == each or name.startswith(f"{each}.") for each in self._PACKAGES)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        module.__path__ = []
        if spec.name == "tests.utils":
            module.RemoteOpenAIServer = RemoteOpenAIServer  # type: ignore[attr-defined]
        if spec.name == "vllm.config":
            module.ModelConfig = _ModelConfig  # type: ignore[attr-defined]
        if spec.name == "vllm.exceptions":
            module.VLLMValidationError = ValueError  # type: ignore[attr-defined]
        if spec.name.endswith(".weight_utils"):
            module.download_weights_from_hf = _model_path  # type: ignore[attr-defined]
        if spec.name == "vllm.version":
            module.__dict__["__version__"] = metadata.version("tdpipe")
        if spec.name == "vllm.tokenizers":
            module.get_tokenizer = _tokenizer  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the names of a stand-in come as they are asked for."""


class _ModelConfig:
    """What tests ask vLLM's settings of a model."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take and ignore everything."""

    def get_vocab_size(self) -> int:
        """The number of token ids of the model."""
        config = json.loads((Path(os.environ[MODEL_VARIABLE]) / "config.json").read_text())
        return int(config["vocab_size"])


def _model_path(*_: Any, **__: Any) -> str:
    return os.environ[MODEL_VARIABLE]


def _tokenizer(*_: Any, **__: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(os.environ[MODEL_VARIABLE])


sys.meta_path.insert(0, _StandIns())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that talk to a server."""
    kept = list(_with_server(items))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _with_server(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        code = getattr(getattr(item, "function", None), "__code__", None)
        if names & _SERVERS or (code and "RemoteOpenAIServer" in code.co_names):
            yield item
