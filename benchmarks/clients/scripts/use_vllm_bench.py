"""vllm bench serve: its measuring functions, for `openai` and `openai-chat`, in turn.

The package of vLLM takes gigabytes; the functions are one file of its source archive, which
`TDPIPE_VLLM_SDIST` names. Both backends must report the same time to first token.
"""

import importlib.util
import os
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.clients.scripts.checks import MODEL, URL, check, holds, run, tell

SDIST = Path(os.environ["TDPIPE_VLLM_SDIST"])
FILE = "vllm/benchmarks/lib/endpoint_request_func.py"
PATHS = {"openai": "/completions", "openai-chat": "/chat/completions"}
NUM_PAIRS, NUM_TOKENS = 5, 16
TOLERANCE = 0.2
PROMPT = "Summarise: " + "the cat sat on the mat. " * 60


def functions() -> Any:
    """The module with the measuring functions, from the archive."""
    with tarfile.open(SDIST) as archive, tempfile.TemporaryDirectory() as folder:
        text = archive.extractfile(f"{SDIST.name.removesuffix('.tar.gz')}/{FILE}")
        holds(text, f"no {FILE} in {SDIST}")
        path = Path(folder) / "endpoint_request_func.py"
        path.write_bytes(text.read())  # type: ignore[union-attr]
        spec: Any = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        # Its dataclasses look their module up by name.
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return module


@check("the same time to first token, `openai` and `openai-chat`")
async def same_ttft() -> None:
    import aiohttp

    module = functions()
    ttfts: dict[str, list[float]] = {backend: [] for backend in PATHS}
    async with aiohttp.ClientSession() as session:
        # In pairs, and the first is not counted: the machine's speed varies from minute to minute.
        for number in range(NUM_PAIRS + 1):
            for backend, path in PATHS.items():
                request = module.RequestFuncInput(
                    prompt=f"{number} {PROMPT}", api_url=f"{URL}{path}", prompt_len=0,
                    output_len=NUM_TOKENS, model=MODEL, ignore_eos=True,
                )  # fmt: skip
                output = await module.ASYNC_REQUEST_FUNCS[backend](request, session)
                holds(output.success, f"{backend}: {output.error}")
                holds(output.output_tokens == NUM_TOKENS, f"{backend}: {output.output_tokens}")
                if number:
                    ttfts[backend].append(output.ttft)
    medians = [statistics.median(times) for times in ttfts.values()]
    words = ", ".join(f"{k} {v:.3f} s" for k, v in zip(PATHS, medians, strict=True))
    holds(max(medians) <= min(medians) * (1 + TOLERANCE), f"time to first token: {words}")
    tell({"note": words})


if __name__ == "__main__":
    run("vllm bench serve", release=SDIST.name.removeprefix("vllm-").removesuffix(".tar.gz"))
