"""The socket between the daemon and the agent: one JSON object per SEQPACKET message, descriptors with it.

An object that is too large for a message travels in a memfd_create(2), the last of the descriptors; the message itself
is then {"id": ..., "spilled": true}. So neither a host's routes nor a plan's are bounded by a socket buffer.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

PROTOCOL = 4  # goes up with every change of the messages: a running daemon may start a newer agent
MESSAGE_MAX = 65536
SPILLED_MAX = 1 << 24
FDS_MAX = 253  # SCM_MAX_FD, include/net/scm.h: what one message can carry


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its fds, all of them close-on-exec; None when the peer is gone. Raises OSError, ValueError.

    At the limit of open files the kernel leaves out fds from the end; where that was the object's memfd, "spilled" is
    all that is left of it.
    """
    # Not socket.recv_fds: it drops its ``flags``, MSG_CMSG_CLOEXEC with them (CPython 3.11).
    room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
    data, ancillary, flags, _ = channel.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    fds = list(received)
    try:
        if not data:
            message = None
        else:
            message = _object(data)
            if "spilled" in message and fds and not flags & socket.MSG_CTRUNC:
                message = _object(_spilled(fds.pop()))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def send(channel: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one object, with copies of ``fds``. Raises OSError."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= MESSAGE_MAX:
        _send(channel, data, fds)
        return
    with open(os.memfd_create("netd-message", os.MFD_CLOEXEC), "wb") as file:
        file.write(data)
        file.flush()
        _send(channel, json.dumps({"id": message.get("id"), "spilled": True}).encode(), (*fds, file.fileno()))


def _send(channel: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def _object(data: bytes) -> dict[str, Any]:
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError(f"a {type(message).__name__} instead of an object")
    return message


def _spilled(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > SPILLED_MAX:
            raise ValueError(f"an object of {size} bytes")
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)  # its offset is the sender's
            return file.read(size)
    finally:
        os.close(fd)
