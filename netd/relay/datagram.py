"""Host UDP sockets: one for each guest endpoint that talks out.

Unconnected, so that the endpoint has one host port towards all its peers; the error queue says which peer of them
refused. A second socket on the same port, connected to a busy peer, was measured: 0.5 us of 3.2 less for a lone
datagram in each direction, nothing for gathered ones. It was not worth a second descriptor.

A busy socket has the kernel hand over runs of datagrams in one piece (UDP_GRO, udp(7)); reading with control messages
costs 0.3 us of 1.2 more, so that the quiet ones do without.
"""

from __future__ import annotations

import socket
import struct
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netd.relay.sockaddr import family_of, packed
from netd.relay.source import Source
from netd.relay.udp_socket import BATCH, BATCH_BYTES, SOL_UDP, UDP_GRO, UdpSocket, buffer, buffers, view
from netd.stack.flow import UdpFlow

if TYPE_CHECKING:
    from netd.stack.udp import UdpTable

BUSY: Final = 8  # datagrams of one wake-up
IP_RECVTOS: Final = 13  # linux/in.h, linux/in6.h
IPV6_RECVTCLASS: Final = 66
_INT: Final = struct.Struct("=i")
_SPACE: Final = 2 * socket.CMSG_SPACE(_INT.size)


class Datagrams(UdpSocket):
    """The socket of the guest endpoint ``guest``:``port`` (``stack.ports.HostDatagrams``). OSError on creation."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        table: UdpTable,
        guest: bytes,
        port: int,
        source: Source,
        on_close: Callable[[bytes], None],
    ) -> None:
        self._guest, self._port = guest, port
        self._source = source
        self._on_close = on_close
        self._adopted = 0
        self._busy = False
        family = family_of(guest)
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            source.bind(sock, later=False)
            if not sock.getsockname()[1]:
                sock.bind(("", 0))  # one port for all peers
            super().__init__(loop, clock, flush, table, sock)
        except BaseException:
            sock.close()
            raise

    def adopt(self, flow: UdpFlow) -> None:
        """Serve one flow more."""
        self._adopted += 1
        peer = self._source.sockaddr(flow.target, flow.target_port)
        flow.address = (peer, ())
        self._flows[peer] = flow

    def release(self, flow: UdpFlow) -> None:
        """One flow less."""
        peer = flow.address[0]
        if self._flows.get(peer) is flow:
            del self._flows[peer]
        self._adopted -= 1
        if self._adopted <= 0:
            self.close()

    def _receive(self) -> None:
        sock = self._sock
        now = self._clock()
        flows = self._flows
        before: list[tuple[int, int, bytes]] = []
        segment = tos = 0
        budget = BATCH_BYTES
        for turn in range(BATCH):
            if sock is None or sock is not self._sock:
                return
            try:
                if self._busy:
                    size, control, _, peer = sock.recvmsg_into(buffers, _SPACE)
                    if control != before:
                        before = control
                        segment = tos = 0
                        for level, _, data in control:
                            if level == SOL_UDP:
                                (segment,) = _INT.unpack_from(data)
                            else:
                                tos = int.from_bytes(data, sys.byteorder)  # a byte in IPv4, an int in IPv6
                else:
                    size, peer = sock.recvfrom_into(buffer)
            except BlockingIOError:
                if not turn:
                    self._read_errors(sock)  # a full error queue alone wakes us, too
                return
            except OSError:
                self._read_errors(sock)
                continue
            flow = flows.get(peer)
            if flow is not None:
                flow.deadline = now + flow.idle
                flow.to_guest(view[:size], segment, tos)
            else:
                ip = packed(peer[0])
                self._table.from_host(self._guest, self._port, ip, peer[1], self, view[:size], now, segment, tos)
            budget -= size
            if budget < 0:
                return
            if turn == BUSY and not self._busy:
                self._busy = _hand_over_runs(sock)

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            super().close()
            self._on_close(self._guest + self._port.to_bytes(2, "big"))


def _hand_over_runs(sock: socket.SocketType) -> bool:
    """UDP_GRO, and the TOS with it; False where the kernel has it not."""
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    except OSError:
        return False
    return True
