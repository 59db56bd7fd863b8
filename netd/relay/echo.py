"""Unprivileged ping sockets (SOCK_DGRAM, IPPROTO_ICMP; icmp(7), net.ipv4.ping_group_range)."""

from __future__ import annotations

import socket
import struct
from asyncio import AbstractEventLoop

from netd.relay.datagram import IP_RECVERR, SILENT, read_error
from netd.stack.flow import EchoFlow
from netd.stack.ports import HOST_UNREACHABLE, Buffer, HostError
from netd.wire import icmpv4

_ECHO = struct.Struct("!BBHHH")  # type code checksum id sequence; the kernel fills in checksum and id


class Echo:
    """One guest's pings to one address (``stack.ports.HostEcho``). OSError on creation: PermissionError most of all."""

    def __init__(self, loop: AbstractEventLoop, flow: EchoFlow, source: str) -> None:
        self._loop = loop
        self._flow = flow
        sock = socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP
        )
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            if source:
                sock.bind((source, 0))
            sock.connect((socket.inet_ntoa(flow.remote), 0))
        except OSError:
            sock.close()
            raise
        self._sock: socket.socket | None = sock
        loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, flow: EchoFlow, sequence: int, payload: Buffer, hops: int) -> None:
        """One echo request."""
        sock = self._sock
        if sock is None:
            return
        message = _ECHO.pack(icmpv4.ECHO_REQUEST, 0, 0, 0, sequence) + payload
        for _ in range(2):
            try:
                sock.send(message)
                return
            except BlockingIOError:
                return  # as lost as on a wire
            except OSError:
                if not self._read_errors():
                    break
                # else it was an earlier request's fate
        flow.refused(HostError(icmpv4.DEST_UNREACHABLE, HOST_UNREACHABLE), sequence)

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            message = sock.recv(65535)
        except BlockingIOError:
            self._read_errors()
            return
        except OSError:
            self._read_errors()
            return
        if len(message) >= icmpv4.SIZE and message[0] == icmpv4.ECHO_REPLY:
            self._flow.to_guest(message[6] << 8 | message[7], message[icmpv4.SIZE :])

    def _read_errors(self) -> bool:
        """True if there was one."""
        sock = self._sock
        if sock is None:
            return False
        found = False
        for _ in range(8):
            error = read_error(sock)
            if error is None:
                break
            found = True
            _, _, code, quoted = error
            if code != SILENT and len(quoted) >= icmpv4.SIZE:
                self._flow.refused(HostError(icmpv4.DEST_UNREACHABLE, code), quoted[6] << 8 | quoted[7])
        self._loop.remove_reader(sock.fileno())  # see datagram: libuv has stopped to watch it
        self._loop.add_reader(sock.fileno(), self._on_readable)
        return found

    def close(self) -> None:
        """Close the socket."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
