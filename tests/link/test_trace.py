"""What is said of a frame."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.link.trace import Trace, describe
from netd.wire import arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, tcp, udp, vnet_hdr

A, B = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"
G4, P4 = ip_address("10.0.2.100").packed, ip_address("192.0.2.1").packed
G6, P6 = ip_address("fd00::64").packed, ip_address("2001:db8::1").packed


def eth(kind: int, packet: bytes) -> bytes:
    return ethernet.HEADER.pack(B, A, kind) + packet


def four(protocol: int, content: bytes) -> bytes:
    return eth(ethernet.IPV4, ipv4.build(G4, P4, protocol, len(content)) + content)


def six(protocol: int, content: bytes) -> bytes:
    return eth(ethernet.IPV6, ipv6.build(G6, P6, protocol, len(content)) + content)


def segment(flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    offset = (tcp.SIZE + len(options)) // 4 << 12
    return tcp.HEADER.pack(40000, 443, 7, 8, offset | flags, 512, 0, 0) + options + payload


FRAGMENT = bytearray(four(17, bytes(32)))
FRAGMENT[20:22] = struct.pack("!H", 185)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (four(6, segment(tcp.SYN, b"", tcp.syn_options(1460, 7))),
         "TCP 10.0.2.100:40000 > 192.0.2.1:443 SYN seq 7 ack 8 win 512, length 0"),
        (six(6, segment(tcp.PSH | tcp.ACK, bytes(1000))),
         "TCP [fd00::64]:40000 > [2001:db8::1]:443 PSH,ACK seq 7 ack 8 win 512, length 1000"),
        (six(6, segment(0)), "TCP [fd00::64]:40000 > [2001:db8::1]:443 none seq 7 ack 8 win 512, length 0"),
        (four(17, udp.HEADER.pack(53, 54, 8, 0)), "UDP 10.0.2.100:53 > 192.0.2.1:54, length 0"),
        (six(17, udp.HEADER.pack(53, 54, 18, 0) + bytes(10)), "UDP [fd00::64]:53 > [2001:db8::1]:54, length 10"),
        (six(0, bytes((17, 0)) + bytes(6) + udp.HEADER.pack(53, 54, 8, 0)), "UDP [fd00::64]:53 > [2001:db8::1]:54, length 0"),
        (four(1, icmpv4.build(8, 0, 1, 1, bytes(56))), "ICMP 10.0.2.100 > 192.0.2.1 echo request, length 64"),
        (four(1, icmpv4.build(3, 1, 0, 0, b"")), "ICMP 10.0.2.100 > 192.0.2.1 type 3 code 1, length 8"),
        (six(58, icmpv6.build(G6, P6, 135, 0, 0, bytes(16))),
         "ICMPv6 [fd00::64] > [2001:db8::1] neighbor solicitation, length 24"),
        (four(132, bytes(12)), "protocol 132 10.0.2.100 > 192.0.2.1, length 12"),
        (four(6, bytes(5)), "protocol 6 10.0.2.100 > 192.0.2.1, length 5"),
        (bytes(FRAGMENT), "IPv4 fragment at 1480 10.0.2.100 > 192.0.2.1, length 52"),
        (four(17, bytes(8))[:-1], "IPv4 malformed 10.0.2.100 > 192.0.2.1, length 27"),
        (six(17, bytes(8))[:-1], "IPv6 malformed [fd00::64] > [2001:db8::1], length 47"),
        (six(0, b""), "IPv6 malformed [fd00::64] > [2001:db8::1], length 40"),
        (eth(ethernet.ARP, arp.build(arp.REQUEST, A, G4, bytes(6), P4)), "ARP who has 192.0.2.1, tell 10.0.2.100"),
        (eth(ethernet.ARP, arp.build(arp.REPLY, A, G4, B, P4)), "ARP 10.0.2.100 is at 02:00:00:00:00:01"),
        (eth(ethernet.ARP, bytes(28)), "ethertype 0x0806, length 28"),
        (eth(ethernet.IPV4, b""), "ethertype 0x0800, length 0"),
        (eth(0x88B5, bytes(10)), "ethertype 0x88b5, length 10"),
        (b"", "cut off, length 0"),
    ],
)  # fmt: skip
def test_a_frame_in_words(frame: bytes, text: str) -> None:
    assert describe(frame, len(frame)) == text


@settings(deadline=None)
@given(st.sampled_from([ethernet.IPV4, ethernet.IPV6, ethernet.ARP, 7]), st.binary(max_size=200), st.integers(0, 70000))
def test_any_bytes_have_a_description(kind: int, packet: bytes, more: int) -> None:
    frame = eth(kind, packet)
    assert "\n" not in describe(frame[:160], len(frame) + more)
    describe(packet, len(packet))


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 8), st.booleans())
def test_headers_of_any_kind_have_one(content: bytes, next_header: int, version: bool) -> None:
    protocol = (0, 6, 17, 43, 44, 58, 59, 60, 1)[next_header]
    frame = (six if version else four)(protocol, content)
    for size in range(len(frame)):
        describe(frame[:size], size)
        describe(frame[:size], len(frame))


class Wire:
    """A link that takes everything and has one frame to deliver."""

    fd = 7
    drops = 3

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.taken = True
        self.closed = False

    def receive(self, deliver: Callable[[memoryview, bool, int, float], None], now: float, turn: float) -> bool:
        deliver(memoryview(self.frame), True, 5, now)
        return False

    def transmit(self, header: bytes | bytearray | memoryview, payload: bytes | bytearray | memoryview) -> bool:
        return self.taken

    def close(self) -> None:
        self.closed = True


def test_a_line_for_each_frame_and_all_else_as_it_was() -> None:
    lines: list[str] = []
    got: list[tuple[bytes, bool, int, float]] = []
    frame = four(17, udp.HEADER.pack(53, 54, 108, 0) + bytes(100))
    wire = Wire(frame)
    trace = Trace(wire, lines.append)
    assert trace.receive(lambda view, *more: got.append((bytes(view), *more)), 2.5, 1.0) is False
    assert got == [(frame, True, 5, 2.5)]
    assert trace.transmit(vnet_hdr.PLAIN + frame[:20], memoryview(frame[20:]))
    wire.taken = False
    assert not trace.transmit(vnet_hdr.PLAIN + frame[:20], frame[20:])
    text = "UDP 10.0.2.100:53 > 192.0.2.1:54, length 100"
    assert [re.sub(r"^\d\d:\d\d:\d\d\.\d{6} ", "", line) for line in lines] == [
        f"from guest: {text}",
        f"to guest: {text}",
    ]
    assert (trace.fd, trace.drops) == (7, 3)
    trace.close()
    assert wire.closed
