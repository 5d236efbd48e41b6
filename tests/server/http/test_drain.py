"""The drain: open requests finish or end with an error, new ones are answered with 503."""

from pathlib import Path

import httpx
import pytest

from tests.server.world import MODEL, TOKENIZER, Daemon, events, generated, serving
from wire.messages import Abort, Finished, Submit

HELLO = TOKENIZER.encode("hello")


def wait_for_end(daemon: Daemon) -> None:
    daemon.wait_until(lambda: daemon.server.should_exit)


def test_an_open_stream_finishes_and_new_requests_get_503(tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    with serving(tmp_path) as daemon:
        with daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body) as response:
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.stop()
            daemon.wait_until(lambda: daemon.drain.has_begun)
            refused = daemon.complete()
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "shutting_down"
            assert daemon.get("/ready").status_code == 503
            assert daemon.get("/health").json()["status"] == "draining"
            daemon.engine.send(
                generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
            )
            response.read()
            assert events(response)[-1]["choices"][0]["finish_reason"] == "length"
        wait_for_end(daemon)


def test_an_idle_server_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        daemon.stop()
        wait_for_end(daemon)


def test_when_the_time_is_up_open_requests_get_an_error(tmp_path: Path) -> None:
    with serving(tmp_path, shutdown_timeout=0) as daemon:
        check_cut_off(daemon, num_signals=1)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        check_cut_off(daemon, num_signals=2)


def check_cut_off(daemon: Daemon, num_signals: int) -> None:
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    with daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body) as response:
        (submit,) = daemon.engine.wait_for(Submit)
        for _ in range(num_signals):
            daemon.stop()
        response.read()
        assert events(response)[-1]["error"]["message"] == "The server is shutting down."
    assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]
    wait_for_end(daemon)


def test_a_stream_that_can_go_on_elsewhere_is_cut_off_without_an_error(tmp_path: Path) -> None:
    """A router takes the connection's end for the loss of this daemon, and resumes the stream."""
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    headers = {"x-tdpipe-resumable": "1"}
    with serving(tmp_path, shutdown_timeout=0) as daemon:
        url = f"{daemon.url}/v1/completions"
        with daemon.http.stream("POST", url, json=body, headers=headers) as response:
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(generated(submit.sequence_id, *HELLO))
            parts = response.iter_raw()
            received = [next(parts)]
            daemon.stop()
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                received.extend(parts)
        assert b'"error"' not in b"".join(received)
        wait_for_end(daemon)
    assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]
