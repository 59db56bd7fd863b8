"""A published UDP port: datagrams of any client to the guest, and the guest's answers back from the same address.

The local address a client used is remembered with its flow and used as the source of the answers (IP_PKTINFO, ip(7)),
so that a wildcard listener works on a host with several addresses.
"""

from __future__ import annotations

import socket
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netd.stack.flow import UdpFlow
from netd.stack.ports import Buffer

if TYPE_CHECKING:
    from netd.stack.udp import UdpTable

BATCH = 32
_IN_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: ifindex, local address, header's destination
_SPACE = socket.CMSG_SPACE(_IN_PKTINFO.size)
IP_PKTINFO = 8
_SO_BUFFER = 1 << 20

_buffer = bytearray(65535)
_view = memoryview(_buffer)


class UdpListener:
    """Owns ``sock``. Clients' flows live in the table, this is their host side (``stack.ports.HostDatagrams``)."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        table: UdpTable,
        sock: socket.socket,
        guest: bytes,
        port: int,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._flush = flush  # after every event: the timer of a new flow
        self._table = table
        self._sock: socket.socket | None = sock
        self._guest, self._port = guest, port
        self._flows: dict[tuple[str, int], UdpFlow] = {}
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SO_BUFFER)
        loop.add_reader(sock.fileno(), self._on_readable)

    def __len__(self) -> int:
        return len(self._flows)

    def _on_readable(self) -> None:
        self._receive()
        self._flush()

    def _receive(self) -> None:
        now = self._clock()
        for _ in range(BATCH):
            sock = self._sock
            if sock is None:
                return
            try:
                size, ancillary, _, client = sock.recvmsg_into([_buffer], _SPACE)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier answer could not be delivered
            flow = self._flows.get(client)
            if flow is None:
                ip, port = client
                flow = self._table.from_forward(self._guest, self._port, socket.inet_aton(ip), port, self, now)
                self._flows[client] = flow
            flow.address = (client, _source(ancillary))
            flow.deadline = now + flow.idle
            flow.to_guest(_view[:size])

    def adopt(self, flow: UdpFlow) -> None:
        """Nothing to do: ``_on_readable`` knows its flows."""

    def send(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        """The guest answers a client."""
        if self._sock is not None and flow.address is not None:
            client, source = flow.address
            try:
                self._sock.sendmsg([payload], source, 0, client)
            except OSError:
                self._table.counters.drop_udp_host += 1

    def release(self, flow: UdpFlow) -> None:
        """A client's flow is over."""
        if flow.address is not None:
            self._flows.pop(flow.address[0], None)

    def close(self) -> None:
        """Unpublish. Unlike a TCP connection a UDP peer cannot outlive the socket, so its flows end, too."""
        for flow in list(self._flows.values()):
            self._table.expire(flow)
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()


def _source(ancillary: list[tuple[int, int, bytes]]) -> list[Any]:
    """The control message that sends from the address the client wrote to."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _IN_PKTINFO.size:
            _, local, _ = _IN_PKTINFO.unpack_from(data)
            return [(socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local, bytes(4)))]
    return []
