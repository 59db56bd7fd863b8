"""The Internet checksum (RFC 1071).

The one's complement sum of 16-bit words is the number modulo 65535 (2**16 is 1 mod 65535), so one big-integer
remainder does what a loop over words would. A sum that is a non-zero multiple of 65535 gives remainder 0, which is
the other spelling of 0xffff in one's complement; callers treat both alike.
"""

from __future__ import annotations

Bytes = bytes | bytearray | memoryview


def total(data: Bytes) -> int:
    """One's complement sum of ``data`` as big-endian words, an odd tail padded with zero: 0..65534, not inverted."""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF


def finish(number: int) -> int:
    """The checksum field for a sum of words (of any size): folded and inverted, 1..0xffff (never 0, RFC 768)."""
    return 0xFFFF - (number % 0xFFFF)


def valid(number: int) -> bool:
    """True if the sum of a region that includes its checksum field is right (all ones)."""
    return number % 0xFFFF == 0


def pseudo(src: Bytes, dst: Bytes, protocol: int, length: int) -> int:
    """Sum of the pseudo-header, of IPv4 (RFC 9293 §3.1, RFC 768) or IPv6 (RFC 8200 §8.1), not inverted.

    It serves both: the fields are the same numbers, and leading zeros add nothing.
    """
    return (int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length) % 0xFFFF
