"""Frames that pass the first checks of some layer, and are noise behind it; both families."""

from __future__ import annotations

from hypothesis import strategies as st
from stack.world import (
    DNS,
    DNS6,
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST,
    GUEST6,
    GUEST_MAC,
    ROUTER6,
    WEB,
    WEB6,
    ip,
    ip6,
)
from wire import oracle
from wire.oracle import ACK, FIN, RST, SYN

addresses = st.sampled_from(
    [GUEST, GATEWAY, DNS, WEB, ip("10.0.2.200"), ip("10.0.2.255"), ip("255.255.255.255"), ip("224.0.0.5"), bytes(4)]
) | st.binary(min_size=4, max_size=4)
GROUPS6 = [ip6("ff02::1"), ip6("ff02::2"), ip6("ff02::1:2"), ip6("ff02::1:ff00:2"), ip6("ff02::16")]
addresses6 = st.sampled_from(
    [GUEST6, GATEWAY6, DNS6, ROUTER6, WEB6, ip6("fe80::64"), ip6("::1"), ip6("::ffff:7f00:1"), bytes(16), *GROUPS6]
) | st.binary(min_size=16, max_size=16)
ports = st.sampled_from([0, 53, 67, 80, 547, 5000, 65535])
short = st.binary(max_size=100)
mostly_zero = st.sampled_from([0, 0, 0]) | st.integers(0, 255)
number = st.integers(0, 0xFFFFFFFF)


@st.composite
def layer4(draw: st.DrawFn, src: bytes, dst: bytes) -> tuple[int, bytes]:
    """(protocol, bytes)."""
    icmp = 1 if len(src) == 4 else 58
    protocol = draw(st.sampled_from([6, 17, icmp, icmp]) | st.integers(0, 255))
    noise = draw(short)
    if protocol == 17:
        return 17, oracle.udp(src, dst, draw(ports), draw(ports), noise, summed=draw(st.booleans()))
    if protocol == 6:
        flags = draw(st.sampled_from([SYN, SYN, ACK, FIN | ACK, RST, SYN | ACK]) | st.integers(0, 255))
        options = draw(st.sampled_from([b"", b"\x02\x04\x05\xb4\x01\x03\x03\x07"]) | st.binary(max_size=40))
        wnd = draw(st.integers(0, 65535))
        segment = oracle.tcp(
            src, dst, draw(ports), draw(ports), draw(number), draw(number), flags, wnd, noise, options[:40]
        )
        return 6, segment
    rest = draw(st.binary(min_size=4, max_size=4))
    if protocol == 1 and len(src) == 4:
        return 1, oracle.icmp(draw(st.just(8) | st.integers(0, 255)), draw(mostly_zero), rest, noise)
    if protocol == 58 and len(src) == 16:
        type_ = draw(st.sampled_from([128, 133, 134, 135, 136, 137, 143]) | st.integers(0, 255))
        target = draw(st.just(b"") | addresses6)
        options = draw(st.just(b"\x01\x01" + GUEST_MAC) | short)
        return 58, oracle.icmp6(src, dst, type_, draw(mostly_zero), rest, target + options)
    return protocol, noise


@st.composite
def packet4(draw: st.DrawFn) -> bytes:
    src, dst = draw(st.just(GUEST) | addresses), draw(addresses)
    protocol, body = draw(layer4(src, dst))
    words = draw(st.sampled_from([0, 0, 0, 1, 10]))
    fragment = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x2001, 1, 2]) | st.integers(0, 65535))
    ident = draw(st.integers(0, 2))
    return oracle.ip4(src, dst, protocol, body, options=b"\x01" * 4 * words, fragment=fragment, ident=ident)


@st.composite
def packet6(draw: st.DrawFn) -> bytes:
    src, dst = draw(st.sampled_from([GUEST6, GUEST6, ip6("fe80::64"), bytes(16)]) | addresses6), draw(addresses6)
    protocol, body = draw(layer4(src, dst))
    for kind in draw(st.lists(st.sampled_from([0, 43, 44, 44, 60, 60]), max_size=4) | st.just([])):
        if kind == 44:
            field = draw(st.sampled_from([0, 0, 1, 8, 9, 16, 17, 65528]) | st.integers(0, 65535))
            body = bytes((protocol, 0)) + field.to_bytes(2, "big") + bytes((0, 0, 0, draw(st.integers(0, 2)))) + body
        else:
            size = draw(st.sampled_from([0, 0, 1]) | st.integers(0, 255))
            body = bytes((protocol, size, 0, draw(mostly_zero))) + bytes(4) + body
        protocol = kind
    hops = draw(st.sampled_from([255, 255, 64, 1, 0]))
    return oracle.ip6(src, dst, protocol, body, ttl=hops, tos=draw(st.integers(0, 255)))


@st.composite
def shaped(draw: st.DrawFn) -> bytes:
    """A frame of one of those packets, ARP, or anything; perhaps cut or with some bytes changed."""
    kind = draw(st.sampled_from(["arp", "frame", "ipv4", "ipv4", "ipv6", "ipv6", "ipv6"]))
    if kind == "arp":
        packet = draw(st.just(oracle.arp(1, GUEST_MAC, draw(addresses), bytes(6), draw(addresses))) | short)
        return oracle.eth(b"\xff" * 6, draw(st.binary(min_size=6, max_size=6)), 0x0806, packet)
    if kind == "frame":
        ethertype = draw(st.sampled_from([0x0800, 0x0806, 0x86DD]) | st.integers(0, 65535))
        return oracle.eth(GATEWAY_MAC, GUEST_MAC, ethertype, draw(short))
    ethertype, packet = (0x0800, draw(packet4())) if kind == "ipv4" else (0x86DD, draw(packet6()))
    frame = bytearray(oracle.eth(GATEWAY_MAC, GUEST_MAC, ethertype, packet) + draw(st.just(b"") | short))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.just(len(frame)) | st.integers(0, len(frame)))])
