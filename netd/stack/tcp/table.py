"""All TCP connections of one network: demultiplexing, opening, bounds, the batch's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netd.stack import policy
from netd.stack.addressing import Addressing
from netd.stack.counters import Counters, Memory
from netd.stack.headers import SegmentHeader
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.output import Output
from netd.stack.ports import Host, HostStream, Transmit
from netd.stack.reachability import Reachability
from netd.stack.tcp.connection import Connection
from netd.stack.tcp.peers import Peers
from netd.stack.tcp.repeats import Repeats
from netd.stack.tcp.sender import DEFERRED, DUE, HALF, HASTE, MASK
from netd.stack.tcp.states import CLOSE_WAIT, CONNECTING, SYN_SENT, TIME_WAIT
from netd.stack.timers import NEVER
from netd.wire import checksum, ipv4, ipv6, tcp
from netd.wire.tcp import ACK, DEFAULT_MSS, FIN, RST, SYN

if TYPE_CHECKING:
    from netd.stack.timers import Timers

_unpack: Final[Callable[[memoryview, int], tuple[int, int, int, int]]] = tcp.FRONT.unpack_from
_OTHER_PORTS: Final = 61000  # and up, where the guest talks to the peer's already
_MIN_MSS: Final = 64  # a smaller one would cost a frame per few bytes; Linux refuses to go below 48


class TcpTable:
    """``connections`` by key: the guest's source and destination address and ports as on the wire, 12 or 36 bytes."""

    served = True  # else connections are not opened for the guest

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        transmit: Transmit,
        output: Output,
        host: Host,
        limits: Limits,
        counters: Counters,
        timers: Timers,
        mtu: int,
        offload: bool,
        secret: bytes,
    ) -> None:
        self.addressing = addressing
        self.neighbors = neighbors
        self.transmit = transmit
        self.host = host
        self.limits = limits
        self.counters = counters
        self.timers = timers
        self._mss = mtu - ipv4.SIZE - tcp.SIZE
        self._mss6 = mtu - ipv6.SIZE - tcp.SIZE
        self.offload = offload
        self.receive_window = limits.receive_window if offload else limits.receive_window_plain
        self.memory = Memory(limits.memory)
        self.connections: dict[bytes, Connection] = {}
        self.half_open: dict[bytes, Connection] = {}  # oldest first
        self.ending: dict[bytes, Connection] = {}  # FIN_WAIT_2 and TIME_WAIT, oldest first
        self.draining: dict[Connection, None] = {}  # over for the guest, not yet handed to the host
        self.reachability = Reachability(addressing, neighbors, output, transmit, limits, counters, timers)
        self.peers = Peers(addressing, neighbors, offload, limits.peers)
        self.repeats = Repeats(timers, limits.ack_repeat)
        self.touched: list[Connection] = []
        self._deferred: list[tuple[Connection, int, float]] = []  # with rcv_nxt and the time
        self.deadline = self.hinted = NEVER  # of the deferred ACKs (timers.Timed)
        self.now = 0.0  # of the batch
        self._secret = secret
        self._output = output

    # -- from the guest ------------------------------------------------------------------------------------------

    def from_guest(self, frame: memoryview, at: int, end: int, key: bytes, vouched: bool, now: float) -> None:
        """The TCP segment at ``frame[at:end]`` of the flow ``key``."""
        counters = self.counters
        self.now = now
        size = end - at
        if size < tcp.SIZE:
            counters.drop_short += 1
            return
        seq, ack, offset_flags, wnd = _unpack(frame, at)
        data_at = at + (offset_flags >> 12 << 2)
        if data_at < at + tcp.SIZE or data_at > end:
            counters.drop_bad_header += 1
            return
        if not vouched:
            pseudo = checksum.pseudo(key[:-4], b"", ipv4.TCP, size)
            if not checksum.valid(pseudo + checksum.total(frame[at:end])):
                counters.drop_bad_checksum += 1
                return
        flags = offset_flags & 0x3F
        connection = self.connections.get(key)
        if connection is not None:
            state = connection.state
            if state > SYN_SENT:
                again = state == TIME_WAIT and flags & (SYN | ACK | RST) == SYN
                if not again or (seq - connection.rcv_nxt) & MASK >= HALF:
                    connection.from_guest(seq, ack, flags, wnd, frame[data_at:end], now)
                    return
                connection.evict()  # RFC 9293 §3.6.1: a new incarnation
            elif state == SYN_SENT:
                options = bytes(frame[at + tcp.SIZE : data_at]) if flags & SYN else b""
                mss, wscale, connection.sack = tcp.parse_options(options)
                mss = max(mss or DEFAULT_MSS, _MIN_MSS)
                connection.syn_sent_from_guest(seq, ack, flags, wnd, mss, wscale, now)
                return
            else:
                if flags & RST and seq == connection.rcv_nxt:
                    connection.evict_quietly()
                elif not flags & SYN:
                    counters.drop_tcp_stray += 1
                return  # a SYN again: the host is still connecting
        if not self.served:
            counters.drop_not_served += 1
            return
        if flags & (SYN | ACK | RST | FIN) == SYN:
            self._open(frame, at, data_at, end, key, seq, wnd, now)
            return
        dst = key[len(key) - 4 >> 1 : -4]
        if policy.decide(self.addressing, dst, 0).kind != policy.DIRECT and not self.addressing.ours(dst):
            counters.drop_martian += 1  # nobody has that address, or a group has: RFC 1122 §4.2.3.10
            return
        counters.drop_tcp_stray += 1
        if not flags & RST:
            length = end - data_at + (1 if flags & FIN else 0) + (1 if flags & SYN else 0)
            self._reset(key, seq, ack, flags, length)

    def _open(
        self, frame: memoryview, at: int, data_at: int, end: int, key: bytes, seq: int, wnd: int, now: float
    ) -> None:
        half = len(key) - 4 >> 1
        dst, dport = key[half:-4], key[-2] << 8 | key[-1]
        peer = self.peers.of(key)
        target = peer.target or policy.decide(self.addressing, dst, dport)
        if target.kind == policy.DROP:
            self.counters.drop_martian += 1
            return
        if target.kind == policy.REFUSE:
            self.counters.tcp_refused += 1
            self._output.unreachable(key[:half], target.reason, bytes(frame[14 : at + 8]))
            return
        if not self._make_room():
            self._reset(key, seq, 0, SYN, 1)
            return
        mss, wscale, sack = tcp.parse_options(bytes(frame[at + tcp.SIZE : data_at]))
        mss = min(max(mss or DEFAULT_MSS, _MIN_MSS), self.mss_of(key))
        connection = Connection(self, key, self._header(key), self._isn(key, now), mss, CONNECTING, now)
        connection.guest_syn(seq, wnd, wscale)
        connection.sack = sack
        self.connections[key] = self.half_open[key] = connection
        # The relay tells the outcome later, never from within this call.
        if target.kind == policy.RESOLVER:
            connection.host = self.host.connect_resolver(connection, target.port)
        else:
            connection.host = self.host.connect(connection, target.ip, dport)

    def flush(self) -> None:
        """The end of a batch: one ACK for every connection that has taken payload and has not said so yet.

        Where guest and host take turns the ACK of a small request waits for the answer to carry it, and that of a FIN
        for ours: a frame less.
        """
        touched, deferred = self.touched, self._deferred
        for connection in touched:
            if connection.ack_pending != DUE:
                continue
            unacknowledged = (connection.rcv_nxt + connection.window() - connection.rcv_adv) & MASK
            if (connection.interactive or connection.fin_received) and unacknowledged < connection.mss:
                connection.ack_pending = DEFERRED
                deferred.append((connection, connection.rcv_nxt, self.now))
            else:
                connection.send_ack()
        touched.clear()
        if deferred and self.deadline == NEVER:
            self.timers.arm(self, self.now + self.limits.ack_delay)

    def on_deadline(self, now: float) -> None:
        """Deferred ACKs for which no answer came in time (RFC 9293 §3.8.6.3)."""
        deferred, self._deferred = self._deferred, []
        due = now - self.limits.ack_delay / 2
        for entry in deferred:
            connection, rcv_nxt, since = entry
            if connection.ack_pending != DEFERRED or connection.rcv_nxt != rcv_nxt:
                continue  # it went with data
            if since > due:
                self._deferred.append(entry)
            else:
                connection.haste = HASTE
                connection.send_ack()
        if self._deferred:
            self.timers.arm(self, now + self.limits.ack_delay)

    # -- from the host -------------------------------------------------------------------------------------------

    def open_to_guest(
        self, src: bytes, sport: int, dst: bytes, dport: int, stream: HostStream, now: float
    ) -> Connection | None:
        """A connection to the guest, as from ``src``:``sport``; None where a bound is reached.

        Another port is taken where the guest already talks to that one.
        """
        if not self._make_room():
            return None
        key = dst + src + (dport << 16 | sport).to_bytes(4, "big")
        port = _OTHER_PORTS
        while not self._is_free(key):
            if port > 0xFFFF:
                return None
            key = dst + src + (dport << 16 | port).to_bytes(4, "big")
            port += 1
        connection = Connection(self, key, self._header(key), self._isn(key, now), self.mss_of(key), SYN_SENT, now)
        connection.host = stream
        self.connections[key] = self.half_open[key] = connection
        connection.send_syn(now)
        return connection

    def _is_free(self, key: bytes) -> bool:
        """No connection has that key; one that is over gives it away."""
        previous = self.connections.get(key)
        if previous is None:
            return True
        if previous.state != TIME_WAIT:
            return False
        previous.evict()
        return True

    # -- bounds --------------------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Room for one more flow, at the price of the oldest half-open, ending or draining one."""
        limits = self.limits
        if len(self.half_open) >= limits.tcp_half_open:
            next(iter(self.half_open.values())).evict()
        while len(self.connections) + len(self.draining) >= limits.tcp_flows:
            if self.ending:
                next(iter(self.ending.values())).evict()
            elif self.draining:
                next(iter(self.draining)).evict()
            else:
                self.counters.tcp_refused_limit += 1
                return False
        return True

    def remove(self, connection: Connection) -> None:
        """Take a closed connection out."""
        key = connection.key
        for flows in (self.connections, self.half_open, self.ending):
            if flows.get(key) is connection:
                del flows[key]

    def close(self, kept: bool) -> None:
        """The network ends. ``kept``: for this process; the guest's kernel lives on with its half of each connection,
        and would wait for ever where it only reads."""
        for connection in (*self.connections.values(), *self.draining):
            if kept and (not connection.fin_received or connection.state == CLOSE_WAIT):
                connection.send_rst()
            connection.network_ends()

    # -- answers without a connection ------------------------------------------------------------------------------

    def _reset(self, key: bytes, seq: int, ack: int, flags: int, length: int) -> None:
        """RST for a segment that belongs to nothing (RFC 9293 §3.10.7.1)."""
        self.counters.tcp_resets_to_guest += 1
        header = self._header(key)
        answers = (ack, 0, RST) if flags & ACK else (0, (seq + length) & MASK, RST | ACK)
        self.counters.tx_frames += 1
        self.transmit(header.pack(*answers, 0, 0), b"")

    def unreachable(self, connection: Connection, reason: int) -> None:
        """ICMP unreachable for the SYN that opened ``connection``; ``reason`` as in ``ports``."""
        key = connection.key
        half = len(key) - 4 >> 1
        build = ipv4.build if half == 4 else ipv6.build
        quote = build(key[:half], key[half:-4], ipv4.TCP, tcp.SIZE)
        quote += key[-4:] + connection.irs.to_bytes(4, "big")
        self._output.unreachable(key[:half], reason, quote)

    def mss_of(self, key: bytes) -> int:
        """The largest segment that fits the link, in payload bytes, for a flow of that family."""
        return self._mss if len(key) == 12 else self._mss6

    def _header(self, key: bytes) -> SegmentHeader:
        return self.peers.of(key).header.between(key[-2:] + key[-4:-2])

    def _isn(self, key: bytes, now: float) -> int:
        """Initial sequence number: a keyed hash of the flow plus a 4 µs clock (RFC 6528 §3).

        CPython's own of bytes is SipHash, as Linux takes for this, with a key of the process (PEP 456).
        """
        return (hash(self._secret + key) + int(now * 250000)) & MASK
