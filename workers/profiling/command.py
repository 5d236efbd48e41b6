"""`tdpipe profile`: measures the cost of steps on this hardware, through the real pipeline.

It writes three files. FILE.steps.csv gets a line for each step of each stage as soon as the step is
measured, so that an interrupted run can be resumed. FILE.csv has the two columns of TD-Pipe, and
FILE.png is a plot.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from tqdm import tqdm

from configs import loader
from configs.config import Config
from configs.output_files import check_outputs
from configs.profiles import (
    STEP_COLUMNS,
    MeasuredStep,
    Profile,
    ProfileError,
    StepTable,
    head_of_steps,
    line_of_step,
    read_steps,
    write_profile,
)
from daemon.checkpoint.resolution import resolve
from daemon.observability import logs
from daemon.start_checks import check_start
from daemon.start_error import StartError
from workers.model.stage_model import bytes_per_token
from workers.profiling.driver import Driver, DriverError, Timed
from workers.profiling.dummy_run import DummyRun, prefill
from workers.profiling.plan import Limits, copies, full_dummy_runs, most_cache_tokens
from workers.profiling.plot import PLOT_MARK, draw, staircase

P2P_REPEATS = 20
# The notes that must be equal to resume a table.
SAME = ("model_hash", "dtype", "stages", "layers", "block_size", "hardware", "torch", "tdpipe")
# The note with the version, in FILE.csv.
_NOTE_MARK = "# tdpipe: "


def main(argv: Sequence[str]) -> int:
    """Run `tdpipe profile ARGV`; returns the exit code."""
    options, rest = _parser().parse_known_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = loader.load(rest)
        if config.pipeline.virtual_pipeline_size > 1:
            raise ValueError("whole stages are measured: virtual_pipeline_size must be 1")
        if config.pipeline.tensor_parallel_size > 1:
            raise ValueError("stages of one process are measured: tensor_parallel_size must be 1")
        if config.nodes.nnodes > 1:
            raise ValueError(
                "the stages of one node are measured: nnodes must be 1. At their start, those of "
                "several nodes measure themselves (profile_seconds)"
            )
        logs.set_up("profile", config.logs)
        _check_out(options)
        check_start(config, serves=False)
        config = resolve(config, threading.Event())
        table = _measure(config, options)
        _write(config, table, options.out)
    except (loader.ConfigError, StartError, ValueError, DriverError, OSError) as error:
        print(f"tdpipe: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("tdpipe: stopped; the same command resumes from here", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return 0


def steps_path(out: Path) -> Path:
    """The path of the detailed table of `--out FILE.csv`."""
    return out.with_suffix(".steps.csv")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tdpipe profile",
        usage="tdpipe profile MODEL -pp S --out FILE.csv [any setting of `tdpipe serve`]",
        description="Measure what steps cost on this hardware, through the real pipeline.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="FILE.csv; FILE.steps.csv and FILE.png go beside")
    add("--repeats", type=_positive, default=5, help="of each step, for the median [5]")
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what FILE.steps.csv already holds [--resume]",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace files that `tdpipe profile` did not write",
    )
    add("--max-tokens", type=_positive, help="tokens of a step [max_num_batched_tokens]")
    add("--max-rows", type=_positive, default=512, help="rows of a decode [512]")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def _check_out(options: argparse.Namespace) -> None:
    """Check that the files can be written, before minutes of work.

    Raises `OSError` or `ProfileError`.
    """
    out: Path = options.out
    if out.suffix != ".csv":
        raise ProfileError(f"--out {out} must end in .csv")
    # A table that is resumed is read, and a file that is no table is refused then.
    steps_mark = "" if options.resume else ",".join(STEP_COLUMNS)
    marks = {out: _NOTE_MARK, steps_path(out): steps_mark, out.with_suffix(".png"): PLOT_MARK}
    check_outputs(marks, overwrite=options.overwrite)


def _measure(config: Config, options: argparse.Namespace) -> StepTable:
    # The stages need not measure their costs at start-up: this command measures them.
    config = config.replaced(profile=None, profile_seconds=0.0)
    path = steps_path(options.out)
    kept = read_steps(path) if options.resume and path.exists() else None
    with Driver(config) as driver:
        notes = _notes(config, driver)
        if kept is not None:
            _check_same(kept, notes, path)
        limits = Limits(
            min(options.max_tokens or config.scheduler.max_num_batched_tokens, driver.cache_tokens),
            options.max_rows,
            driver.max_model_len,
            driver.cache_tokens,
            config.cache.block_size,
        )
        dummy_runs = full_dummy_runs(limits, has_stairs=driver.fingerprints[0].device == "cuda")
        fill_tokens = most_cache_tokens(dummy_runs, driver.num_stages, config.cache.block_size)
        driver.fill(fill_tokens)
        if kept is None:
            notes |= _measure_hops(config, driver, limits.max_tokens)
            path.write_text(head_of_steps(notes), encoding="utf-8")
        missing = _missing(dummy_runs, kept)
        if kept is not None:
            print(f"{len(dummy_runs) - len(missing)} of {len(dummy_runs)} steps are in {path}")  # noqa: T201
        with path.open("a", encoding="utf-8") as file:
            measured = _measure_each(driver, missing, options.repeats, config.cache.block_size)
            for steps in tqdm(measured, total=len(missing), unit=" steps", disable=None):
                file.writelines(line_of_step(stage, step) for stage, step in enumerate(steps))
                file.flush()
    return read_steps(path)


def _notes(config: Config, driver: Driver) -> dict[str, str]:
    first = driver.fingerprints[0]
    hardware = list(dict.fromkeys(fingerprint.hardware for fingerprint in driver.fingerprints))
    return {
        "model": config.model.name,
        "model_hash": first.model_hash,
        "dtype": first.dtype,
        "stages": str(driver.num_stages),
        "layers": ",".join(fingerprint.layers for fingerprint in driver.fingerprints),
        "block_size": str(config.cache.block_size),
        "kv_tokens": str(driver.cache_tokens),
        "max_model_len": str(driver.max_model_len),
        "hardware": "; ".join(hardware),
        "torch": first.torch,
        "tdpipe": first.tdpipe,
        "date": time.strftime("%Y-%m-%d"),
    }


def _check_same(kept: StepTable, notes: dict[str, str], path: Path) -> None:
    for key in SAME:
        if kept.notes.get(key) != notes[key]:
            raise ProfileError(
                f"{path} is of another {key} ({kept.notes.get(key)}, not {notes[key]}); "
                "--no-resume overwrites it"
            )


def _missing(dummy_runs: list[DummyRun], kept: StepTable | None) -> list[DummyRun]:
    if kept is None:
        return dummy_runs
    known = [{_sizes(step) for step in steps} for steps in kept.stages]
    return [
        t for t in dummy_runs if not all(_sizes(t.measured(1.0, 1)) in sizes for sizes in known)
    ]


def _sizes(step: MeasuredStep) -> tuple[str, int, int, int, int]:
    return step.kind, step.rows, step.tokens, step.kv_tokens, step.pairs


def _measure_each(
    driver: Driver, dummy_runs: Sequence[DummyRun], repeats: int, block_size: int
) -> Iterator[list[MeasuredStep]]:
    """Yield the medians on all stages of each dummy run, with one step per stage in flight.

    The steps are sent as one stream, because waiting for the heartbeat that reports each dummy run
    would take most of the time. The first steps of a dummy run only warm up: they share the
    pipeline with the previous dummy run.
    """
    num_stages = driver.num_stages
    count = repeats + num_stages
    stream = (copy for t in dummy_runs for copy in copies(t, count, num_stages, block_size))
    timed = driver.run(stream, num_stages)
    for dummy_run in dummy_runs:
        counted = list(islice(timed, count))[num_stages:]
        yield [
            dummy_run.measured(median(t.seconds(stage) for t in counted), repeats)
            for stage in range(num_stages)
        ]


def _measure_hops(config: Config, driver: Driver, max_tokens: int) -> dict[str, str]:
    """Measure the seconds from the end of a step on one stage to its start on the next stage.

    Only this step is in flight. All stages of this command are on one host, so they read the same
    clock.
    """
    if driver.num_stages == 1:
        return {}
    small = prefill([1])
    large = prefill([min(max_tokens, driver.max_model_len)])
    gaps = [
        _gaps(list(driver.run([dummy_run] * P2P_REPEATS, 1))[1:]) for dummy_run in (small, large)
    ]
    num_bytes = (large.num_tokens - 1) * bytes_per_token(config.model)
    rates = [
        f"{num_bytes / (more - less) / 1e9:.3f}" if more > less and num_bytes else "not known"
        for less, more in zip(*gaps, strict=True)
    ]
    return {
        "p2p_latency_us": ",".join(f"{1e6 * gap:.0f}" for gap in gaps[0]),
        "p2p_gb_per_s": ",".join(rates),
    }


def _gaps(timed: list[Timed]) -> list[float]:
    """The median seconds between the stages of each link."""
    links = range(len(timed[0].began_at) - 1)
    return [median(t.began_at[s + 1] - t.ended_at[s] for t in timed) for s in links]


def _write(config: Config, table: StepTable, out: Path) -> None:
    stairs = [staircase(steps) for steps in table.stages]
    tokens = tuple(n for n in stairs[0] if all(n in stage for stage in stairs))
    seconds = tuple(sum(stage[n] for stage in stairs) for n in tokens)
    notes = "\n".join(f"{key}: {value}" for key, value in table.notes.items())
    write_profile(Profile(tokens, seconds), out, notes)
    title = f"{config.model.name}, {len(table.stages)} stages, {table.notes.get('hardware', '')}"
    draw(table, out.with_suffix(".png"), title)
