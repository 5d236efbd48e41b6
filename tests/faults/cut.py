"""The cut: nothing that two processes send each other over TCP arrives any more, without an error.

A socket filter that drops every packet is put on each end of each of their connections, as if a
cable were pulled. It needs the right to borrow another process's descriptors (root's, or a
parent's), and no firewall. What the kernel has acknowledged already is still read.
"""

import ctypes
import os
import platform
import socket
import struct

import psutil

_PIDFD_GETFD = 438
_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0 bytes


def cut(one: psutil.Process, other: psutil.Process) -> int:
    """Cut all connections between them; returns their number. Raises `PermissionError`."""
    ends, other_ends = _ends_of(one), _ends_of(other)
    # Descriptors that both have were inherited, and are their parent's.
    links = [
        (ends[there, here], fd)
        for (here, there), fd in other_ends.items()
        if (there, here) in ends and (here, there) not in ends
    ]
    for fd, other_fd in links:
        _drop_all(one.pid, fd)
        _drop_all(other.pid, other_fd)
    return len(links)


def can_cut() -> bool:
    """Whether this machine allows it."""
    if platform.system() != "Linux":
        return False
    with socket.socket() as own:
        try:
            _drop_all(os.getpid(), own.fileno())
        except OSError:
            return False
    return True


def _ends_of(process: psutil.Process) -> dict[tuple[object, object], int]:
    """Descriptors of the established connections, by their addresses here and there."""
    return {
        (end.laddr, end.raddr): end.fd
        for end in process.net_connections("tcp")
        if end.status == psutil.CONN_ESTABLISHED
    }


def _drop_all(pid: int, fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        borrowed = libc.syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if borrowed < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    with socket.socket(fileno=borrowed) as end:
        head = struct.pack("HL", 1, ctypes.addressof(program))
        end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
