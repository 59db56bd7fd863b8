"""The guest's kernel, as far as a screenplay needs it: it builds and reads real frames with code of its own.

Sequence numbers in a script are readable: the guest's own begin where the script says (``seq=100``), the stack's are
counted from its initial number (its SYN is 0, its first byte 1). ``shift`` is added to the guest's on the wire.
Addresses in a script are IPv4's and played by the world's cast (``cast``).
"""

from __future__ import annotations

from typing import Any

from wire import oracle
from wire.oracle import ACK, FIN, PSH, RST, SYN, Segment

from netd.stack.tcp.sender import DEFERRED

from .cast import ICMP6
from .host import FakeStream
from .world import DNS, DNS_MAC, GATEWAY_MAC, GUEST, GUEST_MAC, WEB, Sent, World

MASK = 0xFFFFFFFF
NAMES = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (oracle.URG, "URG"))

__all__ = ["ACK", "FIN", "PSH", "RST", "SYN", "Conversation", "Guest"]


def text(flags: int) -> str:
    return "|".join(name for bit, name in NAMES if flags & bit) or "none"


class Guest:
    """What it sends goes to ``world``; what it sees is taken from there, in order."""

    def __init__(self, world: World, address: bytes = GUEST, mac: bytes = GUEST_MAC) -> None:
        self.world = world
        self.cast = world.cast
        self.address = self.cast.real(address)
        self.mac = mac
        self.echo_request = 8 if self.cast.family == 4 else 128
        self._port = 40000

    # -- frames --------------------------------------------------------------------------------------------------

    def sends_ip(
        self, dst: bytes, protocol: int, payload: bytes, src: bytes | None = None, segment: int = 0, **fields: Any
    ) -> None:
        """``payload`` is for the wire: its checksum is of the real addresses."""
        self.world.receive(self.frame(dst, protocol, payload, src, **fields), segment=segment)

    def frame(self, dst: bytes, protocol: int, payload: bytes, src: bytes | None = None, **fields: Any) -> bytes:
        to_mac = DNS_MAC if dst == DNS else GATEWAY_MAC
        src, dst = self.cast.real(src or self.address), self.cast.real(dst)
        build = oracle.ip4 if self.cast.family == 4 else oracle.ip6
        return oracle.eth(to_mac, self.mac, self.cast.ethertype, build(src, dst, protocol, payload, **fields))

    def datagram(
        self, dst: bytes, dport: int, payload: bytes, sport: int = 5000, src: bytes | None = None, **fields: bool
    ) -> bytes:
        """The layer 4 of one."""
        return oracle.udp(self.cast.real(src or self.address), self.cast.real(dst), sport, dport, payload, **fields)

    def sends_udp(
        self,
        dst: bytes,
        dport: int,
        payload: bytes,
        sport: int = 5000,
        src: bytes | None = None,
        segment: int = 0,
        **fields: Any,
    ) -> None:
        self.sends_ip(dst, 17, self.datagram(dst, dport, payload, sport, src), src, segment, **fields)

    def icmp(self, dst: bytes, type_: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
        """One message, ``type_`` and ``code`` as in this family."""
        if self.cast.family == 4:
            return oracle.icmp(type_, code, rest, payload)
        return oracle.icmp6(self.address, self.cast.real(dst), type_, code, rest, payload)

    def sends_echo(self, dst: bytes, ident: int, sequence: int, payload: bytes = b"", **fields: int) -> None:
        rest = ident.to_bytes(2, "big") + sequence.to_bytes(2, "big")
        message = self.icmp(dst, self.echo_request, 0, rest, payload)
        self.sends_ip(dst, self.cast.icmp, message, **fields)

    def sends_arp(self, oper: int, spa: bytes, tpa: bytes, sha: bytes | None = None) -> None:
        packet = oracle.arp(oper, sha or self.mac, spa, bytes(6), tpa)
        self.world.receive(oracle.eth(b"\xff" * 6, sha or self.mac, 0x0806, packet))

    # -- what it sees --------------------------------------------------------------------------------------------

    def next(self) -> Sent:
        assert self.world.sent, "nothing was sent"
        return self.world.sent.popleft()

    def sees_nothing(self) -> None:
        assert not self.world.sent, [s.frame.hex() for s in self.world.sent]

    def sees_fragments(self) -> bytes:
        """The layer 4 of one datagram that comes in fragments, in order."""
        whole, more = b"", True
        while more:
            packet = self.next().packet
            assert packet is not None and packet.fragment is not None
            _, offset, more = packet.fragment
            assert offset == len(whole) and (not more or len(packet.payload) % 8 == 0)
            whole += packet.payload
        return whole

    def sees_udp(self, src: bytes, sport: int, payload: bytes, dport: int = 5000) -> Sent:
        sent = self.next()
        assert sent.packet is not None and sent.packet.protocol == 17
        assert (sent.packet.src, sent.packet.dst) == (self.cast.real(src), self.address)
        assert oracle.read_udp(sent.packet, sent.data) == (sport, dport, payload)
        assert sent.packet.dst_mac == self.mac
        assert sent.packet.src_mac == (DNS_MAC if src == DNS else GATEWAY_MAC)
        return sent

    def sees_icmp(self, type_: int, code: int, src: bytes) -> tuple[bytes, bytes]:
        """(rest of the header, payload); ``type_`` and ``code`` are IPv4's."""
        if self.cast.family == 6:
            type_, code = ICMP6[type_, code]
        sent = self.next()
        assert sent.packet is not None and sent.packet.protocol == self.cast.icmp, sent.frame.hex()
        assert (sent.packet.src, sent.packet.dst, sent.packet.dst_mac) == (self.cast.real(src), self.address, self.mac)
        found_type, found_code, rest, payload = oracle.read_icmp(sent.packet)
        assert (found_type, found_code) == (type_, code)
        return rest, payload

    def sees_unreachable(self, code: int, src: bytes, protocol: int, dst: bytes) -> bytes:
        """Destination unreachable that quotes a datagram to ``dst``; the 8 bytes of its layer 4 (RFC 792)."""
        _, quote = self.sees_icmp(3, code, src)
        return self.quoted(quote, protocol, dst)

    def quoted(self, quote: bytes, protocol: int, dst: bytes) -> bytes:
        """The 8 bytes of layer 4 in an error's quote of a datagram of ours to ``dst``."""
        if self.cast.family == 6:
            protocol = {1: 58}.get(protocol, protocol)
            assert quote[0] >> 4 == 6
            assert (quote[6], quote[8:24], quote[24:40]) == (protocol, self.address, self.cast.real(dst))
            assert 48 <= len(quote) <= 1232
            return quote[40:48]
        ihl = (quote[0] & 15) * 4
        assert oracle.checksum(quote[:ihl]) == 0
        assert (quote[9], quote[12:16], quote[16:20]) == (protocol, self.address, dst)
        assert len(quote) == ihl + 8
        return quote[ihl:]

    def sums(self, src: bytes, data: bytes, protocol: int = 1) -> bool:
        """Whether the checksum of the layer 4 ``data`` from ``src`` is right."""
        if protocol == 1 and self.cast.family == 4:
            return oracle.checksum(data) == 0
        protocol = self.cast.icmp if protocol == 1 else protocol
        pseudo = oracle.pseudo_header(self.cast.real(src), self.address, protocol, len(data))
        return oracle.checksum(pseudo + data) == 0

    def sees_arp(self) -> tuple[int, bytes, bytes, bytes, bytes]:
        sent = self.next()
        assert sent.packet is None
        assert sent.frame[:6] == self.mac
        return oracle.read_arp(sent.frame)

    # -- TCP -----------------------------------------------------------------------------------------------------

    def tcp(self, remote: bytes = WEB, rport: int = 80, port: int = 0, shift: int = 0) -> Conversation:
        """A connection of the guest's that has not begun."""
        if not port:
            self._port += 1
            port = self._port
        return Conversation(self, port, remote, rport, shift)

    def connects(self, remote: bytes = WEB, rport: int = 80, **options: int) -> tuple[Conversation, FakeStream]:
        """The whole opening, from the guest's SYN (number 100) on."""
        tcp = self.tcp(remote, rport, options.pop("port", 0), options.pop("shift", 0))
        tcp.opens(**options)
        return tcp, self.world.host.stream

    def accepts(
        self, client: bytes = WEB, cport: int = 6000, port: int = 80, **options: int
    ) -> tuple[Conversation, FakeStream]:
        """The same, from a client of the published ``port``."""
        tcp, stream = self.is_called(client, cport, port)
        tcp.answers(**options)
        self.world.hurries(stream)
        return tcp, stream

    def is_called(self, client: bytes = WEB, cport: int = 6000, port: int = 80) -> tuple[Conversation, FakeStream]:
        """A client of the published ``port`` has connected on the host; the SYN is on the wire."""
        world = self.world
        stream = world.host.new_stream((client, cport))
        tcp = world.interface.tcp
        connection = tcp.open_to_guest(self.cast.real(client), cport, self.address, port, stream, world.now)
        assert connection is not None
        stream.connection = connection
        world.flush()
        return Conversation(self, port, client, cport, 0), stream


class Conversation:
    """The guest's end of one TCP connection."""

    def __init__(self, guest: Guest, port: int, remote: bytes, rport: int, shift: int) -> None:
        self.guest = guest
        self.world = guest.world
        self.port, self.remote, self.rport = port, remote, rport
        self.shift = shift
        self.seq = 100  # the next number to send
        self.ack = 0  # the next number awaited
        self.sent_up_to = 100
        self.wnd = 65535  # the header's field
        self.wscale = 0  # of what we send
        self.their_wscale = 0
        self.iss = -1  # the stack's, as on the wire
        self.edge = 0  # the right edge of the window we offered
        self.their_edge = 0  # and they

    def __repr__(self) -> str:
        return f"<guest's {self.port} to {self.remote.hex()}:{self.rport}>"

    # -- sending -------------------------------------------------------------------------------------------------

    def sends(
        self,
        flags: int,
        data: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        wnd: int | None = None,
        options: bytes = b"",
        frame_only: bool = False,
    ) -> bytes:
        """One segment; ``seq`` and ``ack`` default to the next ones. The frame."""
        seq = self.seq if seq is None else seq
        ack = self.ack if ack is None else ack
        wnd = self.wnd if wnd is None else wnd
        length = len(data) + bool(flags & SYN) + bool(flags & FIN)
        self.sent_up_to = max(self.sent_up_to, seq + length)
        if seq == self.seq:
            self.seq += length
        self.wnd = wnd
        if flags & ACK:
            self.edge = max(self.edge, ack + (wnd << (0 if flags & SYN else self.wscale)))
        src, dst = self.guest.address, self.guest.cast.real(self.remote)
        wire_ack = (ack + max(self.iss, 0)) & MASK if flags & ACK else 0
        segment = oracle.tcp(
            src, dst, self.port, self.rport, (seq + self.shift) & MASK, wire_ack, flags, wnd, data, options
        )
        frame = self.guest.frame(self.remote, 6, segment)
        if not frame_only:
            self.world.receive(frame)
        return frame

    # -- seeing --------------------------------------------------------------------------------------------------

    def next(self) -> Segment:
        """The next frame, which must be this connection's; ``seq`` and ``ack`` as in the script.

        Where nothing has been sent, and the ACK of a FIN waits for ours, the clock jumps to when it goes alone.
        """
        world = self.guest.world
        if not world.sent and any(
            connection.fin_received and connection.ack_pending == DEFERRED
            for connection in world.interface.tcp.connections.values()
        ):
            world.jump()
        sent = self.guest.next()
        assert sent.packet is not None and sent.packet.protocol == 6, sent.frame.hex()
        packet = sent.packet
        segment = oracle.read_tcp(packet, sent.data)
        assert (packet.src, packet.dst) == (self.guest.cast.real(self.remote), self.guest.address)
        assert packet.dst_mac == self.guest.mac
        assert packet.src_mac == (DNS_MAC if self.remote == DNS else GATEWAY_MAC)
        assert (segment.sport, segment.dport) == (self.rport, self.port)
        seq, ack = segment.seq, segment.ack
        if segment.flags & SYN:
            if self.iss < 0:
                self.iss = seq
            if 3 in segment.options:
                self.their_wscale = segment.options[3][0]
        base = max(self.iss, 0)
        segment = Segment(
            segment.sport,
            segment.dport,
            (seq - base) & MASK if self.iss >= 0 else seq,
            (ack - self.shift) & MASK if segment.flags & ACK else 0,
            segment.flags,
            segment.wnd,
            segment.options,
            segment.payload,
        )
        self._judge(segment, sent)
        return segment

    def _judge(self, segment: Segment, sent: Sent) -> None:
        """What must be true of every segment the stack sends."""
        flags = segment.flags
        if flags & RST:
            return
        if flags & ACK:
            assert segment.ack <= self.sent_up_to, "acknowledges what was never sent"
            edge = segment.ack + (segment.wnd << (0 if flags & SYN else self.their_wscale))
            assert edge > self.their_edge - (1 << self.their_wscale), "takes back a window it has offered"
            self.their_edge = max(self.their_edge, edge)
        if not flags & SYN and segment.payload:
            assert segment.seq + len(segment.payload) <= self.edge, "sends beyond the window"
        if sent.gso_size:
            assert len(segment.payload) > sent.gso_size

    def sees(
        self,
        flags: int,
        data: bytes | None = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        wnd: int | None = None,
    ) -> Segment:
        """The next segment is exactly this; ``wnd`` in bytes; ``data`` None: whatever."""
        segment = self.next()
        assert text(segment.flags) == text(flags), segment
        if seq is not None:
            assert segment.seq == seq, segment
        if ack is not None:
            assert segment.ack == ack, segment
        if data is not None:
            assert segment.payload == data, (len(segment.payload), len(data))
        if wnd is not None:
            assert segment.wnd << self.their_wscale == wnd, segment
        if segment.seq == self.ack and not flags & RST:
            self.ack += segment.length
        return segment

    def sees_nothing(self) -> None:
        self.guest.sees_nothing()

    def reads(self, size: int, *, acknowledge: bool = True) -> bytes:
        """``size`` bytes in as many segments as it takes, acknowledged one by one."""
        data = b""
        while len(data) < size:
            segment = self.sees(ACK | PSH, None, seq=self.ack)
            data += segment.payload
            if acknowledge:
                self.sends(ACK)
        return data

    # -- scenes --------------------------------------------------------------------------------------------------

    def syn_options(self, mss: int, wscale: int) -> bytes:
        options = b"" if mss < 0 else b"\x02\x04" + mss.to_bytes(2, "big")
        return options if wscale < 0 else options + b"\x01\x03\x03" + bytes((wscale,))

    def opens(self, mss: int = 1460, wscale: int = 7, wnd: int = 65535, after: int = -1) -> FakeStream:
        """The guest connects, the host does, the guest is told. ``wnd`` and ``after``: the field in SYN and ACK."""
        self.sends(SYN, wnd=wnd, options=self.syn_options(mss, wscale))
        self.sees_nothing()
        stream = self.world.host.stream
        stream.connects()
        self.sees(SYN | ACK, seq=0, ack=101)
        self.wscale = max(wscale, 0)
        if after < 0:
            after = (wnd + (1 << self.wscale) - 1) >> self.wscale
        self.sends(ACK, wnd=after)
        self.sees_nothing()
        assert stream.reading or stream.paused
        self.world.hurries(stream)
        return stream

    def answers(self, mss: int = 1460, wscale: int = 7, wnd: int = 65535) -> None:
        """The guest accepts the SYN that is on the wire."""
        segment = self.sees(SYN, seq=0)
        if wscale < 0:
            self.their_wscale = 0
        self.sends(SYN | ACK, wnd=wnd, options=self.syn_options(mss, wscale))
        self.wscale = max(wscale, 0)
        self.edge = self.ack + wnd
        assert segment.options
        self.sees(ACK, seq=1, ack=101)
