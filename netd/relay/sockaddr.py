"""Socket addresses: a packed address of 4 bytes is AF_INET's, one of 16 AF_INET6's (ip(7), ipv6(7))."""

from __future__ import annotations

import socket
from typing import Final

Sockaddr = tuple[str, int] | tuple[str, int, int, int]

_LOOPBACK6: Final = bytes(15) + b"\x01"
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2


def family_of(ip: bytes) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if len(ip) == 4 else socket.AF_INET6


def sockaddr(ip: bytes, port: int) -> Sockaddr:
    """For connect and sendto. The long form of AF_INET6 is the one that CPython parses in less time."""
    if len(ip) == 4:
        return socket.inet_ntoa(ip), port
    return socket.inet_ntop(socket.AF_INET6, ip), port, 0, 0


def is_loopback(ip: bytes) -> bool:
    """127.0.0.0/8, ::1."""
    return ip[0] == 127 if len(ip) == 4 else ip == _LOOPBACK6


def packed(text: str) -> bytes:
    """The address of a peer as accept and recvfrom tell it; 4 bytes where it is IPv4 in IPv6's clothes."""
    if ":" not in text:
        return socket.inet_aton(text)
    ip = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    return ip[12:] if ip[:12] == _MAPPED else ip


def is_literal(text: str) -> bool:
    """True for an IPv4 or IPv6 literal, in IPv6 also one with a zone (RFC 4007 §11)."""
    ip, percent, zone = text.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)
    except (OSError, ValueError):
        return False
    return not percent or (":" in ip and bool(zone))


def resolve(literal: str, port: int) -> Sockaddr:
    """The same of a literal. A zone is an interface's name or number, and OSError where there is none of that name."""
    if ":" not in literal:
        return literal, port
    text, _, zone = literal.partition("%")
    scope = 0
    if zone:
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text)), port, 0, scope
