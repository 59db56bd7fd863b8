"""For tests of the shim, the attach server and the dialects: a daemon without packets, a shim without a program.

``Daemon`` has the interface of ``netd.daemon`` and really keeps descriptors, watches lifelines and listens on ports; it
never touches the namespace it is given. ``Shim`` speaks the shim's side of the protocol in this process, so that a
test can stop, lie or die at any step.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netd.errors import AddressUnavailable, InvalidSpec, NetdError, NetworkExists, NoSuchPort, PortInUse, PortPrivileged
from netd.lifeline import Unlinks, Watch
from netd.netns.plan import OpenTap
from netd.specs import ForwardSpec, ForwardStatus, Lifeline, NetworkSpec

TREE = Path(__file__).resolve().parents[2]
PLUGIN = TREE / "plugin"

_BIND_ERRORS = {
    errno.EADDRINUSE: PortInUse,
    errno.EACCES: PortPrivileged,
    errno.EADDRNOTAVAIL: AddressUnavailable,
}


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Settings:
    runtime_dir: Path
    offload: bool = True


@dataclass
class Network:
    id: str
    spec: NetworkSpec
    lifeline: Lifeline
    held: dict[str, int]
    netns_inode: int
    tap: OpenTap | None = None
    _forwards: dict[int, tuple[ForwardStatus, list[socket.socket]]] = field(default_factory=dict)
    _last: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    def add_forward(self, spec: ForwardSpec, origin: str) -> ForwardStatus:
        if spec.container_ip.startswith("203.0.113."):
            raise InvalidSpec(f"{spec.container_ip} is not in {self.spec.cidr}")
        sockets: list[socket.socket] = []
        try:
            for port in range(spec.host_port, spec.host_port + spec.range):
                sock = socket.socket(
                    socket.AF_INET, socket.SOCK_STREAM if spec.protocol == "tcp" else socket.SOCK_DGRAM
                )
                sockets.append(sock)
                if spec.protocol == "tcp":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((spec.host_ip, port))
                if spec.protocol == "tcp":
                    sock.listen()
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise _BIND_ERRORS[error.errno or 0](f"{spec.host_ip}:{spec.host_port}: {error.strerror}") from None
        self._last += 1
        status = ForwardStatus(self._last, spec, origin, "listening", 0)
        self._forwards[self._last] = (status, sockets)
        return status

    def remove_forward(self, id: int, close_connections: bool = False) -> None:
        if id not in self._forwards:
            raise NoSuchPort(f"no forward {id}")
        for sock in self._forwards.pop(id)[1]:
            sock.close()

    def forwards(self) -> list[ForwardStatus]:
        return [status for status, _ in self._forwards.values()]


class Daemon:
    def __init__(self, runtime_dir: Path) -> None:
        self.settings = Settings(runtime_dir)
        self.networks: dict[str, Network] = {}
        self.observers: list[Callable[[str, Network], None]] = []
        self.changes = 0
        self._watches: dict[str, tuple[Watch, Unlinks]] = {}
        self.fails: NetdError | None = None  # raised by an attach
        self.gate: asyncio.Event | None = None  # an attach waits for it
        self.attaching = asyncio.Event()  # an attach has begun

    async def attach(
        self,
        spec: NetworkSpec,
        netns_fd: int,
        lifeline: Lifeline,
        held: dict[str, int] | None = None,
        tap: OpenTap | None = None,
    ) -> Network:
        held = dict(held or {})
        try:
            self.attaching.set()
            if self.gate is not None:
                await self.gate.wait()
            if self.fails is not None:
                raise self.fails
            if spec.name and any(network.name == spec.name for network in self.networks.values()):
                raise NetworkExists(f"the name is taken: {spec.name}")
            inode = os.fstat(netns_fd).st_ino if tap is None or netns_fd >= 0 else 0
        except BaseException:
            for fd in (lifeline.fd, *held.values(), tap.fd if tap else -1):
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            if netns_fd >= 0:
                os.close(netns_fd)
        loop = asyncio.get_running_loop()
        id_ = os.urandom(6).hex()
        network = Network(id_, spec if spec.name else replace(spec, name=id_), lifeline, held, inode, tap)
        self.networks[id_] = network
        unlinks = Unlinks(loop)
        watch = Watch(loop, unlinks, lambda: self._end(network))
        self._watches[id_] = watch, unlinks
        watch.add(lifeline)
        if "exit_fd" in held:
            watch.add(Lifeline("exit_fd", held["exit_fd"]))
        self._tell("attached", network)
        return network

    async def detach(self, network: Network) -> None:
        self._end(network)

    def changed(self, network: Network) -> None:
        self.changes += 1

    changed_soon = changed

    def _tell(self, event: str, network: Network) -> None:
        for observer in list(self.observers):
            observer(event, network)

    def _end(self, network: Network) -> None:
        if self.networks.pop(network.id, None) is None:
            return
        for watch in self._watches.pop(network.id):
            watch.close()
        for forward in network.forwards():
            network.remove_forward(forward.id)
        self._tell("detached", network)
        for fd in (network.lifeline.fd, *network.held.values(), network.tap.fd if network.tap else -1):
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        for network in list(self.networks.values()):
            self._end(network)

    async def one(self, seconds: float = 5) -> Network:
        """The only network, when there is one."""
        await eventually(lambda: len(self.networks) == 1, "one network", seconds)
        return next(iter(self.networks.values()))

    async def none(self, seconds: float = 5) -> None:
        """Return when there is no network."""
        await eventually(lambda: not self.networks, "no network", seconds)


async def eventually(ask: Callable[[], Any], what: str, seconds: float = 5) -> None:
    """Let the loop turn until ``ask`` is true."""
    end = asyncio.get_running_loop().time() + seconds
    while not ask():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.002)


class Shim:
    """The shim's side, played by the test. ``fds``: what the caller gave it, by number."""

    def __init__(self, runtime_dir: Path, *argv: str, fds: dict[int, int] | None = None, **more: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(runtime_dir / "attach.sock"))
        self.sock.setblocking(False)
        self.fds = fds or {}
        self.earlier = False  # of a netd before Open could tell the path as well
        self.steps: list[dict[str, Any]] = []
        self.hello = {
            "version": 1,
            "argv0": "/usr/libexec/netd/slirp4netns",
            "argv": list(argv),
            "cwd": "/",
            "pid": os.getpid(),
            "env": {},
            "fd1": "",
            **more,
        }

    def send(self, message: Any, *fds: int) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    async def receive(self) -> dict[str, Any] | None:
        """The next step, or None at the end."""
        try:
            async with asyncio.timeout(20):
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
        except ConnectionResetError:
            return None
        if not data:
            return None
        step = json.loads(data)
        assert isinstance(step, dict)
        self.steps.append(step)
        return step

    def perform(self, step: dict[str, Any]) -> None:
        """Do the step and answer it as the real shim does."""
        if step["op"] == "realpath":
            self.send({"ok": True, "text": os.path.realpath(step["path"])})
            return
        try:
            fd = self._perform(step)
        except OSError as error:
            self.send({"ok": False, "errno": error.errno, "error": error.strerror})
            return
        real = {"text": os.path.realpath(step["path"])} if step.get("real") and not self.earlier else {}
        self.send({"ok": True, **real}, *([fd] if fd >= 0 else []))
        if fd >= 0:
            os.close(fd)

    def _perform(self, step: dict[str, Any]) -> int:
        if step["op"] == "open":
            return os.open(step["path"], os.O_RDONLY | os.O_NONBLOCK)
        if step["op"] == "create":
            flags = (os.O_APPEND if step["append"] else 0) | (os.O_TRUNC if step["truncate"] else 0)
            return os.open(
                step["path"], os.O_CREAT | (os.O_RDWR if step["read"] else os.O_WRONLY) | flags, step["mode"]
            )
        if step["op"] == "pidfd":
            return os.pidfd_open(step["pid"])
        if step["op"] == "fd":
            if step["fd"] not in self.fds:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return os.dup(self.fds[step["fd"]])
        assert step["op"] == "listen", step
        if os.path.lexists(step["path"]):
            os.unlink(step["path"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(step["path"])
            listener.listen(step["backlog"])
            return os.dup(listener.fileno())

    async def run(self, steps: int = 1000) -> dict[str, Any] | None:
        """Speak until told to stay or to exit, or until ``steps`` were received; the last step."""
        self.send(self.hello)
        for _ in range(steps):
            step = await self.receive()
            if step is None or step["op"] in ("stay", "exit"):
                return step
            if len(self.steps) < steps:
                self.perform(step)
        return self.steps[-1]

    def close(self) -> None:
        self.sock.close()


def mode_of(path: str | Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)
