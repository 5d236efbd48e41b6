"""Sends thousands of requests with odd tokens to a daemon with a random model: `make odd-tokens`.

The model is tiny, and its tokenizer has tokens that its embedding has no rows for; with `--padded`,
its embedding has rows without a token. Every request must be answered with 200 or 400, and no stage
may be restarted. The command prints the number of answers by status.
"""

import argparse
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.daemon_run import log_of, serving
from benchmarks.stress.odd_requests import OddRequest, OddTokens, odd_requests
from simulator.argument_types import positive_int

MODEL = "odd"
SPECIAL = ("<|end|>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<think>")
BEYOND = ("[PAD]", "<image_soft_token>", "<|beyond|>")
PADDING = 13
TIMEOUT_S = 120.0
NUM_CLIENTS = 16
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|im_start|>assistant\n"
)
_BAD_LINES = ("Traceback", "restarting the stages", "index out of range")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the outcomes; return 1 if an answer is neither 200 nor 400, or a stage was lost."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "daemon"
        tokens = make_model(Path(name) / "model", padded=options.padded)
        flags = [f"--served-model-name={MODEL}", "--profile-seconds=0.3", "--no-access-log"]
        flags += ["--dtype=float32", "--attention-backend=plain"]  # nothing to compile
        with serving(Path(name) / "model", 2, flags, folder) as url:
            requests = odd_requests(tokens, options.requests, options.seed)
            with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                statuses = Counter(pool.map(lambda request: ask(url, request), requests))
            restarts = _restarts(url)
        log = log_of(folder)
    bad = [line for line in log.splitlines() if any(word in line for word in _BAD_LINES)]
    print(f"{options.requests} requests: {dict(sorted(statuses.items()))}, {restarts} restarts")
    print("\n".join(bad[:20]))
    return int(bool(statuses.keys() - {"200", "400"} or restarts or bad))


def make_model(folder: Path, *, padded: bool) -> OddTokens:
    """A random model of two layers, with a tokenizer that has more ids, or fewer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the quick brown fox", "hello world hello"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[0])
    tokenizer.chat_template = _TEMPLATE
    num_rows = len(tokenizer) + padded * PADDING
    if not padded:
        tokenizer.add_tokens(list(BEYOND[:1]))
        tokenizer.add_special_tokens({"additional_special_tokens": list(BEYOND[1:])})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=num_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    beyond = () if padded else BEYOND
    return OddTokens(MODEL, SPECIAL, beyond, max(num_rows, len(tokenizer)))


def ask(url: str, request: OddRequest) -> str:
    """Send a request; return the status of its answer, or what is wrong with it."""
    data = json.dumps(request.body).encode()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"{url}{request.path}", data, headers)
    try:
        with urllib.request.urlopen(call, timeout=TIMEOUT_S) as response:
            body = response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            message = json.loads(error.read())["error"]["message"]
        return str(error.code) if error.code == 400 else f"{error.code} {message}"
    except OSError as error:
        return type(error).__name__
    if request.body.get("stream"):
        return "200" if body.endswith("data: [DONE]\n\n") and '"error"' not in body else body
    json.loads(body)
    return "200"


def _restarts(url: str) -> int:
    """The restarts of stages and engine that the daemon has counted."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as response:
        lines = response.read().decode().splitlines()
    names = ("tdpipe_pipeline_restarts_total", "tdpipe_engine_restarts_total")
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.stress.odd_tokens", description=__doc__)
    add = parser.add_argument
    add("--requests", type=positive_int, default=2000, help="number of requests [2000]")
    add("--seed", type=int, default=0, help="seed of the requests [0]")
    add("--padded", action="store_true", help="give the embedding more rows, not fewer")
    return parser


if __name__ == "__main__":
    sys.exit(main())
