"""Which ports are listened on in a namespace: the kernel's own list, by NETLINK_SOCK_DIAG (sock_diag(7)).

The socket tells of the namespace it was made in, whoever holds it. A dump is four short conversations (TCP and UDP,
IPv4 and IPv6), in which the kernel answers while it is asked: nothing blocks, and there is nothing to wait for.

Whoever administers that namespace can write to our socket, too; only what comes from the kernel counts.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, NamedTuple

NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
SOCKETS_MAX: Final = 16384  # of one dump; a namespace that has more is not looked at
_MESSAGES_MAX: Final = 1024  # of the kernel and of forgers together; one of the kernel's has some 300 sockets
_SIZE: Final = 1 << 16  # the kernel fills at most 32 KiB at a time (netlink_dump)

# linux/netlink.h
_NLMSGHDR: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_ERROR: Final = struct.Struct("=i")

# linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_SOCK_DIAG_BY_FAMILY: Final = 20
_INET_DIAG_REQ_V2: Final = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, a sockid of zeros: any
_TCP_CLOSE: Final = 7  # the former is also what an unconnected UDP socket is in
_TCP_LISTEN: Final = 10
_QUESTIONS: Final = tuple(
    (family, protocol, 1 << state)
    for family in (socket.AF_INET, socket.AF_INET6)
    for protocol, state in ((socket.IPPROTO_TCP, _TCP_LISTEN), (socket.IPPROTO_UDP, _TCP_CLOSE))
)
# Of struct inet_diag_msg: family, state, timer, retrans, then of struct inet_diag_sockid source port, destination port,
# source, destination, interface.
_ID: Final = struct.Struct("=B3x2s2x16s16xI")
_ATTRIBUTES: Final = 72  # behind the whole of it
_RTATTR: Final = struct.Struct("=HH")
_INET_DIAG_SKV6ONLY: Final = 11

_PASSING: Final = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)  # try again


class Listening(NamedTuple):
    """A TCP socket that listens, or a UDP socket that is bound and not connected."""

    protocol: str  # "tcp" | "udp"
    family: int  # 4 | 6
    address: bytes  # 4 or 16; zeros are all addresses
    port: int
    interface: int = 0  # its index in the namespace (1 is lo), if bound to one
    v6only: bool = False  # of :: alone: IPv4 is not taken


class _Message(NamedTuple):
    """What the kernel said at once, and what it means."""

    data: bytes
    listening: frozenset[Listening]
    last: bool
    interrupted: bool
    error: int


class Diag:
    """Owns ``sock``, a NETLINK_SOCK_DIAG socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._unfinished = False  # the kernel has more to say on an earlier question
        self._before: list[_Message] = []  # the dump before
        self._listening: frozenset[Listening] = frozenset()
        self.forged = 0  # messages that were not the kernel's
        self.malformed = 0
        self.abandoned = 0  # dumps: interrupted by a change, incomplete, or of too many sockets

    def dump(self) -> frozenset[Listening] | None:
        """What is there now; the same object as the last time if nothing has changed. None: ask again later.

        OSError where the kernel has no such dumps (CONFIG_INET_DIAG and its modules, inet_diag, tcp_diag, udp_diag).
        """
        if self._unfinished and not self._finish():
            self.abandoned += 1
            return None
        messages: list[_Message] = []
        for number, (family, protocol, states) in enumerate(_QUESTIONS, 1):
            error = self._ask(number, family, protocol, states, messages)
            if error is None or error in _PASSING:
                self.abandoned += 1
                return None
            if error and not (family == socket.AF_INET6 and error == errno.ENOENT):  # a kernel without IPv6
                raise OSError(error, f"the kernel does not list sockets: {os.strerror(error)}")
        before = self._before
        if len(messages) != len(before) or any(new is not old for new, old in zip(messages, before, strict=True)):
            self._before = messages
            listening = frozenset[Listening]().union(*(message.listening for message in messages))
            if listening != self._listening:
                self._listening = listening
        return self._listening

    def _ask(self, number: int, family: int, protocol: int, states: int, messages: list[_Message]) -> int | None:
        """One question; the answer is added to ``messages``. An errno, 0, or None: it is not all there is.

        The same question has the same number every time, so that the same answer is the same bytes.
        """
        request = _INET_DIAG_REQ_V2.pack(family, protocol, 0, states)
        header = _NLMSGHDR.pack(
            _NLMSGHDR.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, number, 0
        )
        self._sock.send(header + request)
        self._unfinished = True
        name = "tcp" if protocol == socket.IPPROTO_TCP else "udp"
        interrupted = False
        before = self._before
        sockets = sum(len(message.listening) for message in messages)
        for _ in range(_MESSAGES_MAX):
            data = self._receive()
            if data is None:
                return None
            if not data:
                continue
            place = len(messages)
            message = (
                before[place] if place < len(before) and before[place].data == data else self._read(data, number, name)
            )
            messages.append(message)
            interrupted = interrupted or message.interrupted
            if message.last:
                self._unfinished = False
                return None if interrupted else message.error
            sockets += len(message.listening)
            if sockets > SOCKETS_MAX:
                return None
        return None

    def _receive(self) -> bytes | None:
        """A message of the kernel; b"": one that does not count. None: there is none."""
        try:
            data, (port, _) = self._sock.recvfrom(_SIZE)
        except BlockingIOError:
            return None
        except OSError as e:
            if e.errno == errno.ENOBUFS:  # forgers fill the queue
                return b""
            raise
        if port:
            self.forged += 1
            return b""
        return data

    def _read(self, data: bytes, expected: int, protocol: str) -> _Message:
        listening = []
        interrupted = False
        at, end = 0, len(data)
        while at < end:
            if end - at < _NLMSGHDR.size:
                self.malformed += 1
                break
            length, kind, flags, number, _ = _NLMSGHDR.unpack_from(data, at)
            if not _NLMSGHDR.size <= length <= end - at:
                self.malformed += 1
                break
            if number == expected:
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                body = at + _NLMSGHDR.size
                if kind == _SOCK_DIAG_BY_FAMILY:
                    found = _decode(protocol, data, body, at + length)
                    if found is not None:
                        listening.append(found)
                    else:
                        self.malformed += 1
                elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    error = _ERROR.unpack_from(data, body)[0] if length >= _NLMSGHDR.size + _ERROR.size else 0
                    return _Message(data, frozenset(listening), True, interrupted, max(0, -error))
            at += (length + 3) & ~3
        return _Message(data, frozenset(listening), False, interrupted, 0)

    def _finish(self) -> bool:
        """Let the kernel end what it was saying, or it would not listen (EBUSY, __netlink_dump_start)."""
        for _ in range(_MESSAGES_MAX):
            if self._receive() is None:
                self._unfinished = False
                return True
        return False

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def open_diag() -> Diag:
    """Of this process's own namespace. OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return Diag(socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG))


def _decode(protocol: str, data: bytes, at: int, end: int) -> Listening | None:
    """None if it is malformed."""
    if end - at < _ATTRIBUTES:
        return None
    family, port, address, interface = _ID.unpack_from(data, at)
    number = int.from_bytes(port, "big")
    if number and family == socket.AF_INET:
        return Listening(protocol, 4, address[:4], number, interface)
    if number and family == socket.AF_INET6:
        return Listening(protocol, 6, address, number, interface, _v6only(data, at + _ATTRIBUTES, end))
    return None


def _v6only(data: bytes, at: int, end: int) -> bool:
    while end - at > _RTATTR.size:
        length, kind = _RTATTR.unpack_from(data, at)
        if not _RTATTR.size <= length <= end - at:
            break
        if kind == _INET_DIAG_SKV6ONLY and length > _RTATTR.size:
            return data[at + _RTATTR.size] != 0
        at += (length + 3) & ~3
    return False
