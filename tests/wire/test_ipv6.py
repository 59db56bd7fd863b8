"""IPv6, its fragments, ICMPv6 and neighbor discovery against the oracle (RFC 8200, RFC 4443, RFC 4861, RFC 8106)."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import icmpv4, icmpv6, ipv4, ipv6, ndp, vnet_hdr

from . import oracle
from .prop import quick

addresses = st.binary(min_size=16, max_size=16)
addresses4 = st.binary(min_size=4, max_size=4)
u8, u16, u32 = st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
payloads = st.binary(max_size=200)
MAC = bytes.fromhex("52550a000202")


@quick
@given(addresses, addresses, u8.filter(lambda n: n != 44), payloads, st.integers(1, 255), u8)
def test_a_header(src: bytes, dst: bytes, protocol: int, payload: bytes, hops: int, tos: int) -> None:
    header = ipv6.build(src, dst, protocol, len(payload), hops, tos)
    assert header + payload == oracle.ip6(src, dst, protocol, payload, ttl=hops, tos=tos)
    packet = oracle.read_ip(bytes(12) + b"\x86\xdd" + header + payload)
    assert (packet.src, packet.dst, packet.protocol, packet.ttl, packet.tos) == (src, dst, protocol, hops, tos)
    class_flow, length, next_header, limit, *found = ipv6.HEADER.unpack_from(header)
    assert (class_flow, length, next_header, limit) == (0x60000000 | tos << 20, len(payload), protocol, hops)
    assert found == [src, dst]


@quick
@given(u8, st.integers(0, 8191), st.booleans(), u32, payloads)
def test_a_fragment_header(protocol: int, eights: int, more: bool, ident: int, payload: bytes) -> None:
    header = ipv6.FRAGMENT_HEADER.pack(protocol, 0, eights << 3 | (ipv6.MORE if more else 0), ident)
    assert len(header) == ipv6.FRAGMENT_SIZE
    frame = (
        bytes(12) + b"\x86\xdd" + ipv6.build(bytes(16), bytes(16), ipv6.FRAGMENT, 8 + len(payload)) + header + payload
    )
    packet = oracle.read_ip(frame)
    assert (packet.protocol, packet.fragment, packet.payload) == (protocol, (ident, eights * 8, more), payload)
    assert (eights << 3 | 7) & ipv6.OFFSET == eights * 8


@quick
@given(addresses4, addresses4, u8, payloads, st.integers(1, 255), u8, u16, st.integers(0, 8191), st.booleans())
def test_an_ipv4_fragment(
    src: bytes, dst: bytes, protocol: int, payload: bytes, ttl: int, tos: int, ident: int, eights: int, more: bool
) -> None:
    field = eights | (ipv4.MF if more else 0)
    header = ipv4.build_fragment(src, dst, protocol, len(payload), ttl, tos, ident, field)
    expected = oracle.ip4(src, dst, protocol, payload, ttl=ttl, tos=tos, ident=ident, fragment=field)
    assert header[:10] + header[12:] + payload == expected[:10] + expected[12:]
    assert oracle.checksum(header) == 0


@quick
@given(addresses, addresses, u8, u8, u32, payloads)
def test_an_icmpv6_message(src: bytes, dst: bytes, type_: int, code: int, rest: int, payload: bytes) -> None:
    message = icmpv6.build(src, dst, type_, code, rest, memoryview(payload))
    packet = oracle.Packet(b"", b"", src, dst, 58, 255, message)
    assert oracle.read_icmp(packet) == (type_, code, rest.to_bytes(4, "big"), payload)


@quick
@given(u8, u8, u16, u16, payloads)
def test_an_icmpv4_message(type_: int, code: int, one: int, two: int, payload: bytes) -> None:
    message = icmpv4.build(type_, code, one, two, memoryview(payload))
    packet = oracle.Packet(b"", b"", bytes(4), bytes(4), 1, 255, message)
    assert oracle.read_icmp(packet) == (type_, code, one.to_bytes(2, "big") + two.to_bytes(2, "big"), payload)


# -- extension headers -------------------------------------------------------------------------------------------------


def reference(data: bytes, kind: int, named: int, depth: int = 0) -> tuple[int, int, int]:
    """RFC 8200 §4 by recursion, offsets counted from the end of the fixed header (which names at -34)."""
    if kind not in (0, 43, 60):
        return kind, 0, named
    size = (data[1] + 1) * 8 if len(data) >= 8 else 0
    if depth == 8 or not size or size > len(data):
        return -1, 0, named
    if kind == 43 and data[3]:
        return 43, 0, named
    found, at, by = reference(data[size:], data[0], -size, depth + 1)
    return found, at + size, by + size


chains = st.lists(
    st.tuples(st.sampled_from([0, 43, 60, 60, 17, 44]), st.sampled_from([0, 0, 0, 1, 3, 255]), st.binary(max_size=8)),
    max_size=11,
).map(
    lambda items: b"".join(bytes((k, n)) + (b"\0\0" + d + bytes((n + 1) * 8))[: (n + 1) * 8 - 2] for k, n, d in items)
)


@quick
@given(chains | st.binary(max_size=100), st.sampled_from([0, 43, 60, 17, 44, 59]), st.integers(40, 60), payloads)
def test_extension_headers(data: bytes, first: int, at: int, behind: bytes) -> None:
    """As the reference walks them; nothing behind the packet's end is looked at."""
    frame = memoryview(bytes(at) + data + behind)
    end = at + len(data)
    protocol, found, named = ipv6.walk(frame, at, end, first)
    expected, offset, by = reference(data, first, -34)
    assert protocol == expected
    assert at <= found <= end
    if protocol >= 0:
        assert (found - at, named - at) == (offset, by)


# -- addresses ---------------------------------------------------------------------------------------------------------


@quick
@given(addresses)
def test_groups(address: bytes) -> None:
    group = ipv6.solicited_node(address)
    text = ipaddress.IPv6Address(group)
    assert text in ipaddress.IPv6Network("ff02::1:ff00:0/104") and group[13:] == address[13:]
    assert ipv6.group_mac(group) == b"\x33\x33\xff" + address[13:]


def test_an_interface_identifier() -> None:
    """RFC 4291, appendix A: 34-56-78-9a-bc-de becomes 3656:78ff:fe9a:bcde."""
    assert ipv6.interface_identifier(bytes.fromhex("3456789abcde")) == bytes.fromhex("365678fffe9abcde")


def test_well_known_addresses() -> None:
    names = {"::": ipv6.UNSPECIFIED, "::1": ipv6.LOOPBACK, "ff02::1": ipv6.ALL_NODES, "ff02::1:2": ipv6.ALL_DHCP_AGENTS}
    assert {name: ipaddress.IPv6Address(name).packed for name in names} == names


# -- neighbor discovery ------------------------------------------------------------------------------------------------

options = st.lists(
    st.integers(1, 3)
    .flatmap(lambda n: st.binary(min_size=8 * n - 2, max_size=8 * n - 2))
    .flatmap(lambda value: u8.map(lambda kind: (kind, value))),
    max_size=6,
)


def encoded(items: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes((kind, (len(value) + 2) // 8)) + value for kind, value in items)


@quick
@given(options)
def test_options(items: list[tuple[int, bytes]]) -> None:
    assert ndp.options(memoryview(encoded(items))) == dict(reversed(items))


@quick
@given(options, st.binary(min_size=1, max_size=7) | st.just(b"\x01\x00" + bytes(6)) | st.just(b"\x01\x02" + bytes(6)))
def test_options_that_cannot_be(items: list[tuple[int, bytes]], tail: bytes) -> None:
    assert ndp.options(encoded(items) + tail) is None


@quick
@given(addresses, st.integers(0, 128), u32, u32, u32, st.just(b"") | addresses, u32)
def test_a_router_advertisement(
    prefix: bytes, length: int, valid: int, preferred: int, mtu: int, dns: bytes, lifetime: int
) -> None:
    message = ndp.router_advertisement(MAC, prefix, length, valid, preferred, mtu, dns, lifetime)
    assert message[:8] == bytes(8)
    found = ndp.options(message[8:])
    assert found is not None
    assert found.pop(1) == MAC
    assert found.pop(5) == bytes(2) + mtu.to_bytes(4, "big")
    times = valid.to_bytes(4, "big") + preferred.to_bytes(4, "big")
    assert found.pop(3) == bytes((length, 0xC0)) + times + bytes(4) + prefix
    if dns:
        assert found.pop(25) == bytes(2) + lifetime.to_bytes(4, "big") + dns
    assert not found


# -- the device --------------------------------------------------------------------------------------------------------


@quick
@given(u16, u16)
def test_a_partial_checksum(start: int, offset: int) -> None:
    assert struct.unpack("=BBHHHH", vnet_hdr.partial(start, offset)) == (1, 0, 0, 0, start, offset)
    assert bytes(vnet_hdr.SIZE) == vnet_hdr.PLAIN


@pytest.mark.parametrize("header", [ipv6.HEADER, ipv6.FRAGMENT_HEADER, icmpv6.HEADER, vnet_hdr.HEADER])
def test_too_few_bytes_are_a_struct_error(header: struct.Struct) -> None:
    for size in range(header.size):
        with pytest.raises(struct.error):
            header.unpack_from(bytes(size))
