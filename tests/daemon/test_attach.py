"""Attach and detach: what is there afterwards, and that nothing is left behind on any path."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netd.daemon import Daemon
from netd.errors import (
    AgentUnavailable,
    AmbiguousNetwork,
    LimitReached,
    NamespaceUnavailable,
    NetdError,
    NetworkExists,
    NoSuchNetwork,
    ShuttingDown,
    TapUnavailable,
)
from netd.netns.plan import TapPlan
from netd.network import Network
from netd.settings import Settings
from netd.specs import ForwardSpec, Lifeline, NetworkSpec
from tests.lab import OUTSIDE, Netns, World, aside, connected, no_link, open_fds, until
from tests.stage import Attach


def events(daemon: Daemon) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []
    daemon.observers.append(lambda event, network: heard.append((event, network.name)))
    return heard


async def test_attach_and_detach(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    heard = events(daemon)
    before = open_fds()
    start = time.time()
    reading, writing = os.pipe()
    spec = NetworkSpec(
        name="web", mtu=9000, cidr="10.7.0.0/16", guest_ip="10.7.0.100", gateway_ip="10.7.0.2", dns_ip="10.7.0.3"
    )
    network = await daemon.attach(spec, os.dup(guest.fd), Lifeline("exit_fd", reading))
    shown = guest.run("ip", "-brief", "address", "show", "dev", "tap0")
    assert ("UP" in shown and "10.7.0.100/16" in shown) or ("UNKNOWN" in shown and "10.7.0.100/16" in shown)
    assert "default via 10.7.0.2 dev tap0" in guest.run("ip", "route")
    assert "mtu 9000" in guest.run("ip", "link", "show", "dev", "tap0")
    status = network.status()
    assert (status.id, status.spec, status.lifeline) == (network.id, spec, "exit_fd")
    assert status.netns_inode == os.fstat(guest.fd).st_ino and start - 1 < status.created < time.time() + 1
    assert status.mac in guest.run("ip", "link", "show", "dev", "tap0") and status.offload
    assert heard == [("attached", "web")]
    await daemon.detach(network)
    await daemon.detach(network)
    assert heard == [("attached", "web"), ("detached", "web")]
    await no_link(guest)
    assert daemon.networks == {}
    os.close(writing)
    assert open_fds() == before


async def test_a_network_left_bare(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    await daemon.attach(NetworkSpec(configure=False, ifname="eth0"), os.dup(guest.fd), Lifeline("explicit"))
    assert "DOWN" in guest.run("ip", "-brief", "link", "show", "dev", "eth0")
    assert guest.run("ip", "-4", "-brief", "address", "show", "dev", "eth0") == ""
    guest.ip("address add 10.0.2.100/24 dev eth0\nlink set eth0 up")  # the guest's owner does it
    with guest.socket() as client:
        client.settimeout(5)
        with pytest.raises(OSError, match="unreachable"):
            await aside(client.connect, ("10.0.2.2", 1))


async def test_two_networks_in_one_namespace(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    for ifname, third in (("tap0", 2), ("tap1", 3)):
        spec = NetworkSpec(
            ifname=ifname, cidr=f"10.0.{third}.0/24", guest_ip=f"10.0.{third}.100",
            gateway_ip=f"10.0.{third}.2", dns_ip=f"10.0.{third}.3",
        )  # fmt: skip
        await daemon.attach(spec, os.dup(guest.fd), Lifeline("explicit"))
    assert guest.has_link("tap0") and guest.has_link("tap1")
    with pytest.raises(NetworkExists, match="tap1"):
        await daemon.attach(NetworkSpec(ifname="tap1"), os.dup(guest.fd), Lifeline("explicit"))


# -- failure --------------------------------------------------------------------------------------------------------


class Takes:
    """Descriptors for one attach; all of them must be closed when it has failed."""

    def __init__(self, netns_fd: int) -> None:
        self.before = open_fds()
        self.netns = os.dup(netns_fd)
        self.exit_reading, self.exit_writing = os.pipe()
        self.shim, self.shim_peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lifeline = Lifeline("shim", self.shim.detach())

    def attach(self, daemon: Daemon, spec: NetworkSpec | None = None) -> asyncio.Task[Network]:
        held = {"exit_fd": self.exit_reading}
        return asyncio.ensure_future(daemon.attach(spec or NetworkSpec(), self.netns, self.lifeline, held))

    async def all_are_closed(self) -> None:
        self.shim_peer.close()
        os.close(self.exit_writing)
        await until(lambda: open_fds() == self.before, "descriptors are closed")


async def fails(daemon: Daemon, netns_fd: int, error: type[NetdError], spec: NetworkSpec | None = None) -> NetdError:
    """The attach fails, and only the attach."""
    takes = Takes(netns_fd)
    networks = set(daemon.networks)
    with pytest.raises(error) as refused:
        await takes.attach(daemon, spec)
    assert set(daemon.networks) == networks
    await takes.all_are_closed()
    return refused.value


async def test_what_is_no_namespace(world: World, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path, Path("/dev/null"), Path("/proc/self/ns/mnt")):
        fd = os.open(path, os.O_RDONLY)
        await fails(daemon, fd, NamespaceUnavailable)
        os.close(fd)


async def test_descriptors_that_are_closed(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    before = open_fds()
    closed = os.dup(guest.fd)
    os.close(closed)
    with pytest.raises(NamespaceUnavailable):
        await daemon.attach(NetworkSpec(), closed, Lifeline("explicit"))
    far = 1_000_000  # never open: nothing may get its number meanwhile
    reading, writing = os.pipe()
    with pytest.raises(NamespaceUnavailable):
        await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("pidfd", far), {"exit_fd": reading})
    with pytest.raises(NamespaceUnavailable):
        await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"), {"exit_fd": far})
    with pytest.raises(NamespaceUnavailable):
        await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", -1))
    assert daemon.networks == {}
    await no_link(guest)
    os.close(writing)
    assert open_fds() == before


async def test_the_name_is_taken(world: World, daemon: Daemon, attach: Attach) -> None:
    first = await attach(name="web")
    guest = world.guest()
    await fails(daemon, guest.fd, NetworkExists, NetworkSpec(name="web"))
    await fails(daemon, guest.fd, NetworkExists, NetworkSpec(name=first.network.id))
    await fails(daemon, first.fd, NetworkExists, NetworkSpec(name="other"))
    # And while it is being taken:
    takes = Takes(guest.fd)
    under_way = asyncio.ensure_future(daemon.attach(NetworkSpec(name="new"), os.dup(guest.fd), Lifeline("explicit")))
    await asyncio.sleep(0)
    other = world.guest()
    os.close(takes.netns)
    takes.netns = os.dup(other.fd)
    with pytest.raises(NetworkExists, match="new"):
        await takes.attach(daemon, NetworkSpec(name="new"))
    network = await under_way
    await daemon.detach(network)
    await no_link(other)
    takes.shim_peer.close()
    os.close(takes.exit_writing)


async def test_the_same_namespace_twice_at_once(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    results = await asyncio.gather(
        *(daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit")) for _ in range(3)),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Network", "NetworkExists", "NetworkExists"]
    assert len(daemon.networks) == 1 and guest.has_link("tap0")


async def test_the_limit(world: World, settings: Settings) -> None:
    daemon = Daemon(settings.model_copy(update={"max_networks": 2}))
    await daemon.start()
    guests = [world.guest() for _ in range(4)]
    results = await asyncio.gather(
        *(daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit")) for guest in guests),
        return_exceptions=True,
    )
    assert sum(isinstance(result, LimitReached) for result in results) == 2 and len(daemon.networks) == 2
    error = await fails(daemon, guests[0].fd, LimitReached)
    assert "2" in str(error) and "max_networks" in str(error)
    await daemon.stop()


async def test_a_tap_that_cannot_be_made(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    guest.ip("link add tap0 type veth peer name other")
    await fails(daemon, guest.fd, TapUnavailable)
    for spec in (NetworkSpec(ifname="a/b"), NetworkSpec(mtu=5), NetworkSpec(mac="not a mac"), NetworkSpec(ifname="")):
        await fails(daemon, guest.fd, TapUnavailable, spec)


async def test_a_spec_that_the_doors_should_have_refused(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    takes = Takes(guest.fd)
    with pytest.raises(ValueError):
        await takes.attach(daemon, NetworkSpec(dns_ip="nowhere"))
    await takes.all_are_closed()
    assert daemon.networks == {}
    await no_link(guest)


async def test_the_namespaces_last_process_ends_half_way(world: World, daemon: Daemon) -> None:
    """The descriptor keeps the namespace, so the attach succeeds and its lifeline ends it."""
    guest = world.guest()
    pidfd = os.pidfd_open(guest.pid)
    attaching = asyncio.ensure_future(daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("pidfd", pidfd)))
    await asyncio.sleep(0)
    guest.process.kill()  # type: ignore[union-attr]
    await attaching
    await until(lambda: daemon.networks == {})


async def test_a_lifeline_that_has_ended_before(world: World, daemon: Daemon, tmp_path: Path) -> None:
    guest = world.guest()
    before = open_fds()
    reading, writing = os.pipe()
    os.close(writing)
    await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
    await until(lambda: daemon.networks == {})
    await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("path", path=str(tmp_path / "gone")))
    await until(lambda: daemon.networks == {})
    assert open_fds() == before
    await no_link(guest)


async def test_cancelled(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    for turns in range(1, 7):
        takes = Takes(guest.fd)
        task = takes.attach(daemon)
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:  # done already: this process had to wait for the CPU
            await daemon.detach(task.result())
        await takes.all_are_closed()
        assert daemon.networks == {}
    await no_link(guest)


async def test_the_agent_is_killed(world: World, daemon: Daemon) -> None:
    guests = [world.guest() for _ in range(3)]
    before = open_fds()
    agent = daemon._agent
    for guest in guests:  # one death under a request is made good by asking again
        attaching = asyncio.ensure_future(daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit")))
        await asyncio.sleep(0)
        os.kill(agent.pid, signal.SIGKILL)
        await attaching
    for network in list(daemon.networks.values()):
        await daemon.detach(network)
    assert open_fds() == before


async def test_an_agent_that_hangs(world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = world.guest()
    takes = Takes(guest.fd)
    monkeypatch.setattr(daemon._agent, "_deadline", 0.2)
    os.kill(daemon._agent.pid, signal.SIGSTOP)
    with pytest.raises(AgentUnavailable):
        await takes.attach(daemon)
    monkeypatch.setattr(daemon._agent, "_deadline", 10.0)
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))  # another one is started
    await daemon.detach(network)
    await takes.all_are_closed()


async def test_out_of_descriptors(world: World, daemon: Daemon) -> None:
    """At the limit an attach fails and says why; below it again, the next one works."""
    guest = world.guest()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    takes = Takes(guest.fd)
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                fillers.append(os.dup(fillers[0]))
        with pytest.raises(NetdError) as refused:
            await takes.attach(daemon)
        assert "file" in f"{refused.value} {refused.value.hint}".lower(), refused.value
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    await takes.all_are_closed()
    await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))


async def test_while_stopping(world: World, settings: Settings) -> None:
    daemon = Daemon(settings)
    await daemon.start()
    guest = world.guest()
    attaching = asyncio.ensure_future(daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit")))
    await asyncio.sleep(0)
    await daemon.stop()
    with pytest.raises((ShuttingDown, AgentUnavailable)):
        await attaching
    await fails(daemon, guest.fd, ShuttingDown)
    await no_link(guest)


# -- finding --------------------------------------------------------------------------------------------------------


async def test_by_name_id_and_prefix(world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aaaa11112222", "aaaa33334444", "bbbb55556666"])
    monkeypatch.setattr("netd.daemon.secrets.token_hex", lambda _: next(ids))
    one, two, three = [
        await daemon.attach(NetworkSpec(name=name), os.dup(world.guest().fd), Lifeline("explicit"))
        for name in ("web", "", "aaaa")
    ]
    assert daemon.network("aaaa11112222") is daemon.network("aaaa1") is daemon.network("web") is one
    assert two.name == "aaaa33334444" and daemon.network("aaaa3") is two
    assert daemon.network("b") is daemon.network("aaaa") is three  # a name goes before a prefix
    with pytest.raises(AmbiguousNetwork) as ambiguous:
        daemon.network("aaa")
    assert "aaaa11112222" in str(ambiguous.value) and "web" in str(ambiguous.value)
    for unknown in ("", "c", "aaaa111122223", "WEB"):
        with pytest.raises(NoSuchNetwork):
            daemon.network(unknown)
    await daemon.detach(one)
    with pytest.raises(NoSuchNetwork):
        daemon.network("web")
    assert daemon.network("aaa") is two


# -- the guest's own doing ------------------------------------------------------------------------------------------


async def test_the_guest_deletes_its_tap(world: World, daemon: Daemon, attach: Attach) -> None:
    guest, neighbour = await attach(), await attach()
    heard = events(daemon)
    guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    guest.run("ip", "link", "delete", "tap0")
    await until(lambda: list(daemon.networks) == [neighbour.network.id])
    assert heard == [("detached", guest.network.name)]
    await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))


async def test_the_last_words_of_a_guest(world: World, attach: Attach) -> None:
    """All that lies in the device's queue when the network ends."""
    guest = await attach()
    with world.outside.datagrams(OUTSIDE) as server, guest.datagrams() as client:
        client.sendto(b"", server.getsockname())  # it knows its gateway now
        await aside(server.recv, 10)
        server.setblocking(False)
        for number in range(200):
            client.sendto(b"%d" % number, server.getsockname())
        guest.network.close()
        assert [server.recv(10) for _ in range(200)] == [b"%d" % number for number in range(200)]


async def test_a_guest_that_goes_on_talking_holds_nobody_up(world: World, attach: Attach) -> None:
    """Its last words are bounded, in time."""
    guest = await attach()
    talk = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\nwhile True: s.send(b'x')"
    with world.outside.datagrams(OUTSIDE) as server, guest.datagrams() as client:
        client.connect(server.getsockname())
        command = [sys.executable, "-IS", "-c", talk, str(client.fileno())]
        with subprocess.Popen(command, pass_fds=[client.fileno()], stderr=subprocess.DEVNULL) as talking:
            await until(lambda: guest.counters()["rx_frames"] > 1000)
            before = time.monotonic()
            guest.network.close()
            took = time.monotonic() - before
            talking.kill()
        assert took < 0.5


async def test_the_guest_deletes_its_tap_while_it_is_not_its_turn(daemon: Daemon, attach: Attach) -> None:
    """The loop tells that once only."""
    guest = await attach()
    guest.network._turns.owes_until = time.monotonic() + 0.5
    guest.run("ip", "link", "delete", "tap0")
    await until(lambda: not daemon.networks)


async def test_the_guest_sets_its_tap_down_and_up(world: World, daemon: Daemon, attach: Attach) -> None:
    guest = await attach()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    guest.run("ip", "link", "set", "tap0", "down")
    await asyncio.sleep(0.2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.1  # no spinning
    guest.ip("link set tap0 up\nroute add default via 10.0.2.2")
    with world.outside.listener("198.51.100.2") as listener, guest.socket() as client:
        (await connected(client, listener.getsockname(), listener)).close()


async def test_the_guest_moves_its_tap_away(world: World, daemon: Daemon, attach: Attach) -> None:
    """To a namespace of its own: the descriptor goes with it, and the network with the descriptor."""
    guest = await attach()
    other = Netns.bare()
    try:
        guest.run("ip", "link", "set", "tap0", "netns", f"/proc/{os.getpid()}/fd/{other.fd}")
        other.ip("address add 10.0.2.100/24 dev tap0\nlink set tap0 up\nroute add default via 10.0.2.2")
        with world.outside.listener("198.51.100.2") as listener, other.socket() as client:
            (await connected(client, listener.getsockname(), listener)).close()
        await daemon.detach(guest.network)
        await no_link(other)
    finally:
        other.close()


async def test_a_program_in_the_guest_cannot_take_the_tap(world: World, daemon: Daemon, attach: Attach) -> None:
    guest = await attach()
    done = subprocess.run(
        ["nsenter", "-t", str(guest.pid), "-U", "-n", "--preserve-credentials", "ip", "tuntap", "add", "tap0", "mode", "tap"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert guest.has_link("tap0") and daemon.networks


async def test_the_end_of_a_network_does_not_hold_up_the_others(world: World, daemon: Daemon) -> None:
    """The kernel takes its time for a TAP's last close; without a service manager that is ours."""
    closes, ends = [], []
    for _ in range(4):
        guest = world.guest()
        tap = await daemon._agent.open_tap(guest.fd, TapPlan("tap0", 1500))
        before = time.perf_counter()
        os.close(tap.fd)
        closes.append(time.perf_counter() - before)
        network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
        before = time.perf_counter()
        await daemon.detach(network)
        ends.append(time.perf_counter() - before)
        await no_link(guest)
    assert min(ends) < max(min(closes) / 2, 0.005)
