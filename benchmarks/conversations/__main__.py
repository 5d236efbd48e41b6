"""20 conversations with a real model, compared with transformers: `make conversations`.

For each policy and number of stages, a daemon in fp32 with few KV blocks answers all conversations
at once: first with log-probabilities, then as streams through the death of a stage (SIGKILL).
Every turn is compared with transformers' greedy `generate`, and every log-probability with
transformers' own. Prints a table; the exit code is 1 if anything differs.
"""

import argparse
import asyncio
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import describe_machine
from benchmarks.conversations.reference import Reference
from benchmarks.conversations.talk import NUM_TOPS, Talk, TalkThroughDeath, Turn
from benchmarks.conversations.texts import CONVERSATIONS
from benchmarks.daemon_run import log_of, serving

POLICIES = (
    "td-pipe",
    "temporal",
    "separate",
    "hybrid --hybrid vllm",
    "hybrid --hybrid throttled",
)
# The log-probabilities' tolerance, and the gap between two logits that rounding may turn round.
TOLERANCE = NEAR_TIE = 1e-4
# Small blocks: an answer needs many more of them than its prompt.
BLOCK_SIZE = 4


@dataclass(slots=True)
class Row:
    """The figures of one policy with one number of stages."""

    policy: str
    num_stages: int
    identical: int = 0  # conversations
    preemptions: int = 0
    output_error: float = 0.0  # the largest differences of log-probabilities
    prompt_error: float = 0.0
    identical_through_death: int = 0
    open_at_death: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether everything is as it should be, and was put to the test."""
        return (
            not self.differences
            and max(self.output_error, self.prompt_error) <= TOLERANCE
            and self.preemptions > 0
            and self.open_at_death > 0
        )

    def line(self) -> str:
        """Its line of the table."""
        figures = (
            self.policy,
            self.num_stages,
            f"{self.identical} of {len(CONVERSATIONS)}",
            self.preemptions,
            f"{self.output_error:.1e}",
            f"{self.prompt_error:.1e}",
            f"{self.identical_through_death} of {len(CONVERSATIONS)}",
            self.open_at_death,
        )
        return f"| {' | '.join(map(str, figures))} |"


HEAD = """| policy | stages | identical conversations | preemptions | largest difference of a \
log-probability, output | prompt | identical when a stage was killed | streams in mid-answer then |
|---|--:|--:|--:|--:|--:|--:|--:|"""


def main(argv: Sequence[str]) -> int:
    """Run all and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make conversations ARGS=...", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, help="folder of a checkpoint, or a GGUF file")
    add("--policies", nargs="+", default=POLICIES, help="policies with their flags [all]")
    add("--stages", nargs="+", type=int, default=[1, 2, 3], help="numbers of stages [1 2 3]")
    add("--max-tokens", type=int, default=64, help="length of an answer [64]")
    add("--num-blocks", type=int, default=160, help="KV blocks of 4 tokens [160]")
    add("--data-dir", type=Path, help="the daemons' data, to compile no kernels [a new one]")
    options = parser.parse_args(argv)
    reference = Reference.load(options.model, options.max_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = f"--data-dir={options.data_dir or folder / 'data'}"
        for num_stages in options.stages:
            for policy in options.policies:
                row = Row(policy, num_stages)
                flags = [*flags_of(row, reference, options.num_blocks), data]
                run(row, options.model, reference, flags, folder)
                rows.append(row)
                print(row.line(), *row.differences, sep="\n", file=sys.stderr, flush=True)
    print(describe_machine(), HEAD, *(row.line() for row in rows), sep="\n")
    for row in rows:
        for difference in row.differences:
            print(f"- {row.policy}, {row.num_stages} stages: {difference}")
    return 0 if all(row.is_exact for row in rows) else 1


def flags_of(row: Row, reference: Reference, num_blocks: int) -> list[str]:
    """The daemon's flags."""
    layers = -(-reference.num_layers // row.num_stages) + 1  # of the stage that has most
    kv_bytes = num_blocks * layers * reference.block_bytes(BLOCK_SIZE)
    flags = ["--dtype=float32", "--served-model-name=model", f"--block-size={BLOCK_SIZE}"]
    # Prompts go in chunks, and predictions are so short that some sequences lose their KV.
    flags += [f"--kv-cache-memory-bytes={kv_bytes}", "--max-num-batched-tokens=64"]
    flags += ["--predictor=constant:1", "--profile-seconds=0.5"]
    return [*flags, "--policy", *row.policy.split()]


def run(row: Row, model: Path, reference: Reference, flags: Sequence[str], folder: Path) -> None:
    """Start a daemon, talk to it, and put the figures into the row."""
    own = folder / f"{row.num_stages}-{row.policy.replace(' ', '')}"
    try:
        with serving(model, row.num_stages, flags, own) as url:
            _talk(row, url, reference)
    except BaseException:
        print(log_of(own)[-5000:], file=sys.stderr)
        raise


def _talk(row: Row, url: str, reference: Reference) -> None:
    talk = Talk(url, reference.max_tokens)
    calm = asyncio.run(talk.all(CONVERSATIONS))
    row.identical = _num_identical(row, "", calm, reference)
    row.preemptions = _preemptions(url)
    row.output_error = max(_output_error(turn, reference) for turns in calm for turn in turns)
    last = [turns[-1] for turns in calm]
    row.prompt_error = asyncio.run(_prompt_error(talk, last, reference))
    # In the middle of the first or the second turn of all conversations, in every place in turn.
    num_tokens = reference.max_tokens * len(CONVERSATIONS)
    number = POLICIES.index(row.policy) if row.policy in POLICIES else 0
    kill_after = num_tokens // 2 if number % 2 else num_tokens * 5 // 4
    dying = TalkThroughDeath(url, reference.max_tokens, number % row.num_stages, kill_after)
    through = asyncio.run(dying.all(CONVERSATIONS))
    row.identical_through_death = _num_identical(row, "with a death: ", through, reference)
    row.open_at_death = dying.open_at_death


def _num_identical(
    row: Row, prefix: str, conversations: list[list[Turn]], reference: Reference
) -> int:
    """How many conversations are transformers' own; the others are described in the row."""
    identical = 0
    for number, turns in enumerate(conversations):
        differences = [prefix + text for turn in turns for text in _differences(turn, reference)]
        row.differences += [f"conversation {number}: {text}" for text in differences]
        identical += not differences
    return identical


def _differences(turn: Turn, reference: Reference) -> Iterator[str]:
    want = reference.answer(turn.messages)
    if turn.prompt_token_ids != want.prompt_token_ids:
        yield f"another prompt: {turn.prompt_token_ids} is not {want.prompt_token_ids}"
    elif turn.token_ids != want.token_ids:
        pairs = zip(turn.token_ids, want.token_ids, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
        gap = want.gap(at)
        kind = "a near-tie" if at >= 0 and gap < NEAR_TIE else "NO near-tie"
        yield f"token {at} of {turn.token_ids} is not that of {want.token_ids}: {kind} ({gap:.1e})"


def _output_error(turn: Turn, reference: Reference) -> float:
    """The largest difference of a log-probability of an output token, or of the likeliest ones."""
    want = reference.answer(turn.messages)
    if turn.token_ids != want.token_ids:
        return 0.0  # counted as a difference already
    assert len(turn.logprobs) == len(want.token_ids)
    worst = 0.0
    for (chosen, tops), token_id, logprobs in zip(
        turn.logprobs, want.token_ids, want.logprobs, strict=True
    ):
        assert len(tops) == NUM_TOPS
        best = logprobs.topk(NUM_TOPS).values.tolist()
        pairs = [(chosen, float(logprobs[token_id])), *zip(tops, best, strict=True)]
        worst = max(worst, *(abs(got - expected) for got, expected in pairs))
    return worst


async def _prompt_error(talk: Talk, turns: list[Turn], reference: Reference) -> float:
    """The same for the tokens of whole conversations, scored as prompts."""
    worst = 0.0
    async with talk.client() as client:
        for turn in turns:
            token_ids = turn.prompt_token_ids + turn.token_ids
            answer = await client.completions.create(
                model="model",
                prompt=token_ids,
                max_tokens=1,
                temperature=0,
                extra_body={"prompt_logprobs": NUM_TOPS},
            )
            scores = answer.choices[0].to_dict()["prompt_logprobs"]
            logprobs = reference.logprobs(token_ids)
            assert isinstance(scores, list)
            assert scores[0] is None
            for position, (score, token_id) in enumerate(
                zip(scores[1:], token_ids[1:], strict=True)
            ):
                assert str(token_id) in score
                assert len(score) >= NUM_TOPS
                for own_id, own in score.items():
                    expected = float(logprobs[position, int(own_id)])
                    worst = max(worst, abs(own["logprob"] - expected))
    return worst


def _preemptions(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    own = (line for line in lines if line.startswith("tdpipe_preemptions_total"))
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in own))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
