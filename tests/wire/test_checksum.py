"""The remainder of one big number against the word loop of RFC 1071."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netd.wire import checksum

from . import oracle
from .prop import quick

octets = st.binary(min_size=4, max_size=4)
u16 = st.integers(0, 65535)


def test_the_example_of_the_rfc() -> None:
    """RFC 1071 §3: 00 01 f2 03 f4 f5 f6 f7, sum ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.total(data) == 0xDDF2
    assert checksum.finish(checksum.total(data)) == 0x220D


long = st.builds(lambda part, size: (part * (size // len(part) + 1))[:size], st.binary(min_size=1, max_size=99), u16)


@quick
@given(st.binary(max_size=300) | long)
def test_any_bytes(data: bytes) -> None:
    """Equal as one's complement numbers: 0 and 0xffff are one."""
    assert checksum.finish(checksum.total(data)) % 0xFFFF == oracle.checksum(data) % 0xFFFF
    assert checksum.total(memoryview(data)) == checksum.total(bytearray(data)) == checksum.total(data) < 0xFFFF


@quick
@given(st.binary(min_size=2, max_size=200), st.data())
def test_what_is_finished_is_valid_and_any_flipped_bit_is_not(data: bytes, draw: st.DataObject) -> None:
    """The field is written where it is zero; the receiver of the oracle's kind finds all ones."""
    value = checksum.finish(checksum.total(b"\x00\x00" + data))
    assert 1 <= value <= 0xFFFF, "never zero: UDP must not send 'no checksum' (RFC 768)"
    whole = bytearray(value.to_bytes(2, "big") + data)
    assert checksum.valid(checksum.total(whole))
    assert oracle.checksum(bytes(whole)) == 0
    bit = draw.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert not checksum.valid(checksum.total(whole))


@quick
@given(st.lists(st.binary(max_size=50).map(lambda b: b + b if len(b) % 2 else b), max_size=8))
def test_sums_of_parts_add_up(parts: list[bytes]) -> None:
    """RFC 1071 §2(A)."""
    assert sum(checksum.total(part) for part in parts) % 0xFFFF == checksum.total(b"".join(parts))


@quick
@given(octets, octets, st.integers(0, 255), st.integers(0, 65535))
def test_the_pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> None:
    assert checksum.pseudo(src, dst, protocol, length) == checksum.total(
        oracle.pseudo_header(src, dst, protocol, length)
    )


def test_nothing_sums_to_nothing() -> None:
    assert checksum.total(b"") == checksum.total(b"\x00\x00") == checksum.total(b"\xff\xff") == 0
    assert checksum.finish(0) == 0xFFFF
