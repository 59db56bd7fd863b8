"""What a forwarder reads of a DNS message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import dns

from .prop import quick

label = st.binary(min_size=1, max_size=63)
names = st.lists(label, max_size=4)


def question(labels: list[bytes], qtype: int = 1) -> bytes:
    return b"".join(bytes((len(x),)) + x for x in labels) + b"\x00" + struct.pack("!HH", qtype, 1)


def message(flags: int, labels: list[bytes], ident: int = 0x1234, rest: bytes = b"") -> bytes:
    return struct.pack("!6H", ident, flags, 1, 0, 0, 0) + question(labels) + rest


@quick
@given(names, st.binary(max_size=20))
def test_the_end_of_a_question(labels: list[bytes], rest: bytes) -> None:
    data = message(0, labels, rest=rest)
    assert dns.question_end(data) == 12 + len(question(labels))
    assert dns.question_end(memoryview(data)) == len(data) - len(rest)


@quick
@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    """Invariant: 0, or an offset inside the message behind a name and four bytes."""
    end = dns.question_end(data)
    assert end == 0 or 17 <= end <= len(data)
    if end:
        assert data[end - 5] == 0


@quick
@given(names, st.data())
def test_a_question_that_is_cut(labels: list[bytes], data: st.DataObject) -> None:
    whole = message(0, labels)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert dns.question_end(whole[:cut]) == 0


@pytest.mark.parametrize("name", ["c00c", "40", "80", "ff", "0161c000"])
def test_compressed_and_reserved_labels_are_not_walked(name: str) -> None:
    assert dns.question_end(bytes(12) + bytes.fromhex(name) + bytes(10)) == 0


@quick
@given(st.integers(0, 65535), st.integers(0, 65535), names, st.binary(max_size=30))
def test_servfail(ident: int, flags: int, labels: list[bytes], rest: bytes) -> None:
    """RFC 1035 §4.1.1: id, opcode and RD are the query's; QR, RA and RCODE 2 are ours; nothing else is set."""
    answer = dns.servfail(message(flags, labels, ident, rest))
    found = struct.unpack("!6H", answer[:12])
    assert found[0] == ident
    assert found[1] == 0x8000 | flags & 0x7800 | flags & 0x0100 | 0x0080 | 2
    assert found[2:] == (1, 0, 0, 0)
    assert answer[12:] == question(labels)


def test_servfail_without_a_question() -> None:
    answer = dns.servfail(b"\x12\x34\x01\x00" + bytes(8) + b"\xff")
    assert answer == b"\x12\x34\x81\x82" + bytes(8)


def test_less_than_a_header_is_a_struct_error() -> None:
    with pytest.raises(struct.error):
        dns.servfail(bytes(11))
