"""Policy is total, and says what the contract says."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.stack import policy

from .world import ADDRESSING, ip

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
    assert policy.decide(ADDRESSING, loopback, ip(dst), port) == target


@quick
@given(octets, st.integers(0, 65535), st.booleans())
def test_every_destination_has_one_answer_and_loopback_needs_leave(dst: bytes, port: int, loopback: bool) -> None:
    target = policy.decide(ADDRESSING, loopback, dst, port)
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
    target = policy.decide(addressing, False, dst, 80)
    assert target.kind in (policy.REFUSE, policy.DROP)
    assert addressing.on_link(dst)
    broadcast = subnet.broadcast_address.packed
    assert addressing.broadcast == broadcast
    assert policy.decide(addressing, True, broadcast, 80).kind == policy.DROP
