"""Sockets of the namespace this process is in, as SocketPlans say. Used by the agent's children alone.

A socket belongs to the namespace that it was made in for ever (and keeps it alive), whoever has its descriptor.

Sources: socket(7), tcp(7), ipv6(7), sock_diag(7).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from netd.netns.plan import SocketPlan

BACKLOG = 4096  # the kernel caps it at net.core.somaxconn
NETLINK_SOCK_DIAG = 4  # linux/netlink.h
IFNAME_MAX = 15  # IFNAMSIZ less the NUL; SO_BINDTODEVICE takes the beginning of what is longer
PORT_MAX = 65535
NEW = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def open_sockets(plans: Iterable[SocketPlan]) -> tuple[list[str | None], list[int]]:
    """(for each socket why there is none, or None; the descriptors of those that there are, in this order)"""
    reasons: list[str | None] = []
    fds: list[int] = []
    for plan in plans:
        for _ in range(plan.count):
            try:
                fds.append(open_socket(plan))
                reasons.append(None)
            except ValueError as e:
                reasons.append(str(e))
            except OSError as e:
                reasons.append(e.strerror or str(e))
    return reasons, fds


def open_socket(plan: SocketPlan) -> int:
    """A descriptor: non-blocking, close-on-exec. Raises OSError; ValueError for a plan that makes no sense."""
    if plan.kind == "diag":
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | NEW, NETLINK_SOCK_DIAG) as sock:
            return sock.detach()
    if plan.family not in FAMILIES or plan.protocol not in KINDS:
        raise ValueError(f"no sockets of {plan.protocol!r} over IP version {plan.family!r}")
    with socket.socket(FAMILIES[plan.family], KINDS[plan.protocol] | NEW) as sock:
        if plan.kind == "listen":
            _listen(sock, plan)
        elif plan.kind != "connect":
            raise ValueError(f"no sockets of kind {plan.kind!r}")
        return sock.detach()


def _listen(sock: socket.socket, plan: SocketPlan) -> None:
    if not 0 <= plan.port <= PORT_MAX:
        raise ValueError(f"no port {plan.port}")
    packed = _packed(sock.family, plan.ip) if plan.ip else bytes(4 if plan.family == 4 else 16)
    if plan.interface:
        name = os.fsencode(plan.interface)
        if len(name) > IFNAME_MAX or b"\0" in name:
            raise ValueError(f"{plan.interface!r} is not an interface name")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name + b"\0")
    if plan.protocol == "tcp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    literal = socket.inet_ntop(sock.family, packed)  # no name that bind() might look up
    if plan.family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The zone of a link-local address (RFC 4007).
        sock.bind((literal, plan.port, 0, socket.if_nametoindex(plan.interface) if plan.interface else 0))
    else:
        sock.bind((literal, plan.port))
    if plan.protocol == "tcp":
        sock.listen(BACKLOG)


def _packed(family: int, literal: str) -> bytes:
    try:
        return socket.inet_pton(family, literal)
    except (OSError, ValueError) as e:
        raise ValueError(f"{literal!r} is not an IPv{4 if family == socket.AF_INET else 6} address") from e
