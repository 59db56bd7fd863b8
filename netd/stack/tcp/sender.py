"""The side of a connection that sends to the guest: segments, acknowledgments, retransmission, the guest's window."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final

from netd.stack.headers import SegmentHeader
from netd.stack.ports import Buffer
from netd.stack.timers import NEVER
from netd.wire import checksum
from netd.wire.tcp import ACK, FIN, PSH

if TYPE_CHECKING:
    from netd.stack.tcp.table import TcpTable

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000

NONE: Final = 0  # ack_pending
DUE: Final = 1
DEFERRED: Final = 2
HASTE: Final = 32
_GSO_MAX: Final = 65535 - 60  # a packet's length bounds the super-frame, headers of IPv6 and TCP included
CHUNK_COST: Final = 64  # of memory, besides its bytes: the object and its place in the queue


class Sender(ABC):
    """SND.* of RFC 9293 §3.3.1, RFC 6298's timer. Sequence numbers are 32-bit integers, times monotonic seconds."""

    __slots__ = (
        "_head",  # acknowledged bytes at the start of the first chunk, which occupy memory nevertheless
        "_offload",
        "ack_pending",  # NONE, DUE (at the batch's end) or DEFERRED (an answer may carry it)
        "buffered",  # bytes read from the host and not acknowledged
        "chunks",
        "deadline",
        "dupacks",
        "fin_sent",
        "gso_max",
        "guest_spoke",  # the last payload was the guest's
        "haste",  # turns left without deferring: the last deferred ACK found no answer to ride on
        "header",
        "hinted",
        "host_waiting",  # the host side stopped reading for want of room
        "interactive",  # guest and host take turns
        "max_wnd",
        "moves",  # ``Neighbors.moves`` when the header was aimed
        "mss",
        "rcv_adv",  # right edge of the window as last advertised
        "rcv_nxt",
        "rcv_wscale",
        "recover",  # snd_nxt when loss was found; -1 outside recovery
        "rescues",  # retransmissions of the same hole in this recovery
        "retries",
        "rto",
        "rtt_at",
        "rtt_seq",  # -1: no measurement under way
        "rttvar",
        "snd_nxt",
        "snd_una",
        "snd_wnd",
        "snd_wscale",
        "srtt",
        "table",
    )

    def __init__(self, table: TcpTable, header: SegmentHeader, iss: int, mss: int) -> None:
        self.table = table
        self.header = header
        self.moves = table.neighbors.moves
        self.snd_una = self.snd_nxt = iss
        self.snd_wnd = self.max_wnd = 0
        self.snd_wscale = self.rcv_wscale = 0
        self.rcv_nxt = self.rcv_adv = 0
        self.chunks: deque[bytes] = deque()
        self._head = 0
        self.buffered = 0
        self.dupacks = 0
        self.recover = -1
        self.rescues = 0
        self.retries = 0
        self.rto = table.limits.rto_initial
        self.srtt = self.rttvar = 0.0
        self.rtt_seq = -1
        self.rtt_at = 0.0
        self.fin_sent = False
        self.host_waiting = False
        self.ack_pending = NONE
        self.guest_spoke = False
        self.interactive = True  # most conversations begin by taking turns
        self.haste = 0
        self.deadline = self.hinted = NEVER
        self._offload = table.offload
        self.set_mss(mss)

    def set_mss(self, mss: int) -> None:
        """The largest segment the guest takes, in payload bytes; super-frames are multiples of it."""
        self.mss = mss
        self.gso_max = max(_GSO_MAX // mss * mss, mss) if self._offload else mss

    @abstractmethod
    def aim(self) -> None:
        """A neighbor's MAC has changed, perhaps the guest's."""

    @abstractmethod
    def reached(self) -> None:
        """The guest has acknowledged what had been sent to it in vain."""

    @abstractmethod
    def window(self) -> int:
        """RCV.WND to advertise, in bytes: the receive side knows."""

    @abstractmethod
    def on_deadline(self, now: float) -> None:
        """The one timer ran out."""

    # -- segments ------------------------------------------------------------------------------------------------

    def emit(self, seq: int, flags: int, payload: Buffer = b"", options: bytes = b"") -> None:
        """One segment (or super-frame) with the current acknowledgment and window."""
        table = self.table
        wnd = self.window()
        self.ack_pending = NONE
        self.rcv_adv = (self.rcv_nxt + wnd) & MASK
        wnd >>= self.rcv_wscale
        if wnd > 0xFFFF:
            wnd = 0xFFFF
        size = len(payload)
        counters = table.counters
        counters.tx_frames += 1
        counters.tx_bytes += size
        if self.moves != table.neighbors.moves:
            self.aim()
        if self._offload:
            mss = self.mss
            header = self.header.pack(seq, self.rcv_nxt, flags, wnd, size, options, 0, mss if size > mss else 0)
        else:
            total = checksum.total(payload) if size else 0
            header = self.header.pack(seq, self.rcv_nxt, flags, wnd, size, options, total)
        table.transmit(header, payload)

    # -- data ----------------------------------------------------------------------------------------------------

    def room(self, frames: int = 1) -> int:
        """How many bytes may be read from the host now: what the guest's window, the buffer and memory allow, and no
        more than so many full frames."""
        flight = (self.snd_nxt - self.snd_una) & MASK
        room = self.snd_wnd - flight
        table = self.table
        held = self.buffered + self._head + CHUNK_COST * len(self.chunks)
        buffer_room = table.limits.send_buffer - held
        if buffer_room < room:
            room = buffer_room
        memory = table.memory
        if memory.used >= memory.limit:
            room = min(room, table.limits.throttled - held)
        full = self.gso_max
        if room >= full:
            return min(room // full, frames) * full
        # Silly window avoidance (RFC 9293 §3.8.6.2.1): no crumbs while an ACK is sure to come.
        if flight and room < self.mss and room < self.max_wnd >> 1:
            return 0
        return room if room > 0 else 0

    def from_host(self, data: bytes, now: float, flags: int = ACK | PSH) -> None:
        """Bytes read from the host (1..``room(frames)``): sent now, the last frame with ``flags``, and kept until
        acknowledged."""
        size = len(data)
        if self.haste:
            self.haste -= 1
            self.interactive = False
        else:
            self.interactive = self.guest_spoke
        self.guest_spoke = False
        self.chunks.append(data)
        self.buffered += size
        self.table.memory.used += size + CHUNK_COST
        seq = self.snd_nxt
        self.snd_nxt = (seq + size) & MASK
        if self.rtt_seq < 0:
            self.rtt_seq = self.snd_nxt
            self.rtt_at = now
        full = self.gso_max
        if size <= full:
            self.emit(seq, flags, data)
        else:
            view = memoryview(data)
            at = 0
            while size - at > full:
                self.emit((seq + at) & MASK, ACK, view[at : at + full])
                at += full
            self.emit((seq + at) & MASK, flags, view[at:])
        if seq == self.snd_una:  # RFC 6298 §5.1: started, not put off
            deadline = now + self.rto
            self.deadline = deadline
            if deadline < self.hinted:
                self.table.timers.arm(self, deadline)

    def host_paused(self, now: float) -> None:
        """The host side found no room and stopped reading: ``host.resume`` will be called."""
        self.host_waiting = True
        if self.snd_una == self.snd_nxt and self.deadline == NEVER:
            self.table.timers.arm(self, now + self.rto)  # persist timer, RFC 9293 §3.8.6.1

    # -- acknowledgments -----------------------------------------------------------------------------------------

    def acknowledged(self, acked: int, ack: int, now: float) -> None:
        """The guest acknowledged ``acked`` > 0 more sequence numbers, up to ``ack``."""
        self.snd_una = ack
        if self.retries:
            self.retries = 0
            self.reached()
        self.rescues = 0
        self.dupacks = 0
        freed = acked if acked < self.buffered else self.buffered  # a FIN counts one more
        if freed:
            self.buffered -= freed
            memory = self.table.memory
            chunks = self.chunks
            freed += self._head
            while freed:
                size = len(chunks[0])
                if freed < size:
                    break
                chunks.popleft()
                memory.used -= size + CHUNK_COST
                freed -= size
            self._head = freed
        if self.rtt_seq >= 0 and (ack - self.rtt_seq) & MASK < HALF:
            self._measure(now - self.rtt_at)
        if self.recover >= 0:
            if (ack - self.recover) & MASK < HALF:
                self.recover = -1
            else:
                self._retransmit()  # a partial ACK shows the next hole (RFC 6582 §3.2)
        if ack == self.snd_nxt:
            self.deadline = NEVER
        else:
            self.deadline = now + (self.rto if self.recover < 0 else self._rescue_time())
        if self.deadline < self.hinted:
            self.table.timers.arm(self, self.deadline)

    def duplicate_ack(self, now: float) -> None:
        """An ACK that acknowledges nothing new while data is in flight (RFC 5681 §2)."""
        self.dupacks += 1
        if not self.snd_wnd:
            self.retries = 0  # alive, only full (RFC 9293 §3.8.6.1)
        if self.dupacks == 3 and self.recover < 0:
            self.recover = self.snd_nxt
            self._retransmit()
            self.table.timers.arm(self, now + self._rescue_time())

    def _rescue_time(self) -> float:
        """How long a retransmission may remain unanswered while duplicate ACKs have shown that there is a hole: it can
        be lost as well, and nothing but memory is in the way (cf. RFC 8985 §3)."""
        return max(2 * self.srtt, self.table.limits.rescue) * (1 << self.rescues)

    def _measure(self, rtt: float) -> None:
        """RFC 6298 §2.2, §2.3."""
        self.rtt_seq = -1
        if self.srtt:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        else:
            self.srtt, self.rttvar = rtt, rtt / 2
        limits = self.table.limits
        self.rto = min(max(self.srtt + 4 * self.rttvar, limits.rto_min), limits.rto_max)

    # -- loss ----------------------------------------------------------------------------------------------------

    def _retransmit(self) -> None:
        """The first unacknowledged super-frame, or the FIN where that is all that is left."""
        self.table.counters.tcp_retransmits += 1
        self.rtt_seq = -1  # Karn's algorithm, RFC 6298 §3
        if not self.buffered:
            self.emit(self.snd_una, FIN | ACK)
            return
        chunks = self.chunks
        first = memoryview(chunks[0])[self._head :]
        if len(first) >= self.mss or len(chunks) == 1:
            self.emit(self.snd_una, ACK | PSH, first[: self.gso_max])
            return
        parts: list[Buffer] = [first]
        size = len(first)
        for index in range(1, len(chunks)):  # many small chunks: fill one segment
            parts.append(memoryview(chunks[index])[: self.mss])
            size += len(chunks[index])
            if size >= self.mss:
                break
        self.emit(self.snd_una, ACK | PSH, b"".join(parts)[: self.mss])

    def retransmission_due(self, now: float) -> bool:
        """The timer ran out with something in flight (RFC 6298 §5.4). False: the guest is given up."""
        limits = self.table.limits
        if self.recover >= 0 and not self.retries and self.rescues < limits.rescues:
            self.rescues += 1
            self._retransmit()
            self.table.timers.arm(self, now + self._rescue_time())
            return True
        self.retries += 1
        if self.retries > limits.retries:
            return False
        self.recover = self.snd_nxt
        self.dupacks = 0
        self._retransmit()
        self.table.timers.arm(self, now + min(self.rto * (1 << self.retries), limits.rto_max))
        return True

    def probe(self, now: float) -> None:
        """Zero-window probe: an old sequence number, which the guest must answer (RFC 9293 §3.8.6.1)."""
        self.emit((self.snd_nxt - 1) & MASK, ACK)
        self.retries = min(self.retries + 1, 16)
        self.table.timers.arm(self, now + min(self.rto * (1 << self.retries), self.table.limits.persist_max))

    def forget(self) -> None:
        """Drop what is kept for retransmission."""
        self.table.memory.used -= self.buffered + self._head + CHUNK_COST * len(self.chunks)
        self.buffered = 0
        self.chunks.clear()
        self._head = 0
