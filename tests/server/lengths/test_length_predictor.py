"""The length predictor: predictions sent to the engine, at once and later, and learning."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from configs.config import Config
from server.lengths.length_predictor import PredictorMismatchError, check_predictor, histogram_path
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    Daemon,
    config,
    generated,
    saying,
    serving,
)
from wire.messages import Expect, Finished, Submit
from wire.predictor_messages import Answer, Ask
from wire.sockets import Hub

EXPECTS_7 = {"expected_tokens": 7}


@contextmanager
def encoder(folder: Path, answer: Callable[[Ask], Answer | None]) -> Iterator[list[Ask]]:
    """An encoder in a thread: it answers as scripted and records the questions."""
    asked: list[Ask] = []
    is_there, is_over = threading.Event(), threading.Event()

    def run() -> None:
        with Hub[Ask](config(folder).runtime.predictor_address, Ask) as hub:
            is_there.set()
            while not is_over.is_set():
                if not hub.socket.poll(20):
                    continue
                for peer, ask in hub.drain():
                    asked.append(ask)
                    reply = answer(ask)
                    if reply is not None:
                        hub.send(peer, reply)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_there.wait(PATIENCE_S)
        yield asked
    finally:
        is_over.set()
        thread.join()


def fives(ask: Ask) -> Answer:
    """Five tokens for every prompt, of class 2."""
    count = len(ask.prompts)
    return Answer(ask.request_id, (2,) * count, (5,) * count, (0.25,) * count)


def samples(daemon: Daemon) -> dict[str, float]:
    """All samples by name and labels' values, except the model's name."""
    families = text_string_to_metric_families(daemon.get("/metrics").text)
    return {
        " ".join([each.name, *(v for k, v in each.labels.items() if k != "model_name")]): each.value
        for family in families
        for each in family.samples
    }


def submitted(tmp_path: Path, predictor: str, **body: object) -> Submit:
    """The prediction sent to the engine for a request with max_tokens 40."""
    with serving(tmp_path, saying("hello"), predictor=predictor) as daemon:
        assert daemon.complete(max_tokens=40, **body).status_code == 200
        (submit,) = daemon.engine.wait_for(Submit)
        return submit


def test_a_constant_has_the_spread_of_traffic(tmp_path: Path) -> None:
    submit = submitted(tmp_path, "constant:12")
    assert (submit.predicted_len, submit.spread) == (12, 1.0)


def test_the_oracle_takes_max_tokens(tmp_path: Path) -> None:
    assert submitted(tmp_path, "oracle").predicted_len == 40


@pytest.mark.parametrize("predictor", ["oracle", "histogram", "constant:12"])
def test_the_clients_own_expectation_takes_precedence(tmp_path: Path, predictor: str) -> None:
    submit = submitted(tmp_path, predictor, **EXPECTS_7)
    assert (submit.predicted_len, submit.spread) == (7, 0.0)


def test_a_clients_expectation_is_limited_by_max_tokens(tmp_path: Path) -> None:
    assert submitted(tmp_path, "histogram", expected_tokens=10_000).predicted_len == 40


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "ten", 2**31])
def test_an_invalid_expectation_is_refused(tmp_path: Path, wrong: object) -> None:
    with serving(tmp_path) as daemon:
        response = daemon.complete(expected_tokens=wrong)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "expected_tokens"


def test_the_histogram_learns_from_finished_sequences(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello world"), max_num_queued_reqs=4096) as daemon:
        for _ in range(4):
            usage = daemon.complete(max_tokens=40, n=100).json()["usage"]
        first, *_, last = daemon.engine.wait_for(Submit, 400)
        real = usage["completion_tokens"] / 100
        assert abs(last.predicted_len - real) < abs(first.predicted_len - real)
        assert last.predicted_len == pytest.approx(real, abs=2)


def test_the_histogram_survives_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello world")) as daemon:
        daemon.complete(max_tokens=40, n=100)
        daemon.complete(max_tokens=40)
        learnt = daemon.engine.wait_for(Submit, 101)[-1]
    with serving(tmp_path, saying("hello world")) as daemon:
        daemon.complete(max_tokens=40)
        (submit,) = daemon.engine.wait_for(Submit)
        assert (submit.predicted_len, submit.spread) != (0, 0.0)
        assert submit.predicted_len == pytest.approx(learnt.predicted_len, abs=1)


def test_a_damaged_histogram_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = histogram_path(config(tmp_path).runtime.data_dir, MODEL)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with serving(tmp_path, saying("hello")) as daemon:
        assert daemon.complete().status_code == 200
    assert "empty length histogram" in caplog.text
    assert path.read_text().startswith('{"version"')


def test_an_encoder_s_answer_follows_the_request(tmp_path: Path) -> None:
    with (
        encoder(tmp_path, fives) as asked,
        serving(tmp_path, predictor=str(tmp_path / "encoder")) as daemon,
    ):
        with daemon.http.stream(
            "POST",
            f"{daemon.url}/v1/completions",
            json={
                "model": "little",
                "prompt": ["hello", "world"],
                "n": 2,
                "stream": True,
                "max_tokens": 40,
            },
        ) as response:
            submits = daemon.engine.wait_for(Submit, 4)
            expects = daemon.engine.wait_for(Expect, 4)
            assert all(submit.predicted_len for submit in submits)  # the histogram's, at once
            assert expects == [Expect(submit.sequence_id, 5, 0.25) for submit in submits]
            assert [ask.prompts for ask in asked] == [("hello", "world")]
            for submit in submits:
                daemon.engine.send(
                    generated(submit.sequence_id, 5, 6), Finished(submit.sequence_id, "length")
                )
            response.read()
        found = samples(daemon)
        assert found["tdpipe_predictions_total 2 encoder"] == 4
        assert found["tdpipe_predicted_output_tokens_total 2 encoder"] == 20
        assert found["tdpipe_real_output_tokens_total 2 encoder"] == 8
        assert found["tdpipe_prediction_sum_error_ratio"] == pytest.approx(1.5)
        assert found["tdpipe_predictor_latency_seconds_count"] == 1
        assert found["tdpipe_predictor_fallbacks_total"] == 0


@pytest.mark.parametrize(
    "answer",
    [lambda _: None, lambda ask: Answer(ask.request_id, (1, 1), (5, 5), (0.1, 0.1))],
    ids=["silent", "of another length"],
)
def test_with_a_late_encoder_the_histograms_prediction_is_used(
    tmp_path: Path, answer: Callable[[Ask], Answer | None]
) -> None:
    with (
        encoder(tmp_path, answer),
        serving(tmp_path, saying("hello"), predictor=str(tmp_path / "encoder")) as daemon,
    ):
        assert daemon.complete().status_code == 200
        (submit,) = daemon.engine.wait_for(Submit)
        assert submit.predicted_len > 0
        assert samples(daemon)["tdpipe_predictor_fallbacks_total"] == 1


def test_without_its_encoder_a_server_serves(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello"), predictor=str(tmp_path / "encoder")) as daemon:
        for _ in range(3):
            assert daemon.complete().status_code == 200
        assert samples(daemon)["tdpipe_predictor_fallbacks_total"] == 3


def test_a_client_s_own_expectation_needs_no_encoder(tmp_path: Path) -> None:
    with (
        encoder(tmp_path, fives) as asked,
        serving(tmp_path, saying("hello"), predictor=str(tmp_path / "encoder")) as daemon,
    ):
        assert daemon.complete(**EXPECTS_7).status_code == 200
        assert samples(daemon)["tdpipe_predictor_fallbacks_total"] == 0
        assert not asked


def described(folder: Path, tokenizer: object) -> Config:
    """Settings with a predictor that counts in the tokens of `tokenizer`."""
    encoder_folder = folder / "encoder"
    encoder_folder.mkdir()
    (encoder_folder / "predictor.json").write_text(json.dumps({"tokenizer": tokenizer}))
    return config(folder, predictor=str(encoder_folder))


def check(settings: Config) -> None:
    """Check the predictor of these settings against the test's tokenizer."""
    check_predictor(settings.predictor, settings.model, TOKENIZER)


def test_a_predictor_for_another_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PredictorMismatchError, match="another tokenizer") as refusal:
        check(described(tmp_path, "0123456789abcdef"))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_predictor_for_this_tokenizer_is_accepted(tmp_path: Path) -> None:
    check(described(tmp_path, TOKENIZER.fingerprint))


def test_a_predictor_without_a_tokenizer_is_accepted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(described(tmp_path, None))
    assert "does not name the tokenizer" in caplog.text


@pytest.mark.parametrize("text", [None, "", "[]", "null", "{"])
def test_the_predictors_process_reports_an_invalid_folder(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "predictor.json").write_text(text)
    check(config(tmp_path, predictor=str(tmp_path)))
