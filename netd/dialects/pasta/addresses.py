"""IP addresses and numbers as a C program reads them: inet_pton(3) and strtoul(3)."""

from __future__ import annotations

import re
import socket
from ipaddress import AddressValueError, IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

SPACE = r"[ \t\n\v\f\r]*"
_NUMBER = re.compile(SPACE + r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)", re.ASCII)
_ULONG = 2**64  # unsigned long, on the machines that are


def ipv4(text: str) -> IPv4Address | None:
    """Four decimal numbers with dots between, or None."""
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None


def ipv6(text: str) -> IPv6Address | None:
    """An address of RFC 4291, 2.2, without a zone, or None."""
    try:
        return None if "%" in text else IPv6Address(text)
    except AddressValueError:
        return None


def address(text: str) -> Address | None:
    """Of either family, in brackets or not; an IPv4-mapped one is the IPv4 address in it."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    found = ipv6(text)
    return ipv4(text) if found is None else found.ipv4_mapped or found


def literal(found: Address) -> str:
    """As inet_ntop(3) writes it."""
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, found.packed)


def is_broadcast(found: Address) -> bool:
    """255.255.255.255, which is no host's address (RFC 919)."""
    return found.version == 4 and found.packed == b"\xff" * 4


def number(text: str, base: int = 0) -> int | None:
    """strtoul(3) of the whole text: 0 takes hexadecimal and octal as well. None for anything else, or too large."""
    found = _NUMBER.fullmatch(text)
    if found is None or len(found[2].lstrip("0")) > 22:  # more digits than 2^64 has in any base
        return None
    try:
        value = int(found[2], base) if base else _by_prefix(found[2])
    except ValueError:
        return None
    if value >= _ULONG:
        return None
    return (_ULONG - value) % _ULONG if found[1] == "-" else value


def _by_prefix(digits: str) -> int:
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    return int(digits, 8) if digits.startswith("0") else int(digits)
