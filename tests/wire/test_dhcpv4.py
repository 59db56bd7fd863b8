"""DHCPv4 messages against another reading of RFC 2131 figure 1, RFC 2132 and RFC 3396."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import dhcpv4

from .prop import quick

COOKIE = bytes((99, 130, 83, 99))
octets = st.binary(min_size=4, max_size=4)
u8, u16, u32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, 0xFFFFFFFF)
codes = st.integers(1, 254).filter(lambda code: code != 52)
messages = st.builds(
    dhcpv4.Message,
    op=u8,
    htype=u8,
    hops=u8,
    xid=u32,
    secs=u16,
    flags=u16,
    ciaddr=octets,
    yiaddr=octets,
    siaddr=octets,
    giaddr=octets,
    chaddr=st.binary(max_size=16),
    options=st.dictionaries(codes, st.binary(max_size=600), max_size=5),
)


def oracle(m: dhcpv4.Message, *, options: bytes = b"", sname: bytes = b"", file: bytes = b"") -> bytes:
    """Figure 1 of RFC 2131, by its offsets."""
    data = bytearray(236)
    data[0], data[1], data[2], data[3] = m.op, m.htype, len(m.chaddr), m.hops
    data[4:8], data[8:10], data[10:12] = m.xid.to_bytes(4, "big"), m.secs.to_bytes(2, "big"), m.flags.to_bytes(2, "big")
    data[12:16], data[16:20], data[20:24], data[24:28] = m.ciaddr, m.yiaddr, m.siaddr, m.giaddr
    data[28 : 28 + len(m.chaddr)] = m.chaddr
    data[44 : 44 + len(sname)] = sname
    data[108 : 108 + len(file)] = file
    return bytes(data) + COOKIE + options


def tlv(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


def written(options: dict[int, bytes]) -> bytes:
    """Options, long ones in pieces of 255, one octet at a time."""
    out = bytearray()
    for code, value in options.items():
        rest = list(value)
        while True:
            piece, rest = rest[:255], rest[255:]
            out += bytes([code, len(piece), *piece])
            if not rest:
                break
    return bytes(out)


@quick
@given(messages)
def test_building_agrees_with_the_diagram(m: dhcpv4.Message) -> None:
    plain = oracle(m, options=written(dict(m.options))) + b"\xff"
    assert dhcpv4.build(m) == plain + bytes(max(0, 300 - len(plain)))


@quick
@given(messages)
def test_reading_undoes_writing(m: dhcpv4.Message) -> None:
    data = oracle(m, options=written(dict(m.options)) + b"\xff")
    assert dhcpv4.parse(data) == m
    assert dhcpv4.parse(memoryview(dhcpv4.build(m))) == m
    assert list(dhcpv4.parse(data).options) == list(m.options)  # type: ignore[union-attr]


@quick
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes(noise: bytes, headed: bool) -> None:
    """Invariant: nothing is raised; option octets come from the message, and no more of them than it has."""
    data = oracle(dhcpv4.Message(chaddr=bytes(6)), options=noise, file=noise[:128]) if headed else noise
    m = dhcpv4.parse(data)
    if headed:
        assert m is not None
    if m is not None:
        assert sum(map(len, m.options.values())) <= len(data) - 44
        assert not m.options.keys() & {0, 52, 255}


def parsed(options: bytes, sname: bytes = b"", file: bytes = b"") -> dict[int, bytes]:
    m = dhcpv4.parse(oracle(dhcpv4.Message(), options=options, sname=sname, file=file))
    assert m is not None
    return dict(m.options)


SNAME, FILE = tlv(12, b"sname") + tlv(61, b"3") + b"\xff", tlv(15, b"file") + tlv(61, b"2") + b"\xff"


@pytest.mark.parametrize(
    ("overload", "expected"),
    [
        (b"\x01", {61: b"12", 15: b"file"}),
        (b"\x02", {61: b"13", 12: b"sname"}),
        (b"\x03", {61: b"123", 15: b"file", 12: b"sname"}),
        (b"\x00", {61: b"1"}),
        (b"\x04", {61: b"1"}),
        (b"", {61: b"1"}),
        (b"\x01\x03", {61: b"1"}),
    ],
)
def test_option_overload(overload: bytes, expected: dict[int, bytes]) -> None:
    """RFC 2132 §9.3; pieces in the order options, file, sname (RFC 3396 §5)."""
    assert parsed(tlv(52, overload) + tlv(61, b"1") + b"\xff", SNAME, FILE) == expected


def test_overload_counts_in_the_options_field_only() -> None:
    assert parsed(tlv(52, b"\x01") + b"\xff", SNAME, tlv(52, b"\x02") + tlv(1, b"x")) == {1: b"x"}


def test_a_long_option_comes_in_pieces() -> None:
    """RFC 3396 §5: not only side by side."""
    assert parsed(tlv(119, b"a" * 255) + tlv(1, b"") + b"\x00" + tlv(119, b"b")) == {119: b"a" * 255 + b"b", 1: b""}


@pytest.mark.parametrize(
    "options",
    [
        tlv(1, b"x") + b"\x03",
        tlv(1, b"x") + b"\x03\x01",
        tlv(1, b"x") + b"\x03\xff" + bytes(254),
        tlv(1, b"x") + b"\xff" + tlv(3, b"y"),
        b"\x00" + tlv(1, b"x") + bytes(9),
        tlv(1, b"x"),
    ],
)
def test_what_ends_the_walk(options: bytes) -> None:
    assert parsed(options) == {1: b"x"}


def test_what_is_no_message() -> None:
    whole = oracle(dhcpv4.Message())
    assert dhcpv4.parse(whole) == dhcpv4.Message()
    assert dhcpv4.parse(whole[:-1]) is None
    assert dhcpv4.parse(b"") is None
    assert dhcpv4.parse(whole[:-1] + b"c") == dhcpv4.Message(), "0x63 is the letter c"
    assert dhcpv4.parse(whole[:-1] + b"d") is None, "no cookie"
    assert dhcpv4.parse(whole[:2] + b"\x10" + whole[3:]) is not None
    assert dhcpv4.parse(whole[:2] + b"\x11" + whole[3:]) is None, "hlen beyond chaddr"


def test_the_largest_message_that_is_read() -> None:
    whole = oracle(dhcpv4.Message(), options=tlv(1, b"x")).ljust(dhcpv4.MAX_SIZE, b"\x00")
    assert dhcpv4.parse(whole) is not None
    assert dhcpv4.parse(whole + b"\x00") is None


@pytest.mark.parametrize(
    ("names", "wire"),
    [
        ([], b""),
        (["example.org"], b"\x07example\x03org\x00"),
        (["a.b", "c."], b"\x01a\x01b\x00\x01c\x00"),
        (["", ".", "a..b", ".a", "ä.org", "a" * 64 + ".org"], b""),
        (["a" * 63], b"\x3f" + b"a" * 63 + b"\x00"),
        ([".".join(["a" * 49] * 5) + ".ab"], b"" + (b"\x31" + b"a" * 49) * 5 + b"\x02ab\x00"),
        ([".".join(["a" * 49] * 5) + ".abc"], (b"\x31" + b"a" * 49) * 5 + b"\x03abc\x00"),
        ([".".join(["a" * 49] * 5) + ".abcd"], b""),
        (["bad..", "good"], b"\x04good\x00"),
    ],
)
def test_domain_lists(names: list[str], wire: bytes) -> None:
    """RFC 1035 §3.1: labels of 63, names of 255 octets."""
    assert dhcpv4.domain_list(names) == wire


@quick
@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_names(names: list[str]) -> None:
    """Invariant: what is written can be read as whole names, each one of those that were given."""
    data, read = dhcpv4.domain_list(names), []
    while data:
        labels = []
        while data[0]:
            labels.append(data[1 : 1 + data[0]].decode())
            data = data[1 + data[0] :]
        data = data[1:]
        read.append(".".join(labels))
    assert set(read) <= {name.removesuffix(".") for name in names}
