"""`tdpipe train-predictor` from its command line: it writes all or nothing."""

import json
from pathlib import Path

import pytest

from predictor import train
from predictor.checkpoint import load_predictor
from tests.predictor.world import make_encoder, make_lines, make_predictor, write_lines

SETTINGS = ("--lr", "1e-2", "--head-lr", "1e-2", "--batch-size", "16", "--epochs", "3")


def run(tmp_path: Path, *changes: str, lines: int = 200) -> int:
    """One training in the folder; `changes` come last, so they win."""
    data = tmp_path / "r.jsonl"
    if not data.exists():
        write_lines(data, [each | {"tokenizer": "cafe"} for each in make_lines(lines)])
    encoder = tmp_path / "encoder"
    if not encoder.exists():
        make_encoder(encoder)
    paths = ("--data", f"{data}", "--encoder", f"{encoder}", "--out", f"{tmp_path}/out")
    return train.main([*paths, *SETTINGS, *changes])


def left(tmp_path: Path) -> list[str]:
    """The files in the folder, without the test's own."""
    return sorted(p.name for p in tmp_path.iterdir() if p.name not in ("r.jsonl", "encoder"))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_trained_predictor_separates_short_from_long(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder(tmp_path / "encoder", family)
    assert run(tmp_path, "--dtype", "bfloat16", lines=400) == 0
    assert left(tmp_path) == ["out"]
    printed = capsys.readouterr().out
    assert "error of the sum over  64 requests" in printed
    assert f"written to {tmp_path}/out" in printed
    assert "random ones" not in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_requests"] == 80
    assert (tmp_path / "out" / "report.png").is_file()
    predictor = load_predictor(tmp_path / "out")
    description = predictor.description
    assert (description.tokenizer, description.max_tokens) == ("cafe", 40)
    assert description.accuracy["accuracy"] == report["accuracy"]
    assert set(description.versions) == {"torch", "transformers"}
    short, long = predictor.predict(["short me", "long me"])
    assert short.predicted_len < long.predicted_len


def test_an_encoder_without_weights_starts_from_random_ones_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder(tmp_path / "encoder", has_weights=False)
    assert run(tmp_path) == 0
    assert "has no weights: the encoder starts with random weights" in capsys.readouterr().out
    load_predictor(tmp_path / "out")


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    make_encoder(tmp_path / "encoder", has_weights=False)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(tmp_path, "--out", f"{tmp_path}/{name}", "--seed", seed) == 0
    for file in ("model.safetensors", "head.safetensors", "predictor.json", "report.json"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_an_earlier_predictor_is_replaced(tmp_path: Path) -> None:
    make_predictor(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run(tmp_path) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    assert left(tmp_path) == ["out", "out-encoder"]


def test_a_folder_of_something_else_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert run(tmp_path) == 2
    assert "exists and is not a predictor" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [(KeyboardInterrupt(), 130), (FloatingPointError("no number"), 2), (OSError(), 2)],
)
def test_nothing_half_written_is_left(
    tmp_path: Path,
    failure: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise failure

    make_predictor(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(train, "draw", fail)  # when all else is written
    assert run(tmp_path) == code
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert left(tmp_path) == ["out", "out-encoder"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (("--data", "none.jsonl"), "cannot read none.jsonl"),
        (("--encoder", "nowhere"), "nowhere is not the folder of an encoder"),
        (("--out", "nowhere/out"), "parent folder of nowhere/out does not exist"),
        (("--lr", "0.99", "--head-lr", "0.99", "--encoder", "broken"), "broken"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    tmp_path: Path, changes: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *changes) == 2
    err = capsys.readouterr().err
    assert err.startswith("tdpipe: error: ")
    assert problem in err
    assert err.count("\n") == 1
    assert left(tmp_path) == []


def test_answers_of_one_length_need_no_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line | {"output_len": 9} for line in make_lines(60)]
    write_lines(tmp_path / "r.jsonl", lines)
    assert run(tmp_path) == 2
    assert "use --predictor constant:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [("--classes", "1"), ("--epochs", "0"), ("--lr", "0"), ("--lr", "x"), ("--batch-size", "-2")],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, changes: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *changes)
    assert caught.value.code == 2
