"""Host ports to be published: checked, bound in both families, given back."""

from __future__ import annotations

import errno
import resource
import socket
import time
from typing import Final

from netd.errors import AddressUnavailable, InvalidSpec, LimitReached, NetdError, PortInUse, PortPrivileged
from netd.relay.sockaddr import Sockaddr, is_literal, resolve
from netd.specs import ForwardSpec

BACKLOG: Final = 4096  # the kernel caps it at net.core.somaxconn
_IP_FREEBIND: Final = 15  # linux/in.h, linux/in6.h
_IPV6_FREEBIND: Final = 78
_ATTEMPTS: Final = 32  # to find a port that is free in both families, where the kernel chooses

Kept = dict[tuple[int, int], socket.socket]  # by family and port


def check(spec: ForwardSpec) -> None:
    """InvalidSpec if the spec contradicts itself; the doors have checked syntax."""
    if spec.protocol not in ("tcp", "udp"):
        raise InvalidSpec(f"protocol {spec.protocol!r} cannot be forwarded; tcp and udp can")
    if spec.range < 1 or not 0 < spec.container_port <= 65536 - spec.range:
        raise InvalidSpec(f"container port {spec.container_port} with range {spec.range} is outside 1-65535")
    if not 0 <= spec.host_port <= 65536 - spec.range or (spec.host_port == 0 and spec.range > 1):
        raise InvalidSpec(f"host port {spec.host_port} with range {spec.range} is outside 1-65535")
    if spec.host_ip and not is_literal(spec.host_ip):
        raise InvalidSpec(f"host_ip {spec.host_ip!r} is not an IP address")
    if spec.container_ip and ("%" in spec.container_ip or not is_literal(spec.container_ip)):
        raise InvalidSpec(f"container_ip {spec.container_ip!r} is not an IP address")


def listen(spec: ForwardSpec, kept: Kept) -> list[list[socket.socket]]:
    """Bind every port of ``spec`` on the host, except what ``kept`` has: all or none, or with ``best_effort`` as many
    as there are, one at least. The sockets of each port, which may be none then.

    PortInUse, PortPrivileged, AddressUnavailable, OSError for want of descriptors.
    """
    ports: list[list[socket.socket]] = []
    error: Exception | None = None
    reserve = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # for what is not best effort, of other networks, too
    try:
        for port in range(spec.host_port, spec.host_port + spec.range):
            try:
                sockets = _listen_port(spec, port, kept)
                if spec.best_effort and sockets[0].fileno() >= reserve:
                    _close(sockets)
                    raise LimitReached(f"ports of best effort take no more than {reserve} descriptors")
                ports.append(sockets)
            except (NetdError, OSError) as e:
                if not spec.best_effort:
                    raise
                error = error or e
                ports.append([])
                if isinstance(e, LimitReached):
                    ports += [[] for _ in range(spec.host_port + spec.range - port - 1)]
                    break
        if error is not None and not any(ports):
            raise error
    except BaseException:
        for sockets in ports:
            _close(sockets)
        raise
    return ports


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _listen_port(spec: ForwardSpec, port: int, kept: Kept) -> list[socket.socket]:
    """One port: a socket of the address's family, or for all addresses one of each."""
    if spec.host_ip:
        family = socket.AF_INET6 if ":" in spec.host_ip else socket.AF_INET
        return [kept.pop((family, port), None) or _listen_one(spec, spec.host_ip, port)]
    if spec.dual_stack:
        try:
            return [kept.pop((socket.AF_INET6, port), None) or _listen_one(spec, "::", port)]
        except AddressUnavailable:
            return [kept.pop((socket.AF_INET, port), None) or _listen_one(spec, "0.0.0.0", port)]
    attempt = 0
    while True:
        restored = kept.pop((socket.AF_INET, port), None)
        sock = restored or _listen_one(spec, "0.0.0.0", port)
        try:
            chosen = sock.getsockname()[1]
            sock6 = kept.pop((socket.AF_INET6, port), None) or _listen_one(spec, "::", chosen)
        except AddressUnavailable:
            return [sock]  # this host has no IPv6
        except PortInUse:
            if restored is not None:
                return [sock]  # of a life that knew no IPv6: better half of a port than none
            sock.close()
            attempt += 1
            if port or attempt >= _ATTEMPTS:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return [sock, sock6]


def _listen_one(spec: ForwardSpec, ip: str, port: int) -> socket.socket:
    protocol = spec.protocol
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    where = f"[{ip}]:{port}/{protocol}" if ":" in ip else f"{ip}:{port}/{protocol}"
    sock = None
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        address = resolve(ip, port)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not spec.dual_stack)
        if spec.freebind:
            level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
            sock.setsockopt(level, _IPV6_FREEBIND if family == socket.AF_INET6 else _IP_FREEBIND, 1)
        if spec.interface:
            name = spec.interface.encode("utf-8", "surrogateescape")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        else:
            _bind_datagrams(sock, address)
    except OSError as e:
        if sock is not None:
            sock.close()
        if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise
        elsewhere = sock is None or "%" in ip or e.errno in (errno.EADDRNOTAVAIL, errno.ENODEV)
        raise _refusal(e, f"cannot publish {where}", spec.interface or ip, port, elsewhere) from None
    return sock


def _refusal(e: OSError, what: str, wanted: str, port: int, elsewhere: bool) -> NetdError:
    """Why not, in the owner's words. ``elsewhere``: ``wanted`` is not of this host."""
    reason = e.strerror or str(e)
    if e.errno == errno.EADDRINUSE:
        return PortInUse(f"{what}: {reason}", port=port)
    if e.errno in (errno.EACCES, errno.EPERM):
        return PortPrivileged(
            f"{what}: {reason} (port below net.ipv4.ip_unprivileged_port_start)",
            f"as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port}, or take a higher port",
            port,
            reason,
        )
    if e.errno == errno.EAFNOSUPPORT:
        return AddressUnavailable(f"{what}: this host has no IPv6", "", port, reason)
    if elsewhere:
        kind = "address" if is_literal(wanted) else "interface"
        return AddressUnavailable(f"{what}: {wanted} is not an {kind} of this host", "", port, reason)
    return InvalidSpec(f"{what}: {reason}")


# UDP addresses given up a moment ago, in order of time. The service manager holds a duplicate of each socket until it
# has read the message that says so, and nothing but its close unbinds a UDP socket.
_released: dict[Sockaddr, float] = {}
_RELEASE_SECONDS: Final = 5.0


def release(sock: socket.socket) -> None:
    """Before a UDP listener is closed for good: let us bind its address anew at once."""
    now = time.monotonic()
    while _released and next(iter(_released.values())) < now - _RELEASE_SECONDS:
        del _released[next(iter(_released))]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # takes both sides of a bind (udp_lib_lport_inuse)
    _released.pop(sock.getsockname(), None)
    _released[sock.getsockname()] = now


def _bind_datagrams(sock: socket.socket, address: Sockaddr) -> None:
    try:
        sock.bind(address)
    except OSError as e:
        if e.errno != errno.EADDRINUSE or _released.get(address, 0.0) < time.monotonic() - _RELEASE_SECONDS:
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # ours alone again
