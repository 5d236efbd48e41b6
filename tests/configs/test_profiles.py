"""Profiles: TD-Pipe's two columns are read and written, and an error names its line."""

from pathlib import Path

import pytest

from configs.profiles import (
    MeasuredStep,
    Profile,
    ProfileError,
    head_of_steps,
    is_step_table,
    line_of_step,
    read_profile,
    read_steps,
    write_profile,
)

HEADER = "Total Length,Execute Time\n"


def read(tmp_path: Path, text: str) -> Profile:
    path = tmp_path / "profile.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return read_profile(path)


def refusal(path: Path) -> str:
    """The one line that says why `path` is no profile."""
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def test_milliseconds_are_read_as_seconds(tmp_path: Path) -> None:
    profile = read(tmp_path, HEADER + "1,40.5\n128,47.8\n129,60\n")
    assert profile.num_tokens == (1, 128, 129)
    assert profile.seconds == pytest.approx((0.0405, 0.0478, 0.06))


def test_lines_in_any_order_are_read_in_ascending_order(tmp_path: Path) -> None:
    profile = read(tmp_path, HEADER + "256,3\n1,1\n128,2\n")
    assert profile == Profile((1, 128, 256), (0.001, 0.002, 0.003))


@pytest.mark.parametrize(
    "text",
    [
        "# measured on a Tuesday\n" + HEADER + "1,1\n# and this later\n2,2\n",
        HEADER + "1,1\n\n2,2\n\n",
        HEADER.replace("\n", "\r\n") + "1,1\r\n2,2\r\n",
        "Total Length, Execute Time \n 1 , 1.0\n 2, 2e0",
        HEADER + '"1","1"\n"2","2"\n',
    ],
    ids=["notes", "empty lines", "Windows", "spaces and no last newline", "quotes"],
)
def test_the_same_profile_may_be_laid_out_in_several_ways(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Profile((1, 2), (0.001, 0.002))


def test_a_larger_step_may_be_faster_as_measured_ones_are(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + "1,2\n2,1.9\n").seconds == (0.002, 0.0019)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("three,4", "not tokens and milliseconds"),
        ("3,four", "not tokens and milliseconds"),
        ("3", "not tokens and milliseconds"),
        ("3,", "not tokens and milliseconds"),
        ("3;4", "not tokens and milliseconds"),
        ("1.5,4", "not tokens and milliseconds"),
        ("0,4", "above 0"),
        ("-3,4", "above 0"),
        ("3,0", "above 0"),
        ("3,-4", "above 0"),
        ("3,nan", "above 0"),
        ("3,inf", "above 0"),
    ],
)
def test_a_wrong_row_is_named_by_its_line_in_the_file(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(f"# a note\n{HEADER}1,1\n# another\n{row}\n5,5\n")
    line = refusal(path)
    assert f"{path}, line 5: " in line
    assert words in line


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a note\n", "1,40\n2,41\n", "tokens,ms\n1,2\n", "Total Length\n1\n"]
)
def test_a_file_without_the_header_gets_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(text)
    assert "first line must be Total Length,Execute Time" in refusal(path)


def test_the_columns_are_not_taken_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    path.write_text("Execute Time,Total Length\n40,1\n")
    assert "Total Length,Execute Time" in refusal(path)


@pytest.mark.parametrize("rows", ["", "\n\n", "# 1,40\n"])
def test_a_header_without_rows_is_an_empty_profile(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(HEADER + rows)
    assert "empty profile" in refusal(path)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\xff\xfe")
    for path in (tmp_path / "missing.csv", tmp_path, picture):
        assert refusal(path).startswith("cannot read the profile")


@pytest.mark.parametrize("text", ['1,"2\n3,4\n', f"1,{'2' * 200_000}\n"])
def test_a_file_that_is_no_csv_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(HEADER + text)
    assert "is no CSV" in refusal(path)


def test_a_size_given_twice_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(HEADER + "1,2\n4,3\n1,9\n")
    assert "line 4: 1 tokens a second time" in refusal(path)


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    path.write_text("\ufeff" + HEADER + "1,2\n", encoding="utf-8")
    assert read_profile(path).num_tokens == (1,)


def test_a_written_profile_is_read_back_as_it_was(tmp_path: Path) -> None:
    profile = Profile((1, 16, 2048), (0.0405, 0.041000123, 0.517))
    path = tmp_path / "profile.csv"
    write_profile(profile, path, notes="measured on a Tuesday\nby hand")
    assert path.read_text().splitlines()[:4] == [
        "# measured on a Tuesday",
        "# by hand",
        "Total Length,Execute Time",
        "1,40.5",
    ]
    assert read_profile(path).num_tokens == profile.num_tokens
    assert read_profile(path).seconds == pytest.approx(profile.seconds, abs=1e-9)


NOTES = {"model": "demo", "stages": "2", "hardware": "a GPU: the large one"}
STEPS = (
    MeasuredStep("prefill", 1, 64, 0, 2080, 0.0015, 5),
    MeasuredStep("decode", 8, 8, 1000, 0, 0.001, 3),
    MeasuredStep("mixed", 9, 72, 1000, 2080, 0.002, 5),
)


def write_table(path: Path, *lines: str, notes: dict[str, str] = NOTES) -> Path:
    """A rich table with these lines below its columns."""
    path.write_text(head_of_steps(notes) + "".join(f"{line}\n" for line in lines))
    return path


def test_a_rich_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.steps.csv"
    lines = [line_of_step(stage, step) for step in STEPS for stage in (0, 1)]
    path.write_text(head_of_steps(NOTES) + "".join(lines))
    table = read_steps(path)
    assert table.notes == NOTES
    assert table.stages == (STEPS, STEPS)
    assert is_step_table(path)


def test_a_profile_of_two_columns_is_no_rich_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_profile(Profile((1,), (1.0,)), path)
    assert not is_step_table(path)
    assert not is_step_table(tmp_path / "missing.csv")
    assert not is_step_table(tmp_path)


def test_a_note_of_several_lines_stays_on_one(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x", "0,decode,1,1,0,0,1.0,1", notes={"model": "a\nb"})
    assert read_steps(path).notes == {"model": "a b"}


GOOD = ("0,decode,1,1,0,0,1.0,1", "1,decode,1,1,0,0,1.0,1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0,decode,1,1,0,0,1.0", "not stage,kind"),
        ("0,decode,1,1,0,0,1.0,1,9", "not stage,kind"),
        ("0,decoding,1,1,0,0,1.0,1", "not stage,kind"),
        ("0,decode,one,1,0,0,1.0,1", "not stage,kind"),
        ("0,decode,1,1,0,0,fast,1", "not stage,kind"),
        ("-1,decode,1,1,0,0,1.0,1", "too small"),
        ("0,decode,2,1,0,0,1.0,1", "too small"),
        ("0,decode,1,1,-4,0,1.0,1", "too small"),
        ("0,decode,1,1,0,0,0,1", "above 0"),
        ("0,decode,1,1,0,0,nan,1", "above 0"),
    ],
)
def test_a_wrong_line_of_a_rich_table_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = write_table(tmp_path / "x.steps.csv", *GOOD, line)
    with pytest.raises(ProfileError, match=words) as caught:
        read_steps(path)
    assert f"{path}, line 7: " in str(caught.value)


def test_a_stage_without_steps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no steps of stage 1"):
        read_steps(write_table(tmp_path / "x", GOOD[0]))
    with pytest.raises(ProfileError, match="no steps of stage 0"):
        read_steps(write_table(tmp_path / "x"))
    with pytest.raises(ProfileError, match="stage 2, but 2 stages"):
        read_steps(write_table(tmp_path / "x", *GOOD, GOOD[0].replace("0,", "2,", 1)))


def test_a_file_that_is_no_step_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text, words in (("", "empty"), ("# a: b\n", "empty"), ("tokens,ms\n1,2\n", "columns")):
        path.write_text(text)
        with pytest.raises(ProfileError, match=words):
            read_steps(path)
    with pytest.raises(ProfileError, match="cannot read"):
        read_steps(tmp_path / "missing")


@pytest.mark.parametrize("row", ["1,35e9", "1,1e-9", "100000000000,35"])
def test_figures_that_cannot_be_are_refused_with_their_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(f"Total Length,Execute Time\n{row}\n")
    with pytest.raises(ProfileError, match=r"line 2: .* cannot be: .* ms are plausible"):
        read_profile(path)


@pytest.mark.parametrize(
    "row", ["0,decode,1,1,9,0,1e9,5", "0,decode,1,1,9,0,1e-12,5", "0,prefill,1,99999999999,0,0,1,5"]
)
def test_measured_steps_that_cannot_be_are_refused_with_their_line(
    tmp_path: Path, row: str
) -> None:
    path = tmp_path / "profile.steps.csv"
    path.write_text(f"{head_of_steps({})}{row}\n")
    with pytest.raises(ProfileError, match=r"line 2: .* cannot be: .* s are plausible"):
        read_steps(path)
