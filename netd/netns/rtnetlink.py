"""rtnetlink(7) of the namespace this process is in: one request at a time. Used by the agent's children alone.

The messages are spelled by pyroute2, which comes in at the agent's door; here they are objects with a header and data.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, NamedTuple

from netd.errors import TapUnavailable
from netd.netns.channel import MESSAGE_MAX

NLMSGHDR = struct.Struct("=IHHII")  # linux/netlink.h
IFADDRMSG = struct.Struct("=BBBBI")  # linux/if_addr.h: family, prefixlen, flags, scope, index
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE = 16, 20, 21, 22, 24
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
IFA_ADDRESS, IFA_LOCAL = 1, 2  # IPv6 has the latter for peer-to-peer addresses only
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x04, 0x08, 0x40


class Refused(TapUnavailable):
    """The kernel declined a change, with errno ``number``."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class Address(NamedTuple):
    """An address of an interface."""

    packed: bytes
    prefix: int
    usable: bool  # no duplicate address detection is under way, or has failed


class Rtnetlink:
    """One request at a time over a plain netlink socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def change(self, what: str, kind: int, message: Any, flags: int = 0) -> None:
        """Sends ``message`` and waits for the kernel's ACK. Raises Refused, saying what failed."""
        self._send(kind, message, NLM_F_ACK | flags)
        while True:
            for sort, sequence, body in self._receive():
                if sort == NLMSG_ERROR and sequence == self._sequence:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise Refused(what, code)
                    return

    def addresses(self, family: int, index: int) -> list[Address]:
        """What interface ``index`` has of this family."""
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_DUMP
        header = NLMSGHDR.pack(NLMSGHDR.size + IFADDRMSG.size, RTM_GETADDR, flags, self._sequence, 0)
        self._socket.send(header + IFADDRMSG.pack(family, 0, 0, 0, 0))
        found: list[Address] = []
        while True:
            for sort, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if sort in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                # A kernel without this family answers with the addresses of all others.
                of_family, prefix, state, _, of = IFADDRMSG.unpack_from(body)
                if (of_family, of) != (family, index):
                    continue
                attributes: dict[int, bytes] = {}
                offset = IFADDRMSG.size
                while offset + ATTRIBUTE.size <= len(body):
                    length, attribute = ATTRIBUTE.unpack_from(body, offset)
                    attributes[attribute] = body[offset + ATTRIBUTE.size : offset + length]
                    offset += max(ATTRIBUTE.size, (length + 3) & ~3)
                packed = attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS]
                usable = not state & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_OPTIMISTIC)
                found.append(Address(packed, prefix, usable))

    def _send(self, kind: int, message: Any, flags: int) -> None:
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data = self._socket.recv(MESSAGE_MAX)
        found, offset = [], 0
        while offset + NLMSGHDR.size <= len(data):
            length, kind, _, sequence, _ = NLMSGHDR.unpack_from(data, offset)
            found.append((kind, sequence, data[offset + NLMSGHDR.size : offset + length]))
            offset += max(NLMSGHDR.size, (length + 3) & ~3)
        return found
