"""Echo: the gateway by itself, outside hosts through the host's ping sockets, and the truth where there is none."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import struct
import subprocess

import pytest

from netd.wire import checksum
from tests.lab import HOST, OUTSIDE, PATH, UNREACHABLE, Netns, World, aside, until
from tests.stage import Attach, Guest

ECHO_REPLY, UNREACHABLE_TYPE, ECHO_REQUEST = 0, 3, 8
NET, HOST_CODE, PROHIBITED = 0, 1, 13


class Pinger:
    """A raw ICMP socket in a guest."""

    def __init__(self, guest: Netns | Guest, ident: int = 0x4E44) -> None:
        self.sock = guest.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.ident = ident

    def __enter__(self) -> Pinger:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, ip: str, sequence: int, payload: bytes = b"netd") -> None:
        head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, self.ident, sequence)
        number = checksum.finish(checksum.total(head + payload))
        self.sock.sendto(head[:2] + struct.pack("!H", number) + head[4:] + payload, (ip, 0))

    def answer(self) -> tuple[str, int, int, int, bytes]:
        """(from, type, code, sequence of the request, payload) of the next answer to this identifier."""
        while True:
            packet, (ip, _) = self.sock.recvfrom(65535)
            message = packet[(packet[0] & 15) * 4 :]
            assert checksum.valid(checksum.total(message))
            quoted = message[8 + (message[8] & 15) * 4 :] if message[0] == UNREACHABLE_TYPE else message
            ident, sequence = struct.unpack_from("!HH", quoted, 4)
            if message[0] != ECHO_REQUEST and ident == self.ident:
                return ip, message[0], message[1], sequence, message[8:]

    def ping(self, ip: str, sequence: int, payload: bytes = b"netd") -> tuple[str, int, int, int, bytes]:
        self.send(ip, sequence, payload)
        return self.answer()


def open_ping_sockets(world: World) -> None:
    world.host.sysctl("ping_group_range", f"{os.getgid()} {os.getgid()}")


@pytest.mark.parametrize("mtu", [68, 1500, 65520])
async def test_the_gateway_and_the_dns_address_answer(attach: Attach, mtu: int) -> None:
    guest = await attach(mtu=mtu)
    with Pinger(guest) as pinger:
        for ip in ("10.0.2.2", "10.0.2.3"):
            payload = os.urandom(mtu - 28)
            assert await aside(pinger.ping, ip, 7, payload) == (ip, ECHO_REPLY, 0, 7, payload)


async def test_an_outside_host_answers_through_a_ping_socket(world: World, attach: Attach) -> None:
    open_ping_sockets(world)
    guest = await attach()
    with Pinger(guest) as pinger, Pinger(guest, ident=2) as other:
        for sequence in (1, 2, 40000):
            payload = os.urandom(1000)
            assert await aside(pinger.ping, OUTSIDE, sequence, payload) == (OUTSIDE, ECHO_REPLY, 0, sequence, payload)
        assert (await aside(other.ping, OUTSIDE, 9))[:4] == (OUTSIDE, ECHO_REPLY, 0, 9)
    assert guest.network.status().flows["icmp"] == 2


async def test_an_unreachable_host_is_said_to_be_and_one_that_comes_back_answers(world: World, attach: Attach) -> None:
    open_ping_sockets(world)
    guest = await attach()
    with Pinger(guest) as pinger:
        for sequence in (1, 2, 3):  # the socket must live on after an error in its queue
            answer = await aside(pinger.ping, UNREACHABLE, sequence)
            assert answer[:4] == (OUTSIDE, UNREACHABLE_TYPE, HOST_CODE, sequence)  # the router's own words
        world.outside.run("nft", "flush", "ruleset")
        world.outside.ip(f"address add {UNREACHABLE}/32 dev lo")
        assert (await aside(pinger.ping, UNREACHABLE, 4))[:4] == (UNREACHABLE, ECHO_REPLY, 0, 4)


async def test_where_ping_sockets_are_closed_the_guest_is_told_and_the_owner_once(
    world: World, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await attach()  # a new namespace, the host's here, lets nobody have them: icmp(7)
    with Pinger(guest) as pinger, caplog.at_level(logging.INFO):
        for sequence in range(5):
            answer = await aside(pinger.ping, OUTSIDE, sequence)
            assert answer[:4] == ("10.0.2.2", UNREACHABLE_TYPE, PROHIBITED, sequence)
        assert (await aside(pinger.ping, "10.0.2.2", 1))[1] == ECHO_REPLY
    hints = [r.getMessage() for r in caplog.records if "ping_group_range" in r.getMessage()]
    assert len(hints) == 1 and "sysctl" in hints[0]
    assert guest.counters()["drop_echo_refused"] == 5


async def test_nobody_else_is_on_the_link_and_loopback_and_groups_are_nobody(world: World, attach: Attach) -> None:
    open_ping_sockets(world)
    guest = await attach()
    guest.ip("neighbor add 10.0.2.77 lladdr 52:55:0a:00:02:02 dev tap0\nroute add 127.9.9.9 dev tap0 table 9")
    with Pinger(guest) as pinger:
        assert (await aside(pinger.ping, "10.0.2.77", 1))[:4] == ("10.0.2.2", UNREACHABLE_TYPE, HOST_CODE, 1)
        pinger.send("224.0.0.1", 2)
        await until(lambda: guest.counters()["drop_martian"] == 1)
    assert guest.network.status().flows["icmp"] == 0


async def test_the_hosts_own_addresses_answer(world: World, attach: Attach) -> None:
    open_ping_sockets(world)
    guest = await attach()
    with Pinger(guest) as pinger:
        assert (await aside(pinger.ping, HOST, 1))[:4] == (HOST, ECHO_REPLY, 0, 1)


@pytest.mark.skipif(shutil.which("ping", path=PATH) is None, reason="ping is not installed")
async def test_the_program_ping(world: World, attach: Attach) -> None:
    open_ping_sockets(world)
    guest = await attach()
    with guest.entered():
        process = subprocess.Popen(
            ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", OUTSIDE], stdout=subprocess.PIPE, text=True
        )
    said, _ = await aside(process.communicate)
    assert process.returncode == 0 and " 0% packet loss" in said, said
