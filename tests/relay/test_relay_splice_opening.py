"""Two sockets are being joined: at once, later, or not at all; what the client does meanwhile."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.lab import World, aside, both_ways, receive_all, until
from tests.relay.joined import Stage, end_of, reset_by, staged
from tests.relay.test_relay_limits import out_of_descriptors

SILENCE = "add rule ip router forward meta l4proto tcp drop"  # until the next SYN, a second later


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    with staged(world) as stage:
        yield stage


async def test_refused(stage: Stage) -> None:
    client, ours = await stage.accepted(stage.guest)
    with client:
        assert stage.connect(ours, stage.host.socket(), ("127.0.0.1", 9), stage.noted) is None
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert (stage.closed, stage.splices.refused, len(stage.splices)) == (0, 1, 0)


async def test_refused_later(stage: Stage, world: World) -> None:
    """By another machine, which takes its time."""
    world.outside.run("nft", SILENCE)
    client, ours = await stage.accepted(stage.guest)
    with client:
        splice = stage.connect(ours, stage.host.socket(), ("198.51.100.2", 9), stage.noted)
        assert splice is not None and splice.connecting
        client.sendall(b"early")
        world.outside.run("nft", "flush chain ip router forward")
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert (stage.closed, stage.splices.refused, len(stage.splices)) == (1, 1, 0)


async def test_connected_later(stage: Stage, world: World) -> None:
    client, ours = await stage.accepted(stage.guest)
    world.outside.run("nft", SILENCE)
    with world.outside.listener("198.51.100.2") as listener, client:
        splice = stage.connect(ours, stage.host.socket(), listener.getsockname(), stage.noted)
        assert splice is not None and splice.connecting
        client.sendall(b"early")
        world.outside.run("nft", "flush chain ip router forward")
        client.shutdown(socket.SHUT_WR)
        server, _ = await aside(listener.accept)
        with server:
            assert await aside(receive_all, server) == b"early"
            assert not splice.connecting


async def test_the_client_gives_up_while_it_connects(stage: Stage, world: World) -> None:
    client, ours = await stage.accepted(stage.guest)
    splice = stage.connect(ours, stage.host.socket(), ("192.0.2.9", 80), stage.noted)  # nobody says anything
    assert splice is not None and splice.connecting
    reset_by(client)
    await until(lambda: stage.closed == 1)
    assert not len(stage.splices)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("said", [b"", b"words", bytes(100_000)], ids=["nothing", "words", "much"])
async def test_what_the_client_has_done_before_it_is_joined(stage: Stage, said: bytes, reset: bool) -> None:
    """It goes on before anything is waited for."""
    client, ours = await stage.accepted(stage.guest)
    client.sendall(said)
    if reset:
        reset_by(client)
    else:
        client.shutdown(socket.SHUT_WR)
    with stage.host.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        splice = stage.connect(ours, stage.host.socket(), listener.getsockname(), stage.noted)
        server, _ = await aside(listener.accept)
    with client, server:
        server.settimeout(20)
        got, error = await aside(end_of, server)
        if reset:
            assert error == errno.ECONNRESET
        else:
            assert (got, error) == (said, 0)
            assert splice is not None and not splice.closed
            server.sendall(b"answer")
            assert await aside(client.recv, 100) == b"answer"
            server.close()
            await until(lambda: stage.closed == 1)
    assert not len(stage.splices) and stage.closed == (splice is not None)


async def test_not_with_itself(stage: Stage) -> None:
    """Nobody listens, and the source port is the one that is asked for."""
    client, ours = await stage.accepted(stage.guest)
    outgoing = stage.host.socket()
    outgoing.bind(("127.0.0.1", 0))
    with client:
        assert stage.connect(ours, outgoing, outgoing.getsockname(), stage.noted) is None
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert stage.splices.refused == 1


async def test_the_limit(stage: Stage) -> None:
    stage.splices._limit = 2
    pairs = [await stage.joined() for _ in range(2)]
    client, ours = await stage.accepted(stage.guest)
    with client, stage.host.listener("127.0.0.1") as listener:
        assert stage.connect(ours, stage.host.socket(), listener.getsockname()) is None
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert stage.splices.over_limit == 1
    for sock in pairs.pop():
        sock.close()
    await until(lambda: len(stage.splices) == 1)
    pairs.append(await stage.joined())
    for pair in pairs:
        await both_ways(*pair, 1000)
        for sock in pair:
            sock.close()


async def test_out_of_descriptors(stage: Stage) -> None:
    client, ours = await stage.accepted(stage.guest)
    outgoing = stage.host.socket()
    with client:
        with out_of_descriptors():
            assert stage.connect(ours, outgoing, ("127.0.0.1", 1)) is None
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert stage.splices.unavailable == 1
    client, server = await stage.joined()
    with client, server:
        await both_ways(client, server, 100_000)
