"""TCP between the guest's kernel and the host's, both ways, at every size of packet, with and without offload."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from netd.settings import Settings
from netd.specs import ForwardSpec
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, md5, receive_all, send_all
from tests.stage import Attach

SIZE = 12 << 20


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    return settings.model_copy(update={"offload": request.param})


@pytest.mark.parametrize("mtu", [65520, 1500, 576, 88])
async def test_out(world: World, attach: Attach, settings: Settings, mtu: int) -> None:
    guest = await attach(mtu=mtu)
    assert guest.network.status().offload is settings.offload
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            assert server.getpeername()[0] == HOST
            await both_ways(client, server, SIZE if mtu >= 1500 else 512 << 10)


@pytest.mark.parametrize("mtu", [65520, 1500, 576, 68])
async def test_in(world: World, attach: Attach, mtu: int) -> None:
    guest = await attach(mtu=mtu)
    published = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    with guest.listener(port=80) as listener, world.outside.socket() as client:
        with await connected(client, (HOST, published.spec.host_port), listener) as server:
            assert server.getpeername() == client.getsockname()
            if mtu >= 88:
                await both_ways(client, server, SIZE if mtu >= 1500 else 512 << 10)
            else:
                # Linux sends no segment below 48 bytes (TCP_MIN_SND_MSS), so what it says at this MTU is in fragments.
                data = os.urandom(256 << 10)
                _, got = await asyncio.gather(aside(send_all, client, data), aside(receive_all, server))
                assert md5(got) == md5(data)


async def test_a_reader_that_sleeps_holds_the_writer_and_nothing_is_lost(world: World, attach: Attach) -> None:
    """Windows close and open again in both directions; what is held meanwhile is bounded."""
    guest = await attach(mtu=1500)
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            for sender, receiver in ((client, server), (server, client)):
                for sock in (sender, receiver):
                    sock.setblocking(False)
                sent, stalled = bytearray(), 0
                while stalled < 50:  # until nothing has moved for a while: every buffer on the way is full
                    try:
                        chunk = os.urandom(1 << 16)
                        sent += chunk[: sender.send(chunk)]
                        stalled = 0
                    except BlockingIOError:
                        stalled += 1
                        await asyncio.sleep(0.002)
                assert 1 << 18 < len(sent) < 32 << 20
                for sock in (sender, receiver):
                    sock.settimeout(20)
                got = bytearray()
                while len(got) < len(sent):
                    got += await aside(receiver.recv, 1 << 20)
                assert md5(got) == md5(sent)


async def test_many_at_once(world: World, attach: Attach) -> None:
    guest = await attach()
    number = 300
    clients = [guest.socket() for _ in range(number)]
    with world.outside.listener(OUTSIDE) as listener:

        def serve() -> None:
            for _ in range(number):
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(20)
                    sock.sendall(receive_all(sock)[::-1])

        def ask_all() -> None:
            for client in clients:
                client.connect(listener.getsockname())
            for index, client in enumerate(clients):
                send_all(client, b"client %d" % index)
            for index, client in enumerate(clients):
                assert receive_all(client) == (b"client %d" % index)[::-1]
                client.close()

        await asyncio.gather(aside(serve), aside(ask_all))


async def test_small_writes_arrive_in_order(world: World, attach: Attach) -> None:
    guest = await attach(mtu=1500)
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with await connected(client, listener.getsockname(), listener) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def chatter(a: socket.socket, b: socket.socket) -> None:
                for number in range(2000):
                    a.sendall(b"%07d" % number)
                a.shutdown(socket.SHUT_WR)

            for a, b in ((client, server), (server, client)):
                _, got = await asyncio.gather(aside(chatter, a, b), aside(receive_all, b))
                assert got == b"".join(b"%07d" % number for number in range(2000))


async def test_urgent_data_is_delivered_in_line(world: World, attach: Attach) -> None:
    guest = await attach()
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            client.send(b"before ")
            client.send(b"!", socket.MSG_OOB)
            await aside(send_all, client, b" after")
            assert await aside(receive_all, server) == b"before ! after"
