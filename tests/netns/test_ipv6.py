"""IPv6 in a namespace, read back with iproute2 and used at once; UDP super-frames of either family."""

from __future__ import annotations

import ipaddress
import logging
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from netd.errors import TapUnavailable
from netd.netns.plan import OpenTap, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run, program
from .test_open_tap import once

MAC = "02:11:22:33:44:55"
PLAN = TapPlan("tap0", 65520, mac=MAC, address="10.0.2.100/24", gateway="10.0.2.2", address6="fd00::/64", gateway6="fe80::2")  # fmt: skip
MADE = "fd00::11:22ff:fe33:4455"  # RFC 4291, appendix A: ff:fe in the middle of the MAC, 02 turned into 00
LINK_LOCAL = "fe80::11:22ff:fe33:4455"
HAS_USO = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2]) >= (6, 2)

pytestmark = pytest.mark.usefixtures("tun")


def ipv6(namespace: Namespace, name: str = "tap0") -> dict[str, dict[str, Any]]:
    """What the device has, by ``address/prefix``."""
    found = namespace.ip("-6", "address", "show", "dev", name)
    return {f"{a['local']}/{a['prefixlen']}": a for link in found for a in link.get("addr_info", ())}


def state(namespace: Namespace) -> tuple[Any, ...]:
    routes = [
        (r["dst"], r.get("gateway"), r["protocol"], r["metric"])
        for r in namespace.ip("-6", "route", "show", "dev", "tap0")
    ]
    return ipv6(namespace), sorted(routes, key=str), ipv6(namespace, "lo"), namespace.link("tap0")["address"]


def talks(namespace: Namespace, *addresses: str) -> None:
    """Each can be bound and talked to now: a tentative one would be EADDRNOTAVAIL."""
    script = (
        "import socket, sys\n"
        "for address in sys.argv[1:]:\n"
        "    where = socket.getaddrinfo(address, 4242, socket.AF_INET6, socket.SOCK_DGRAM)[0][4]\n"
        "    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(2)\n"
        "    s.bind(where); s.sendto(b'x', where); assert s.recv(9) == b'x'\n"
    )
    namespace.run(sys.executable, "-c", script, *addresses)


def check(namespace: Namespace, tap: OpenTap, address: str = MADE) -> None:
    assert tap.address6 == f"{address}/64"
    found = ipv6(namespace)
    assert {f"{address}/64", f"{LINK_LOCAL}/64"} <= set(found)
    for one in found.values():
        assert not {"tentative", "optimistic", "dadfailed"} & set(one)
        assert one["valid_life_time"] == one["preferred_life_time"] == 2**32 - 1
    assert found[f"{address}/64"]["nodad"] and found[f"{LINK_LOCAL}/64"]["scope"] == "link"
    [default] = namespace.ip("-6", "route", "show", "default")
    assert (default["gateway"], default["dev"], default["protocol"]) == ("fe80::2", "tap0", "static")
    assert namespace.addresses("tap0") == ["10.0.2.100/24"]
    assert namespace.default_routes() == [("10.0.2.2", "tap0")]


def test_usable_at_once(run: Run, namespace: Namespace) -> None:
    async def ask() -> OpenTap:
        agent = Agent()
        await agent.start()
        tap = await agent.open_tap(namespace.fd, PLAN)
        talks(namespace, MADE, f"{LINK_LOCAL}%tap0", "::1")  # first of all
        await agent.stop()
        return tap

    tap = run(ask())
    for address in (MADE, f"{LINK_LOCAL}%tap0"):
        namespace.run(program("ping"), "-6", "-c1", "-W1", address)
    check(namespace, tap)
    assert set(ipv6(namespace)) == {f"{MADE}/64", f"{LINK_LOCAL}/64"}
    assert namespace.run("cat", "/proc/sys/net/ipv6/conf/tap0/autoconf") == "0\n"  # or an RA could add a second one
    os.close(tap.fd)
    assert namespace.names() == {"lo"}


def test_the_kernels_mac_makes_the_address(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, mac="", address6="fd12:3456:789a:1::/64"))
    octets = bytes.fromhex(tap.mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    made = ipaddress.IPv6Address(bytes.fromhex("fd123456789a0001") + identifier)
    assert [text for text in ipv6(namespace) if text.startswith("fd12")] == [tap.address6] == [f"{made}/64"]
    os.close(tap.fd)


@pytest.mark.parametrize(("literal", "address"), [("fd00::5/64", "fd00::5"), ("FD00:0::a:5/64", "fd00::a:5")])
def test_an_address_of_ones_own(run: Run, namespace: Namespace, literal: str, address: str) -> None:
    tap = once(run, namespace, replace(PLAN, address6=literal))
    check(namespace, tap, address)
    talks(namespace, address)
    os.close(tap.fd)


def test_without_ipv4_and_without_gateway(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, address="", gateway="", gateway6=""))
    talks(namespace, MADE)
    assert namespace.addresses("tap0") == namespace.default_routes() == []
    assert namespace.ip("-6", "route", "show", "default") == []
    os.close(tap.fd)


def test_second_run_leaves_the_same_state(run: Run, namespace: Namespace) -> None:
    async def ask() -> None:
        agent = Agent()
        await agent.start()
        namespace.run("ip", "link", "add", "podman0", "type", "bridge")
        namespace.run("ip", "address", "add", "fd10:88::1/64", "dev", "podman0", "nodad")
        namespace.run("ip", "link", "set", "podman0", "up")
        states = []
        for _ in range(3):
            tap = await agent.open_tap(namespace.fd, PLAN)
            check(namespace, tap)
            states.append(state(namespace))
            os.close(tap.fd)
        assert states[0] == states[1] == states[2]
        assert "fd10:88::1/64" in ipv6(namespace, "podman0")
        await agent.stop()

    run(ask())


def test_persistent_tap_with_old_addresses(run: Run, namespace: Namespace) -> None:
    """Up and without a reader it has no carrier: its addresses are tentative, and would be for a second more."""
    for line in (
        "tuntap add tap0 mode tap",
        "link set tap0 address 02:aa:aa:aa:aa:aa up",
        "-6 address add fd00::99/64 dev tap0",
        f"-6 address add {MADE}/48 dev tap0",
        "-6 address add fd11::1/64 dev tap0 nodad",
        "-6 route add default via fe80::99 dev tap0",
    ):
        namespace.run("ip", *line.split())
    states = []
    for _ in range(2):
        tap = once(run, namespace, PLAN)
        check(namespace, tap)
        talks(namespace, MADE, f"{LINK_LOCAL}%tap0")
        assert set(ipv6(namespace)) == {f"{MADE}/64", f"{LINK_LOCAL}/64", "fd11::1/64"}
        states.append(state(namespace))
        os.close(tap.fd)
    assert states[0] == states[1]


def disable(namespace: Namespace) -> None:
    namespace.run("sh", "-c", "cd /proc/sys/net/ipv6/conf && for d in *; do echo 1 > $d/disable_ipv6; done")


@pytest.mark.parametrize("there", [False, True], ids=["new", "persistent"])
def test_disabled_ipv6_is_enabled_where_it_is_needed(run: Run, namespace: Namespace, there: bool) -> None:
    namespace.run("ip", "link", "set", "lo", "up")
    if there:
        namespace.run("ip", "tuntap", "add", "tap0", "mode", "tap")
        namespace.run("ip", "link", "set", "tap0", "up")
    namespace.run("ip", "link", "add", "other0", "type", "bridge")
    disable(namespace)
    tap = once(run, namespace, PLAN)
    talks(namespace, MADE, f"{LINK_LOCAL}%tap0")
    check(namespace, tap)
    assert namespace.run("cat", "/proc/sys/net/ipv6/conf/other0/disable_ipv6") == "1\n"
    os.close(tap.fd)


def test_disabled_ipv6_stays_so_for_a_plan_without(run: Run, namespace: Namespace) -> None:
    disable(namespace)
    tap = once(run, namespace, replace(PLAN, address6=""))  # what is left of gateway6 does not count
    assert tap.address6 == "" and ipv6(namespace) == {}
    assert namespace.run("cat", "/proc/sys/net/ipv6/conf/tap0/disable_ipv6") == "1\n"
    assert namespace.addresses("tap0") == ["10.0.2.100/24"]
    os.close(tap.fd)


READ_ONLY = """
import asyncio, logging, os, subprocess, sys
from netd.netns.plan import TapPlan
from netd.netns.spawn import Agent
logging.basicConfig(stream=sys.stdout, format="%(message)s")
holder = "for d in all default; do echo VALUE > /proc/sys/net/ipv6/conf/$d/disable_ipv6; done; echo; exec sleep 60"
async def main():
    p = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", holder], stdout=subprocess.PIPE)
    p.stdout.readline()
    for options in ("bind", "remount,bind,ro,nosuid,nodev,noexec"):
        subprocess.run(["mount", "-o", options, "/proc/sys", "/proc/sys"], check=True)
    agent = Agent(); await agent.start()
    fd = os.open(f"/proc/{p.pid}/ns/net", os.O_RDONLY)
    plan = TapPlan("tap0", 1500, address="10.0.2.100/24", gateway="10.0.2.2", address6="fd00::5/64", gateway6="fe80::2")
    tap = await agent.open_tap(fd, plan)
    print(repr(tap.address6), flush=True)
    subprocess.run(["nsenter", "-t", str(p.pid), "-U", "-n", "--preserve-credentials", "ip", "-o", "addr", "show", "dev", "tap0"])
    p.kill()
    await agent.stop()
asyncio.run(main())
"""


@pytest.mark.parametrize("disabled", [False, True], ids=["enabled", "disabled"])
def test_with_a_read_only_proc_sys(make_namespace: Callable[..., Namespace], disabled: bool) -> None:
    """As netd has it in a container, or under ProtectKernelTunables=: enabled it works, disabled it is IPv4 alone."""
    inside = make_namespace()
    script = READ_ONLY.replace("VALUE", "1" if disabled else "0")
    said = inside.run("unshare", "--mount", sys.executable, "-c", script)
    assert "10.0.2.100/24" in said
    if disabled:
        assert "''\n" in said and "inet6" not in said
        assert "a namespace goes without IPv6: IPv6 is disabled" in said
    else:
        assert "'fd00::5/64'\n" in said and "fd00::5/64" in said and "tentative" not in said


def test_a_kernel_without_ipv6() -> None:
    """It says EOPNOTSUPP to an address of a family that it has not (rtnetlink_rcv_msg())."""
    script = (
        "import errno, socket\n"
        "from netd.netns import configuration\n"
        "from netd.netns.rtnetlink import Refused\n"
        "class Rtnetlink:\n"
        "    def change(self, what, *rest):\n"
        "        raise Refused(what, errno.{number})\n"
        "tap = configuration.Tap(Rtnetlink(), 'lo')\n"
        "address = configuration.LINK_LOCAL + configuration.eui64('02:11:22:33:44:55')\n"
        "print(repr(tap.assign6([configuration.Address(address, 64)])))\n"
    )
    for number, why in (
        ("EOPNOTSUPP", "not in the kernel"),
        ("EAFNOSUPPORT", "not in the kernel"),
        ("EACCES", "disabled"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(number=number)], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"'IPv6 is {why}'\n"
    done = subprocess.run(
        [sys.executable, "-c", script.format(number="EPERM")], capture_output=True, text=True, check=False
    )
    assert "Refused: lo: address fe80::11:22ff:fe33:4455/64: Operation not permitted" in done.stderr


def test_an_mtu_too_small_for_ipv6(run: Run, namespace: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "netd"):
        tap = once(run, namespace, replace(PLAN, mtu=1279))
    assert "MTU 1279 is less than IPv6's minimum of 1280" in caplog.text
    assert tap.address6 == "" and ipv6(namespace) == {}
    assert namespace.addresses("tap0") == ["10.0.2.100/24"]
    os.close(tap.fd)
    tap = once(run, namespace, replace(PLAN, mtu=1280))
    check(namespace, tap)
    os.close(tap.fd)


def test_nothing_without_configure(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, configure=False))
    assert tap.address6 == "" and ipv6(namespace) == {}
    assert namespace.ip("-6", "route", "show", "default") == []
    os.close(tap.fd)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"address6": "fd00::5"}, "not an IPv6 address with its prefix length"),
        ({"address6": "fd00::5/129"}, "prefix length"),
        ({"address6": "fd00::/48"}, "prefix length is not 64"),
        ({"address6": "10.0.2.100/24"}, "not an IPv6 address"),
        ({"address6": "fe80::5%tap0/64"}, "not an IPv6 address"),
        ({"address6": "fd00::5\0/64"}, "not an IPv6 address"),
        ({"address6": "ff02::1/64"}, "address ff02::1/64: "),
        ({"gateway6": "10.0.2.2"}, "'10.0.2.2' is not an IPv6 address"),
        ({"gateway6": "fd99::1"}, "default route via fd99::1: "),
    ],
)
def test_wrong_values(run: Run, namespace: Namespace, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(TapUnavailable, match=says):
        once(run, namespace, replace(PLAN, **wrong))
    assert namespace.names() == {"lo"}


# --- UDP super-frames ------------------------------------------------------------------------------------------

SEGMENTS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
s.sendto(b"x" * 2500, (sys.argv[1], 9))
"""


def frames_to(fd: int, port: int, ethertype: bytes, count: int) -> list[bytes]:
    """``count`` UDP frames to this port, with their vnet headers."""
    found: list[bytes] = []
    end = time.monotonic() + 5
    at = 10 + 14 + (40 if ethertype == b"\x86\xdd" else 20)
    while len(found) < count and time.monotonic() < end:
        try:
            frame = os.read(fd, 70000)
        except BlockingIOError:
            continue
        if frame[22:24] == ethertype and frame[at + 2 : at + 4] == port.to_bytes(2, "big"):
            found.append(frame)
    return found


@pytest.mark.parametrize(("peer", "ethertype"), [("10.0.2.2", b"\x08\x00"), ("fd00::2", b"\x86\xdd")])
@pytest.mark.parametrize("uso", [True, False])
def test_uso(run: Run, namespace: Namespace, peer: str, ethertype: bytes, uso: bool) -> None:
    tap = once(run, namespace, replace(PLAN, mtu=1500, uso=uso))
    assert tap.offload and tap.uso is (uso and HAS_USO)
    namespace.run("ip", "neighbor", "replace", peer, "lladdr", "02:00:00:00:00:02", "dev", "tap0")
    namespace.run(sys.executable, "-c", SEGMENTS, peer)
    frames = frames_to(tap.fd, 9, ethertype, 1 if tap.uso else 3)
    headers = 10 + 14 + (48 if ":" in peer else 28)
    if tap.uso:  # VIRTIO_NET_HDR_GSO_UDP_L4 (5) in pieces of 1000, its checksum left to us
        [frame] = frames
        assert struct.unpack_from("=BBHH", frame) == (1, 5, headers - 10, 1000)
        assert len(frame) == headers + 2500
    else:
        assert [len(frame) - headers for frame in frames] == [1000, 1000, 500]
        assert all(frame[1] == 0 for frame in frames)
    os.close(tap.fd)


def test_uso_needs_offload(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, offload=False, uso=True))
    assert not tap.offload and not tap.uso
    os.close(tap.fd)


def test_the_next_reader_of_a_persistent_tap_may_want_none(run: Run, namespace: Namespace) -> None:
    namespace.run("ip", "tuntap", "add", "tap0", "mode", "tap")
    for uso in (True, False):
        tap = once(run, namespace, replace(PLAN, mtu=1500, uso=uso))
        assert tap.uso is (uso and HAS_USO)
        namespace.run("ip", "neighbor", "replace", "10.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "tap0")
        namespace.run(sys.executable, "-c", SEGMENTS, "10.0.2.2")
        assert {frame[1] for frame in frames_to(tap.fd, 9, b"\x08\x00", 1)} == {5 if tap.uso else 0}
        os.close(tap.fd)
