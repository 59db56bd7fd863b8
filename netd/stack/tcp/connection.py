"""One connection: its state machine. What it receives lies in ``receiver``, what it sends in ``sender``.

The vocabulary is RFC 9293's; the section that justifies a branch stands next to it. ``from_guest`` and ``to_guest``
name directions; the host side is a ``ports.HostStream``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netd.stack.tcp.receiver import Receiver
from netd.stack.tcp.sender import DUE, HALF, MASK, NONE
from netd.stack.tcp.states import (
    CLOSED,
    CLOSING,
    CONNECTING,
    ESTABLISHED,
    FIN_ACKNOWLEDGED,
    FIN_FROM_GUEST,
    FIN_TO_GUEST,
    FIN_WAIT_2,
    LAST_ACK,
    RECEIVING,
    STATES,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
)
from netd.stack.timers import NEVER
from netd.wire.tcp import ACK, FIN, PSH, RST, SYN, syn_options

if TYPE_CHECKING:
    from netd.stack.headers import SegmentHeader
    from netd.stack.tcp.table import TcpTable

RCV_WSCALE: Final = 7


class Connection(Receiver):
    """One TCP connection of the guest's, to or from it."""

    __slots__ = (
        "fin_received",
        "irs",
        "key",
        "opened",
        "snd_wl1",
        "snd_wl2",
    )

    def __init__(
        self, table: TcpTable, key: bytes, header: SegmentHeader, iss: int, mss: int, state: int, now: float
    ) -> None:
        super().__init__(table, header, iss, mss)
        self.key = key
        self.state = state
        self.opened = now
        self.irs = 0
        self.snd_wl1 = self.snd_wl2 = 0
        self.fin_received = False

    def __repr__(self) -> str:
        return f"<Connection {self.key.hex()} {STATES[self.state]}>"

    # -- opening -------------------------------------------------------------------------------------------------

    def guest_syn(self, seq: int, wnd: int, wscale: int) -> None:
        """What the guest's SYN said (CONNECTING)."""
        self.irs = seq
        self.rcv_nxt = self.rcv_adv = (seq + 1) & MASK
        self.snd_wnd = self.max_wnd = wnd  # never scaled in a SYN, RFC 7323 §2.2
        if wscale >= 0:
            self.snd_wscale = wscale
            self.rcv_wscale = RCV_WSCALE

    def host_connected(self, now: float) -> None:
        """The host's connect succeeded: now the guest may know."""
        self.state = SYN_RECEIVED
        self._send_syn(SYN | ACK, self.snd_una)
        self.snd_nxt = (self.snd_una + 1) & MASK
        self.rtt_seq, self.rtt_at = self.snd_nxt, now
        self.table.timers.arm(self, now + self.rto, now + self.table.limits.rto_min)

    def host_refused(self, code: int, now: float) -> None:
        """The host's connect failed: RST for ``code`` -1, else ICMP unreachable with that code."""
        self.table.counters.tcp_refused += 1
        if code < 0:
            self.snd_nxt = self.snd_una  # no SYN of ours is out: RST carries an ACK, RFC 9293 §3.10.7.1
            self.emit(0, RST | ACK)
        else:
            self.table.unreachable(self, code)
        self._leave()
        self.host.close()

    def send_syn(self, now: float) -> None:
        """Open towards the guest (SYN_SENT): somebody connected to a published port."""
        self.rcv_wscale = RCV_WSCALE  # offered; taken back if the guest does not answer in kind
        self._send_syn(SYN, self.snd_una)
        self.snd_nxt = (self.snd_una + 1) & MASK
        self.rtt_seq, self.rtt_at = self.snd_nxt, now
        self.table.timers.arm(self, now + self.rto, now + self.table.limits.rto_min)

    def _send_syn(self, flags: int, seq: int) -> None:
        scale, self.rcv_wscale = self.rcv_wscale, 0
        offer = scale if flags == SYN or scale else -1
        self.emit(seq, flags, options=syn_options(self.table.mss_of(self.key), offer, self.sack or flags == SYN))
        self.rcv_wscale = scale

    def _established(self, now: float) -> None:
        self.state = ESTABLISHED
        self.table.half_open.pop(self.key, None)
        self.table.counters.tcp_opened += 1
        self.host.resume(now)

    def syn_sent_from_guest(self, seq: int, ack: int, flags: int, wnd: int, mss: int, wscale: int, now: float) -> None:
        """A segment in SYN_SENT (RFC 9293 §3.10.7.3)."""
        acceptable = flags & ACK and ack == self.snd_nxt
        if flags & ACK and not acceptable:
            if not flags & RST:
                self.emit(ack, RST)
                if not self.retries:  # that freed the name of an old incarnation: ask again at once
                    self.table.timers.arm(self, now)
            return
        if acceptable and flags & RST:
            self.table.counters.tcp_resets_from_guest += 1
            self._leave()
            self.host.guest_refused(now)
            return
        if not acceptable or not flags & SYN:
            self.table.counters.drop_tcp_stray += 1
            return  # a simultaneous open cannot be: the host side is connected already
        self.irs = seq
        self.rcv_nxt = (seq + 1) & MASK
        self.snd_wnd = self.max_wnd = wnd
        if wscale >= 0:
            self.snd_wscale = wscale
        else:
            self.rcv_wscale = 0
        self.set_mss(min(self.mss, mss))
        self.snd_wl1, self.snd_wl2 = seq, ack
        self.acknowledged(1, ack, now)
        ours = self.snd_nxt
        self._established(now)
        if self.snd_nxt == ours and self.state != CLOSED:  # else what the client had to say has carried it
            self.send_ack()

    # -- segments from the guest ---------------------------------------------------------------------------------

    def from_guest(self, seq: int, ack: int, flags: int, wnd: int, data: memoryview, now: float) -> None:
        """One segment in SYN_RECEIVED or later, in the order of RFC 9293 §3.10.7.4."""
        state = self.state
        size = len(data)
        segment = data
        if seq != self.rcv_nxt or flags & (RST | SYN):
            trim = self._acceptable(seq, size, flags, now)
            if trim < 0:
                return
            if trim:
                data = data[trim:]
                size -= trim  # -1 behind a hole: only the acknowledgment counts
        if not flags & ACK:
            self.table.counters.drop_tcp_stray += 1
            return

        # Acknowledgment and window
        flight = (self.snd_nxt - self.snd_una) & MASK
        acked = (ack - self.snd_una) & MASK
        wnd <<= self.snd_wscale
        if acked > flight:
            if state == SYN_RECEIVED:
                self.emit(ack, RST)
                return
            if acked < HALF:
                self.send_ack()  # acknowledges what was never sent
                return
            # an old acknowledgment: nothing to learn from it, the data still counts
        else:
            if state == SYN_RECEIVED:
                if not acked:
                    self.emit(ack, RST)
                    return
                self.acknowledged(acked, ack, now)
                self.snd_wnd = self.max_wnd = wnd
                self.snd_wl1, self.snd_wl2 = seq, ack
                self._established(now)
                state = self.state  # the host side may have failed at once
                if state == CLOSED:
                    return
            else:
                if acked:
                    self.acknowledged(acked, ack, now)
                elif not flight:
                    if self.retries and (wnd or state == FIN_WAIT_2):  # the answer to a probe
                        self.retries = 0
                        if state == FIN_WAIT_2:
                            self.table.timers.arm(self, now + self.table.limits.fin_wait)
                elif not size and wnd == self.snd_wnd and not flags & FIN:
                    self.duplicate_ack(now)
                # SND.WL1/WL2, RFC 9293 §3.10.7.4: newer segments only, and what acknowledges more is newer
                if acked or self.snd_wl1 == seq or (seq - self.snd_wl1) & MASK < HALF:
                    self.snd_wl1, self.snd_wl2 = seq, ack
                    self.snd_wnd = wnd
                    if wnd > self.max_wnd:
                        self.max_wnd = wnd
                if self.fin_sent and self.snd_una == self.snd_nxt and state in FIN_ACKNOWLEDGED:
                    state = self._enter(FIN_ACKNOWLEDGED[state], now)
                    if state == CLOSED:
                        return
                if self.host_waiting:
                    if self.room():
                        self.host_waiting = False
                        self.host.resume(now)
                        state = self.state
                    elif self.deadline == NEVER:
                        self.host_paused(now)

        # Payload
        filled = False
        if size < 0 and len(segment) and state in RECEIVING:
            self._hold(seq, segment, flags)
        elif size > 0:
            if state not in RECEIVING:
                if state != CLOSED:
                    self.send_ack()
                return
            taken = self._accept(data, size)
            if self.state == CLOSED:
                return
            self.rcv_nxt = (self.rcv_nxt + taken) & MASK
            if self.ack_pending != DUE:
                self.ack_pending = DUE
                self.table.touched.append(self)
            if self.guest_spoke:
                self.interactive = False
            self.guest_spoke = True
            if taken < size:
                return  # the rest, and a FIN behind it, come again
            if self.ahead is not None:
                filled = True
                fin = self.ahead.fin
                if not self._fill():
                    return
                if fin == self.rcv_nxt:
                    flags |= FIN
            state = self.state
        if flags & FIN and size >= 0 and state in FIN_FROM_GUEST:
            self.rcv_nxt = (self.rcv_nxt + 1) & MASK
            self.fin_received = True
            if filled or state != ESTABLISHED:
                self.send_ack()
            elif self.ack_pending != DUE:  # the host's peer is likely to finish as well, and our FIN to carry it
                self.ack_pending = DUE
                self.table.touched.append(self)
            if not self.overflow:
                self.host.finish()
            if self.state != CLOSED:  # the host may turn out to be gone
                self._enter(FIN_FROM_GUEST[state], now)

    def _acceptable(self, seq: int, size: int, flags: int, now: float) -> int:
        """RST, SYN, sequence: how many leading bytes to cut; -1 for all of the segment, ``size`` + 1 behind a hole."""
        offset = (seq - self.rcv_nxt) & MASK
        if flags & RST:
            if not offset:
                self._reset_by_guest()
            elif offset < self.table.receive_window:
                self.send_ack()  # challenge ACK, RFC 5961 §3.2
            else:
                self.table.counters.drop_tcp_out_of_window += 1
            return -1
        if flags & SYN:
            if self.state == SYN_RECEIVED and seq == self.irs:
                self.rtt_seq = -1
                self._send_syn(SYN | ACK, self.snd_una)  # our SYN-ACK was lost
            else:
                self.send_ack()  # challenge ACK, RFC 5961 §4.2
            return -1
        if offset >= HALF:  # begins with what we have
            old = MASK + 1 - offset
            if old < size or (old == size and flags & FIN and not self.fin_received):
                return old
            self.send_ack()  # all old: a retransmission, or a keep-alive (RFC 9293 §3.8.4)
            if self.state == TIME_WAIT:
                self.table.timers.arm(self, now + self.table.limits.time_wait)
            return -1
        counters = self.table.counters
        if offset > self.table.receive_window:
            counters.drop_tcp_out_of_window += 1
            self.send_ack()
            return -1
        if not size and not flags & FIN:
            return 0
        counters.drop_tcp_out_of_order += 1
        if self.state not in RECEIVING or not size:
            self.send_ack()
        return size + 1

    def aim(self) -> None:
        """A neighbor's MAC has changed, perhaps the guest's."""
        neighbors = self.table.neighbors
        self.moves = neighbors.moves
        self.header.aim(neighbors.mac_of(self.key[: len(self.key) - 4 >> 1]))

    def reached(self) -> None:
        """RFC 4861 §7.3.1: no need to ask where the guest is."""
        self.table.neighbors.doubted.pop(self.key[: len(self.key) - 4 >> 1], None)

    # -- events of the host side ---------------------------------------------------------------------------------

    def host_writable(self, now: float) -> None:
        """The host socket takes bytes again."""
        overflow = self.overflow
        if overflow:
            taken = self.host.write(overflow)
            if self.overflow is not overflow:
                return  # the host failed
            del overflow[:taken]
            self.table.memory.used -= taken
            if overflow:
                self.host.want_write()
            else:
                self.overflow = None
                if self.fin_received:
                    self.host.finish()
                if self._draining:
                    self._draining = False
                    self.table.draining.pop(self, None)
                    self.host.close()
                    return
            if self.state in RECEIVING:
                # Tell the guest once half the window is free again (RFC 9293 §3.8.6.2.2).
                offered = (self.rcv_adv - self.rcv_nxt) & MASK
                half = self.table.receive_window >> 1
                if offered < half <= self.window():
                    self.send_ack()

    def host_eof(self, now: float, last: bytes = b"") -> None:
        """The host's peer has finished sending: FIN behind what is in flight, or in the last segment."""
        state = FIN_TO_GUEST.get(self.state)
        if state is None:
            return
        if last:
            self.from_host(last, now, ACK | PSH | FIN)
        else:
            self.emit(self.snd_nxt, FIN | ACK)
        self.snd_nxt = (self.snd_nxt + 1) & MASK
        self.fin_sent = True
        self.table.timers.arm(self, now + self.rto)
        self._enter(state, now)
        if state == LAST_ACK and not self.overflow:  # the host side has said and heard all
            self.host.close()

    def host_reset(self, now: float) -> None:
        """The host side failed (reset, timed out, unreachable): the guest gets an RST."""
        if self.state == CLOSED:
            self._drop_overflow()
            self.host.close()
            return
        self.abort()
        self.host.close()

    # -- ends ----------------------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Retransmission, persist, TIME-WAIT: the one timer."""
        state = self.state
        table = self.table
        if state == TIME_WAIT:
            self._leave()
        elif state == FIN_WAIT_2:
            if self.retries > table.limits.retries:
                table.counters.tcp_timeouts += 1
                self.abort()
                self.host.abort()
            else:
                self.probe(now)  # half-closed and silent: is the guest still there?
        elif state in (SYN_RECEIVED, SYN_SENT):
            self.retries += 1
            if self.retries > table.limits.syn_retries:
                table.counters.tcp_timeouts += 1
                self.abort()
                self.host.abort()
                return
            self.rtt_seq = -1
            self._doubt(now)
            self._send_syn(SYN if state == SYN_SENT else SYN | ACK, self.snd_una)
            table.timers.arm(self, now + self.rto * (1 << self.retries))
        elif self.snd_una != self.snd_nxt:
            self._doubt(now)
            if not self.retransmission_due(now):
                table.counters.tcp_timeouts += 1
                self.abort()
                self.host.abort()
        elif self.host_waiting:
            if self.room():
                self.host_waiting = False
                self.host.resume(now)
            else:
                self.probe(now)

    def _doubt(self, now: float) -> None:
        """After the second time-out: is the guest still where it was?"""
        if self.retries > 1:
            self.table.reachability.doubt(self.key[: len(self.key) - 4 >> 1], now)

    def abort(self) -> None:
        """RST to the guest and leave; the host side is the caller's."""
        if self.state != CLOSED:
            self.send_rst()
            self._drop_overflow()
            self._leave()

    def send_rst(self) -> None:
        """RST to the guest, whatever it knows of the connection."""
        self.table.counters.tcp_resets_to_guest += 1
        if self.state == CONNECTING:
            self.emit(0, RST | ACK)
        elif self.state != SYN_SENT:
            self.emit(self.snd_nxt, RST | ACK)
        else:
            self.emit(self.snd_nxt, RST)

    def evict(self) -> None:
        """Make room for another flow."""
        self.table.counters.tcp_evicted += 1
        if self.state == TIME_WAIT:
            self._leave()
        elif self.state == CLOSED:
            self.evict_quietly()  # draining
        else:
            self.abort()
            self.host.abort()

    def evict_quietly(self) -> None:
        """End both sides without a word to the guest, which gave the flow up."""
        self._drop_overflow()
        self._leave()
        self.host.abort()

    def network_ends(self) -> None:
        """The guest is gone. What it had finished sending is still delivered; anything else is cut off, and says so."""
        graceful = self.fin_received or self.state == TIME_WAIT
        overflow = self.overflow
        if graceful and overflow:
            graceful = self.host.write(overflow) == len(overflow)
        self._drop_overflow()
        self._leave()
        if graceful:
            self.host.close()
        else:
            self.host.abort()

    def _reset_by_guest(self) -> None:
        self.table.counters.tcp_resets_from_guest += 1
        if self.state in (TIME_WAIT, LAST_ACK, CLOSING):
            self._release_host()  # its stream is whole; it only did not wait for our FIN
            self._leave()
        else:
            self.evict_quietly()

    def _enter(self, state: int, now: float) -> int:
        """Change state; what that state needs. The state as it is afterwards."""
        self.state = state
        table = self.table
        if state == TIME_WAIT:
            table.ending[self.key] = self
            table.timers.arm(self, now + table.limits.time_wait)
            self._release_host()
        elif state == CLOSED:
            self._release_host()
            self._leave()
        elif state == FIN_WAIT_2:
            table.ending[self.key] = self
            table.timers.arm(self, now + table.limits.fin_wait)
        return self.state

    def _release_host(self) -> None:
        """Close the host side, once what the guest sent has been handed over."""
        if self.overflow:
            self._draining = True
        else:
            self.host.close()

    def _drop_overflow(self) -> None:
        if self.overflow:
            self.table.memory.used -= len(self.overflow)
        self.overflow = None
        self._draining = False
        self.table.draining.pop(self, None)

    def _leave(self) -> None:
        """Out of the table; nothing is kept for the guest."""
        self.state = CLOSED
        self.deadline = NEVER
        self.ack_pending = NONE
        self.forget()
        self._drop_ahead()
        self.table.remove(self)
        if self._draining:
            self.table.draining[self] = None
