"""Namespaces, and sockets in them from this process: what the tests of link, relay, guest and daemon stand on.

The tests run *in* a network namespace made for them (``World``), so that the daemon's own sockets are opened there and
the machine's network is neither needed nor touched. A guest is a real kernel's namespace; a socket in it is made by
entering it for the length of one system call.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import hashlib
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

PATIENCE = 20.0  # seconds until a test gives up on an event
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no namespace here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root, or: unshare --user --map-root-user --net python -m pytest"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return f"/dev/net/tun is not usable by uid {os.getuid()}"
    for name in ("ip", "nft", "unshare"):
        if shutil.which(name, path=PATH) is None:
            return f"{name} is not installed"
    return ""


needs_namespaces = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def own_netns() -> int:
    """A descriptor of this thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Netns:
    """A network namespace; ``process`` holds it, or only ``fd`` does."""

    def __init__(self, fd: int, process: subprocess.Popen[str] | None = None) -> None:
        self.fd = fd
        self.process = process

    @classmethod
    def bare(cls) -> Netns:
        """One of this process's own user namespace, held by the descriptor alone."""
        before = own_netns()
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            try:
                return cls(own_netns())
            finally:
                _setns(before)
        finally:
            os.close(before)

    @classmethod
    def guest(cls) -> Netns:
        """One in a user namespace of its own, as a rootless container has it."""
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": PATH},
        )
        assert process.stdout is not None
        if process.stdout.readline() != "up\n":
            process.kill()
            process.communicate()
            pytest.skip("no user namespaces here")
        return cls(os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC), process)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace. No await may happen meanwhile."""
        before = own_netns()
        try:
            _setns(self.fd)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(before)

    def socket(self, kind: int = socket.SOCK_STREAM, protocol: int = 0, family: int = socket.AF_INET) -> socket.socket:
        """A blocking socket of that namespace which gives up after ``PATIENCE``."""
        with self.entered():
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(PATIENCE)
        return sock

    def listener(self, ip: str = "0.0.0.0", port: int = 0, backlog: int = 1024) -> socket.socket:
        """A listening TCP socket in there."""
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        sock.listen(backlog)
        return sock

    def datagrams(self, ip: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """A bound UDP socket in there."""
        sock = self.socket(socket.SOCK_DGRAM)
        sock.bind((ip, port))
        return sock

    def run(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        """Runs a program in there that does not need the daemon's answer."""
        with self.entered():
            done = subprocess.run(
                command, input=stdin, text=True, capture_output=True, check=False, env={**os.environ, "PATH": PATH}
            )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def ip(self, lines: str) -> None:
        """``ip -batch``."""
        self.run("ip", "-batch", "-", stdin=lines)

    def has_link(self, name: str) -> bool:
        """True if it has an interface of that name."""
        with self.entered():
            return name in (there for _, there in socket.if_nameindex())

    def sysctl(self, name: str, value: str, family: str = "ipv4") -> None:
        """Sets net.ipv4.NAME, or that of IPv6; a kernel without IPv6 has nothing to set."""
        with self.entered():
            try:
                with open(f"/proc/sys/net/{family}/{name}", "w") as file:
                    file.write(value)
            except FileNotFoundError:
                assert family != "ipv4", name
            except OSError as e:
                if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                pytest.skip("/proc/sys is read-only here")

    def no_duplicates(self) -> None:
        """IPv6 addresses are usable at once, link-local ones included, on devices that come later."""
        for which in ("all", "default"):
            self.sysctl(f"conf/{which}/accept_dad", "0", "ipv6")

    def lose(self, percent: int, device: str = "tap0") -> None:
        """Frames of ``device`` vanish at random in both directions. The sender is not told (NF_STOLEN, not a drop)."""
        rule = f"numgen random mod 100 < {percent}"
        self.run(
            *("nft", "-f", "-"),
            stdin=f"""table netdev loss {{
                chain into {{ type filter hook ingress device {device} priority 0; {rule} drop; }}
                chain out {{ type filter hook egress device {device} priority 0; {rule} fwd to lo; }}
            }}""",
        )

    def close(self) -> None:
        """Lets go; the namespace ends with its last reference."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


HOST, HOST_TOO = "198.51.100.1", "198.51.100.11"  # the machine the daemon runs on
OUTSIDE, OUTSIDE_TOO = "198.51.100.2", "198.51.100.3"  # another machine
UNREACHABLE = "192.0.2.1"  # a router says: no such host
FORBIDDEN = "192.0.2.3"  # a router says: not through me
SILENT = "192.0.2.9"  # nobody says anything
NO_ROUTE = "192.0.2.65"  # the host itself has no way there
PROHIBITED = "192.0.2.129"  # the host's own rules say no

_HOST_LINKS = f"""
link set lo up
link add out0 type veth peer name in0 netns {{outside}}
link set out0 up
address add {HOST}/24 dev out0
address add {HOST_TOO}/24 dev out0
route add default via {OUTSIDE}
route add throw 192.0.2.64/26
route add prohibit 192.0.2.128/26
"""
_OUTSIDE_LINKS = f"""
link set lo up
link set in0 up
address add {OUTSIDE}/24 dev in0
address add {OUTSIDE_TOO}/24 dev in0
"""
# Not by routes: the errors of those come at most once a second.
_OUTSIDE_RULES = f"""
table ip router {{
    chain forward {{
        type filter hook prerouting priority 0;
        ip daddr {UNREACHABLE} reject with icmp host-unreachable
        ip daddr {FORBIDDEN} reject with icmp admin-prohibited
        ip daddr {SILENT} drop
    }}
}}
"""


class World:
    """A host with one link to an outside machine. This process is in the host's namespace until ``close``."""

    def __init__(self) -> None:
        self._home = own_netns()
        self._guests: list[Netns] = []
        self.host = Netns.bare()
        self.outside = Netns.bare()
        _setns(self.host.fd)
        for machine in (self.host, self.outside):
            machine.no_duplicates()
        self.host.ip(_HOST_LINKS.format(outside=f"/proc/{os.getpid()}/fd/{self.outside.fd}"))
        self.outside.sysctl("ip_forward", "1")
        self.outside.sysctl("icmp_ratelimit", "0")
        self.outside.ip(_OUTSIDE_LINKS)
        self.outside.run("nft", "-f", "-", stdin=_OUTSIDE_RULES)

    def guest(self) -> Netns:
        """A namespace to attach, ended with the world."""
        self._guests.append(Netns.guest())
        return self._guests[-1]

    def close(self) -> None:
        """Back to where we came from."""
        _setns(self._home)
        os.close(self._home)
        for namespace in (*self._guests, self.host, self.outside):
            namespace.close()


# -- doing and waiting --------------------------------------------------------------------------------------------


async def aside(function: Callable[..., T], *args: Any) -> T:
    """``function`` in a thread, for blocking sockets, while the daemon runs on the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


async def until(condition: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """Lets the loop turn until ``condition()`` is true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what or condition}"
        await asyncio.sleep(0.002)
    return value


async def no_link(netns: Any, name: str = "tap0") -> None:
    """The device goes with its last descriptor. The agent's child may have a copy until it has exited."""
    await until(lambda: not netns.has_link(name), f"{name} is gone")


def open_fds() -> int:
    """How many descriptors this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def segments_in(sock: socket.socket) -> int:
    """How many TCP segments it has received: tcpi_segs_in of struct tcp_info (linux/tcp.h)."""
    return int(struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144), 140)[0])


def hung_up(fd: int) -> bool:
    """True if the other end of the pipe or socket is closed."""
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return bool(poll.poll(0))


# -- sockets in threads -------------------------------------------------------------------------------------------


def refusal(sock: socket.socket, address: tuple[str, int]) -> tuple[int, float]:
    """(errno of a failing connect, seconds it took)."""
    start = time.monotonic()
    try:
        sock.connect(address)
    except OSError as e:
        return e.errno or -1, time.monotonic() - start
    return 0, time.monotonic() - start


def receive_all(sock: socket.socket) -> bytes:
    """Everything until the end of the stream."""
    chunks = []
    while chunk := sock.recv(1 << 18):
        chunks.append(chunk)
    return b"".join(chunks)


def send_all(sock: socket.socket, data: bytes) -> None:
    """All of ``data`` and the end of the stream."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def both_ways(a: socket.socket, b: socket.socket, size: int) -> None:
    """``size`` random bytes from ``a`` to ``b`` and others from ``b`` to ``a`` at the same time, whole, then the ends."""
    from_a, from_b = os.urandom(size), os.urandom(size)
    _, _, at_b, at_a = await asyncio.gather(
        aside(send_all, a, from_a), aside(send_all, b, from_b), aside(receive_all, b), aside(receive_all, a)
    )
    assert (len(at_b), md5(at_b)) == (size, md5(from_a))
    assert (len(at_a), md5(at_a)) == (size, md5(from_b))


async def connected(client: socket.socket, address: tuple[str, int], listener: socket.socket) -> socket.socket:
    """Connects ``client`` to ``address`` and accepts it at ``listener``; the accepted end."""
    _, (accepted, _) = await asyncio.gather(aside(client.connect, address), aside(listener.accept))
    accepted.settimeout(PATIENCE)
    return accepted
