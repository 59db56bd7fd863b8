"""How TCP connections begin and end: half-closes, refusals, resets, silence."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time

import pytest

from netd.specs import ForwardSpec
from tests.lab import (
    FORBIDDEN,
    HOST,
    NO_ROUTE,
    OUTSIDE,
    PROHIBITED,
    SILENT,
    UNREACHABLE,
    World,
    aside,
    connected,
    no_link,
    receive_all,
    refusal,
    send_all,
    until,
)
from tests.stage import Attach, Guest

RESET = struct.pack("ii", 1, 0)  # SO_LINGER


async def pair(world: World, guest: Guest, way: str) -> tuple[socket.socket, socket.socket]:
    """(the guest's end, the outside's end) of a connection opened ``way``."""
    if way == "out":
        with world.outside.listener(OUTSIDE) as listener:
            ours = guest.socket()
            return ours, await connected(ours, listener.getsockname(), listener)
    forwards = guest.network.forwards() or [guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")]
    with guest.listener(port=80) as listener:
        theirs = world.outside.socket()
        return await connected(theirs, (HOST, forwards[0].spec.host_port), listener), theirs


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("first", ["guest", "outside"])
async def test_half_close(world: World, attach: Attach, way: str, first: str) -> None:
    guest = await attach()
    ends = await pair(world, guest, way)
    early, late = ends if first == "guest" else ends[::-1]
    with early, late:
        question, answer = os.urandom(1 << 20), os.urandom(3 << 20)
        _, got = await asyncio.gather(aside(send_all, early, question), aside(receive_all, late))
        assert got == question  # with its end, while the other direction is open
        assert guest.network.status().flows["tcp"] == 1
        _, got = await asyncio.gather(aside(send_all, late, answer), aside(receive_all, early))
        assert got == answer
    await until(lambda: guest.network.status().flows["tcp"] == 0, "both ends are closed, TIME-WAIT over")


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("killer", ["guest", "outside"])
async def test_a_reset_goes_through(world: World, attach: Attach, way: str, killer: str) -> None:
    guest = await attach()
    ends = await pair(world, guest, way)
    dying, other = ends if killer == "guest" else ends[::-1]
    with dying, other:
        await asyncio.gather(aside(dying.sendall, b"x" * 4096), aside(other.recv, 4096, socket.MSG_WAITALL))
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        dying.close()
        with pytest.raises(ConnectionResetError):
            await aside(other.recv, 100)
    await until(lambda: guest.network.status().flows["tcp"] == 0)


async def test_a_reset_in_the_middle_of_a_transfer(world: World, attach: Attach) -> None:
    guest = await attach()
    for way in ("out", "in"):
        for from_guest in (True, False):
            ends = await pair(world, guest, way)
            sender, receiver = ends if from_guest else ends[::-1]
            with sender, receiver:

                def take_some(receiver: socket.socket = receiver) -> None:
                    receiver.recv(1 << 16, socket.MSG_WAITALL)
                    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    receiver.close()

                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    await asyncio.gather(aside(sender.sendall, bytes(64 << 20)), aside(take_some))
    await until(lambda: guest.network.status().flows["tcp"] == 0)


async def test_the_truth_about_hosts_that_cannot_be_reached(world: World, attach: Attach) -> None:
    guest = await attach()
    guest.ip("neighbor add 10.0.2.77 lladdr 52:55:0a:00:02:02 dev tap0")
    for address, expected in (
        ((OUTSIDE, 9), errno.ECONNREFUSED),
        ((HOST, 9), errno.ECONNREFUSED),
        ((UNREACHABLE, 9), errno.EHOSTUNREACH),
        ((FORBIDDEN, 9), errno.EHOSTUNREACH),
        ((NO_ROUTE, 9), errno.ENETUNREACH),
        ((PROHIBITED, 9), errno.EHOSTUNREACH),  # the guest's kernel knows no better for ICMP code 13
        (("10.0.2.2", 22), errno.ENETUNREACH),  # the host's loopback, which is not allowed
        (("10.0.2.3", 80), errno.ENETUNREACH),
        (("10.0.2.77", 80), errno.EHOSTUNREACH),
    ):
        with guest.socket() as client:
            number, seconds = await aside(refusal, client, address)
            assert (number, seconds < 1) == (expected, True), (address, errno.errorcode[number], seconds)
    assert guest.network.status().flows["tcp"] == 0


async def test_a_host_that_never_answers(world: World, attach: Attach) -> None:
    """The guest waits, nobody else does; in the end it hears of it."""
    world.host.sysctl("tcp_syn_linear_timeouts", "0")
    world.host.sysctl("tcp_syn_retries", "1")  # 1 s, then 2
    guest = await attach()
    with guest.socket() as patient, guest.socket() as other, world.outside.listener(OUTSIDE) as listener:
        waiting = asyncio.ensure_future(aside(refusal, patient, (SILENT, 80)))
        await until(lambda: guest.network.status().flows["tcp"] == 1)
        (await connected(other, listener.getsockname(), listener)).close()
        assert not waiting.done()
        number, seconds = await waiting
        assert number == errno.EHOSTUNREACH and 2.5 < seconds < 6


async def test_a_network_ends_while_it_connects(world: World, attach: Attach) -> None:
    guest = await attach()
    with guest.socket() as patient:
        patient.setblocking(False)
        assert patient.connect_ex((SILENT, 80)) == errno.EINPROGRESS
        await until(lambda: guest.network.status().flows["tcp"] == 1)
        await guest.daemon.detach(guest.network)


async def test_a_port_with_nobody_behind_it_resets_its_client(world: World, attach: Attach) -> None:
    guest = await attach()
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 81), "api").spec.host_port
    with world.outside.socket() as client:
        with pytest.raises(ConnectionResetError):  # which may be there before connect has returned
            await aside(client.connect, (HOST, port))
            await aside(client.recv, 1)
    assert guest.network.forwards()[0].connections == 0


async def test_close_with_unread_data_resets(world: World, attach: Attach) -> None:
    guest = await attach()
    ours, theirs = await pair(world, guest, "out")
    with ours, theirs:
        await aside(theirs.sendall, b"never read")
        await aside(ours.recv, 100, socket.MSG_PEEK)
        ours.close()
        with pytest.raises(ConnectionResetError):
            await aside(theirs.recv, 100)


async def test_what_was_sent_before_the_end_arrives_though_the_reader_is_slow(world: World, attach: Attach) -> None:
    """The guest closes; what the host's socket has not taken yet is held until it has."""
    guest = await attach()
    ours, theirs = await pair(world, guest, "out")
    with theirs:
        data = os.urandom(8 << 20)
        sending = asyncio.ensure_future(aside(ours.sendall, data))
        await asyncio.sleep(0)
        first = await aside(theirs.recv, 1000)

        async def close_when_sent() -> None:
            await sending
            ours.close()

        _, rest = await asyncio.gather(close_when_sent(), aside(receive_all, theirs))
        assert first + rest == data
    await until(lambda: guest.network.status().flows["tcp"] == 0)


async def test_the_end_of_the_network_ends_its_connections(world: World, attach: Attach) -> None:
    guest = await attach()
    ours, theirs = await pair(world, guest, "out")
    with ours, theirs:
        await guest.daemon.detach(guest.network)
        with pytest.raises(ConnectionResetError):
            await aside(theirs.recv, 100)
    await no_link(guest)


async def test_last_words_are_delivered(world: World, attach: Attach) -> None:
    """A container that says goodbye and ends: its data and FIN may still be in the TAP when the network ends."""
    guest = await attach()
    ours, theirs = await pair(world, guest, "out")
    with theirs:
        ours.sendall(b"goodbye")
        ours.close()
        await guest.daemon.detach(guest.network)  # no turn of the loop in between
        assert await aside(receive_all, theirs) == b"goodbye"


async def test_a_guest_that_changed_its_mac_and_says_nothing(world: World, attach: Attach) -> None:
    """Only the host has something to say, and says it to where the guest was: the guest is asked for, and found."""
    guest = await attach()
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            client.send(b"x")
            assert await aside(server.recv, 1) == b"x"
            await asyncio.sleep(0.1)  # until all is acknowledged
            guest.ip("link set dev tap0 address 02:00:00:00:00:c8")
            before = time.monotonic()
            server.send(b"y")
            client.settimeout(20)
            assert await aside(client.recv, 1) == b"y"
            assert time.monotonic() - before < 10
