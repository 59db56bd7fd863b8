"""The side of a connection that receives from the guest: payload to the host socket, what it does not take, what came
from behind a hole, and the window that all this leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.stack.headers import SegmentHeader
from netd.stack.ports import HostStream
from netd.stack.tcp.ahead import Ahead
from netd.stack.tcp.repeats import WATCHED
from netd.stack.tcp.sender import HALF, MASK, Sender
from netd.stack.tcp.states import CLOSED
from netd.wire.tcp import ACK, FIN

if TYPE_CHECKING:
    from netd.stack.tcp.table import TcpTable


class Receiver(Sender):
    """RCV.* of RFC 9293 §3.3.1."""

    __slots__ = (
        "_draining",  # over for the guest; the host side waits for the overflow
        "ahead",  # accepted from behind a hole
        "host",
        "overflow",  # accepted from the guest, not yet taken by the host socket
        "sack",  # the guest understands SACK
        "state",
        "watched",  # ACKs that are repeated if nothing follows: frames get lost here
    )

    host: HostStream
    state: int

    def __init__(self, table: TcpTable, header: SegmentHeader, iss: int, mss: int) -> None:
        super().__init__(table, header, iss, mss)
        self.overflow: bytearray | None = None
        self.sack = False
        self.ahead: Ahead | None = None
        self._draining = False
        self.watched = 0

    def _accept(self, data: memoryview, size: int) -> int:
        """Payload to the host socket or the overflow; how many bytes were taken."""
        overflow = self.overflow
        if not overflow:
            taken = self.host.write(data)
            if taken == size:
                return size
            if self.state == CLOSED:
                return size  # the host failed meanwhile; the guest has its RST
            data = data[taken:]
            self.host.want_write()
            if overflow is None:
                overflow = self.overflow = bytearray()
        else:
            taken = 0
        table = self.table
        fits = table.receive_window - len(overflow)
        memory = table.memory
        if memory.used >= memory.limit:
            fits = min(fits, table.limits.throttled - len(overflow))
        rest = len(data)
        if fits < rest:
            table.counters.drop_tcp_memory += 1
            rest = max(fits, 0)
            data = data[:rest]
        overflow += data
        memory.used += rest
        return taken + rest

    def _hold(self, seq: int, data: memoryview, flags: int) -> None:
        """Keep payload from behind a hole, within the window that was offered and the memory there is."""
        table = self.table
        end = (seq + len(data)) & MASK
        if (self.rcv_adv - end) & MASK < HALF and table.memory.used < table.memory.limit:
            if self.ahead is None:
                self.ahead = Ahead()
            kept = self.ahead.put(seq, data)
            table.memory.used += kept
            if flags & FIN:
                self.ahead.fin = end
            if kept:
                table.counters.drop_tcp_out_of_order -= 1
                table.counters.tcp_held += 1
        self.watched = WATCHED
        self.send_ack()  # one duplicate ACK each, so that the guest's fast retransmit fires (RFC 5681 §3.2)

    def _fill(self) -> bool:
        """The hole is filled: on with what was held. False where the host took less than all of it."""
        ahead = self.ahead
        assert ahead is not None
        self.interactive = False  # and said at once, RFC 5681 §4.2
        memory = self.table.memory
        before = ahead.held
        while data := ahead.take(self.rcv_nxt):
            memory.used -= before - ahead.held
            before = ahead.held
            taken = self._accept(memoryview(data), len(data))
            if self.state == CLOSED:
                return False
            self.rcv_nxt = (self.rcv_nxt + taken) & MASK
            if taken < len(data):
                self._drop_ahead()
                return False
        memory.used -= before - ahead.held
        if not ahead.held:
            self.ahead = None
        return True

    def send_ack(self, again: bool = False) -> None:
        """A bare ACK of what has been accepted, and of what is held, now; ``again``: without anything new."""
        ahead = self.ahead
        self.emit(self.snd_nxt, ACK, options=ahead.option() if ahead is not None and self.sack else b"")
        if self.watched and not again:
            self.watched -= 1
            self.table.repeats.watch(self, self.table.now)

    def window(self) -> int:
        """RCV.WND: what the overflow can still hold."""
        overflow = self.overflow
        if not overflow:
            return self.table.receive_window
        free = self.table.receive_window - len(overflow)
        return free if free > 0 else 0

    def _drop_ahead(self) -> None:
        if self.ahead is not None:
            self.table.memory.used -= self.ahead.held
            self.ahead = None
