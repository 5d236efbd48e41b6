"""The paper's tables: every policy and every part of them, on profiles or on the GPU model."""

import io
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest

from benchmarks.virtual.paper import (
    BEGIN,
    CHART,
    DOCUMENT,
    END,
    MAX_MODEL_LEN,
    MODELLED,
    PAPER_SAYS,
    POLICIES,
    SETUPS,
    TD_PIPE_ABLATIONS,
    TEMPORAL_ABLATIONS,
    TENSOR_PARALLEL,
    Settings,
    hardware_of_setup,
    main,
)
from configs.config import EngineConfig
from configs.profiles import Profile, write_profile
from engine.policies import registry
from simulator.command import make_arrivals
from simulator.hardware.gpu_model import profile_of
from simulator.hardware.gpus import find_gpu
from simulator.hardware.hardware import Hardware
from simulator.hardware.model_shape import read_shape
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

NUM_REQUESTS = 16
L20_13B, L20_32B = SETUPS
PROFILE = Profile((1, 128, 256, 1024), (0.040, 0.048, 0.070, 0.258))
Table = dict[str, list[str]]
"""The cells of each row, by the row's name."""


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile of the 13B and none of the 32B."""
    folder = tmp_path_factory.mktemp("profiles")
    write_profile(PROFILE, folder / str(L20_13B.measured))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a document that has a place for the tables."""
    folder = tmp_path_factory.mktemp("project")
    (folder / DOCUMENT).parent.mkdir()
    (folder / DOCUMENT).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return folder


@pytest.fixture(scope="module")
def out(profiles: Path, project: Path) -> str:
    """The printed text; it is also written into the project."""
    out = io.StringIO()
    with chdir(project), redirect_stdout(out):
        options = ["--requests", str(NUM_REQUESTS), "--profiles", str(profiles), "--write"]
        assert main(options) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def printed(out: str) -> list[str]:
    """The printed text, split at the headings."""
    before, *sections = out.split("### ")
    assert not before.strip()
    return sections


@pytest.fixture(scope="module")
def sections(printed: list[str]) -> list[str]:
    """Those of the nodes with a published profile."""
    return printed[:2]


def tables(section: str) -> Iterator[Table]:
    """The tables in it, without their heads."""
    for part in section.split("\n\n"):
        lines = [line.strip("|").split(" | ") for line in part.splitlines() if line[:1] == "|"]
        if lines:
            yield {name.strip(): cells for name, *cells in lines[2:]}


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def row(settings: Settings, hardware: Hardware, num_stages: int) -> list[str]:
    """Output tokens per second and bubble of a run of our own, as the table has them."""
    config = EngineConfig.of(**{"pipeline_parallel_size": num_stages, **settings})
    arrivals = make_arrivals(make_workload(f"sharegpt:{NUM_REQUESTS}", seed=0), 0.5, 0)
    run = simulate(
        config, hardware.node(num_stages, config.cache.block_size, MAX_MODEL_LEN), arrivals
    )
    num_output = sum(times.output_len for times in run.sequences)
    bubble = 1 - min(run.busy_s) / run.makespan_s
    return [f"{num_output / run.makespan_s:,.0f}", f"{bubble:.1%}"]


def test_each_node_says_where_its_figures_are_from(sections: list[str]) -> None:
    assert [section.splitlines()[0] for section in sections] == [
        "L20 + 13B, 16 requests (profile L20-Llama-13B.csv)",
        "L20 + 32B, 16 requests (analytic GPU model)",
    ]


def test_all_nodes_of_the_paper_are_simulated_from_our_model(printed: list[str]) -> None:
    modelled = printed[2:-1]
    assert len(modelled) == len(MODELLED) == 4
    for section, setup in zip(modelled, MODELLED, strict=True):
        assert section.startswith(f"{setup.name}, 16 requests (analytic GPU model)")
        (by_policy,) = tables(section)
        assert list(by_policy) == [*POLICIES, *TENSOR_PARALLEL]


def test_our_ratios_stand_beside_the_paper_s(printed: list[str]) -> None:
    (beside,) = tables(printed[-1])
    assert list(beside) == list(PAPER_SAYS)
    for node, section in enumerate(printed[:-1]):
        by_policy = next(tables(section))
        for name, cells in beside.items():
            assert float(cells[0]) == PAPER_SAYS[name]
            # Both are rounded.
            mine = float(cells[1 + node].strip(" |"))
            assert mine == pytest.approx(1 / float(by_policy[name][1]), rel=0.02)


def test_the_tables_go_between_their_marks_beside_a_chart(out: str, project: Path) -> None:
    written = (project / DOCUMENT).read_text()
    assert written == f"before\n{BEGIN}\n{out.removesuffix(chr(10))}\n{END}\nafter\n"
    assert "### Beside the paper" in written
    assert (project / CHART).read_text().startswith("<?xml")


def test_every_policy_and_every_part_has_its_row(sections: list[str]) -> None:
    for section in sections:
        by_policy, of_td_pipe, of_temporal = tables(section)
        assert list(by_policy) == [*POLICIES, *TENSOR_PARALLEL]
        assert list(of_td_pipe) == ["td-pipe", *TD_PIPE_ABLATIONS]
        assert list(of_temporal) == ["temporal", *TEMPORAL_ABLATIONS]
        assert of_td_pipe["td-pipe"] == by_policy["td-pipe"]
        assert of_temporal["temporal"][0] == by_policy["temporal"][0]


def test_rates_are_compared_with_that_of_the_reference(sections: list[str]) -> None:
    for section in sections:
        for table, reference in zip(
            tables(section), ["td-pipe", "td-pipe", "temporal"], strict=True
        ):
            base = number(table[reference][0])
            assert table[reference][1] == "1.000"
            for tokens_per_s, over, *_ in table.values():
                # Both are rounded.
                assert float(over) == pytest.approx(number(tokens_per_s) / base, rel=0.02)


@pytest.mark.parametrize(
    ("table", "name", "settings"),
    [
        (0, "hybrid vllm (PP+HB)", {"policy": "hybrid", "hybrid": "vllm"}),
        (1, "no work stealing", {"policy": "td-pipe", "work_stealing": False}),
        (2, "no top-up", {"policy": "temporal", "topup": False}),
    ],
)
def test_a_row_is_the_simulation_that_it_names(
    sections: list[str], profiles: Path, table: int, name: str, settings: Settings
) -> None:
    hardware, _ = hardware_of_setup(L20_13B, profiles)
    rows = list(tables(sections[0]))[table]
    rate, _, _, bubble, *_ = rows[name]
    assert [rate, bubble] == row(settings, hardware, num_stages=4)
    assert [cells for cells in rows.values() if cells == rows[name]] == [rows[name]]


def test_tensor_parallelism_is_one_stage_of_four_gpus(sections: list[str], profiles: Path) -> None:
    stage, _ = hardware_of_setup(L20_13B, profiles)
    shared = Hardware(
        stage.profile,
        stage.kv_tokens,
        stage.kv_bytes_per_token,
        stage.memory_bytes_per_s,
        tensor_parallel=4,
        allreduce_bytes_per_token=2 * 40 * 5120 * 2,
    )
    by_policy, *_ = tables(sections[0])
    rate, _, _, bubble, *_ = by_policy["TP + separate"]
    assert [rate, bubble] == row({"policy": "separate"}, shared, num_stages=1)


def test_a_measured_profile_is_taken_where_there_is_one(profiles: Path) -> None:
    hardware, source = hardware_of_setup(L20_13B, profiles)
    assert source == "profile L20-Llama-13B.csv"
    assert hardware == Hardware(PROFILE, 170_000, 819_200, 864e9)


def test_a_fresh_clone_without_profiles_has_the_gpu_model_s(tmp_path: Path) -> None:
    hardware, source = hardware_of_setup(L20_32B, tmp_path / "nowhere")
    assert source == "analytic GPU model"
    assert hardware.profile == profile_of(find_gpu("L20"), read_shape("qwen2.5-32b"))
    assert (hardware.kv_tokens, hardware.kv_bytes_per_token) == (400_000, 262_144)


def test_no_row_is_above_the_bound(sections: list[str]) -> None:
    for section in sections:
        assert section.splitlines()[2].startswith("Bound: ")
        for table in tables(section):
            assert all(0 < float(cells[2]) <= 1 for cells in table.values())


def test_the_tables_leave_out_no_policy() -> None:
    assert {settings["policy"] for settings in POLICIES.values()} == set(registry.POLICIES)


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        *(("td-pipe", changes) for changes in TD_PIPE_ABLATIONS.values()),
        *(("temporal", changes) for changes in TEMPORAL_ABLATIONS.values()),
    ],
    ids=[*TD_PIPE_ABLATIONS, *TEMPORAL_ABLATIONS],
)
def test_the_effect_of_a_part_is_seen_without_it(policy: str, changes: Settings) -> None:
    whole = EngineConfig.of(policy=policy)
    assert EngineConfig.of(**{"policy": policy, **changes}) != whole
