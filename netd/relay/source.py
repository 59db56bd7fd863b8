"""Where the host's sockets of a network set out from: addresses, interfaces, and the zone of link-local addresses."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from netd.relay.sockaddr import Sockaddr, sockaddr

IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h: leave the port to connect


@dataclass(frozen=True, slots=True)
class Source:
    """``ip`` and ``interface`` for IPv4, ``ip6`` and ``interface6`` for IPv6; "" leaves the choice to the kernel.

    ``zone``: the interface of the host that link-local addresses are on (RFC 4007), "" for none.
    """

    ip: str = ""
    ip6: str = ""
    interface: str = ""
    interface6: str = ""
    zone: str = ""

    def bind(self, sock: socket.SocketType, to: str = "", later: bool = True) -> None:
        """Bind a new socket by its family, unless it is for ``to`` on this machine's loopback. OSError.

        ``later``: leave the port to connect, as it should be for TCP.
        """
        six = ":" in to if to else sock.family == socket.AF_INET6
        interface = self.interface6 if six else self.interface
        ip = self.ip6 if six else self.ip
        if (not interface and not ip) or to.startswith("127.") or to == "::1":
            return
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode("utf-8", "surrogateescape"))
        if ip:
            if later:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((ip, 0))

    def sockaddr(self, ip: bytes, port: int) -> Sockaddr:
        """The address of a peer, with the zone where it is link-local."""
        if self.zone and len(ip) == 16 and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80:
            try:
                return socket.inet_ntop(socket.AF_INET6, ip), port, 0, socket.if_nametoindex(self.zone)
            except OSError:
                pass  # it is gone: connect will say so
        return sockaddr(ip, port)


ANYWHERE: Final = Source()
