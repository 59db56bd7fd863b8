"""Unprivileged ping sockets (SOCK_DGRAM with IPPROTO_ICMP or IPPROTO_ICMPV6; icmp(7), net.ipv4.ping_group_range)."""

from __future__ import annotations

import errno
import socket
import struct
from asyncio import AbstractEventLoop
from typing import Final

from netd.relay import hops as hops_
from netd.relay.errqueue import local_error, read_error, watch
from netd.relay.sockaddr import family_of
from netd.relay.source import Source
from netd.stack.flow import EchoFlow
from netd.stack.ports import Buffer
from netd.wire import icmpv4, icmpv6

BATCH: Final = 16  # replies per wake-up
ERRORS: Final = 16
_ECHO: Final = struct.Struct("!BBHHH")  # type code checksum id sequence; the kernel fills in checksum and id


class Echo:
    """One guest's pings to one address (``stack.ports.HostEcho``). OSError on creation: PermissionError most of all."""

    def __init__(self, loop: AbstractEventLoop, flow: EchoFlow, source: Source) -> None:
        self._loop = loop
        self._flow = flow
        self._hops = hops_.UNSET
        family = family_of(flow.remote)
        if family == socket.AF_INET6:
            protocol, self._request, self._reply = socket.IPPROTO_ICMPV6, icmpv6.ECHO_REQUEST, icmpv6.ECHO_REPLY
        else:
            protocol, self._request, self._reply = socket.IPPROTO_ICMP, icmpv4.ECHO_REQUEST, icmpv4.ECHO_REPLY
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            watch(sock)
            source.bind(sock, later=False)
            sock.connect(source.sockaddr(flow.remote, 0))
            loop.add_reader(sock.fileno(), self._on_readable)
        except BaseException:
            sock.close()
            raise
        self._sock: socket.socket | None = sock

    def send(self, flow: EchoFlow, sequence: int, payload: Buffer, hops: int) -> None:
        """One echo request."""
        sock = self._sock
        if sock is None:
            return
        if hops != self._hops:
            self._hops = hops_.carry(sock, self._hops, hops)
        message = _ECHO.pack(self._request, 0, 0, 0, sequence) + payload
        number = 0
        for _ in range(2):
            try:
                sock.send(message)
                return
            except BlockingIOError:
                return  # as lost as on a wire
            except OSError as e:
                number = e.errno or errno.EIO
                if not self._read_errors():
                    break
                # else it was an earlier request's fate
        error = local_error(sock.family, number) or local_error(sock.family, errno.EHOSTUNREACH)
        if error is not None:
            flow.refused(error, sequence)

    def _on_readable(self) -> None:
        for turn in range(BATCH):
            sock = self._sock
            if sock is None:
                return
            try:
                message = sock.recv(65535)
            except BlockingIOError:
                if not turn:
                    self._read_errors()
                return
            except OSError:
                self._read_errors()
                return
            if len(message) >= icmpv4.SIZE and message[0] == self._reply:
                self._flow.to_guest(message[6] << 8 | message[7], message[icmpv4.SIZE :])

    def _read_errors(self) -> bool:
        """True if there was one."""
        sock = self._sock
        if sock is None:
            return False
        found = False
        for _ in range(ERRORS):
            entry = read_error(sock)
            if entry is None:
                break
            found = True
            _, error, quoted = entry
            if error is not None and len(quoted) >= icmpv4.SIZE:
                self._flow.refused(error, quoted[6] << 8 | quoted[7])
        self._loop.remove_reader(sock.fileno())  # see udp_socket: libuv has stopped to watch it
        self._loop.add_reader(sock.fileno(), self._on_readable)
        return found

    def close(self) -> None:
        """Close the socket."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
