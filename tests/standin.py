"""A daemon without packets: the interface of ``netd.daemon`` and ``netd.network`` over real listening sockets.

It lets the API and the command be tested on machines where no TAP can be made. Ids, names, conflicts and errors are
the real ones; a forward holds the host port and nothing answers behind it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from netd.api.app import ApiServer
from netd.errors import AmbiguousNetwork, NetworkExists, NoSuchNetwork, NoSuchPort, PortInUse
from netd.specs import ForwardSpec, ForwardStatus, Lifeline, NetworkSpec, NetworkStatus


@dataclass
class Settings:
    runtime_dir: Path


@dataclass
class Network:
    id: str
    spec: NetworkSpec
    lifeline: Lifeline
    netns_fd: int
    daemon: Daemon
    created: float = field(default_factory=time.time)
    counters: dict[str, int] = field(
        default_factory=lambda: {"rx_bytes": 7, "tx_bytes": 5, "drop_short": 1, "dns_failed": 0}
    )
    closed_connections: list[int] = field(default_factory=list)
    _forwards: dict[int, tuple[ForwardStatus, list[socket.socket]]] = field(default_factory=dict)
    _last: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    def add_forward(self, spec: ForwardSpec, origin: str) -> ForwardStatus:
        kind = socket.SOCK_STREAM if spec.protocol == "tcp" else socket.SOCK_DGRAM
        sockets: list[socket.socket] = []
        try:
            for port in range(spec.host_port, spec.host_port + spec.range):
                sock = socket.socket(socket.AF_INET6 if ":" in spec.host_ip else socket.AF_INET, kind)
                sockets.append(sock)
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((spec.host_ip, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
        except OSError as exc:
            for sock in sockets:
                sock.close()
            assert exc.errno == errno.EADDRINUSE, exc
            where = f"{spec.host_ip or '0.0.0.0'}:{port}/{spec.protocol}"
            raise PortInUse(f"{where} is in use", self.daemon.holder(spec.protocol, port)) from None
        if spec.host_port == 0:
            spec = replace(spec, host_port=sockets[0].getsockname()[1])
        self._last += 1
        status = ForwardStatus(self._last, spec, origin, "listening", 0)
        self._forwards[status.id] = (status, sockets)
        return status

    def remove_forward(self, id: int, close_connections: bool = False) -> None:
        status = self.forward(id)
        for sock in self._forwards.pop(status.id)[1]:
            sock.close()
        if close_connections:
            self.closed_connections.append(id)

    def forward(self, id: int) -> ForwardStatus:
        if id not in self._forwards:
            raise NoSuchPort(f"network {self.name} has no port forward {id}")
        return self._forwards[id][0]

    def forwards(self) -> list[ForwardStatus]:
        return [status for status, _ in self._forwards.values()]

    def status(self) -> NetworkStatus:
        return NetworkStatus(
            id=self.id,
            spec=self.spec,
            lifeline=self.lifeline.kind,
            lifeline_path=self.lifeline.path,
            netns_inode=os.fstat(self.netns_fd).st_ino,
            created=self.created,
            mac="02:00:00:00:00:01",
            offload=True,
            forwards=tuple(self.forwards()),
            flows={"tcp": 2, "udp": 1, "icmp": 0},
            counters=dict(self.counters),
        )


class Daemon:
    def __init__(self, runtime_dir: Path) -> None:
        self.settings = Settings(runtime_dir)
        self.networks: dict[str, Network] = {}
        self.observers: list[Callable[[str, Network], None]] = []
        self.started = time.time()
        self.compiled = False
        self.fails: BaseException | None = None  # raised by the next attach, fds closed
        self.gate: asyncio.Event | None = None  # an attach waits for it
        self.changes: list[str] = []  # what would be written to the service manager's store
        self.waiting = asyncio.Event()  # and says so

    async def attach(
        self, spec: NetworkSpec, netns_fd: int, lifeline: Lifeline, held: dict[str, int] | None = None
    ) -> Network:
        try:
            if self.gate is not None:
                self.waiting.set()
                await self.gate.wait()
            if self.fails is not None:
                raise self.fails
            if any(spec.name == network.name for network in self.networks.values()):
                raise NetworkExists(f"a network named {spec.name} is attached already")
        except BaseException:
            os.close(netns_fd)
            if lifeline.fd >= 0:
                os.close(lifeline.fd)
            raise
        id = os.urandom(6).hex()
        network = Network(id, spec if spec.name else replace(spec, name=id), lifeline, netns_fd, self)
        self.networks[id] = network
        return network

    async def detach(self, network: Network) -> None:
        if self.networks.pop(network.id, None) is None:
            return
        for forward in network.forwards():
            network.remove_forward(forward.id)
        os.close(network.netns_fd)
        if network.lifeline.fd >= 0:
            os.close(network.lifeline.fd)

    def network(self, ref: str) -> Network:
        found = [n for n in self.networks.values() if ref in (n.id, n.name)]
        found = found or [n for n in self.networks.values() if ref and n.id.startswith(ref)]
        if not found:
            raise NoSuchNetwork(f"no network with name or ID {ref!r}", "netd ps lists them")
        if len(found) > 1:
            raise AmbiguousNetwork(f"{ref!r} fits {', '.join(n.id for n in found)}")
        return found[0]

    def holder(self, protocol: str, port: int) -> str:
        for network in self.networks.values():
            for forward in network.forwards():
                first = forward.spec.host_port
                if forward.spec.protocol == protocol and first <= port < first + forward.spec.range:
                    return network.name
        return ""

    def changed(self, network: Network) -> None:
        self.changes.append(network.name)

    async def close(self) -> None:
        for network in list(self.networks.values()):
            await self.detach(network)


@contextmanager
def process_in_netns() -> Iterator[int]:
    """The pid of a process in user and network namespaces of its own; skips the test where there are none."""
    sleeper = subprocess.Popen(["unshare", "-rn", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
    assert sleeper.stdout is not None
    try:
        if not sleeper.stdout.readline():
            pytest.skip("user namespaces are not permitted here")
        yield sleeper.pid
    finally:
        sleeper.kill()
        sleeper.wait()
        sleeper.stdout.close()


class ServerThread:
    """An ApiServer with a stand-in daemon on a loop of its own, for clients that block."""

    def __init__(self, runtime_dir: Path) -> None:
        self.daemon = Daemon(runtime_dir)
        self.socket = runtime_dir / "api.sock"
        self.url = f"unix://{self.socket}"
        self._loop = asyncio.new_event_loop()
        self._server = ApiServer(self.daemon)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        self.run(self._server.start(None))
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._server.stop())
        self.run(self.daemon.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, awaitable):  # type: ignore[no-untyped-def]
        """What ``awaitable`` gives on the server's loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(20)
