"""What the host's UDP sockets have in common: sending, gathered or not, and hearing of errors.

Larger datagrams than the path takes are fragmented by the kernel (IP_PMTUDISC_WANT, the default: ip(7)), which also
hears of paths that take less; the guest is told, too.
"""

from __future__ import annotations

import errno
import socket
import struct
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netd.relay import hops as hops_
from netd.relay.errqueue import local_error, read_error, watch
from netd.relay.outbox import SIZE_MAX, outbox
from netd.relay.sockaddr import Sockaddr
from netd.stack.flow import UdpFlow
from netd.stack.ports import Buffer

if TYPE_CHECKING:
    from netd.stack.udp import UdpTable

BATCH: Final = 32  # datagrams per wake-up,
BATCH_BYTES: Final = 384 << 10  # and bytes, so that no socket starves another
ERRORS: Final = 64  # entries of the error queue per wake-up
_SO_BUFFER: Final = 1 << 20
_PAUSE: Final = 1024  # datagrams sent one by one before larger ones are gathered again

# linux/udp.h; their level is the protocol's number
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
_U16: Final = struct.Struct("=H")

# The path's MTU is too small for the segments, the device cannot sum, or there is no UDP_SEGMENT (udp_send_skb).
_NO_SEGMENTS: Final = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP)
_BUSY: Final = (errno.EAGAIN, errno.ENOBUFS)

# One datagram comes in at a time in a process: all sockets share the buffer.
buffer = bytearray(65535)
view = memoryview(buffer)
buffers = [buffer]


class UdpSocket(ABC):
    """Owns ``sock``. A flow's ``address`` is (the peer's sockaddr, control messages)."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        table: UdpTable,
        sock: socket.SocketType,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._flush = flush  # after every event: the timer of a new flow
        self._table = table
        self._hops = hops_.UNSET
        self._gathered = SIZE_MAX  # the largest datagram that is gathered
        self._pause = 0
        self._flows: dict[Sockaddr, UdpFlow] = {}  # by peer
        watch(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SO_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SO_BUFFER)
        self._sock: socket.SocketType | None = sock
        loop.add_reader(sock.fileno(), self._on_readable)

    # -- to the host ---------------------------------------------------------------------------------------------

    def send(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        """To the flow's peer, at the latest with the next ``outbox.flush``."""
        box = outbox
        size = len(payload)
        if box.flow is not None:
            if box.flow is flow and not segment and box.join(payload, size, hops):
                return
            box.flush()
        if not segment and 0 < size <= self._gathered:
            box.begin(self, flow, payload, size, hops)
        else:
            self.transmit(flow, payload, hops, segment)

    def transmit(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        """The same, now."""
        sock = self._sock
        if sock is None:
            return
        if hops != self._hops:
            self._hops = hops_.carry(sock, self._hops, hops)
        if segment > self._gathered:
            self._one_by_one(flow, payload, hops, segment)
            return
        peer, control = flow.address
        try:
            if segment:
                sock.sendmsg((payload,), (*control, (SOL_UDP, UDP_SEGMENT, _U16.pack(segment))), 0, peer)
            elif control:
                sock.sendmsg((payload,), control, 0, peer)
            else:
                sock.sendto(payload, peer)
        except OSError as e:
            self._failed(flow, payload, hops, segment, e.errno or errno.EIO, again=True)
        if self._pause and not segment:
            self._pause -= 1
            if not self._pause:
                self._gathered = SIZE_MAX

    def _failed(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int, number: int, again: bool) -> None:
        sock = self._sock
        if sock is None:
            return
        if again and number not in _BUSY and self._read_errors(sock):
            # It was an earlier datagram's fate, perhaps another peer's, told on this call: now send.
            peer, control = flow.address
            if segment:
                control = (*control, (SOL_UDP, UDP_SEGMENT, _U16.pack(segment)))
            try:
                sock.sendmsg((payload,), control, 0, peer)
            except OSError as e:
                self._failed(flow, payload, hops, segment, e.errno or errno.EIO, again=False)
        elif segment and number in _NO_SEGMENTS:
            self._gathered, self._pause = min(self._gathered, segment - 1), _PAUSE
            self._one_by_one(flow, payload, hops, segment)
        else:
            self._table.counters.drop_udp_host += -(-len(payload) // segment) if segment else 1
            error = local_error(sock.family, number)
            if error is not None:
                flow.refused(error)

    def _one_by_one(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        for start in range(0, len(payload), segment):
            self.transmit(flow, payload[start : start + segment], hops, 0)

    # -- from the host -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        self._receive()
        self._flush()

    @abstractmethod
    def _receive(self) -> None:
        """Take what has come."""

    def _read_errors(self, sock: socket.SocketType) -> bool:
        """True if there was one."""
        found = False
        for _ in range(ERRORS):
            entry = read_error(sock)
            if entry is None:
                break
            found = True
            peer, error, _ = entry
            flow = self._flows.get(peer)
            if flow is not None and error is not None:
                flow.refused(error)
        if sock is self._sock:
            # libuv stops to watch a descriptor for good once it has polled POLLERR (uv__poll_io), and tells nobody.
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._on_readable)
        return found

    # -- ends ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket."""
        outbox.flush()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
