"""Disk errors: told from bugs in any nesting."""

from server.batches.storage.database import DatabaseError
from server.batches.storage.disk_errors import disk_error

FULL = OSError(28, "No space left on device")


def test_a_disk_error_is_found_in_any_nesting() -> None:
    assert disk_error(FULL) is FULL
    assert disk_error(ExceptionGroup("", [ExceptionGroup("", [FULL]), FULL])) is FULL
    assert isinstance(disk_error(DatabaseError("full")), DatabaseError)


def test_a_bug_is_none_also_beside_a_disk_error() -> None:
    assert disk_error(LookupError()) is None
    assert disk_error(ExceptionGroup("", [FULL, LookupError()])) is None
