"""One engine, loaded once: prints the seconds of each run as a JSON line.

    python run_engine.py ENGINE MODEL REQUESTS.json --runs N [--set NAME=VALUE ...]

This file runs in the environment of the engine, so it imports nothing of ours but `tdpipe` for
tdpipe itself. All engines generate greedily, and exactly the wanted number of tokens. A request
with `turns` is a conversation: each turn's tokens follow the answer to the turn before.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_SEQUENCES, MOST_TOKENS = 256, 2048
CACHE_GIB = 2
SPARE = 64  # tokens of the longest sequence beyond the requests'
Requests = list[dict[str, Any]]
Generate = Callable[[Requests], list[tuple[list[int], int]]]
"""Generates all requests; returns the output ids of each, and how many prompt ids were cached."""


@contextmanager
def tdpipe(model: str, longest: int, settings: dict[str, Any]) -> Iterator[Generate]:
    """`from tdpipe import LLM`, with any of its settings."""
    engine: Any = importlib.import_module("tdpipe")
    limits = {"max_num_seqs": MOST_SEQUENCES, "max_num_batched_tokens": MOST_TOKENS}
    stages = settings.get("pipeline_parallel_size", 2)
    memory = {"kv_cache_memory_bytes": CACHE_GIB * 2**30 // stages, "enable_prefix_caching": False}
    with engine.LLM(
        model, **{"dtype": "bfloat16", "max_model_len": longest} | limits | memory | settings
    ) as llm:

        def generate(requests: Requests) -> list[tuple[list[int], int]]:
            prompts = [request["prompt_token_ids"] for request in requests]
            sampling = [_sampling(engine, request) for request in requests]
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            return [(list(o.outputs[0].token_ids), o.num_cached_tokens) for o in outputs]

        yield generate


@contextmanager
def vllm(model: str, longest: int, settings: dict[str, Any]) -> Iterator[Generate]:
    """vLLM's offline door; the CPU build is chosen by what is installed."""
    engine: Any = importlib.import_module("vllm")
    llm = engine.LLM(
        model=model,
        max_model_len=longest,
        max_num_seqs=MOST_SEQUENCES,
        max_num_batched_tokens=MOST_TOKENS,
        disable_log_stats=True,
        **{"dtype": "bfloat16", "enable_prefix_caching": False} | settings,
    )

    def generate(requests: Requests) -> list[tuple[list[int], int]]:
        prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in requests]
        sampling = [_sampling(engine, request, detokenize=False) for request in requests]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        return [(list(o.outputs[0].token_ids), o.num_cached_tokens or 0) for o in outputs]

    yield generate


@contextmanager
def openvino(model: str, longest: int, settings: dict[str, Any]) -> Iterator[Generate]:
    """OpenVINO GenAI's continuous batching; `model` was exported to its own format.

    It finds the longest sequence in the model. `settings` is the `dtype` in OpenVINO's words.
    """
    del longest
    engine: Any = importlib.import_module("openvino_genai")
    tensors: Any = importlib.import_module("openvino")
    numpy: Any = importlib.import_module("numpy")
    scheduler = engine.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = MOST_TOKENS
    scheduler.max_num_seqs = MOST_SEQUENCES
    scheduler.enable_prefix_caching = False
    dtype = settings.get("dtype", "bf16")
    precision = {"INFERENCE_PRECISION_HINT": dtype, "KV_CACHE_PRECISION": dtype}
    pipeline = engine.ContinuousBatchingPipeline(model, scheduler, "CPU", precision)

    def config(request: dict[str, Any]) -> Any:
        made = engine.GenerationConfig()
        made.max_new_tokens = made.min_new_tokens = request["num_output_tokens"]
        made.ignore_eos, made.do_sample = True, False
        return made

    def generate(requests: Requests) -> list[tuple[list[int], int]]:
        prompts = [
            tensors.Tensor(numpy.array([request["prompt_token_ids"]], dtype=numpy.int64))
            for request in requests
        ]
        outputs = pipeline.generate(prompts, [config(request) for request in requests])
        return [(list(output.m_generation_ids[0]), 0) for output in outputs]

    yield generate


@contextmanager
def transformers(model: str, longest: int, settings: dict[str, Any]) -> Iterator[Generate]:
    """transformers itself, with its default attention: one prompt after the other, and one token.

    `settings` are `dtype` and `threads`.
    """
    engine: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    del longest
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings.get("dtype", "bfloat16"))
    loaded = engine.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def generate(requests: Requests) -> list[tuple[list[int], int]]:
        first = []
        with torch.inference_mode():
            for request in requests:
                prompt = torch.tensor([request["prompt_token_ids"]])
                logits = loaded(input_ids=prompt, use_cache=True, logits_to_keep=1).logits
                first.append(int(logits.argmax(-1)))
        return [([token_id], 0) for token_id in first]

    yield generate


def converse(generate: Generate, requests: Requests) -> tuple[int, int, int, int]:
    """Generate all requests, and the further turns of conversations, all of a turn at once.

    Returns the numbers of output, prompt and cached tokens, and of answers of a wrong length.
    """
    outputs = prompts = cached = wrong = 0
    while requests:
        further = []
        for request, (ids, hit) in zip(requests, generate(requests), strict=True):
            outputs += len(ids)
            prompts += len(request["prompt_token_ids"])
            cached += hit
            wrong += len(ids) != request["num_output_tokens"]
            if request.get("turns"):
                first, *rest = request["turns"]
                prompt = [*request["prompt_token_ids"], *ids, *first]
                further.append(request | {"prompt_token_ids": prompt, "turns": rest})
        requests = further
    return outputs, prompts, cached, wrong


def _longest(request: dict[str, Any]) -> int:
    turns = request.get("turns") or []
    own: int = len(request["prompt_token_ids"]) + sum(map(len, turns))
    outputs: int = request["num_output_tokens"] * (1 + len(turns))
    return own + outputs


def _sampling(engine: Any, request: dict[str, Any], **more: Any) -> Any:
    count = request["num_output_tokens"]
    return engine.SamplingParams(
        temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, **more
    )


ENGINES = {"tdpipe": tdpipe, "vllm": vllm, "openvino": openvino, "transformers": transformers}


def main(argv: list[str]) -> int:
    """Load, warm up, run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("engine", choices=ENGINES)
    add("model")
    add("requests", type=Path)
    add("--runs", type=int, default=1)
    add("--set", action="append", default=[], metavar="NAME=JSON", help="a setting of the engine")
    options = parser.parse_args(argv)
    requests: Requests = json.loads(options.requests.read_text())
    settings = {
        name: json.loads(value)
        for name, _, value in (given.partition("=") for given in options.set)
    }
    longest = SPARE + max(map(_longest, requests))
    with ENGINES[options.engine](options.model, longest, settings) as generate:
        # Other tokens than the requests': nothing of these may be cached.
        short = [r | {"prompt_token_ids": r["prompt_token_ids"][:512][::-1]} for r in requests[:8]]
        generate([r | {"num_output_tokens": min(8, r["num_output_tokens"])} for r in short])
        for _ in range(options.runs):
            began_at = time.monotonic()
            outputs, prompts, cached, wrong = converse(generate, requests)
            seconds = time.monotonic() - began_at
            result = {"seconds": seconds, "num_output_tokens": outputs, "wrong": wrong}
            result |= {"num_prompt_tokens": prompts, "num_cached_tokens": cached}
            print(f"RESULT {json.dumps(result)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
