"""Policy is total, and says what the contract says."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.stack import policy
from netd.stack.addressing import Addressing

from .world import ADDRESSING, DNS, DNS6, GATEWAY, GATEWAY6, GUEST6, ONLY4, ROUTER6, WEB6, ip, ip6

OPEN = replace(ADDRESSING, loopback=GATEWAY, loopback6=GATEWAY6)
octets = st.binary(min_size=4, max_size=4)


@pytest.mark.parametrize(
    ("dst", "port", "loopback", "target"),
    [
        ("10.0.2.2", 80, False, policy.Target(policy.REFUSE, reason=0)),
        ("10.0.2.2", 80, True, policy.Target(policy.DIRECT, b"\x7f\x00\x00\x01")),
        ("10.0.2.2", 53, True, policy.Target(policy.DIRECT, b"\x7f\x00\x00\x01")),
        ("10.0.2.3", 53, False, policy.Target(policy.RESOLVER)),
        ("10.0.2.3", 853, True, policy.Target(policy.REFUSE, reason=0)),
        ("10.0.2.0", 80, True, policy.Target(policy.REFUSE, reason=1)),
        ("10.0.2.254", 80, True, policy.Target(policy.REFUSE, reason=1)),
        ("10.0.2.255", 80, True, policy.Target(policy.DROP)),
        ("10.0.1.255", 80, False, policy.Target(policy.DIRECT, b"\x0a\x00\x01\xff")),
        ("10.0.3.0", 80, False, policy.Target(policy.DIRECT, b"\x0a\x00\x03\x00")),
        ("127.0.0.1", 80, True, policy.Target(policy.DROP)),
        ("127.255.255.255", 80, True, policy.Target(policy.DROP)),
        ("128.0.0.1", 80, False, policy.Target(policy.DIRECT, b"\x80\x00\x00\x01")),
        ("0.0.0.0", 80, True, policy.Target(policy.DROP)),
        ("224.0.0.1", 80, True, policy.Target(policy.DROP)),
        ("223.255.255.255", 80, False, policy.Target(policy.DIRECT, b"\xdf\xff\xff\xff")),
        ("255.255.255.255", 80, True, policy.Target(policy.DROP)),
        ("192.168.1.1", 0, False, policy.Target(policy.DIRECT, b"\xc0\xa8\x01\x01")),
    ],
)
def test_the_rules(dst: str, port: int, loopback: bool, target: policy.Target) -> None:
    assert policy.decide(OPEN if loopback else ADDRESSING, ip(dst), port) == target


@quick
@given(octets, st.integers(0, 65535), st.booleans())
def test_every_destination_has_one_answer_and_loopback_needs_leave(dst: bytes, port: int, loopback: bool) -> None:
    target = policy.decide(OPEN if loopback else ADDRESSING, dst, port)
    assert target.kind in (policy.DIRECT, policy.RESOLVER, policy.DROP, policy.REFUSE)
    assert (len(target.ip) == 4) == (target.kind == policy.DIRECT)
    assert target.kind != policy.REFUSE or target.reason in (0, 1)
    if target.kind == policy.DIRECT:
        address = ipaddress.IPv4Address(target.ip)
        if address.is_loopback:
            assert loopback and dst == ADDRESSING.gateway
        else:
            assert target.ip == dst
        assert not address.is_multicast and not address.is_unspecified
        assert address not in ipaddress.IPv4Network("10.0.2.0/24")


# Addresses that mean something, and their neighbourhood.
octets6 = (
    st.binary(min_size=16, max_size=16)
    | octets.map(lambda b: bytes(12) + b)
    | octets.map(lambda b: bytes(10) + b"\xff\xff" + b)
    | st.binary(min_size=8, max_size=8).map(lambda b: ip6("fd00::")[:8] + b)
    | st.binary(min_size=15, max_size=15).map(lambda b: b"\xfe" + b)
    | st.sampled_from([GATEWAY6, DNS6, ROUTER6, GUEST6, ip6("::1"), ip6("::"), ip6("ff02::1")])
)


@pytest.mark.parametrize(
    ("dst", "port", "loopback", "target"),
    [
        (GATEWAY6, 80, False, policy.Target(policy.REFUSE, reason=0)),
        (GATEWAY6, 80, True, policy.Target(policy.DIRECT, ip6("::1"))),
        (DNS6, 53, False, policy.Target(policy.RESOLVER)),
        (DNS6, 853, True, policy.Target(policy.REFUSE, reason=0)),
        (ROUTER6, 80, True, policy.Target(policy.REFUSE, reason=1)),
        (GUEST6, 80, True, policy.Target(policy.REFUSE, reason=1)),
        (ip6("fe80::1"), 80, True, policy.Target(policy.REFUSE, reason=1)),
        (ip6("fec0::1"), 80, True, policy.Target(policy.DIRECT, ip6("fec0::1"))),
        (ip6("fd01::1"), 80, False, policy.Target(policy.DIRECT, ip6("fd01::1"))),
        (ip6("::1"), 80, True, policy.Target(policy.DROP)),
        (ip6("::"), 80, True, policy.Target(policy.DROP)),
        (ip6("::ffff:7f00:1"), 80, True, policy.Target(policy.DROP)),
        (ip6("::7f00:1"), 80, True, policy.Target(policy.DROP)),
        (ip6("ff02::1"), 80, True, policy.Target(policy.DROP)),
        (WEB6, 0, False, policy.Target(policy.DIRECT, WEB6)),
    ],
)
def test_the_rules_of_ipv6(dst: bytes, port: int, loopback: bool, target: policy.Target) -> None:
    assert policy.decide(OPEN if loopback else ADDRESSING, dst, port) == target


@quick
@given(octets6, st.integers(0, 65535), st.booleans())
def test_every_ipv6_destination_has_one_answer(dst: bytes, port: int, loopback: bool) -> None:
    """And none reaches the host's own loopback without leave, be it in IPv4's clothes."""
    target = policy.decide(OPEN if loopback else ADDRESSING, dst, port)
    assert target.kind in (policy.DIRECT, policy.RESOLVER, policy.DROP, policy.REFUSE)
    assert (len(target.ip) == 16) == (target.kind == policy.DIRECT)
    assert target.kind != policy.REFUSE or target.reason in (0, 1)
    if target.kind == policy.DIRECT:
        address = ipaddress.IPv6Address(target.ip)
        assert address.ipv4_mapped is None
        if address.is_loopback:
            assert loopback and dst == GATEWAY6
        else:
            assert target.ip == dst
        assert not address.is_multicast and not address.is_unspecified and not address.is_link_local
        assert address not in ipaddress.IPv6Network("fd00::/64")
        assert address not in ipaddress.IPv6Network("::/96") or address.is_loopback


@quick
@given(octets | octets6)
def test_the_guest_has_nobody_elses_address(ip: bytes) -> None:
    address = ipaddress.ip_address(ip)
    if ADDRESSING.may_be_guest(ip):
        assert not address.is_multicast and not address.is_loopback and not address.is_unspecified
        assert ip not in (GATEWAY, DNS, GATEWAY6, DNS6, ROUTER6)
        assert address.is_link_local or address in ipaddress.ip_network("fd00::/64" if len(ip) == 16 else "10.0.2.0/24")
    assert not ONLY4.may_be_guest(ip) or len(ip) == 4


@quick
@given(octets, st.integers(8, 30), st.data())
def test_the_subnet_is_never_left_to_the_host(network: bytes, prefix: int, data: st.DataObject) -> None:
    """Whatever subnet the owner chose: its other addresses are refused, its broadcast address is dropped."""
    subnet = ipaddress.IPv4Network((network, prefix), strict=False)
    size = subnet.num_addresses
    pick = lambda: subnet[data.draw(st.integers(0, size - 1))].packed  # noqa: E731
    addressing = replace(
        ADDRESSING,
        gateway=subnet[1].packed,
        dns=subnet[2].packed,
        network=int(subnet.network_address),
        mask=int(subnet.netmask),
    )
    dst = pick()
    target = policy.decide(addressing, dst, 80)
    assert target.kind in (policy.REFUSE, policy.DROP)
    assert addressing.private(dst)
    broadcast = subnet.broadcast_address.packed
    assert addressing.broadcast == broadcast
    assert policy.decide(addressing, broadcast, 80).kind == policy.DROP


# The guest has the host's address 192.0.2.7 on the host's subnet; the gateway stands for the host's loopback.
HOST_LIKE = replace(
    ADDRESSING,
    guest=ip("192.0.2.7"),
    gateway=ip("192.0.2.1"),
    dns=ip("169.254.1.1"),
    network=int.from_bytes(ip("192.0.2.0"), "big"),
    guest6=ip6("2001:db8::7"),
    gateway6=ip6("fe80::1"),
    router6=ip6("fe80::1"),
    network6=int.from_bytes(ip6("2001:db8::"), "big"),
    dns6=b"",
    loopback=ip("192.0.2.1"),
    loopback6=ip6("fe80::1"),
    host_like=True,
    mapped=(ip("169.254.1.2"), ip6("fc00::2")),
    own=frozenset((ip("192.0.2.7"), ip6("2001:db8::7"))),
)
CLOSED = replace(HOST_LIKE, loopback=b"", loopback6=b"")


@pytest.mark.parametrize(
    ("dst", "port", "addressing", "target"),
    [
        ("192.0.2.1", 80, HOST_LIKE, policy.Target(policy.DIRECT, ip("127.0.0.1"))),
        ("192.0.2.1", 80, CLOSED, policy.Target(policy.DIRECT, ip("192.0.2.1"))),
        ("192.0.2.9", 80, CLOSED, policy.Target(policy.DIRECT, ip("192.0.2.9"))),
        ("192.0.2.255", 80, CLOSED, policy.Target(policy.DROP)),
        ("169.254.1.1", 53, CLOSED, policy.Target(policy.RESOLVER)),
        ("169.254.1.1", 853, CLOSED, policy.Target(policy.RESOLVER, port=853)),
        ("169.254.1.1", 80, CLOSED, policy.Target(policy.REFUSE, reason=0)),
        ("169.254.1.2", 80, CLOSED, policy.Target(policy.DIRECT, ip("192.0.2.7"))),
        ("127.0.0.1", 80, HOST_LIKE, policy.Target(policy.DROP)),
        ("224.0.0.1", 80, HOST_LIKE, policy.Target(policy.DROP)),
        ("fe80::1", 80, HOST_LIKE, policy.Target(policy.DIRECT, ip6("::1"))),
        ("fe80::1", 80, CLOSED, policy.Target(policy.DIRECT, ip6("fe80::1"))),
        ("fc00::2", 80, CLOSED, policy.Target(policy.DIRECT, ip6("2001:db8::7"))),
        ("2001:db8::9", 80, CLOSED, policy.Target(policy.DIRECT, ip6("2001:db8::9"))),
        ("::1", 80, HOST_LIKE, policy.Target(policy.DROP)),
    ],
)
def test_the_rules_of_a_host_like_link(dst: str, port: int, addressing: Addressing, target: policy.Target) -> None:
    assert policy.decide(addressing, ipaddress.ip_address(dst).packed, port) == target


@quick
@given(octets | octets6, st.integers(0, 65535))
def test_a_host_like_guest_reaches_loopback_by_the_mapped_address_alone(dst: bytes, port: int) -> None:
    for addressing in (HOST_LIKE, CLOSED):
        target = policy.decide(addressing, dst, port)
        assert (len(target.ip) == len(dst)) == (target.kind == policy.DIRECT)
        if target.kind == policy.DIRECT and ipaddress.ip_address(target.ip).is_loopback:
            assert dst in (addressing.loopback, addressing.loopback6)


@pytest.mark.parametrize(
    ("peer", "addressing", "seen"),
    [
        ("198.51.100.4", HOST_LIKE, "198.51.100.4"),
        ("192.0.2.9", HOST_LIKE, "192.0.2.9"),  # a neighbour of the host's
        ("192.0.2.7", HOST_LIKE, "169.254.1.2"),  # the host itself
        ("192.0.2.7", replace(HOST_LIKE, mapped=()), "192.0.2.1"),
        ("127.0.0.1", HOST_LIKE, "192.0.2.1"),
        ("127.0.0.1", CLOSED, "192.0.2.1"),
        ("::1", HOST_LIKE, "fe80::1"),
        ("10.0.2.9", ADDRESSING, "10.0.2.2"),
        ("198.51.100.4", ADDRESSING, "198.51.100.4"),
    ],
)
def test_how_the_guest_sees_a_peer_of_the_hosts(peer: str, addressing: Addressing, seen: str) -> None:
    packed = ipaddress.ip_address(peer).packed
    assert ipaddress.ip_address(addressing.seen_as(packed, len(packed))) == ipaddress.ip_address(seen)


@quick
@given(octets | octets6)
def test_a_host_like_link_is_answered_for_but_for_the_guest_itself(ip: bytes) -> None:
    address = ipaddress.ip_address(ip)
    if ip in HOST_LIKE.own or address.is_multicast or address.is_unspecified:
        assert not HOST_LIKE.answers_for(ip)
    elif address.is_global and ip[:10] != bytes(10):
        assert HOST_LIKE.answers_for(ip)
    if HOST_LIKE.may_be_guest(ip):
        assert not HOST_LIKE.ours(ip) and not address.is_loopback and not address.is_multicast
