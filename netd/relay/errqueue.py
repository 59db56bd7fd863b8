"""What the kernel tells a socket of its datagrams' fate: the error queue (ip(7) IP_RECVERR, ipv6(7) IPV6_RECVERR).

An entry that was an ICMP message is passed on as that message: type, code, MTU, and who sent it. What the kernel
decided by itself, or returns from a system call, has an errno only, for which the fitting message is made up.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from netd.relay.sockaddr import Sockaddr, is_loopback
from netd.stack.ports import ADMIN_PROHIBITED, HOST_UNREACHABLE, NET_UNREACHABLE, PORT_UNREACHABLE, HostError
from netd.wire import icmpv4, icmpv6

# linux/in.h, linux/in6.h
IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25

# struct sock_extended_err, linux/errqueue.h: errno origin type code pad info data; behind it the offender's sockaddr.
_EXTENDED_ERR: Final = struct.Struct("=IBBBBII")
_ORIGIN_ICMP: Final = 2
_ORIGIN_ICMP6: Final = 3
_FAMILY: Final = struct.Struct("=H")
_CODES6: Final = {  # RFC 4443 §3.1
    NET_UNREACHABLE: icmpv6.NO_ROUTE,
    ADMIN_PROHIBITED: icmpv6.ADMIN_PROHIBITED,
    HOST_UNREACHABLE: icmpv6.ADDRESS_UNREACHABLE,
    PORT_UNREACHABLE: icmpv6.PORT_UNREACHABLE,
}

# An errno as an ICMPv4 unreachable code.
REASONS: Final = {
    errno.ECONNREFUSED: PORT_UNREACHABLE,
    errno.EHOSTUNREACH: HOST_UNREACHABLE,
    errno.EHOSTDOWN: HOST_UNREACHABLE,
    errno.ENETUNREACH: NET_UNREACHABLE,
    errno.ENETDOWN: NET_UNREACHABLE,
    errno.EADDRNOTAVAIL: NET_UNREACHABLE,  # no source address of the family
    errno.EAFNOSUPPORT: NET_UNREACHABLE,
    errno.EACCES: ADMIN_PROHIBITED,
    errno.EPERM: ADMIN_PROHIBITED,
}


def watch(sock: socket.SocketType) -> None:
    """Have the kernel keep an error queue for ``sock``."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def local_error(family: int, number: int) -> HostError | None:
    """This machine's own refusal as an ICMP error; None where it is nothing for the guest to hear."""
    reason = REASONS.get(number)
    if reason is None:
        return None
    if family == socket.AF_INET6:
        return HostError(icmpv6.DEST_UNREACHABLE, _CODES6[reason])
    return HostError(icmpv4.DEST_UNREACHABLE, reason)


def read_error(sock: socket.SocketType) -> tuple[Sockaddr, HostError | None, bytes] | None:
    """One entry of the queue: (the peer, what the guest is to hear, the datagram it is about). None: it is empty."""
    try:
        quoted, ancillary, _, peer = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if len(data) >= _EXTENDED_ERR.size and (level, kind) in (
            (socket.IPPROTO_IP, IP_RECVERR),
            (socket.IPPROTO_IPV6, IPV6_RECVERR),
        ):
            number, origin, type_, code, _, info, _ = _EXTENDED_ERR.unpack_from(data)
            family = socket.AF_INET6 if level == socket.IPPROTO_IPV6 else socket.AF_INET
            if origin == (_ORIGIN_ICMP6 if family == socket.AF_INET6 else _ORIGIN_ICMP):
                return peer, HostError(type_, code, info, _offender(data)), quoted
            return peer, local_error(family, number), quoted
    return peer, None, quoted


def _offender(data: bytes) -> bytes:
    """The address behind the struct (SO_EE_OFFENDER); b"" for this machine's loopback."""
    at = _EXTENDED_ERR.size
    if len(data) < at + 8:
        return b""
    (family,) = _FAMILY.unpack_from(data, at)
    if family == socket.AF_INET:
        ip = data[at + 4 : at + 8]
        return b"" if is_loopback(ip) or ip[0] == 0 else ip
    if family == socket.AF_INET6 and len(data) >= at + 24:
        ip = data[at + 8 : at + 24]
        return b"" if is_loopback(ip) or not any(ip) else ip
    return b""
