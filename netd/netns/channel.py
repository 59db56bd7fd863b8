"""The socket between the daemon and the agent: one JSON object per SEQPACKET message, at most one fd with it."""

from __future__ import annotations

import array
import socket

PROTOCOL = 2  # goes up with every change of the messages: a running daemon may start a newer agent
MESSAGE_MAX = 65536
FDS_MAX = 4  # room for more than is due, so that what is not due is seen, and closed


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its fds, all of them close-on-exec; b"" when the peer is gone. Raises OSError.

    Not socket.recv_fds: it drops its ``flags``, MSG_CMSG_CLOEXEC with them (CPython 3.11).
    """
    room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
    data, ancillary, _, _ = channel.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def send(channel: socket.socket, message: bytes, fd: int = -1) -> None:
    """Sends one message, with a copy of ``fd`` unless that is -1. Raises OSError."""
    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
    channel.sendmsg([message], fds)
