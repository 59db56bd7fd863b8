"""A guest that nobody configures: router advertisements and the DHCP servers do, with the clients of the distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guest.programs import DNS6, GUEST6, SIX, needs, outcome, start
from tests.lab import OUTSIDE, both_ways, connected, until
from tests.relay.beyond import OUTSIDE6, Beyond
from tests.stage import Attach, Guest

# The clients write /etc/resolv.conf: into a layer above the machine's /etc that ends with the shell.
_APART = """
mount -t tmpfs tmpfs "$0" && mkdir "$0/upper" "$0/work" "$0/state" &&
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc && cd "$0/state" || exit 77
rm -f /etc/resolv.conf; : >/etc/resolv.conf; : >lease
"""
_DHCLIENT = """
dhclient -%s -1 -v -lf "$PWD/lease" -pf "$PWD/pid" tap0 || exit 1
grep -v '^#' /etc/resolv.conf
grep -h 'option ' lease
dhclient -%s -r -v -lf "$PWD/lease" -pf "$PWD/pid" tap0
"""
_UDHCPC = """
busybox udhcpc -i tap0 -n -q -f -O mtu -O domain || exit 1
cat /etc/resolv.conf
"""


async def apart(guest: Guest, folder: Path, script: str) -> str:
    """The output of a shell script in a mount and a PID namespace of its own."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _APART + script]
    code, out = await outcome(start(guest, *command, str(folder)))
    if code == 77:
        pytest.skip(f"no overlay over /etc here: {out}")
    assert code == 0, out
    return out


def addresses(guest: Guest, family: int, scope: str = "global") -> list[dict[str, Any]]:
    """As ``ip`` has them, of the TAP."""
    said = guest.run("ip", "-j", f"-{family}", "address", "show", "dev", "tap0", "scope", scope)
    found: list[dict[str, Any]] = [info for link in json.loads(said) if link for info in link["addr_info"] if info]
    return found


def default_route(guest: Guest, family: int) -> str:
    routes = json.loads(guest.run("ip", "-j", f"-{family}", "route", "show", "default"))
    return routes[0]["gateway"] if routes else ""


def ready(guest: Guest) -> bool:
    """Router advertisement heard, duplicate address detection done."""
    found = addresses(guest, 6)
    return bool(found) and not any(info.get("tentative") for info in found) and bool(default_route(guest, 6))


async def talks(guest: Guest, beyond: Beyond, address: str) -> None:
    """TCP to the outside, whole both ways."""
    family = 10 if ":" in address else 2
    with beyond.outside.socket(family=family) as listener, guest.socket(family=family) as client:
        listener.bind((address, 0))
        listener.listen()
        with await connected(client, listener.getsockname()[:2], listener) as server:
            await both_ways(client, server, 200_000)


async def test_nothing_is_configured_where_it_is_not_asked_for(beyond: Beyond, attach: Attach) -> None:
    guest = await attach(**SIX, configure=False)
    link = json.loads(guest.run("ip", "-j", "link", "show", "tap0"))[0]
    assert "UP" not in link["flags"]
    assert addresses(guest, 4) == addresses(guest, 6) == []


@pytest.mark.parametrize("mtu", [1500, 1280, 65520])
async def test_slaac(beyond: Beyond, attach: Attach, mtu: int) -> None:
    """Prefix, router and MTU of the router's advertisement, and the address that netd expects."""
    guest = await attach(**{**SIX, "guest_ip6": ""}, configure=False, mtu=mtu)
    guest.ip(f"link set tap0 mtu {max(mtu, 1500)}\nlink set tap0 up")
    await until(lambda: ready(guest), "SLAAC")
    (info,) = addresses(guest, 6)
    mac = bytes.fromhex(guest.network.tap.mac.replace(":", ""))
    assert info["local"].startswith("fd00::") and info["prefixlen"] == 64 and info["dynamic"]
    assert info["local"].endswith(f"ff:fe{mac[3]:02x}:{mac[4] << 8 | mac[5]:x}")
    assert default_route(guest, 6) == "fe80::2"
    with guest.entered(), open("/proc/sys/net/ipv6/conf/tap0/mtu") as file:
        assert int(file.read()) == mtu
    await talks(guest, beyond, OUTSIDE6)


async def test_slaac_where_the_guest_has_not_its_own_mac(beyond: Beyond, attach: Attach) -> None:
    """A guest that takes another MAC, and with it another address, is found by what it says."""
    guest = await attach(**{**SIX, "guest_ip6": ""}, configure=False)
    guest.ip("link set tap0 address 02:11:22:33:44:55\nlink set tap0 up")
    await until(lambda: ready(guest), "SLAAC")
    assert addresses(guest, 6)[0]["local"] == "fd00::11:22ff:fe33:4455"
    await talks(guest, beyond, OUTSIDE6)


@needs("dhclient")
async def test_dhclient_v4(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    guest = await attach(**SIX, configure=False, mtu=1500)
    guest.ip("link set lo up")
    wait = "ip -4 -o address show dev tap0; ip -4 route; "
    said = await apart(guest, tmp_path, _DHCLIENT.replace("grep -v", wait + "\ngrep -v", 1).replace("%s", "4"))
    assert "DHCPOFFER of 10.0.2.100 from 10.0.2.2" in said and "DHCPACK of 10.0.2.100 from 10.0.2.2" in said
    assert "inet 10.0.2.100/24 brd 10.0.2.255" in said and "default via 10.0.2.2 dev tap0" in said
    assert "nameserver 10.0.2.3" in said
    assert "option interface-mtu 1500" in said
    assert "DHCPRELEASE of 10.0.2.100" in said


@needs("dhclient")
async def test_dhclient_v4_and_traffic(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    guest = await attach(configure=False)
    said = await apart(guest, tmp_path, _DHCLIENT.split("dhclient -%s -r")[0].replace("%s", "4"))
    assert "bound to 10.0.2.100" in said
    assert [info["local"] for info in addresses(guest, 4)] == ["10.0.2.100"]
    await talks(guest, beyond, OUTSIDE)


@needs("dhclient")
async def test_dhclient_v6(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    guest = await attach(**SIX, configure=False)
    guest.ip("link set tap0 up")
    await until(lambda: addresses(guest, 6, "link") and ready(guest), "a link-local address")
    said = await apart(guest, tmp_path, _DHCLIENT.split("dhclient -%s -r")[0].replace("%s", "6"))
    assert "RCV: Reply message on tap0 from fe80::2" in said
    assert f"nameserver {DNS6}" in said
    assert GUEST6 in {info["local"] for info in addresses(guest, 6)}
    await talks(guest, beyond, OUTSIDE6)
    said = guest.run("ip", "-6", "route", "get", OUTSIDE6)
    assert "via fe80::2 dev tap0" in said


@needs("busybox")
async def test_udhcpc(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    if not Path("/etc/udhcpc/default.script").exists():
        pytest.skip("udhcpc's script is not installed (Debian: udhcpc)")
    guest = await attach(configure=False, mtu=1500)
    guest.ip("link set tap0 up")
    said = await apart(guest, tmp_path, _UDHCPC)
    assert "lease of 10.0.2.100 obtained from 10.0.2.2" in said and "nameserver 10.0.2.3" in said
    assert [info["local"] for info in addresses(guest, 4)] == ["10.0.2.100"]
    assert default_route(guest, 4) == "10.0.2.2"
    await talks(guest, beyond, OUTSIDE)


async def test_a_second_client_on_the_link_gets_another_address(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    """As slirp4netns' own: the first has the network's guest address, others one of the pool."""
    if not Path("/etc/udhcpc/default.script").exists():
        pytest.skip("udhcpc's script is not installed (Debian: udhcpc)")
    guest = await attach(configure=False)
    guest.ip("link set tap0 up")
    await apart(guest, tmp_path, _UDHCPC)
    guest.ip("address flush dev tap0\nlink set tap0 down\nlink set tap0 address 02:11:22:33:44:56\nlink set tap0 up")
    said = await apart(guest, tmp_path, _UDHCPC)
    assert "lease of 10.0.2.15 obtained" in said
    await talks(guest, beyond, OUTSIDE)


async def test_both_at_once(beyond: Beyond, attach: Attach, tmp_path: Path) -> None:
    guest = await attach(**SIX, configure=False)
    guest.ip("link set tap0 up")
    await until(lambda: ready(guest), "SLAAC")
    guest.ip("address add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2")
    for address in (OUTSIDE, OUTSIDE6):
        await talks(guest, beyond, address)
