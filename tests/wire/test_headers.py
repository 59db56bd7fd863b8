"""What is built is what the RFC's diagram shows; what is read back is what was put in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import arp, ethernet, icmpv4, ipv4, tcp, udp

from . import oracle
from .prop import quick

mac = st.binary(min_size=6, max_size=6)
ip = st.binary(min_size=4, max_size=4)
u8, u16, u32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, 0xFFFFFFFF)


@quick
@given(mac, mac, u16, st.binary(max_size=40))
def test_ethernet(dst: bytes, src: bytes, ethertype: int, payload: bytes) -> None:
    header = ethernet.HEADER.pack(dst, src, ethertype)
    assert header + payload == oracle.eth(dst, src, ethertype, payload)
    assert ethernet.HEADER.unpack_from(header + payload) == (dst, src, ethertype)
    assert ethernet.SIZE == ethernet.HEADER.size == 14


@quick
@given(u16, mac, ip, mac, ip)
def test_arp(oper: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> None:
    packet = arp.build(oper, sha, spa, tha, tpa)
    assert packet == oracle.arp(oper, sha, spa, tha, tpa)
    assert arp.PACKET.unpack(packet) == (*arp.ETHERNET_IPV4, oper, sha, spa, tha, tpa)
    assert len(packet) == arp.SIZE == arp.PACKET.size


@quick
@given(ip, ip, u8, st.integers(0, 65515), u8, u8)
def test_ipv4(src: bytes, dst: bytes, protocol: int, length: int, ttl: int, tos: int) -> None:
    header = ipv4.build(src, dst, protocol, length, ttl, tos)
    expected = oracle.ip4(src, dst, protocol, bytes(length), ttl=ttl, tos=tos, fragment=0x4000)[:20]
    assert header[:10] + header[12:] == expected[:10] + expected[12:]
    assert oracle.checksum(header) == 0
    version_ihl, tos_, total, ident, fragment, ttl_, protocol_, _, src_, dst_ = ipv4.HEADER.unpack(expected)
    assert (version_ihl, tos_, total, ident, fragment) == (0x45, tos, 20 + length, 0, ipv4.DF)
    assert (ttl_, protocol_, src_, dst_) == (ttl, protocol, src, dst)


@quick
@given(u8, u8, u16, u16, st.binary(max_size=300))
def test_icmp(type_: int, code: int, word1: int, word2: int, payload: bytes) -> None:
    message = icmpv4.build(type_, code, word1, word2, memoryview(payload))
    rest = word1.to_bytes(2, "big") + word2.to_bytes(2, "big")
    assert message[:2] + message[4:] == bytes((type_, code)) + rest + payload
    assert oracle.checksum(message) == 0
    assert icmpv4.HEADER.unpack_from(oracle.icmp(type_, code, rest, payload))[3:] == (word1, word2)


@quick
@given(ip, ip, u16, u16, st.binary(max_size=100))
def test_udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes) -> None:
    datagram = oracle.udp(src, dst, sport, dport, payload)
    assert udp.HEADER.unpack_from(datagram)[:3] == (sport, dport, 8 + len(payload))
    assert udp.HEADER.pack(sport, dport, 8 + len(payload), 0x1234) == datagram[:6] + b"\x12\x34"
    assert udp.CHECKSUM_OFFSET == 6


@quick
@given(u16, u16, u32, u32, st.integers(0, 63), u16, st.integers(0, 10))
def test_tcp(sport: int, dport: int, seq: int, ack: int, flags: int, wnd: int, words: int) -> None:
    segment = oracle.tcp(bytes(4), bytes(4), sport, dport, seq, ack, flags, wnd, options=b"\x01" * 4 * words)
    found = tcp.HEADER.unpack_from(segment)
    assert found[:4] == (sport, dport, seq, ack)
    assert found[4] >> 12 << 2 == 20 + 4 * words
    assert found[4] & 0x3F == flags
    assert found[5] == wnd
    assert segment[tcp.CHECKSUM_OFFSET : tcp.CHECKSUM_OFFSET + 2] == found[6].to_bytes(2, "big")


def test_the_flags_are_the_rfcs() -> None:
    assert (tcp.FIN, tcp.SYN, tcp.RST, tcp.PSH, tcp.ACK, tcp.URG) == (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("header", [ethernet.HEADER, arp.PACKET, ipv4.HEADER, icmpv4.HEADER, udp.HEADER, tcp.HEADER])
def test_too_few_bytes_are_a_struct_error(header: struct.Struct) -> None:
    for size in range(header.size):
        with pytest.raises(struct.error):
            header.unpack_from(bytes(size))


# -- TCP options -------------------------------------------------------------------------------------------------------


def reference(data: bytes) -> tuple[int, int, bool]:
    """RFC 9293 §3.1 by recursion: the last of each kind counts, whatever cannot be an option ends the list."""
    if not data or data[0] == 0:
        return 0, -1, False
    if data[0] == 1:
        return reference(data[1:])
    if len(data) < 2 or not 2 <= data[1] <= len(data):
        return 0, -1, False
    kind, value, rest = data[0], data[2 : data[1]], reference(data[data[1] :])
    if kind == 2 and len(value) == 2 and not has(data[data[1] :], 2, 2):
        return int.from_bytes(value, "big"), *rest[1:]
    if kind == 3 and len(value) == 1 and not has(data[data[1] :], 3, 1):
        return rest[0], min(value[0], 14), rest[2]
    if kind == 4 and not value:
        return *rest[:2], True
    return rest


def has(data: bytes, kind: int, size: int) -> bool:
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        if len(data) < 2 or not 2 <= data[1] <= len(data):
            return False
        if data[0] == kind and data[1] == size + 2:
            return True
        data = data[data[1] :]
    return False


option = (
    st.just(b"\x01")
    | st.just(b"\x00")
    | st.binary(min_size=2, max_size=2).map(lambda b: b"\x02\x04" + b)
    | st.binary(min_size=1, max_size=1).map(lambda b: b"\x03\x03" + b)
    | st.just(b"\x04\x02")
    | st.binary(min_size=8, max_size=8).map(lambda b: b"\x08\x0a" + b)
    | st.binary(min_size=1, max_size=4)
)


@quick
@given(st.binary(max_size=40) | st.lists(option, max_size=10).map(b"".join))
def test_options_never_raise_and_read_as_the_reference(data: bytes) -> None:
    mss, wscale, sack = tcp.parse_options(data)
    assert (mss, wscale, sack) == reference(data)
    assert 0 <= mss <= 65535 and -1 <= wscale <= 14


@quick
@given(u16.filter(bool), st.integers(-1, 14), st.booleans())
def test_our_own_options(mss: int, wscale: int, sack: bool) -> None:
    options = tcp.syn_options(mss, wscale, sack)
    assert len(options) % 4 == 0
    found = oracle.tcp_options(options)
    assert found[2] == mss.to_bytes(2, "big")
    assert found.get(3) == (None if wscale < 0 else bytes((wscale,)))
    assert tcp.parse_options(options) == (mss, wscale, sack)


def test_linux_options_are_understood() -> None:
    """MSS 1460, SACK permitted, timestamps, NOP, window scale 7: as Linux sends them."""
    assert tcp.parse_options(bytes.fromhex("020405b40402080a0011223300000000 01030307")) == (1460, 7, True)


@pytest.mark.parametrize(
    "data",
    [
        "02",
        "0204",
        "020405",
        "0201",
        "0200ffff",
        "02000402",
        "03",
        "0303",
        "03ff",
        "04",
        "0401",
        "0403",
        "08ff",
        "0500",
        "000402",
    ],
)
def test_options_cut_off(data: str) -> None:
    assert tcp.parse_options(bytes.fromhex(data)) == (0, -1, False)
