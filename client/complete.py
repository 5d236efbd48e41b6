"""`tdpipe complete`: a text gone on with by a running daemon, in the terminal."""

from collections.abc import Sequence

from client.terminal import RemoteDaemon, parser, run

DEFAULT_MAX_TOKENS = 256


def main(argv: Sequence[str]) -> int:
    """Complete; the exit code: 0, 1 for what the daemon refuses, 130 after Ctrl-C."""
    flags = parser(
        "complete",
        "Let a running daemon go on with a text. In a terminal, each line is a text of its own; "
        "Ctrl-C ends an answer, Ctrl-D the command.",
    )
    flags.set_defaults(max_tokens=DEFAULT_MAX_TOKENS)
    options = flags.parse_args(argv)

    def answer(daemon: RemoteDaemon, model: str, text: str) -> None:
        body = {"model": model, "prompt": text, "max_tokens": options.max_tokens}
        if options.temperature is not None:
            body["temperature"] = options.temperature
        for choice in daemon.stream("/v1/completions", body):
            print(choice.get("text", ""), end="", flush=True)
        print()

    return run(options, answer)
