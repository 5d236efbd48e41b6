"""The options of `tdpipe bench`."""

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec

from bench.call import COMPLETIONS, ENDPOINTS
from bench.dataset import DATASET_HELP
from bench.exchange import Address
from bench.results.goodput import parse_target
from bench.results.plot import SUFFIXES
from configs.client_key import KEY_VARIABLE, client_key
from simulator.argument_types import not_negative, positive, positive_int, positive_or_inf, within
from simulator.spread import PERCENTILES
from simulator.workloads.make_workload import DEFAULT_VOCAB_SIZE, KINDS

DEFAULT_URL = "http://127.0.0.1:8000"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
MISUSED = 2

_DESCRIPTION = """\
Measure an OpenAI-compatible server under load: latencies, throughput and goodput. All requests are
streamed. Without --request-rate, all requests are sent at once; with --max-concurrency, a request
is sent when another one has ended (a closed loop). Flags are those of `vllm bench serve` where it
has them.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its result also has `address` and `overrides`, which follow from the options."""
    parser = _Parser(
        prog="tdpipe bench",
        description=_DESCRIPTION,
        epilog=f"{KINDS}\n{DATASET_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(parser.add_argument_group("server"))
    _add_requests(parser.add_argument_group("requests"))
    _add_load(parser.add_argument_group("load"))
    _add_results(parser.add_argument_group("results"))
    return parser


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options = super().parse_args(args, namespace)
        options.address = self._address(options)
        options.overrides = dict(options.extra_body)
        if options.model is not None:
            options.overrides["model"] = options.model
        if options.temperature is not None:
            options.overrides["temperature"] = options.temperature
        if options.workload is not None and options.dataset_path is not None:
            self.error("give either --workload or --dataset-path")
        if options.prompts == "token-ids" and options.endpoint != COMPLETIONS:
            self.error(f"--prompts token-ids needs --endpoint {COMPLETIONS}")
        return options

    def _address(self, options: argparse.Namespace) -> Address:
        headers = [f"{name}: {value}" for name, value in options.header]
        if options.api_key is not None:
            headers.append(f"authorization: Bearer {options.api_key}")
        if not all(line.isascii() and line.isprintable() for line in headers):
            self.error("keys and headers must be printable ASCII")
        try:
            address = Address.of(options.base_url or options.url)
        except ValueError as error:
            self.error(str(error))
        return Address(
            host=address.host,
            port=address.port,
            is_secure=address.is_secure,
            path=address.path,
            uds=options.uds,
            is_verified=not options.insecure,
            headers=tuple(headers),
        )


def _add_server(group: Any) -> None:
    add = group.add_argument
    add("url", nargs="?", default=DEFAULT_URL, metavar="URL", help=f"the server [{DEFAULT_URL}]")
    add("--base-url", metavar="URL", help="the same as URL")
    add("--uds", metavar="PATH", help="its Unix socket, instead of the address in the URL")
    add("--model", help="its name in the API [the first that is served; in a dataset, the line's]")
    add("--endpoint", choices=ENDPOINTS, default=COMPLETIONS, help=f"[{COMPLETIONS}]")
    key = client_key() or os.environ.get(OPENAI_KEY_VARIABLE) or None
    text = f"its key [the first in {KEY_VARIABLE}, else {OPENAI_KEY_VARIABLE}]"
    add("--api-key", default=key, metavar="KEY", help=text)
    text = "send this header, e.g. for a proxy; may be given several times"
    add("--header", type=_header, action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--insecure", action="store_true", help="do not verify the server's TLS certificate")
    add(
        "--ready-check-timeout-sec",
        type=not_negative,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for a server that is still starting [0]",
    )


def _add_requests(group: Any) -> None:
    add = group.add_argument
    add("--workload", help="generated requests, see below [sharegpt]")
    add("--dataset-path", type=Path, metavar="FILE", help="a JSONL file of requests, see below")
    text = "number of requests [100 for workloads without one, else all]"
    add("--num-prompts", type=positive_int, metavar="N", help=text)
    add("--seed", type=int, default=0, help="seed of lengths, prompts and arrivals [0]")
    add(
        "--prompts",
        choices=("text", "token-ids"),
        default="text",
        help="what stands for random prompts: words, for any server, or token ids, of exactly the "
        "lengths of the workload [text]",
    )
    add(
        "--scale",
        type=within(positive, 1e-3, 1e3, "times"),
        default=1.0,
        help="factor on the lengths of sharegpt [1]",
    )
    add(
        "--vocab-size",
        type=within(positive_int, 1, 1e8, "token ids"),
        default=DEFAULT_VOCAB_SIZE,
        help=f"random token ids are below this [{DEFAULT_VOCAB_SIZE}]",
    )
    text = "max_tokens of a dataset's lines without one [256]"
    add("--output-len", type=positive_int, default=256, metavar="N", help=text)
    add(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="force the output lengths [for workloads with lengths; servers without the field "
        "need --no-ignore-eos]",
    )
    text = "sampling temperature [0 in workloads; in a dataset, the line's]"
    add("--temperature", type=not_negative, help=text)
    text = "further fields of every request, as a JSON object"
    add("--extra-body", type=_json_object, default={}, metavar="JSON", help=text)


def _add_load(group: Any) -> None:
    add = group.add_argument
    add(
        "--request-rate",
        type=within(positive_or_inf, 1e-6, 1e6, "requests/s"),
        metavar="R",
        help="requests per second, or inf [all at once; in a dataset, its arrival_s]",
    )
    add(
        "--burstiness",
        type=within(positive, 1e-3, 1e6, "as a shape"),
        default=1.0,
        metavar="X",
        help="1 is a Poisson process, less is burstier, more is steadier [1]",
    )
    text = "requests open at one time [no limit]"
    add("--max-concurrency", type=positive_int, metavar="N", help=text)
    text = "requests before the run, which are not measured [0]"
    add("--num-warmups", "--warmup", type=_count, default=0, metavar="N", help=text)
    text = "for one request [300]"
    add("--request-timeout", type=positive, default=300.0, metavar="SECONDS", help=text)
    text = "for the whole run, whose report then has what has arrived [3600]"
    add("--timeout", type=positive, default=3600.0, metavar="SECONDS", help=text)


def _add_results(group: Any) -> None:
    add = group.add_argument
    add(
        "--goodput",
        type=_target,
        nargs="+",
        metavar="TARGET:MS",
        help="count the requests that meet all of these: ttft:500 tpot:50 e2e:10000 (e2el, too)",
    )
    add(
        "--metric-percentiles",
        type=_percentiles,
        default=PERCENTILES,
        metavar="P,...",
        help=f"percentiles of the latencies [{','.join(map(str, PERCENTILES))}]",
    )
    add("--output", type=Path, metavar="FILE", help="write everything to this file, as JSON")
    text = f"draw distributions and throughput to this file ({', '.join(SUFFIXES)})"
    add("--plot", type=_picture, metavar="FILE", help=text)
    text = "replace files that another command has written"
    add("--overwrite", action="store_true", help=text)


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=VALUE")
    return name, value


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error


def _target(text: str) -> tuple[str, float]:
    try:
        return parse_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        values = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not like 50,90,99") from error
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError("percentiles are from 0 to 100")
    return values


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(SUFFIXES)}")
    return path


def _count(text: str) -> int:
    return 0 if text == "0" else positive_int(text)
