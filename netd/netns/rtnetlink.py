"""rtnetlink(7) of the namespace this process is in: one request at a time. Used by the agent and its children alone.

Changes are messages that are spelled elsewhere (``messages``); here they are objects with a header and data. Dumps are
read here, struct by struct, since a host has hundreds of routes and the answer is waited for.

A dump comes in as many parts as it takes; a part is as large as it wants to be, so its size is asked for before it is
read. One during which the table changed is asked for again.

Sources: netlink(7), include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h, net/netlink/af_netlink.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any, NamedTuple

from netd.errors import TapUnavailable

NLMSGHDR = struct.Struct("=IHHII")  # linux/netlink.h: len, type, flags, seq, pid
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: len, type
IFINFOMSG = struct.Struct("=BxHiII")  # linux/rtnetlink.h: family, type, index, flags, change
IFADDRMSG = struct.Struct("=BBBBI")  # linux/if_addr.h: family, prefixlen, flags, scope, index
RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # linux/rtnetlink.h: family, dst_len, src_len, tos, table, proto, scope, type, flags
RTNEXTHOP = struct.Struct("=HBBi")  # linux/rtnetlink.h: len, flags, hops, ifindex
NUMBER = struct.Struct("=I")

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 18, 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12  # Linux 4.20
NLA_TYPE_MASK = 0x3FFF

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_EXT_MASK = 1, 3, 4, 29
RTEXT_FILTER_SKIP_STATS = 8
IFF_UP, IFF_LOOPBACK = 0x1, 0x8  # linux/if.h
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8  # IPv6 has IFA_LOCAL for peer-to-peer addresses only
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x04, 0x08, 0x20, 0x40
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 9, 15
RT_TABLE_MAIN, RTPROT_KERNEL, RTN_UNICAST, RTM_F_CLONED = 254, 2, 1, 0x200

DUMP_TRIES = 4  # of a table that keeps changing the last one is taken as it is
ACK_MAX = 8192  # bytes: 36, and after an error the request once more, of which nothing is read
DUMP_MAX = 20_000  # messages of one dump that are looked at: some 0.1 s
# A family that this kernel has not, a table in which nothing has ever been.
NOTHING = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOENT)


class Refused(TapUnavailable):
    """The kernel declined a change, with errno ``number``."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class Link(NamedTuple):
    """An interface."""

    ifindex: int
    name: str
    mtu: int
    mac: bytes  # b"" where it has none of 6 bytes
    up: bool
    loopback: bool


class Address(NamedTuple):
    """An address of an interface."""

    ifindex: int
    packed: bytes
    prefix: int
    usable: bool  # no duplicate address detection is under way, or has failed
    deprecated: bool  # its preferred lifetime is over (RFC 4862 §5.5.4): not for new connections


class Route(NamedTuple):
    """A unicast route of the main table."""

    packed: bytes
    prefix: int
    ifindex: int  # of the first hop's interface
    gateway: bytes  # the first hop's; b"" on the link, or where it is of the other family (RFC 8950)
    metric: int
    protocol: int  # who made it: RTPROT_KERNEL, …


class Rtnetlink:
    """One request at a time over a plain netlink socket."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = _open()
        self.cut_short = False  # a dump had more than DUMP_MAX messages: what it returned is not all

    def close(self) -> None:
        self._socket.close()

    def change(self, what: str, kind: int, message: Any, flags: int = 0) -> None:
        """Sends ``message`` and waits for the kernel's ACK. Raises Refused, saying what failed."""
        self._socket.send(self.spell(kind, message, flags))
        while True:
            for sort, _, body in self._answers(self._socket.recv(ACK_MAX)):
                if sort == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise Refused(what, code)
                    return

    def spell(self, kind: int, message: Any, flags: int) -> bytes:
        """The bytes of a change, the next one in turn."""
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        return bytes(message.data)

    def links(self) -> list[Link]:
        """All interfaces, by index. Raises OSError."""
        skip = ATTRIBUTE.pack(8, IFLA_EXT_MASK) + NUMBER.pack(RTEXT_FILTER_SKIP_STATS)
        found = []
        for body in self._dump(RTM_GETLINK, IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + skip):
            _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
            of = attributes(body, IFINFOMSG.size)
            name = os.fsdecode(of[IFLA_IFNAME].rstrip(b"\0"))
            mac = of.get(IFLA_ADDRESS, b"")
            up, loopback = bool(flags & IFF_UP), bool(flags & IFF_LOOPBACK)
            found.append(Link(index, name, _number(of, IFLA_MTU), mac if len(mac) == 6 else b"", up, loopback))
        return found

    def addresses(self, family: int) -> list[Address]:
        """All addresses of this family, in the kernel's order of preference. Raises OSError."""
        found = []
        for body in self._dump(RTM_GETADDR, IFADDRMSG.pack(family, 0, 0, 0, 0)):
            of_family, prefix, flags, _, index = IFADDRMSG.unpack_from(body)
            if of_family != family:  # a kernel without this family answers with the addresses of all others
                continue
            of = attributes(body, IFADDRMSG.size)
            flags |= _number(of, IFA_FLAGS)
            usable = not flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_OPTIMISTIC)
            packed = of.get(IFA_LOCAL) or of[IFA_ADDRESS]
            found.append(Address(index, packed, prefix, usable, bool(flags & IFA_F_DEPRECATED)))
        return found

    def routes(self, family: int) -> list[Route]:
        """The unicast routes of the main table, in the kernel's order. Raises OSError.

        Without those for a type of service, and without what is only remembered of a route (RTM_F_CLONED).
        """
        asked = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, RTN_UNICAST, 0)  # filters since Linux 4.20
        nowhere = bytes(4 if family == socket.AF_INET else 16)
        found = []
        for body in self._dump(RTM_GETROUTE, asked):
            of_family, prefix, _, tos, table, protocol, _, sort, flags = RTMSG.unpack_from(body)
            if of_family != family or sort != RTN_UNICAST or tos or flags & RTM_F_CLONED:
                continue
            of = attributes(body, RTMSG.size)
            if _number(of, RTA_TABLE, table) != RT_TABLE_MAIN:
                continue
            packed, metric = of.get(RTA_DST, nowhere), _number(of, RTA_PRIORITY)
            index = _number(of, RTA_OIF)
            if hops := of.get(RTA_MULTIPATH):
                length, _, _, index = RTNEXTHOP.unpack_from(hops)
                of = attributes(hops[:length], RTNEXTHOP.size)
            if index:
                found.append(Route(packed, prefix, index, of.get(RTA_GATEWAY, b""), metric, protocol))
        return found

    def _dump(self, kind: int, asked: bytes) -> list[bytes]:
        """The bodies of all messages of a dump. Raises OSError."""
        for _ in range(DUMP_TRIES):
            self._sequence += 1
            flags = NLM_F_REQUEST | NLM_F_DUMP
            self._socket.send(NLMSGHDR.pack(NLMSGHDR.size + len(asked), kind, flags, self._sequence, 0) + asked)
            found, steady = self._parts()
            if steady:
                break
        return found

    def _parts(self) -> tuple[list[bytes], bool]:
        """(the bodies, whether the table stayed as it was meanwhile)"""
        found: list[bytes] = []
        steady = True
        while True:
            for sort, flags, body in self._receive():
                if flags & NLM_F_DUMP_INTR:
                    steady = False
                if sort in (NLMSG_DONE, NLMSG_ERROR):
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code > 0 and code not in NOTHING:
                        raise OSError(code, os.strerror(code))
                    return found, steady
                found.append(body)
            if len(found) > DUMP_MAX:
                self.cut_short = True
                self._socket.close()  # or the rest would come in between
                self._socket = _open()
                return found[:DUMP_MAX], True

    def _receive(self) -> list[tuple[int, int, bytes]]:
        """The messages of one part that answer the last request: (type, flags, body)."""
        size = self._socket.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
        return self._answers(self._socket.recv(size))

    def _answers(self, data: bytes) -> list[tuple[int, int, bytes]]:
        found, offset = [], 0
        while offset + NLMSGHDR.size <= len(data):
            length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(data, offset)
            if sequence == self._sequence:
                found.append((kind, flags, data[offset + NLMSGHDR.size : offset + length]))
            offset += max(NLMSGHDR.size, (length + 3) & ~3)
        return found


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    except OSError:
        pass  # an older kernel: it dumps more, and we leave out ourselves
    opened.bind((0, 0))
    return opened


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes from ``offset`` on, by type."""
    found: dict[int, bytes] = {}
    while offset + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, offset)
        found[kind & NLA_TYPE_MASK] = body[offset + ATTRIBUTE.size : offset + length]
        offset += max(ATTRIBUTE.size, (length + 3) & ~3)
    return found


def _number(of: dict[int, bytes], kind: int, otherwise: int = 0) -> int:
    value = of.get(kind)
    return int(NUMBER.unpack(value)[0]) if value is not None else otherwise
