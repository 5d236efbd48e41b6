"""Malformed requests: the same for the same seed, and of every kind."""

from benchmarks.stress.malformed import Malformed, malformed


def test_they_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert list(malformed(200)) == list(malformed(200))
    assert list(malformed(200)) != list(malformed(200, seed=1))


def test_every_kind_comes_in_turn() -> None:
    kinds = [request.kind for request in malformed(130)]
    num_kinds = len(set(kinds))
    assert num_kinds == 13
    assert kinds[:num_kinds] == kinds[num_kinds : 2 * num_kinds]


def test_a_whole_request_has_its_end() -> None:
    def is_whole(request: Malformed) -> bool:
        head, _, body = request.request.partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        return len(body) == int(lengths[0].split()[1]) if lengths else not body

    assert all(is_whole(request) for request in malformed(2_000) if request.is_whole)
