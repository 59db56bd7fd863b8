"""A published UDP port: datagrams of any client to the guest, and the guest's answers back from the same address.

The local address a client used is remembered with its flow and used as the source of the answers (IP_PKTINFO, ip(7);
IPV6_PKTINFO, RFC 3542 §6), so that a wildcard listener works on a host with several addresses.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from netd.relay.sockaddr import is_loopback, packed
from netd.relay.udp_socket import BATCH, BATCH_BYTES, SOL_UDP, UDP_GRO, UdpSocket, buffers, view
from netd.stack.flow import UdpFlow

if TYPE_CHECKING:
    from netd.relay.inward import Inward
    from netd.stack.udp import UdpTable

# linux/in.h, linux/in6.h
IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
_IN_PKTINFO: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: ifindex, local address, header's destination
_IN6_PKTINFO: Final = struct.Struct("=16si")  # struct in6_pktinfo: local address, ifindex
_INT: Final = struct.Struct("=i")
_SPACE: Final = socket.CMSG_SPACE(_IN6_PKTINFO.size) + socket.CMSG_SPACE(_INT.size)


class UdpListener(UdpSocket):
    """Owns ``sock``; ``guest`` says where a new client is led.

    Clients' flows live in the table, this is their host side (``stack.ports.HostDatagrams``).
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        table: UdpTable,
        sock: socket.SocketType,
        guest: Callable[[bytes], bytes],
        port: int,
    ) -> None:
        self._guest, self._port = guest, port
        self._control: list[Any] = []  # of the datagram before, and what it says
        self._source: tuple[Any, ...] = ()
        self._segment = 0
        self.inward: Inward | None = None  # the way of clients on the host's loopback, past the interface
        self.to_loopback = False  # it leads to the guest's loopback, and not to its address
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        with contextlib.suppress(OSError):  # a kernel before 5.0
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        super().__init__(loop, clock, flush, table, sock)

    def __len__(self) -> int:
        past = self.inward.clients_of(self._sock) if self.inward is not None and self._sock is not None else 0
        return len(self._flows) + past

    def _receive(self) -> None:
        now = self._clock()
        budget = BATCH_BYTES
        for turn in range(BATCH):
            sock = self._sock
            if sock is None:
                return
            try:
                size, control, _, client = sock.recvmsg_into(buffers, _SPACE)
            except BlockingIOError:
                if not turn:
                    self._read_errors(sock)
                return
            except OSError:
                self._read_errors(sock)
                continue
            if control != self._control:
                self._note(control)
            flow = self._flows.get(client)
            if flow is None:
                ip = packed(client[0])
                if self.inward is not None and is_loopback(ip):
                    self._pass_by(self.inward, client, ip, view[:size])
                    continue
                flow = self._table.from_forward(self._guest(ip), self._port, ip, client[1], self, now)
                self._flows[client] = flow
                flow.address = (client, self._source)
            elif flow.address[1] is not self._source:
                flow.address = (client, self._source)
            flow.deadline = now + flow.idle
            flow.to_guest(view[:size], self._segment)
            budget -= size
            if budget < 0:
                return

    def _pass_by(self, inward: Inward, client: Any, ip: bytes, payload: memoryview) -> None:
        """Past the interface, one by one."""
        sock = self._sock
        if sock is None:
            return
        address = packed("::1" if len(ip) == 16 else "127.0.0.1") if self.to_loopback else self._guest(ip)
        segment = self._segment or len(payload) or 1
        for start in range(0, len(payload) or 1, segment):
            inward.carry(sock, client, self._source, payload[start : start + segment], address, self._port)

    def _note(self, control: list[tuple[int, int, bytes]]) -> None:
        """The size of the datagrams in a run (UDP_GRO), and what sends from the address the client wrote to."""
        self._control = control
        self._segment = 0
        source: tuple[Any, ...] = ()
        for level, kind, data in control:
            if level == SOL_UDP:
                (self._segment,) = _INT.unpack_from(data)
            elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                _, local, _ = _IN_PKTINFO.unpack_from(data)
                source = ((socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local, bytes(4))),)
            elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
                local, interface = _IN6_PKTINFO.unpack_from(data)
                if not (local[0] == 0xFE and local[1] & 0xC0 == 0x80):
                    interface = 0  # the answer may take another way, unless its address is that link's only
                source = ((socket.IPPROTO_IPV6, IPV6_PKTINFO, _IN6_PKTINFO.pack(local, interface)),)
        if source != self._source:
            self._source = source

    def adopt(self, flow: UdpFlow) -> None:
        """Nothing to do: ``_receive`` knows its flows."""

    def release(self, flow: UdpFlow) -> None:
        """A client's flow is over."""
        if flow.address is not None:
            self._flows.pop(flow.address[0], None)

    def close(self) -> None:
        """Unpublish. Unlike a TCP connection a UDP peer cannot outlive the socket, so its flows end, too."""
        if self.inward is not None and self._sock is not None:
            self.inward.forget(self._sock)
        for flow in list(self._flows.values()):
            self._table.expire(flow)
        super().close()
