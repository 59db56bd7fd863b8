"""A TCP of another make, to be the guest: selective receive, go-back-N sending, probes with data, delayed ACKs.

It shares nothing with ``netd.stack.tcp``: sequence numbers are unbounded integers here and are cut to 32 bits only on
the wire. It judges what it hears: data beyond its window, acknowledgments of the unsent, changed bytes and resets fail.
"""

from __future__ import annotations

from random import Random

from wire.oracle import ACK, FIN, PSH, RST, SYN, Segment

NEVER = float("inf")
TWO32 = 1 << 32


def unwrap(number: int, near: int) -> int:
    """The integer next to ``near`` that is ``number`` modulo 2**32."""
    return near + ((number - near + (TWO32 >> 1)) % TWO32) - (TWO32 >> 1)


class Kernel:
    """One connection. ``out`` collects (seq, ack, flags, wnd, payload, options) to be put on the wire."""

    def __init__(
        self,
        random: Random,
        iss: int,
        data: bytes,
        *,
        mss: int,
        wscale: int,
        buffer: int,
        burst: int,
        waits_for_fin: bool,
    ) -> None:
        self.random = random
        self.iss = iss
        self.data = data
        self.mss, self.wscale, self.buffer, self.burst = mss, wscale, buffer, burst
        self.waits_for_fin = waits_for_fin
        self.out: list[tuple[int, int, int, int, bytes, bytes]] = []
        self.una = self.nxt = self.top = iss
        self.dupacks = 0
        self.peer_mss = 536
        self.peer_wscale = 0
        self.peer_wnd = 0
        self.irs = -1
        self.rcv = 0
        self.held: dict[int, bytes] = {}  # out of order, by number
        self.received = bytearray()
        self.unread = 0
        self.peer_fin = -1
        self.established = False
        self.edge = 0  # the right edge of the window we offered
        self.rto = 0.3
        self.retransmit_at = self.ack_at = self.read_at = NEVER

    # -- what the others ask -------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """The number of our FIN."""
        return self.iss + 1 + len(self.data)

    @property
    def done(self) -> bool:
        """All is sent and acknowledged, all is received."""
        return self.una == self.end + 1 and self.got_fin

    @property
    def got_fin(self) -> bool:
        return self.peer_fin >= 0 and self.rcv > self.peer_fin

    @property
    def wake_at(self) -> float:
        return min(self.retransmit_at, self.ack_at, self.read_at)

    # -- sending -------------------------------------------------------------------------------------------------

    def window(self) -> int:
        free = max(self.buffer - self.unread - sum(map(len, self.held.values())), 0)
        scale = self.wscale if self.established else 0
        wnd = min(free >> scale, 65535)
        self.edge = max(self.edge, self.rcv + (wnd << scale))
        return wnd

    def put(self, seq: int, flags: int, payload: bytes = b"", options: bytes = b"") -> None:
        self.ack_at = NEVER
        ack = self.rcv if flags & ACK else 0
        self.out.append((seq % TWO32, ack % TWO32, flags, self.window(), payload, options))
        length = len(payload) + bool(flags & SYN) + bool(flags & FIN)
        self.top = max(self.top, seq + length)

    def options(self) -> bytes:
        mss = b"\x02\x04" + self.mss.to_bytes(2, "big")
        return mss + (b"\x01\x03\x03" + bytes((self.wscale,)) if self.wscale >= 0 else b"")

    def connects(self, now: float) -> None:
        self.put(self.iss, SYN, options=self.options())
        self.nxt = self.iss + 1
        self.retransmit_at = now + self.rto

    def pump(self, now: float) -> None:
        """Send what the window allows."""
        if not self.established:
            return
        limit = self.una + self.peer_wnd
        while self.nxt < min(limit, self.end):
            size = min(self.peer_mss * self.random.randint(1, self.burst), limit - self.nxt, self.end - self.nxt)
            self.send(self.nxt, size)
            self.nxt += size
        if self.nxt == self.end and (self.got_fin or not self.waits_for_fin) and self.nxt < limit + 1:
            self.put(self.nxt, FIN | ACK)
            self.nxt += 1
        pending = self.nxt > self.una or (self.nxt < self.end and not self.peer_wnd)
        if not pending:
            self.retransmit_at = NEVER
        elif self.retransmit_at == NEVER:
            self.retransmit_at = now + self.rto

    def send(self, seq: int, size: int) -> None:
        start = seq - self.iss - 1
        payload = self.data[start : start + size]
        fin = FIN if seq + len(payload) == self.end and seq + len(payload) < self.top else 0  # sent before: again
        self.put(seq, ACK | PSH | fin, payload)

    def wakes(self, now: float) -> None:
        if now >= self.read_at:
            self.read_at = NEVER
            before = self.window()
            self.unread -= self.random.randint(0, self.unread)
            if self.unread:
                self.read_at = now + self.random.random() * 0.05
            if before < self.window() and self.established:
                self.put(self.nxt, ACK)
        if now >= self.ack_at:
            self.put(self.nxt, ACK)
        if now >= self.retransmit_at:
            self.retransmit_at = NEVER
            self.rto = min(self.rto * 2, 5.0)
            if not self.established:
                flags = SYN | ACK if self.irs >= 0 else SYN
                self.put(self.iss, flags, options=self.options())
            elif self.nxt > self.una:
                self.nxt = self.una
                self.peer_wnd = max(self.peer_wnd, 1)  # go back, and probe if it must be
                self.pump(now)
            elif self.nxt < self.end:
                self.send(self.nxt, 1)  # a probe with the next byte (RFC 9293 §3.8.6.1)
                self.nxt += 1
            if self.retransmit_at == NEVER:
                self.retransmit_at = now + self.rto

    # -- receiving -----------------------------------------------------------------------------------------------

    def hears(self, segment: Segment, now: float) -> None:
        flags = segment.flags
        if flags & RST:
            assert self.done, "reset"  # else: an old duplicate of ours met nobody
            return
        if flags & SYN:
            self.hears_syn(segment, now)
            return
        if self.irs < 0:
            return
        if flags & ACK:
            self.hears_ack(segment, now)
        if segment.length:
            self.hears_data(segment, now)
        elif unwrap(segment.seq, self.rcv) < self.rcv:
            self.put(self.nxt, ACK)  # unacceptable: a keep-alive, a zero-window probe
        self.pump(now)

    def hears_syn(self, segment: Segment, now: float) -> None:
        if self.irs >= 0:
            assert segment.seq == self.irs % TWO32, "another SYN"
            if self.established:
                self.put(self.nxt, ACK)
            else:
                self.put(self.iss, SYN | ACK, options=self.options())
            return
        self.irs = segment.seq
        self.rcv = self.irs + 1
        self.peer_mss = min(int.from_bytes(segment.options[2], "big"), self.mss)
        if 3 in segment.options and self.wscale >= 0:
            self.peer_wscale = segment.options[3][0]
        else:
            self.wscale = 0
        if segment.flags & ACK:
            assert segment.ack == (self.iss + 1) % TWO32
            self.una = self.iss + 1
            self.peer_wnd = segment.wnd
            self.established = True
            self.retransmit_at = NEVER
            self.put(self.nxt, ACK)
            self.pump(now)
        else:
            self.put(self.iss, SYN | ACK, options=self.options())
            self.nxt = self.iss + 1
            self.retransmit_at = now + self.rto

    def hears_ack(self, segment: Segment, now: float) -> None:
        ack = unwrap(segment.ack, self.una)
        assert ack <= self.top, "acknowledges what was never sent"
        wnd = segment.wnd << self.peer_wscale
        if ack > self.una:
            self.established = True
            self.una = ack
            self.nxt = max(self.nxt, ack)
            self.dupacks = 0
            self.rto = 0.3
            self.peer_wnd = wnd
            self.retransmit_at = NEVER
        elif ack == self.una and self.established:
            if not segment.length and self.nxt > self.una and wnd == self.peer_wnd:
                self.dupacks += 1
                if self.dupacks == 3 and self.una < self.end:
                    self.send(self.una, min(self.peer_mss, self.end - self.una))
            self.peer_wnd = wnd

    def hears_data(self, segment: Segment, now: float) -> None:
        seq = unwrap(segment.seq, self.rcv)
        if segment.payload:
            assert seq + len(segment.payload) <= self.edge, "beyond the window"
            fresh = seq + len(segment.payload) > self.rcv
            if fresh and len(self.held.get(seq, b"")) < len(segment.payload):
                self.held[seq] = segment.payload
        if segment.flags & FIN:
            fin = seq + len(segment.payload)
            assert self.peer_fin in (-1, fin), "the FIN moved"
            self.peer_fin = fin
        in_order = seq <= self.rcv
        for start in sorted(self.held):
            piece = self.held[start]
            if start > self.rcv:
                break
            del self.held[start]
            known = self.received[start - self.irs - 1 :][: len(piece)]
            assert piece.startswith(bytes(known)) or bytes(known).startswith(piece), "other bytes than before"
            new = piece[self.rcv - start :]
            self.received += new
            self.rcv += len(new)
            self.unread += len(new)
        if self.rcv == self.peer_fin:
            self.rcv += 1
        if self.unread and self.read_at == NEVER:
            self.read_at = now + self.random.random() * 0.02
        if not in_order or segment.flags & FIN or self.held or self.random.random() < 0.5:
            self.put(self.nxt, ACK)
        elif self.ack_at == NEVER:
            self.ack_at = now + 0.04
