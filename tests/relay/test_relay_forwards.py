"""Published ports in both families."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from typing import Any

import pytest

from netd.errors import AddressUnavailable, InvalidSpec, LimitReached, PortInUse
from netd.relay import listeners
from netd.relay.forwards import Forwards
from netd.relay.sockaddr import packed
from netd.specs import ForwardSpec
from netd.stack.addressing import Addressing
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, open_fds, refusal
from tests.relay.beyond import HOST6, Beyond
from tests.relay.guest_side import Table
from tests.relay.test_relay_limits import out_of_descriptors
from tests.stage import Attach

GATEWAY = "10.0.2.2"
V4, V6 = socket.AF_INET, socket.AF_INET6


def families(spec: ForwardSpec) -> list[tuple[int, tuple[Any, ...]]]:
    """What is bound for it."""
    ports = listeners.listen(spec, {})
    bound = [(int(sock.family), sock.getsockname()) for sockets in ports for sock in sockets]
    for sockets in ports:
        for sock in sockets:
            sock.close()
    return bound


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_is_bound(world: World, protocol: str) -> None:
    for host_ip, expected in (
        ("", [(V4, ("0.0.0.0", 8080)), (V6, ("::", 8080, 0, 0))]),
        ("0.0.0.0", [(V4, ("0.0.0.0", 8080))]),
        ("127.0.0.1", [(V4, ("127.0.0.1", 8080))]),
        ("::", [(V6, ("::", 8080, 0, 0))]),
        ("::1", [(V6, ("::1", 8080, 0, 0))]),
        ("0:0::1", [(V6, ("::1", 8080, 0, 0))]),
    ):
        assert families(ForwardSpec(protocol, 8080, 80, host_ip)) == expected


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_families_do_not_disturb_each_other(world: World, protocol: str) -> None:
    one = listeners.listen(ForwardSpec(protocol, 8080, 80, "::"), {})
    two = listeners.listen(ForwardSpec(protocol, 8080, 80, "0.0.0.0"), {})
    with pytest.raises(PortInUse, match=r"cannot publish 0\.0\.0\.0:8080/"):
        listeners.listen(ForwardSpec(protocol, 8080, 80), {})
    two[0][0].close()
    before = open_fds()
    with pytest.raises(PortInUse, match=r"cannot publish \[::\]:8080/.*Address already in use"):
        listeners.listen(ForwardSpec(protocol, 8079, 80, range=3), {})
    assert open_fds() == before
    one[0][0].close()
    assert len(families(ForwardSpec(protocol, 8079, 80, range=3))) == 6


def test_a_zone_is_an_interface(world: World) -> None:
    world.host.ip("address add fe80::77/64 dev out0 nodad")
    index = socket.if_nametoindex("out0")
    for zone in ("out0", str(index)):
        assert families(ForwardSpec("tcp", 8080, 80, f"fe80::77%{zone}")) == [(V6, ("fe80::77", 8080, 0, index))]
    for unknown in ("fe80::77%nosuch0", "fe80::78%out0", "fe80::77%999", "2001:db8::5"):
        with pytest.raises(AddressUnavailable, match="not an address of this host"):
            listeners.listen(ForwardSpec("tcp", 8080, 80, unknown), {})


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_kernels_choice_is_the_same_in_both_families(world: World, protocol: str) -> None:
    for _ in range(20):
        (_, four), (_, six) = families(ForwardSpec(protocol, 0, 80))
        assert four[1] == six[1] > 0


def test_a_chosen_port_that_is_taken_in_the_other_family(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 attempts, then PortInUse; what is found before is used."""
    taken = 5
    genuine = listeners._listen_one

    def listen_one(protocol: str, ip: str, port: int) -> socket.socket:
        nonlocal taken
        if ip == "::" and taken:
            taken -= 1
            raise PortInUse("taken")
        return genuine(protocol, ip, port)

    monkeypatch.setattr(listeners, "_listen_one", listen_one)
    before = open_fds()
    assert len(families(ForwardSpec("tcp", 0, 80))) == 2 and taken == 0
    taken = 1000
    with pytest.raises(PortInUse):
        listeners.listen(ForwardSpec("tcp", 0, 80), {})
    assert taken == 1000 - 32 and open_fds() == before


def test_a_host_without_ipv6(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = socket.socket

    def without(family: int, *args: Any, **kwargs: Any) -> socket.socket:
        if family == V6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return genuine(family, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(listeners.socket, "socket", without)
        for protocol in ("tcp", "udp"):
            sockets = listeners.listen(ForwardSpec(protocol, 0, 80, range=1), {})
            assert [sock.family for sock in sockets[0]] == [V4]
            sockets[0][0].close()
            with pytest.raises(AddressUnavailable, match="no IPv6"):
                listeners.listen(ForwardSpec(protocol, 8080, 80, "::"), {})
    world.host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    assert len(families(ForwardSpec("tcp", 8080, 80))) >= 1
    with pytest.raises(AddressUnavailable):
        listeners.listen(ForwardSpec("tcp", 8080, 80, "::1"), {})


def test_out_of_descriptors_is_no_lack_of_ipv6(world: World) -> None:
    with out_of_descriptors(), pytest.raises(OSError, match="open files"):
        listeners.listen(ForwardSpec("tcp", 0, 80), {})


def test_kept_listeners_are_taken_by_family_and_port(world: World) -> None:
    spec = ForwardSpec("udp", 8080, 80, range=2)
    first = [sock for sockets in listeners.listen(spec, {}) for sock in sockets]
    numbers = {sock.fileno() for sock in first}
    kept = {(int(sock.family), sock.getsockname()[1]): sock for sock in reversed(first)}
    again = [sock for sockets in listeners.listen(spec, kept) for sock in sockets]
    assert {sock.fileno() for sock in again} == numbers and not kept
    # One is lost, and its port is another's by now: a half of a restored port is better than none.
    again[1].close()
    kept = {(int(sock.family), sock.getsockname()[1]): sock for sock in again if sock.fileno() >= 0}
    with world.host.socket(socket.SOCK_DGRAM, family=V6) as thief:
        thief.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        thief.bind(("::", 8080))
        third = listeners.listen(spec, kept)
    assert [[int(sock.family) for sock in sockets] for sockets in third] == [[V4], [V4, V6]]
    for sockets in third:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize("field", ["host_ip", "container_ip"])
def test_what_is_no_address(field: str) -> None:
    for text in ("example.com", "1.2.3", "1.2.3.4%lo", ":::", "fe80::1%", "::1 ", "1.2.3.4:80", "[::1]", "\0"):
        with pytest.raises(InvalidSpec, match=field):
            listeners.check(ForwardSpec("tcp", 1, 1, **{field: text}))
    listeners.check(ForwardSpec("tcp", 1, 1, **{field: "2001:db8::1"}))


def test_a_zone_of_the_guests_is_none_of_ours() -> None:
    with pytest.raises(InvalidSpec):
        listeners.check(ForwardSpec("tcp", 1, 1, container_ip="fe80::1%tap0"))


# -- who is seen ----------------------------------------------------------------------------------------------------


def forwards_of(addressing: Addressing) -> Forwards:
    loop = asyncio.get_running_loop()
    return Forwards(loop, time.monotonic, lambda: None, None, None, Table(), addressing)  # type: ignore[arg-type]


FIELDS: dict[str, Any] = {
    "guest": packed("10.0.2.100"),
    "gateway": packed(GATEWAY),
    "dns": b"",
    "network": 0x0A000200,
    "mask": 0xFFFFFF00,
    "gateway_mac": bytes(6),
    "dns_mac": bytes(6),
}
SIX: dict[str, Any] = {
    **FIELDS,
    "guest6": packed("fd00::100"),
    "gateway6": packed("fd00::2"),
    "network6": int.from_bytes(packed("fd00::"), "big"),
    "mask6": (1 << 128) - (1 << 64),
}


def test_a_client_is_seen_as_it_is_or_as_the_gateway_of_the_guests_family() -> None:
    addressing = Addressing(**SIX)
    four, six = packed("10.0.2.100"), packed("fd00::100")
    for client, guest, seen in (
        ("192.0.2.7", four, "192.0.2.7"),
        ("127.0.0.1", four, GATEWAY),
        ("127.99.0.1", four, GATEWAY),
        ("10.0.2.9", four, GATEWAY),
        ("::ffff:127.0.0.1", four, GATEWAY),
        ("::ffff:192.0.2.7", four, "192.0.2.7"),
        ("2001:db8::7", four, GATEWAY),
        ("::1", four, GATEWAY),
        ("2001:db8::7", six, "2001:db8::7"),
        ("::1", six, "fd00::2"),
        ("fd00::99", six, "fd00::2"),
        ("fe80::1", six, "fd00::2"),
        ("febf::1", six, "fd00::2"),
        ("192.0.2.7", six, "fd00::2"),
    ):
        assert addressing.seen_as(packed(client), len(guest)) == packed(seen), client


async def test_the_guests_address_is_of_the_clients_family_where_it_has_one() -> None:
    both, old = forwards_of(Addressing(**SIX)), forwards_of(Addressing(**FIELDS))
    four, six = packed("192.0.2.7"), packed("2001:db8::7")  # clients
    assert (both._guest(b"", four), both._guest(b"", six)) == (packed("10.0.2.100"), packed("fd00::100"))
    assert (old._guest(b"", four), old._guest(b"", six)) == (packed("10.0.2.100"),) * 2
    only6 = forwards_of(Addressing(**{**SIX, "guest": b""}))
    assert (only6._guest(b"", four), only6._guest(b"", six)) == (packed("fd00::100"),) * 2
    assert both._guest(packed("10.88.0.7"), six) == packed("10.88.0.7")
    with pytest.raises(InvalidSpec, match="no IPv6"):
        old.add(ForwardSpec("tcp", 0, 80, container_ip="fd00::100"), "api")


async def test_a_listener_that_cannot_be_made_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = forwards_of(Addressing(**SIX))
    before = open_fds()
    monkeypatch.setattr("netd.relay.udp_socket.watch", lambda sock: 1 / (sock.family != V6))
    for kind, error in (("udp", ZeroDivisionError),):
        with pytest.raises(error):
            forwards.add(ForwardSpec(kind, 0, 80), "api")
    assert forwards.all() == [] and open_fds() == before


@pytest.mark.parametrize("removed", [False, True])
async def test_clients_of_both_families_reach_an_ipv4_guest(beyond: Beyond, attach: Attach, removed: bool) -> None:
    guest = await attach()
    status = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    assert [len(fds) for key, fds in guest.network.stored_fds().items() if key == "port-1"] == [2]
    port = status.spec.host_port
    with guest.listener(port=80) as listener:
        for family, address, seen in ((V4, (HOST, port), OUTSIDE), (V6, (HOST6, port), GATEWAY)):
            with beyond.outside.socket(family=family) as client:
                await aside(client.connect, address)
                server, peer = await aside(listener.accept)
                with server:
                    server.settimeout(10)
                    assert peer == (seen, client.getsockname()[1])
                    await both_ways(client, server, 100_000)
    if removed:
        guest.network.remove_forward(status.id)
        for family, address in ((V4, (HOST, port)), (V6, (HOST6, port))):
            with beyond.outside.socket(family=family) as client:
                assert (await aside(refusal, client, address))[0] == errno.ECONNREFUSED
        assert guest.network.add_forward(ForwardSpec("tcp", port, 80), "api").spec.host_port == port


async def test_a_restored_forward_keeps_both_sockets(beyond: Beyond, attach: Attach) -> None:
    guest = await attach()
    status = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    fds = [os.dup(fd) for fd in guest.network.stored_fds()["port-1"]]
    inodes = {os.fstat(fd).st_ino for fd in fds}
    guest.network._forwards.remove(1, False, kept=True)
    guest.network.restore_forward(1, status.spec, "api", fds[::-1])
    assert {os.fstat(fd).st_ino for fd in guest.network.stored_fds()["port-1"]} == inodes
    with guest.listener(port=80) as listener, beyond.outside.socket(family=V6) as client:
        await aside(client.connect, (HOST6, status.spec.host_port))
        (await aside(listener.accept))[0].close()


async def test_a_full_range_costs_two_descriptors_a_port_and_is_bounded(world: World, attach: Attach) -> None:
    guest = await attach()
    before = open_fds()
    status = guest.network.add_forward(ForwardSpec("udp", 20000, 20000, range=100), "api")
    assert open_fds() == before + 200 and guest.network.port_count() == 100
    with pytest.raises(LimitReached):
        guest.network.add_forward(ForwardSpec("udp", 30000, 20000, range=4000), "api")
    guest.network.remove_forward(status.id)
    assert open_fds() == before
