"""What open_tap leaves in a namespace, read back with iproute2."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from netd.errors import NamespaceUnavailable, TapUnavailable
from netd.netns.plan import OpenTap, TapPlan
from netd.netns.spawn import Agent

from .conftest import PATH, Namespace, Run
from .test_agent import children_of

PLAN = TapPlan("tap0", 65520, mac="02:11:22:33:44:55", address="10.0.2.100/24", gateway="10.0.2.2", txqueuelen=5000)
BARE = TapPlan("tap0", 1500, configure=False)

pytestmark = pytest.mark.usefixtures("tun")


def once(run: Run, namespace: Namespace | int, plan: TapPlan) -> OpenTap:
    """One TAP from an agent of its own."""

    async def ask() -> OpenTap:
        agent = Agent()
        await agent.start()
        try:
            return await agent.open_tap(namespace if isinstance(namespace, int) else namespace.fd, plan)
        finally:
            await agent.stop()

    return run(ask())


def check_configured(namespace: Namespace, plan: TapPlan, tap: OpenTap) -> None:
    link = namespace.link(plan.ifname)
    assert link["mtu"] == plan.mtu
    assert link["txqlen"] == plan.txqueuelen
    assert link["address"] == tap.mac == (plan.mac or tap.mac)
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert "UP" in namespace.link("lo")["flags"]
    assert namespace.addresses(plan.ifname) == [plan.address]
    assert namespace.default_routes() == [(plan.gateway, plan.ifname)]


def test_configured(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, PLAN)
    check_configured(namespace, PLAN, tap)
    [address] = namespace.ip("-4", "address", "show", "dev", "tap0")[0]["addr_info"]
    assert address["broadcast"] == "10.0.2.255"
    assert address["valid_life_time"] == address["preferred_life_time"] == 2**32 - 1
    info = namespace.link("tap0")["linkinfo"]["info_data"]
    assert info["type"] == "tap" and info["vnet_hdr"] and not info["pi"] and not info["persist"]
    assert tap.vnet_hdr and tap.offload
    assert not os.get_inheritable(tap.fd) and not os.get_blocking(tap.fd)
    assert struct.unpack("i", fcntl.ioctl(tap.fd, 0x800454D7, bytes(4))) == (10,)  # TUNGETVNETHDRSZ
    os.close(tap.fd)
    assert namespace.names() == {"lo"}


def read_frame(fd: int, ethertype: bytes, offset: int) -> bytes:
    """The next frame of this type; the kernel sends IPv6 chatter of its own."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            frame = os.read(fd, 70000)
        except BlockingIOError:
            continue
        if frame[offset + 12 : offset + 14] == ethertype:
            return frame
    raise AssertionError("no such frame")


@pytest.mark.parametrize("offload", [True, False])
def test_frames_arrive_with_and_without_vnet_header(run: Run, namespace: Namespace, offload: bool) -> None:
    tap = once(run, namespace, replace(PLAN, offload=offload))
    assert (tap.vnet_hdr, tap.offload) == (offload, offload)
    assert namespace.link("tap0")["linkinfo"]["info_data"]["vnet_hdr"] is offload
    namespace.run("ip", "neighbor", "replace", "10.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "tap0")
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x' * 100, ('10.0.2.2', 9))"
    namespace.run("python3", "-c", send)
    offset = 10 if offload else 0
    frame = read_frame(tap.fd, b"\x08\x00", offset)
    assert frame[offset : offset + 12].hex() == "020000000002021122334455"
    assert frame.endswith(b"x" * 100)
    if offload:  # a checksum left to us: VIRTIO_NET_HDR_F_NEEDS_CSUM at the UDP header
        assert struct.unpack_from("=BBHHHH", frame) == (1, 0, 0, 0, 34, 6)
    os.close(tap.fd)


def test_second_run_after_close(run: Run, namespace: Namespace) -> None:
    async def ask() -> None:
        agent = Agent()
        await agent.start()
        for _ in range(3):
            tap = await agent.open_tap(namespace.fd, PLAN)
            check_configured(namespace, PLAN, tap)
            os.close(tap.fd)
        await agent.stop()

    run(ask())


def test_populated_namespace(run: Run, namespace: Namespace) -> None:
    """As Podman's rootless-netns on a re-run: lo is up, a bridge, a veth, and another default route are there."""
    for line in (
        "link set lo up",
        "link add podman0 type bridge",
        "address add 10.88.0.1/16 dev podman0",
        "link set podman0 up",
        "link add veth0 type veth peer name veth1",
        "link set veth0 master podman0 up",
        "link set veth1 up",
        "route add default via 10.88.0.9 dev podman0",
    ):
        namespace.run("ip", *line.split())
    tap = once(run, namespace, PLAN)
    check_configured(namespace, PLAN, tap)
    assert namespace.addresses("podman0") == ["10.88.0.1/16"]
    assert namespace.names() == {"lo", "tap0", "podman0", "veth0", "veth1"}
    os.close(tap.fd)


def test_nested_user_namespaces(run: Run, make_namespace: Callable[..., Namespace]) -> None:
    user = ("--user", "--map-root-user")
    namespace = make_namespace(*user, "unshare", *user, "unshare", *user, "--net")
    tap = once(run, namespace, PLAN)
    assert tap.offload
    check_configured(namespace, PLAN, tap)
    os.close(tap.fd)


def test_from_within_a_user_namespace(make_namespace: Callable[..., Namespace]) -> None:
    """The daemon as root of a user namespace; the target is of that one, and of a child of it."""
    inside = make_namespace()
    script = (
        "import asyncio, os, subprocess, sys\n"
        "from netd.netns.spawn import Agent\n"
        "from netd.netns.plan import TapPlan\n"
        "async def main():\n"
        "    agent = Agent(); await agent.start()\n"
        "    for words in (['--net'], ['--user', '--map-root-user', '--net']):\n"
        "        p = subprocess.Popen(['unshare', *words, 'sh', '-c', 'echo; exec sleep 60'], stdout=subprocess.PIPE)\n"
        "        p.stdout.readline()\n"
        "        fd = os.open(f'/proc/{p.pid}/ns/net', os.O_RDONLY)\n"
        "        tap = await agent.open_tap(fd, TapPlan('tap0', 1500, address='10.0.2.100/24', gateway='10.0.2.2'))\n"
        "        print(tap.offload, flush=True)\n"
        "        p.kill()\n"
        "    await agent.stop()\n"
        "asyncio.run(main())\n"
    )
    assert inside.run(sys.executable, "-c", script).split() == ["True", "True"]


def test_name_eth0_and_long_name(run: Run, namespace: Namespace) -> None:
    for name, real in (("eth0", "eth0"), ("a-name-of-twenty-one", "a-name-of-twent")):
        tap = once(run, namespace, replace(PLAN, ifname=name))
        assert namespace.names() == {"lo", real}
        check_configured(namespace, replace(PLAN, ifname=real), tap)
        os.close(tap.fd)


def test_not_configured(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, configure=False))
    link = namespace.link("tap0")
    assert "UP" not in link["flags"] and "UP" not in namespace.link("lo")["flags"]
    assert (link["mtu"], link["address"]) == (1500, tap.mac)
    assert tap.mac != PLAN.mac and tap.offload
    assert namespace.addresses("tap0") == [] and namespace.default_routes() == []
    os.close(tap.fd)


def persistent(namespace: Namespace) -> None:
    for line in (
        "tuntap add tap0 mode tap",
        "link set tap0 mtu 1400 address 02:aa:aa:aa:aa:aa txqueuelen 77",
        "address add 10.0.2.55/24 dev tap0",
        "address add 10.0.2.100/16 dev tap0",
        "address add 172.16.0.1/24 dev tap0",
    ):
        namespace.run("ip", *line.split())


def test_persistent_tap_is_attached_to(run: Run, namespace: Namespace) -> None:
    persistent(namespace)
    before = namespace.link("tap0")["ifindex"]
    tap = once(run, namespace, replace(PLAN, mac=""))
    assert tap.offload and tap.mac == "02:aa:aa:aa:aa:aa"
    link = namespace.link("tap0")
    assert (link["ifindex"], link["mtu"], link["txqlen"]) == (before, 65520, 5000)
    # Old addresses in our network are gone, those of other networks stay.
    assert set(namespace.addresses("tap0")) == {"10.0.2.100/24", "172.16.0.1/24"}
    os.close(tap.fd)
    assert "tap0" in namespace.names()
    tap = once(run, namespace, replace(PLAN, offload=False))  # the next one wants it plain
    assert not namespace.link("tap0")["linkinfo"]["info_data"]["vnet_hdr"]
    if shutil.which("ethtool", path=PATH):
        assert "tcp-segmentation-offload: off" in namespace.run("ethtool", "-k", "tap0")
    os.close(tap.fd)


def test_persistent_tap_is_left_alone_when_not_configured(run: Run, namespace: Namespace) -> None:
    persistent(namespace)

    def state() -> tuple[Any, ...]:
        link = namespace.link("tap0")
        kept = tuple(link[k] for k in ("ifindex", "mtu", "address", "txqlen"))
        return (*kept, "UP" in link["flags"], namespace.addresses("tap0"))

    before = state()
    tap = once(run, namespace, BARE)
    assert state() == before
    assert tap.mac == "02:aa:aa:aa:aa:aa"
    os.close(tap.fd)
    assert state() == before


def test_two_at_once_and_many(run: Run, namespace: Namespace, make_namespace: Callable[..., Namespace]) -> None:
    other = make_namespace()

    async def ask() -> None:
        agent = Agent()
        await agent.start()
        one, two = await asyncio.gather(agent.open_tap(namespace.fd, PLAN), agent.open_tap(other.fd, PLAN))
        check_configured(namespace, PLAN, one)
        check_configured(other, PLAN, two)
        # More than the agent serves at a time, with a wrong one among them.
        plans = [replace(BARE, ifname=f"tap{n}" if n != 20 else "a/b") for n in range(1, 41)]
        taps = await asyncio.gather(*(agent.open_tap(namespace.fd, p) for p in plans), return_exceptions=True)
        assert namespace.names() == {"lo", "tap0"} | {f"tap{n}" for n in range(1, 41) if n != 20}
        assert [n for n, tap in enumerate(taps, 1) if not isinstance(tap, OpenTap)] == [20]
        for tap in (one, two, *taps):
            if isinstance(tap, OpenTap):
                os.close(tap.fd)
        await agent.stop()

    run(ask())


def test_busy_then_free(run: Run, namespace: Namespace) -> None:
    """Podman 4.3's restart policy comes back while the last network is being closed."""

    async def ask() -> None:
        agent = Agent()
        await agent.start()
        first = await agent.open_tap(namespace.fd, PLAN)
        asyncio.get_running_loop().call_later(0.1, os.close, first.fd)
        second = await agent.open_tap(namespace.fd, PLAN)
        check_configured(namespace, PLAN, second)
        started = time.monotonic()
        with pytest.raises(TapUnavailable, match="tap0 is in use"):
            await agent.open_tap(namespace.fd, PLAN)
        assert 0.4 < time.monotonic() - started < 3
        check_configured(namespace, PLAN, second)
        os.close(second.fd)
        await agent.stop()

    run(ask())


def test_nobody_in_there_can_trace_the_child(run: Run, namespace: Namespace) -> None:
    def child_of(pid: int) -> str:
        [child] = children_of(pid)
        return str(child)

    async def ask() -> None:
        agent = Agent()
        await agent.start()
        tap = await agent.open_tap(namespace.fd, PLAN)
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))  # finds the name busy for half a second
        await asyncio.sleep(0.2)
        attach = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0) == 0)"
        namespace.run(sys.executable, "-c", attach, child_of(agent.pid))  # PTRACE_ATTACH is refused
        os.close(tap.fd)
        os.close((await asking).fd)
        await agent.stop()

    run(ask())


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".", "tap%d", "x\0y"])
def test_wrong_names(run: Run, namespace: Namespace, name: str) -> None:
    with pytest.raises(TapUnavailable, match="not an interface name"):
        once(run, namespace, replace(PLAN, ifname=name))
    assert namespace.names() == {"lo"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mtu": 65522}, "MTU 65522"),
        ({"mtu": 1}, "MTU 1"),
        ({"mac": "02:00:00:00:00"}, "not a MAC address"),
        ({"mac": "01:00:00:00:00:01"}, "MAC 01:00"),  # multicast
        ({"address": "10.0.2.100"}, "prefix length"),
        ({"address": "10.0.2.100/33"}, "prefix length"),
        ({"address": "ten/24"}, "not an IPv4 address"),
        ({"gateway": "fe80::2"}, "not an IPv4 address"),
        ({"gateway": "192.0.2.1"}, "default route via 192.0.2.1: Network is unreachable"),
    ],
)
def test_wrong_values(run: Run, namespace: Namespace, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(TapUnavailable, match=says):
        once(run, namespace, replace(PLAN, **wrong))
    assert namespace.names() == {"lo"}


def test_name_of_something_else(run: Run, namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "tap0", "type", "bridge")
    with pytest.raises(TapUnavailable, match="tap0 is there already"):
        once(run, namespace, PLAN)


def test_not_a_network_namespace(run: Run, namespace: Namespace) -> None:
    with tempfile.TemporaryFile() as regular, pytest.raises(NamespaceUnavailable, match="not a network namespace"):
        once(run, regular.fileno(), PLAN)
    for path in ("/dev/null", "/tmp", f"/proc/{namespace.pid}/ns/user", "/proc/self/ns/mnt"):
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(NamespaceUnavailable, match="not a network namespace"):
            once(run, fd, PLAN)
        os.close(fd)
    for number in (-1, 10_000):
        with pytest.raises(NamespaceUnavailable):
            once(run, number, PLAN)


def test_namespace_whose_processes_are_gone(run: Run, make_namespace: Callable[..., Namespace]) -> None:
    """An fd keeps a namespace; what nobody else sees any more can still be entered, and goes with the TAP."""
    namespace = make_namespace()
    namespace.holder.kill()
    namespace.holder.wait()
    tap = once(run, namespace, PLAN)
    assert tap.offload
    os.close(tap.fd)


@pytest.mark.skipif(os.getuid() == 0, reason="root may enter its own namespace")
def test_the_hosts_namespace_is_not_a_users(run: Run) -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    with pytest.raises(NamespaceUnavailable, match=f"not of user {os.getuid()}"):
        once(run, fd, PLAN)
    os.close(fd)


@pytest.mark.skipif("NETD_TEST_FOREIGN_NETNS" not in os.environ, reason="another user's namespace is handed in by root")
def test_namespace_of_another_user(run: Run) -> None:
    with pytest.raises(NamespaceUnavailable, match=f"not of user {os.getuid()}"):
        once(run, int(os.environ["NETD_TEST_FOREIGN_NETNS"]), PLAN)


def test_is_quick(run: Run, namespace: Namespace) -> None:
    """Warm, 4 to 8 ms on a machine of 2 cores; attaching as a whole has 50. The bound allows for a busy machine."""

    async def ask() -> list[float]:
        agent = Agent()
        await agent.start()
        times = []
        for _ in range(15):
            started = time.perf_counter()
            tap = await agent.open_tap(namespace.fd, PLAN)
            times.append(time.perf_counter() - started)
            os.close(tap.fd)
        await agent.stop()
        return times

    assert statistics.median(run(ask())) < 0.05
