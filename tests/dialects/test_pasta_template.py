"""What the guest is given of the host's network, for hosts of every kind."""

from __future__ import annotations

import pytest

from netd.dialects.pasta.template import (
    LOCAL_GATEWAY,
    LOCAL_GUEST,
    Family,
    NoSuchInterface,
    Wish,
    family,
    interface_name,
    network_of,
)
from netd.netns.plan import HostInterface, HostRoute, HostView

LO = HostInterface(1, "lo", 65536, "00:00:00:00:00:00", True, True, ("127.0.0.1/8", "::1/128"))
ETH = HostInterface(
    2, "eth0", 1500, "02:00:00:00:00:02", True, False, ("192.0.2.7/24", "192.0.2.8/24", "2001:db8::7/64", "fe80::2/64")
)
WIFI = HostInterface(3, "wlan0", 1500, "02:00:00:00:00:03", True, False, ("198.51.100.4/28",))
LINK = HostRoute("192.0.2.0/24", 2)
DEFAULT = HostRoute("0.0.0.0/0", 2, "192.0.2.1", 100)
WORSE = HostRoute("0.0.0.0/0", 3, "198.51.100.1", 600)
OTHER = HostRoute("203.0.113.0/24", 2, "192.0.2.9")
SIX = (HostRoute("2001:db8::/64", 2), HostRoute("fe80::/64", 2), HostRoute("::/0", 2, "fe80::1", 1024))


def view(*routes: HostRoute, interfaces: tuple[HostInterface, ...] = (LO, ETH, WIFI)) -> HostView:
    return HostView(interfaces, routes)


def test_the_first_default_routes_interface_is_the_example() -> None:
    found = family(view(LINK, DEFAULT, WORSE, OTHER), 4, Wish())
    assert found == Family(
        interface="eth0",
        address="192.0.2.7",
        prefix=24,
        gateway="192.0.2.1",
        addresses=("192.0.2.7/24", "192.0.2.8/24"),
        routes=("203.0.113.0/24 via 192.0.2.9", "0.0.0.0/0 via 192.0.2.1 metric 100"),
    )
    assert network_of(found) == "192.0.2.0/24"
    assert family(view(WORSE, DEFAULT), 4, Wish()).interface == "wlan0"


def test_ipv6_leaves_out_what_the_kernel_makes_itself() -> None:
    found = family(view(DEFAULT, *SIX), 6, Wish())
    assert (found.interface, found.address, found.gateway) == ("eth0", "2001:db8::7", "fe80::1")
    assert found.addresses == ("2001:db8::7/64",)
    assert found.routes == ("::/0 via fe80::1 metric 1024",)


@pytest.mark.parametrize(
    ("wish", "address", "gateway", "addresses", "routes"),
    [
        (Wish(address="10.0.2.100", prefix=24, gateway="10.0.2.2"), "10.0.2.100", "10.0.2.2",
         ("10.0.2.100/24",), ("0.0.0.0/0 via 10.0.2.2",)),
        (Wish(address="10.0.2.100"), "10.0.2.100", "192.0.2.1", ("10.0.2.100/8",), None),
        (Wish(address="172.16.0.1"), "172.16.0.1", "192.0.2.1", ("172.16.0.1/16",), None),
        (Wish(address="192.168.0.1"), "192.168.0.1", "192.0.2.1", ("192.168.0.1/24",), None),
        (Wish(prefix=16), "192.0.2.7", "192.0.2.1", ("192.0.2.7/16",), None),
        (Wish(gateway="192.0.2.254"), "192.0.2.7", "192.0.2.254", None, ("0.0.0.0/0 via 192.0.2.254",)),
        (Wish(copy_addresses=False), "192.0.2.7", "192.0.2.1", ("192.0.2.7/24",), None),
        (Wish(copy_routes=False), "192.0.2.7", "192.0.2.1", None, ("0.0.0.0/0 via 192.0.2.1",)),
        (Wish(interface="wlan0"), "198.51.100.4", "198.51.100.1", ("198.51.100.4/28",),
         ("0.0.0.0/0 via 198.51.100.1 metric 600",)),
        (Wish(outbound="wlan0"), "198.51.100.4", "198.51.100.1", None, None),
    ],
)  # fmt: skip
def test_the_command_line_overrides(
    wish: Wish, address: str, gateway: str, addresses: tuple[str, ...] | None, routes: tuple[str, ...] | None
) -> None:
    found = family(view(LINK, DEFAULT, WORSE), 4, wish)
    assert (found.address, found.gateway) == (address, gateway)
    assert addresses is None or found.addresses == addresses
    assert routes is None or found.routes == routes


def test_no_such_interface() -> None:
    with pytest.raises(NoSuchInterface, match="eth9"):
        family(view(DEFAULT), 4, Wish(interface="eth9"))


def test_a_single_interface_with_routes_does_without_a_default_route() -> None:
    found = family(view(LINK), 4, Wish())
    assert (found.interface, found.address) == ("eth0", "192.0.2.7")
    assert found.routes == (f"0.0.0.0/0 via {LOCAL_GATEWAY}",), "else 169.254.1.1 could not be reached"
    assert family(view(LINK, HostRoute("198.51.100.0/28", 3)), 4, Wish()).interface == "", "which of the two?"


def test_a_host_without_the_family_gives_link_local_addresses() -> None:
    four, six = family(view(interfaces=(LO,)), 4, Wish()), family(view(interfaces=(LO,)), 6, Wish())
    assert (four.address, four.gateway, four.addresses) == (LOCAL_GUEST, LOCAL_GATEWAY, (f"{LOCAL_GUEST}/16",))
    assert (six.address, six.gateway, six.addresses, six.routes) == ("", "fe80::1", (), ("::/0 via fe80::1",))
    assert network_of(six) == "fe80::/64"


def test_a_gateway_that_is_reached_by_a_route_on_the_link() -> None:
    """Clouds: a /32 address, a route to the gateway on the link, a default route via it."""
    cloud = HostInterface(2, "ens3", 1500, "02:00:00:00:00:02", True, False, ("10.0.0.5/32",))
    routes = (HostRoute("0.0.0.0/0", 2, "10.0.0.1"), HostRoute("10.0.0.1/32", 2))
    found = family(view(*routes, interfaces=(LO, cloud)), 4, Wish())
    assert found.routes == ("10.0.0.1/32", "0.0.0.0/0 via 10.0.0.1")
    assert network_of(found) == "10.0.0.5/32"


def test_the_guests_interface_is_called_as_the_hosts() -> None:
    assert interface_name(view(), "eth0") == "eth0"
    assert interface_name(view(), "") == interface_name(view(), "lo") == "tap0"
