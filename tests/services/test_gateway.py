"""What the gateway answers by itself, and what it leaves alone."""

from __future__ import annotations

from netd.services.gateway import Gateway

from . import test_dhcpv4, test_dhcpv6

DISCOVER = test_dhcpv4.bootp({53: b"\x01"})
ASK = (
    b"\x0b" + test_dhcpv6.XID + test_dhcpv6.tlv(6, b"\x00\x17")
)  # INFORMATION-REQUEST for name servers (RFC 8415 §18.3.6)


def test_both_families() -> None:
    gateway = Gateway(test_dhcpv4.CONFIG, test_dhcpv6.CONFIG)
    answer = gateway.dhcpv4(DISCOVER, test_dhcpv4.MAC, 0.0)
    assert answer is not None
    message, dst = answer
    assert message[16:20] == test_dhcpv4.GUEST and len(dst) == 4
    reply = gateway.dhcpv6(ASK, 0.0)
    assert reply is not None and reply[:4] == b"\x07" + test_dhcpv6.XID and test_dhcpv6.DNS in reply
    assert gateway.dhcpv4(b"", test_dhcpv4.MAC, 0.0) is None and gateway.dhcpv6(b"", 0.0) is None


def test_neither() -> None:
    gateway = Gateway(None, None)
    assert gateway.dhcpv4(DISCOVER, test_dhcpv4.MAC, 0.0) is None and gateway.dhcpv6(ASK, 0.0) is None
