"""DHCPv6 messages against another reading of RFC 8415 §8 and §21."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import dhcpv6

from .prop import quick

options = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=300)), max_size=6).map(tuple)
messages = st.builds(dhcpv6.Message, st.integers(0, 255), st.integers(0, 0xFFFFFF), options)
IAID = b"\x00\x12\x34\x56"
A, B = b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02"


def tlv(code: int, value: bytes) -> bytes:
    return bytes((code >> 8, code & 255, len(value) >> 8, len(value) & 255)) + value


def oracle(m: dhcpv6.Message) -> bytes:
    head = bytes((m.type, m.xid >> 16, m.xid >> 8 & 255, m.xid & 255))
    return head + b"".join(tlv(code, value) for code, value in m.options)


@quick
@given(messages)
def test_building_agrees_with_the_diagram(m: dhcpv6.Message) -> None:
    assert dhcpv6.build(m) == oracle(m)


@quick
@given(messages)
def test_reading_undoes_writing(m: dhcpv6.Message) -> None:
    assert dhcpv6.parse(oracle(m)) == m
    assert dhcpv6.parse(memoryview(dhcpv6.build(m))) == m


@quick
@given(messages, st.data())
def test_a_cut_message_is_whole_options_or_none(m: dhcpv6.Message, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(oracle(m))))
    found = dhcpv6.parse(oracle(m)[:cut])
    assert found is None or found.options == m.options[: len(found.options)]


@quick
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Invariant: what is read is written back to the same bytes."""
    m = dhcpv6.parse(data)
    assert m is None or dhcpv6.build(m) == data
    found = dhcpv6.options(data)
    assert found is None or b"".join(dhcpv6.option(*o) for o in found) == data
    for code in (3, 4, 25):
        ia = dhcpv6.association(code, data)
        assert ia is None or (ia.code, ia.iaid) == (code, data[:4])
        assert ia is None or all(len(a) == 16 and a in data for a in ia.addresses)


def test_sizes() -> None:
    assert dhcpv6.parse(b"\x01\x00\x00") is None
    assert dhcpv6.parse(b"\x01\x00\x00\x07") == dhcpv6.Message(1, 7)
    assert dhcpv6.parse(b"\x01\x00\x00\x07" + tlv(1, bytes(dhcpv6.MAX_SIZE - 8))) is not None
    assert dhcpv6.parse(b"\x01\x00\x00\x07" + tlv(1, bytes(dhcpv6.MAX_SIZE - 7))) is None


def test_the_first_of_its_code() -> None:
    m = dhcpv6.Message(1, 0, ((2, b"a"), (1, b"b"), (1, b"c")))
    assert (m.first(1), m.first(2), m.first(3)) == (b"b", b"a", None)


def address(a: bytes, tail: bytes = b"") -> bytes:
    return tlv(5, a + bytes(8) + tail)


@pytest.mark.parametrize(
    ("code", "value", "addresses"),
    [
        (3, IAID + bytes(8), ()),
        (3, IAID + bytes(8) + address(A) + tlv(13, b"\x00\x00") + address(B, tlv(13, b"\x00\x00")), (A, B)),
        (3, IAID + bytes(8) + tlv(5, A + bytes(7)), ()),
        (4, IAID, ()),
        (4, IAID + address(A), (A,)),
        (25, IAID + bytes(8) + address(A), ()),
        (25, IAID + bytes(8) + tlv(26, bytes(25)), ()),
    ],
)
def test_associations(code: int, value: bytes, addresses: tuple[bytes, ...]) -> None:
    """RFC 8415 §21.4, §21.5, §21.21: an IA_TA has neither T1 nor T2; an IA_PD holds prefixes."""
    assert dhcpv6.association(code, value) == dhcpv6.Association(code, IAID, addresses)


@pytest.mark.parametrize(
    ("code", "value"), [(3, IAID + bytes(7)), (25, IAID), (4, IAID[:3]), (3, IAID + bytes(8) + b"\x00"), (3, b"")]
)
def test_malformed_associations(code: int, value: bytes) -> None:
    assert dhcpv6.association(code, value) is None


def test_what_is_built() -> None:
    assert dhcpv6.status(2, "no") == tlv(13, b"\x00\x02no")
    assert dhcpv6.ia_address(A, 1, 2) == tlv(5, A + b"\x00\x00\x00\x01\x00\x00\x00\x02")
    assert dhcpv6.ia(3, IAID, 1, 2, b"x") == (3, IAID + b"\x00\x00\x00\x01\x00\x00\x00\x02x")
    assert dhcpv6.ia(4, IAID, 1, 2, b"x") == (4, IAID + b"x")
    assert dhcpv6.duid_ll(b"\x52\x55\x0a\x00\x02\x02") == bytes.fromhex("0003000152550a000202")
    assert bytes.fromhex("ff020000000000000000000000010002") == dhcpv6.SERVERS
