"""`tdpipe complete`: completes a text with a running daemon, in the terminal."""

from collections.abc import Sequence

from client.terminal import RemoteDaemon, parser, run

DEFAULT_MAX_TOKENS = 256


def main(argv: Sequence[str]) -> int:
    """Complete a text; return 0, or 1 if the daemon refuses, or 130 after Ctrl-C."""
    flags = parser(
        "complete",
        "Complete a text with a running daemon. In a terminal, each line is a separate text; "
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
