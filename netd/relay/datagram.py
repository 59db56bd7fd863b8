"""Host UDP sockets: one for each guest endpoint that talks out.

Unconnected, so that the endpoint has one host port towards all its peers; ``IP_RECVERR`` makes the kernel say which
peer of them refused (ip(7)).
"""

from __future__ import annotations

import errno
import socket
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING

from netd.stack.flow import UdpFlow
from netd.stack.ports import (
    ADMIN_PROHIBITED,
    HOST_UNREACHABLE,
    NET_UNREACHABLE,
    PORT_UNREACHABLE,
    Buffer,
    HostError,
)
from netd.wire.icmpv4 import DEST_UNREACHABLE

if TYPE_CHECKING:
    from netd.stack.udp import UdpTable

BATCH = 32  # datagrams per wake-up
_MAX = 65535
_SO_BUFFER = 1 << 20

IP_RECVERR = 11
_EXTENDED_ERR = struct.Struct("=IBBBBII")  # struct sock_extended_err, linux/errqueue.h: errno origin type code pad…
_ORIGIN_ICMP = 2
SILENT = -1  # nothing for the guest to hear

# One datagram at a time in a process: all sockets share the buffer.
_buffer = bytearray(_MAX)
_view = memoryview(_buffer)

_CODES = {
    errno.ECONNREFUSED: PORT_UNREACHABLE,
    errno.EHOSTUNREACH: HOST_UNREACHABLE,
    errno.EHOSTDOWN: HOST_UNREACHABLE,
    errno.ENETUNREACH: NET_UNREACHABLE,
    errno.EACCES: ADMIN_PROHIBITED,
    errno.EPERM: ADMIN_PROHIBITED,
}


def read_error(sock: socket.socket) -> tuple[str, int, int, bytes] | None:
    """One entry of the error queue: (peer address, peer port, ICMP code for the guest, the datagram it is about).

    None when the queue is empty. The code is the router's own where it is an ICMP unreachable, and ``SILENT`` for
    "fragmentation needed": the host's kernel has learned the path's MTU and fragments from now on.
    """
    try:
        quoted, ancillary, _, address = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_RECVERR and len(data) >= _EXTENDED_ERR.size:
            number, origin, type_, code, *_ = _EXTENDED_ERR.unpack_from(data)
            if number == errno.EMSGSIZE:
                code = SILENT
            elif origin != _ORIGIN_ICMP or type_ != DEST_UNREACHABLE:
                code = _CODES.get(number, HOST_UNREACHABLE)
            return address[0], address[1], code, quoted
    return "", 0, SILENT, b""


class Datagrams:
    """The socket of the guest endpoint ``guest``:``port`` (``stack.ports.HostDatagrams``). OSError on creation."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        table: UdpTable,
        guest: bytes,
        port: int,
        source: str,
        on_close: Callable[[bytes], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._flush = flush  # after every event: the timer of a new flow
        self._table = table
        self._guest, self._port = guest, port
        self._on_close = on_close
        self._flows = 0
        self._packed: dict[str, bytes] = {}
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SO_BUFFER)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.bind((source, 0))
        except OSError:
            sock.close()
            raise
        self._sock: socket.socket | None = sock
        loop.add_reader(sock.fileno(), self._on_readable)

    def adopt(self, flow: UdpFlow) -> None:
        """Serve one flow more."""
        self._flows += 1
        flow.address = (socket.inet_ntoa(flow.target), flow.target_port)

    def send(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        """To the flow's peer."""
        sock = self._sock
        if sock is None:
            return
        try:
            sock.sendto(payload, flow.address)
            return
        except OSError as e:
            error = e.errno or 0
        if error in _CODES and self._read_errors(sock):
            # It was an earlier datagram's fate, perhaps another peer's, told on this call: now send.
            try:
                sock.sendto(payload, flow.address)
                return
            except OSError as e:
                error = e.errno or 0
        self._table.counters.drop_udp_host += 1
        if error in _CODES:
            flow.refused(HostError(DEST_UNREACHABLE, _CODES[error]))

    def _on_readable(self) -> None:
        self._receive()
        self._flush()

    def _receive(self) -> None:
        sock = self._sock
        now = self._clock()
        table, packed = self._table, self._packed
        guest, port = self._guest, self._port
        for turn in range(BATCH):
            if sock is None or sock is not self._sock:
                return
            try:
                size, (ip, peer_port) = sock.recvfrom_into(_buffer)
            except BlockingIOError:
                if not turn:
                    self._read_errors(sock)  # a full error queue alone wakes us, too
                return
            except OSError:
                self._read_errors(sock)
                continue
            peer = packed.get(ip)
            if peer is None:
                if len(packed) >= 64:
                    packed.clear()
                peer = packed[ip] = socket.inet_aton(ip)
            table.from_host(guest, port, peer, peer_port, self, _view[:size], now)

    def _read_errors(self, sock: socket.socket) -> bool:
        """True if there was one."""
        found = False
        for _ in range(BATCH):
            error = read_error(sock)
            if error is None:
                break
            found = True
            ip, port, code, _ = error
            if ip and code != SILENT:
                reason = HostError(DEST_UNREACHABLE, code)
                self._table.host_error(self._guest, self._port, socket.inet_aton(ip), port, reason)
        if sock is self._sock:
            # libuv stops to watch a descriptor for good once it has polled POLLERR (uv__poll_io), and tells nobody.
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._on_readable)
        return found

    def release(self, flow: UdpFlow) -> None:
        """One flow less."""
        self._flows -= 1
        if self._flows <= 0:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
            self._on_close(self._guest + self._port.to_bytes(2, "big"))
