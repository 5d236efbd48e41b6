"""Disk errors: tells a disk that is full or gone from a bug, in any nesting of task groups."""

from server.batches.storage.database import DatabaseError


def disk_error(error: BaseException) -> OSError | DatabaseError | None:
    """The first disk error in `error`; None if any part of it is something else."""
    if isinstance(error, OSError | DatabaseError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    parts = [disk_error(each) for each in error.exceptions]
    return parts[0] if all(parts) else None
