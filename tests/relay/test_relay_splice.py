"""Two sockets joined: bytes, half-closes, resets, backpressure and bounds, on the real kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netd.relay import splice as splice_
from netd.relay.splice import Splices
from tests.lab import World, aside, both_ways, md5, open_fds, receive_all, until
from tests.relay.joined import Stage, end_of, fill, reset_by, staged


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    with staged(world) as stage:
        yield stage


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("inwards", [False, True])
async def test_both_ways_whole(stage: Stage, family: int, inwards: bool) -> None:
    there = (stage.host, stage.guest) if inwards else (stage.guest, stage.host)
    client, server = await stage.joined(*there, family)
    with client, server:
        await both_ways(client, server, 30_000_000)
        await until(lambda: stage.closed == 1 and not len(stage.splices))
        assert stage.splice is not None and stage.splice.closed


async def test_small_messages_back_and_forth(stage: Stage) -> None:
    client, server = await stage.joined()
    with client, server:
        for size in (1, 2, 100, 5000):
            message = os.urandom(size)
            await aside(client.sendall, message)
            assert await aside(server.recv, 1 << 16, socket.MSG_WAITALL if size == 5000 else 0) or True
            await aside(server.sendall, message)
            got = b""
            while len(got) < size:
                got += await aside(client.recv, size - len(got))
            assert got == message


async def test_a_half_closed_connection_goes_on(stage: Stage) -> None:
    client, server = await stage.joined()
    with client, server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert await aside(receive_all, server) == b"question"
        await asyncio.sleep(0.05)
        assert len(stage.splices) == 1
        server.sendall(b"answer")
        server.close()
        assert await aside(end_of, client) == (b"answer", 0)
        await until(lambda: stage.closed)


async def test_the_end_waits_for_what_is_held(stage: Stage) -> None:
    """Everything is written and closed while the other side does not read."""
    client, server = await stage.joined()
    with client, server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        data = os.urandom(20_000_000)
        writing = asyncio.ensure_future(aside(lambda: (client.sendall(data), client.close())))
        await asyncio.sleep(0.3)
        assert await aside(lambda: md5(receive_all(server))) == md5(data)
        await writing


async def test_backpressure_without_polling(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that does not read stops the other one, costs no wake-ups meanwhile, and little memory."""
    client, server = await stage.joined()
    with client, server:
        written = await aside(fill, client)
        splices = stage.splices
        assert 0 < splices._held <= splice_.PIPE_SIZE
        wakeups = 0
        run = Splices._run

        def counted(self: Splices) -> None:
            nonlocal wakeups
            wakeups += 1
            run(self)

        monkeypatch.setattr(Splices, "_run", counted)
        await asyncio.sleep(0.3)
        assert wakeups <= 5
        client.shutdown(socket.SHUT_WR)
        assert await aside(lambda: len(receive_all(server))) == written


async def test_both_sides_write_and_nobody_reads(stage: Stage) -> None:
    client, server = await stage.joined()
    with client, server:
        out, back = await asyncio.gather(aside(fill, client), aside(fill, server))
        client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)
        sizes = await asyncio.gather(aside(lambda: len(receive_all(server))), aside(lambda: len(receive_all(client))))
        assert sizes == [out, back]


async def test_what_is_held_of_many_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_, "HELD_MAX", 300_000)
    pairs = [await stage.joined() for _ in range(8)]
    written = await asyncio.gather(*(aside(fill, client) for client, _ in pairs))
    assert stage.splices._held <= 300_000 + splice_.PIPE_SIZE + 8 * splice_.SMALL
    for (client, server), size in zip(pairs, written, strict=True):
        client.close()
        assert await aside(lambda server=server: len(receive_all(server))) == size
        server.close()
    await until(lambda: stage.closed == 8)


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reset_is_a_reset(stage: Stage, by_client: bool) -> None:
    client, server = await stage.joined()
    with client, server:
        here, there = (client, server) if by_client else (server, client)
        here.sendall(b"x")
        assert await aside(there.recv, 1) == b"x"
        reset_by(here)
        assert await aside(end_of, there) == (b"", errno.ECONNRESET)
        await until(lambda: stage.closed == 1)


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reset_is_heard_of_while_nobody_reads(stage: Stage, by_client: bool) -> None:
    """Either side, after the client's writes have been stopped by a server that does not read."""
    client, server = await stage.joined()
    with client, server:
        await aside(fill, client)
        here, there = (client, server) if by_client else (server, client)
        reset_by(here)
        _, number = await aside(end_of, there)
        assert number == errno.ECONNRESET
        await until(lambda: stage.closed == 1)


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reset_after_a_half_close(stage: Stage, by_client: bool) -> None:
    client, server = await stage.joined()
    with client, server:
        client.shutdown(socket.SHUT_WR)
        assert await aside(receive_all, server) == b""
        reset_by(client if by_client else server)
        _, number = await aside(end_of, server if by_client else client)
        # A socket that has been told the end already is not told of a reset when it reads.
        assert number == (0 if by_client else errno.ECONNRESET)
        await until(lambda: stage.closed == 1)


async def test_last_words_before_a_reset(stage: Stage) -> None:
    """A server that answers and closes without having read all of the question."""
    for _ in range(20):
        client, server = await stage.joined()
        with client, server:
            client.sendall(b"q" * 10)
            assert await aside(server.recv, 1) == b"q"
            await asyncio.sleep(0.005)
            server.sendall(b"too much")
            server.close()  # with unread bytes: RST
            got, number = await aside(end_of, client)
            assert (got, number) == (b"too much", errno.ECONNRESET)


async def test_last_words_where_a_write_tells_of_the_reset(stage: Stage) -> None:
    """The error is told once, and the stream behind it looks like one that has ended: it must not be passed on so."""
    client, server = await stage.joined()
    with client, server:
        assert stage.splice is not None
        client.sendall(b"q" * 10)
        assert await aside(server.recv, 1) == b"q"
        await asyncio.sleep(0.02)
        server.sendall(b"too much")
        server.close()
        client.sendall(b"more")
        stage.splice.accepted.readable = True
        assert not stage.splices._move(stage.splice.accepted.from_it)  # before the loop sees any event
        assert stage.splice.closed
        assert await aside(end_of, client) == (b"too much", errno.ECONNRESET)


async def test_what_is_behind_urgent_data_does_not_wait_for_more(stage: Stage) -> None:
    """A read stops there, and nothing else will come that says so (tcp(7))."""
    for said in (b"before", b""):  # at the beginning as well
        client, server = await stage.joined()
        with client, server:
            client.sendall(b"first")
            assert await aside(server.recv, 5) == b"first"  # both ways are quiet now
            client.sendall(said)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"behind")
            wanted = said + b"behind"
            got = b""
            while len(got) < len(wanted):
                got += await aside(server.recv, 100)
            assert got == wanted


async def test_cut(stage: Stage) -> None:
    client, server = await stage.joined()
    with client, server:
        assert stage.splice is not None
        await aside(fill, client)
        stage.splice.cut()
        stage.splice.cut()
        assert (await aside(end_of, client))[1] == errno.ECONNRESET
        assert (await aside(end_of, server))[1] == errno.ECONNRESET
        assert stage.closed == 1


async def test_close_cuts_all_and_leaves_nothing(stage: Stage) -> None:
    before = open_fds()
    pairs = [await stage.joined() for _ in range(5)]
    await aside(fill, pairs[0][0])
    stage.splices.close()
    for client, server in pairs:
        with client, server:
            assert (await aside(end_of, client))[1] == (await aside(end_of, server))[1] == errno.ECONNRESET
    assert open_fds() == before and stage.closed == 5


async def test_many_take_turns(stage: Stage) -> None:
    """A bulk transfer does not keep the others from their small messages."""
    bulk = await stage.joined()
    small = [await stage.joined() for _ in range(20)]
    stop = False

    def pump() -> None:
        while not stop:
            bulk[0].sendall(bytes(1 << 18))
        bulk[0].close()

    pumping = asyncio.ensure_future(aside(pump))
    draining = asyncio.ensure_future(aside(lambda: sum(iter(lambda: len(bulk[1].recv(1 << 18)), 0))))
    slowest = 0.0
    for _ in range(10):
        for client, server in small:
            start = time.monotonic()
            client.sendall(b"x")
            assert await aside(server.recv, 1) == b"x"
            slowest = max(slowest, time.monotonic() - start)
    stop = True
    await pumping
    assert await draining > 1 << 20
    assert slowest < 2.0
    for pair in (*small, bulk):
        for sock in pair:
            sock.close()


async def test_connections_come_and_go(stage: Stage) -> None:
    before = 0
    for turn in range(60):
        client, server = await stage.joined()
        with client, server:
            client.sendall(b"a" * 1000)
            if turn % 3 == 0:
                reset_by(client)
            elif turn % 3 == 1:
                client.close()
            else:
                server.close()
            await aside(end_of, client if turn % 3 == 2 else server)
        await until(lambda turn=turn: stage.closed == turn + 1)
        before = before or open_fds()
    assert open_fds() == before


async def test_streams_of_all_sizes_at_once(stage: Stage) -> None:
    """Written and read in pieces of any size, closed in any order: whole all the same."""
    loop = asyncio.get_running_loop()
    chance = random.Random(5)

    async def write(sock: socket.socket, data: bytes, pieces: random.Random) -> None:
        at = 0
        while at < len(data):
            size = pieces.choice((1, 10, 1000, 70_000, 1_000_000))
            await loop.sock_sendall(sock, data[at : at + size])
            at += size
            if pieces.random() < 0.2:
                await asyncio.sleep(pieces.random() / 100)
        sock.shutdown(socket.SHUT_WR)

    async def read(sock: socket.socket, pieces: random.Random) -> bytes:
        data = bytearray()
        while chunk := await loop.sock_recv(sock, pieces.choice((1, 500, 5000, 300_000))):
            data += chunk
            if pieces.random() < 0.05:
                await asyncio.sleep(pieces.random() / 100)
            if len(data) < 20_000:
                continue
            data += await loop.sock_recv(sock, 1 << 20)
        return bytes(data)

    async def exchange(number: int) -> None:
        pieces = random.Random(number)
        client, server = await stage.joined()
        with client, server:
            client.setblocking(False)
            server.setblocking(False)
            out, back = (os.urandom(chance.choice((0, 1, 3000, 200_000, 5_000_000))) for _ in range(2))
            _, _, at_server, at_client = await asyncio.gather(
                write(client, out, pieces), write(server, back, pieces), read(server, pieces), read(client, pieces)
            )
            assert md5(at_server) == md5(out) and md5(at_client) == md5(back)

    await asyncio.gather(*(exchange(number) for number in range(30)))
    await until(lambda: stage.closed == 30)
