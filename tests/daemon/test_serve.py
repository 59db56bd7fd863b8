"""The daemon as a process: restarts in good order and by SIGKILL, its start, its cost at rest."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd.settings import Settings
from tests.lab import HOST, OUTSIDE, Netns, World, aside, both_ways, connected, no_link, open_fds, until

from .service import TREE, Service
from .service_manager import ServiceManager


@pytest.fixture
def service(manager: ServiceManager, tmp_path: Path, settings: Settings) -> Iterator[Service]:
    service = Service(tmp_path, manager, NETD_RESOLV_CONF=str(settings.resolv_conf))
    yield service
    service.close()


async def works(world: World, guest: Netns) -> None:
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            await both_ways(client, server, 50_000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_restart(world: World, service: Service, settings: Settings, number: int) -> None:
    """tap0 stays, and DNS, new connections and the published port work again within a second of the start."""
    settings.resolv_conf.write_text("nameserver 127.0.0.53\n")
    service.start()
    assert "READY=1" in service.manager.lines  # type: ignore[union-attr]
    guest = world.guest()
    attached = service.call("POST", "/networks", {"pid": guest.pid, "name": "web"})
    ports = f"/networks/{attached['id']}/ports"
    published = service.call("POST", ports, {"container_port": 80})
    service.call("POST", ports, {"container_port": 53, "protocol": "udp"})
    link = guest.run("ip", "-o", "link", "show", "tap0").split(":")[0]
    for _ in range(2):
        await works(world, guest)
        before = await aside(service.call, "GET", "/networks/web")
        status = await aside(service.end, number)
        assert status == (0 if number == signal.SIGTERM else -number)
        assert guest.has_link("tap0")
        start = time.monotonic()
        await aside(service.start)
        await works(world, guest)
        with guest.listener(port=80) as listener, world.outside.socket() as client:
            with await connected(client, (HOST, published["host_port"]), listener) as server:
                await both_ways(client, server, 50_000)
        with world.host.datagrams("127.0.0.53", 53) as stub, guest.datagrams() as resolver:
            resolver.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\3www\0\0\1\0\1", ("10.0.2.3", 53))
            query, client_address = await aside(stub.recvfrom, 512)
            stub.sendto(query[:2] + b"\x81\x80" + query[4:], client_address)
            assert (await aside(resolver.recv, 512))[:4] == b"\x12\x34\x81\x80"
        assert time.monotonic() - start < 3  # of which the interpreter's own start on two busy cores is most
        after = await aside(service.call, "GET", "/networks/web")
        for key in ("id", "name", "created_at", "ports"):
            assert after[key] == before[key], key
        assert guest.run("ip", "-o", "link", "show", "tap0").split(":")[0] == link
    await aside(service.call, "DELETE", "/networks/web")
    await until(lambda: service.manager.names() == ["state"])  # type: ignore[union-attr]
    await no_link(guest)


async def test_without_a_service_manager(world: World, tmp_path: Path) -> None:
    service = Service(tmp_path, None)
    service.start()
    try:
        guest = world.guest()
        service.call("POST", "/networks", {"pid": guest.pid, "ports": [{"container_port": 80, "host_port": 20001}]})
        await works(world, guest)
        assert oct(os.stat(tmp_path / "api.sock").st_mode)[-3:] == "600"
        second = subprocess.run(
            [sys.executable, "-m", "netd", "serve"],
            env={**os.environ, "PYTHONPATH": str(TREE), "NETD_RUNTIME_DIR": str(tmp_path)},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert second.returncode != 0 and "Traceback" not in second.stderr, second.stderr
        await works(world, guest)  # the first one has not noticed
        assert await aside(service.end, signal.SIGTERM) == 0
        await no_link(guest)
        assert not (tmp_path / "api.sock").exists()
        service.start()  # after a crash its socket files lie about; that keeps nobody
        assert await aside(service.end, signal.SIGKILL) == -9
        service.start()
        assert service.call("GET", "/networks") == []
    finally:
        service.close()


async def test_watchdog(world: World, service: Service) -> None:
    service.environment |= {"WATCHDOG_USEC": "200000"}
    service.start()
    lines = service.manager.lines  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while lines.count("WATCHDOG=1") < 5:
        assert time.monotonic() < deadline, lines
        await asyncio.sleep(0.02)
    assert lines.index("READY=1") < 10


async def test_a_watchdog_message_that_is_not_taken_does_not_end_the_others(
    world: World, tmp_path: Path, settings: Settings
) -> None:
    """A service manager that is re-executed: its socket is away for a moment."""
    manager = ServiceManager(tmp_path)
    service = Service(tmp_path, manager, WATCHDOG_USEC="100000")
    service.start()
    try:
        deadline = time.monotonic() + 5
        while "WATCHDOG=1" not in manager.lines:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        manager.close()
        await asyncio.sleep(0.3)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
            again.bind(manager.path)
            again.settimeout(5)
            assert await aside(again.recv, 100) == b"WATCHDOG=1"
    finally:
        service.close()
        if os.path.exists(manager.path):
            os.unlink(manager.path)


async def test_at_rest_it_sleeps(world: World, service: Service) -> None:
    """No wake-ups with networks, forwards, an idle connection and an idle UDP flow."""
    service.start()
    guests = [world.guest() for _ in range(5)]
    for guest in guests:
        service.call("POST", "/networks", {"pid": guest.pid, "ports": [{"container_port": 80, "host_port": 0}]})
        guest.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", check=False)  # its own chatter
    with world.outside.listener(OUTSIDE) as listener, world.outside.datagrams(OUTSIDE) as peer:
        with guests[0].socket() as client, guests[0].datagrams() as datagram:
            datagram.sendto(b"x", peer.getsockname())
            await aside(peer.recv, 10)
            with await connected(client, listener.getsockname(), listener) as server:
                await both_ways_open(client, server)
                deadline = time.monotonic() + 15
                while True:
                    await asyncio.sleep(0.05)
                    before, used = service.switches(), cpu_seconds(service)
                    await asyncio.sleep(1.0)
                    woken = service.switches() - before
                    if woken <= 3 and cpu_seconds(service) - used <= 0.02:
                        break
                    assert time.monotonic() < deadline, f"{woken} wake-ups in a second"


async def both_ways_open(a: socket.socket, b: socket.socket) -> None:
    """Bytes there and back; the connection stays."""
    for sender, receiver in ((a, b), (b, a)):
        sender.sendall(b"x" * 1000)
        await aside(receiver.recv, 1000, socket.MSG_WAITALL)


def cpu_seconds(service: Service) -> float:
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_fifty_networks_and_what_one_more_costs(world: World, service: Service) -> None:
    service.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= 300
    guests = [Netns.bare() for _ in range(50)]
    try:
        path = f"/proc/{os.getpid()}/fd"

        def attach(at: int) -> str:
            body = {"netns": f"{path}/{guests[at].fd}", "lifeline": "explicit", "name": f"n{at}"}
            return str(service.call("POST", "/networks", body)["id"])

        service.call("DELETE", f"/networks/{attach(0)}")
        fds = service.open_fds()
        ids = [attach(at) for at in range(10)]
        small = service.pss()
        start = time.monotonic()
        ids += [attach(at) for at in range(10, 50)]
        took = (time.monotonic() - start) / 40
        each = (service.pss() - small) / 40
        assert each <= 350 << 10, f"{each / 1024:.0f} kB"
        assert took < 0.15, f"{took * 1000:.0f} ms"
        for at in (0, 25, 49):
            await works(world, guests[at])
        assert len(await aside(service.call, "GET", "/networks")) == 50
        for id_ in ids:
            await aside(service.call, "DELETE", f"/networks/{id_}")
        deadline = time.monotonic() + 5
        while service.open_fds() > fds:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    finally:
        for guest in guests:
            guest.close()


async def test_no_descriptor_is_left_after_a_day_of_containers(world: World, service: Service) -> None:
    service.start()
    guest = world.guest()

    def one() -> None:
        body = {"pid": guest.pid, "lifeline": "explicit", "ports": [{"container_port": 80, "host_port": 0}]}
        id_ = service.call("POST", "/networks", body)["id"]
        service.call("DELETE", f"/networks/{id_}")

    await aside(one)
    before = service.open_fds()
    for _ in range(30):
        await aside(one)
    await until(lambda: service.open_fds() <= before)  # the last request's connection is being closed
    await until(lambda: service.manager.names() == ["state"])  # type: ignore[union-attr]
    assert open_fds() > 0


def test_what_is_read_at_once_stays_in_the_heap() -> None:
    """Of glibc: pages that came and went with each chunk would have to be faulted in anew (5 % is for the rest)."""
    script = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[1])
from netd import serve
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit()
serve._keep_heap()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def come_and_go():
    chunks = []
    for _ in range(500):
        chunks.append(b"x" * 262_080)
        if len(chunks) > 4:
            del chunks[0]
come_and_go()
before = faults()
come_and_go()
print(faults() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(TREE)], capture_output=True, text=True, timeout=30, check=True
    )
    assert int(done.stdout or 0) < 500 * 64 * 0.05
