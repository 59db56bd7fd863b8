"""What is left of a large piece waits for more, for a few rounds of the loop; the first answer for its end, for a batch
of frames."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from netd.pace import Pace, Turns
from netd.relay.poller import Poller
from netd.relay.source import ANYWHERE
from netd.relay.stream import Stream
from netd.relay.tails import LARGE, ROUNDS, Tails
from tests.lab import segments_in
from tests.relay.test_relay_stream import Told

Ends = tuple[Stream, socket.socket]
PIECE = bytes(range(256)) * (LARGE // 256) + b"tail"  # less than a segment of the loopback: all of it is "left"


def arrived(peer: socket.socket) -> int:
    try:
        return len(peer.recv(1 << 20))
    except BlockingIOError:
        return 0


async def until_arrived(peer: socket.socket) -> tuple[int, int]:
    """How many bytes, and after how many rounds of the loop at least."""
    for count in range(1000):
        if size := arrived(peer):
            return size, count
        await asyncio.sleep(0)
    return 0, 1000


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """A stream to the host's loopback, and who is there."""
    loop = asyncio.get_running_loop()
    pace = Pace(loop, time.monotonic)
    poller = Poller(loop, time.monotonic, Turns(pace))
    tails = Tails(loop)
    stream = Stream(loop, time.monotonic, lambda: None, pace, poller, tails, None)
    stream.connection = told = Told()
    failed: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: failed.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        stream.connect([listener.getsockname()], ANYWHERE)
        poller.tell()
        await asyncio.wait_for(told.event.wait(), 5)
        peer, _ = listener.accept()
    peer.settimeout(5)
    for _ in range(64):  # segments are half a window at most, and that grows
        stream.write(PIECE[:16000])
        assert len(peer.recv(16000, socket.MSG_WAITALL)) == 16000
    peer.setblocking(False)
    with peer:
        yield stream, peer
    stream.close()
    poller.close()
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)
    assert not len(tails) and not failed


async def test_a_small_piece_goes_at_once(ends: Ends) -> None:
    stream, peer = ends
    assert stream.write(PIECE[: LARGE - 1]) == LARGE - 1
    assert arrived(peer) == LARGE - 1


async def test_what_is_left_of_a_large_one_goes_after_some_rounds(ends: Ends) -> None:
    stream, peer = ends
    for _ in range(2):
        assert stream.write(PIECE) == len(PIECE)
        assert arrived(peer) == 0
        size, rounds = await until_arrived(peer)
        assert size == len(PIECE) and rounds >= ROUNDS - 1


async def test_each_further_piece_makes_it_wait_anew(ends: Ends) -> None:
    stream, peer = ends
    for _ in range(3):
        stream.write(PIECE)
        assert [stream.push_unless_more() for _ in range(ROUNDS - 1)] == [False] * (ROUNDS - 1)
    assert stream.push_unless_more()
    assert arrived(peer) == 3 * len(PIECE)


async def test_a_small_one_behind_it_takes_it_along(ends: Ends) -> None:
    stream, peer = ends
    stream.write(PIECE)
    stream.write(b"end")
    assert arrived(peer) == len(PIECE) + 3


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_the_end_takes_it_along(ends: Ends, how: str) -> None:
    stream, peer = ends
    stream.write(PIECE)
    getattr(stream, how)()
    assert arrived(peer) == len(PIECE)
    assert peer.recv(1) == b""
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)


async def test_a_reset_meanwhile_does_not_take_it_back(ends: Ends) -> None:
    stream, peer = ends
    stream.write(PIECE)
    stream.abort()
    assert arrived(peer) == len(PIECE)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)


async def test_the_other_ends_reset_meanwhile(ends: Ends) -> None:
    stream, peer = ends
    stream.write(PIECE)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)
    assert stream.write(b"more") == 0
    assert stream.connection.words[-1] == "reset"  # type: ignore[attr-defined]


# -- the first answer to a client --------------------------------------------------------------------------------


Answers = tuple[Stream, Tails, socket.socket]


@pytest.fixture
async def answers() -> AsyncIterator[Answers]:
    """A stream to a client of a published port, what it is to be pushed by, and the client."""
    loop = asyncio.get_running_loop()
    pace = Pace(loop, time.monotonic)
    poller = Poller(loop, time.monotonic, Turns(pace))
    tails = Tails(loop)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    client.setblocking(False)
    stream = Stream(loop, time.monotonic, lambda: None, pace, poller, tails, accepted)
    stream.connection = Told()
    with client:
        yield stream, tails, client
    stream.close()
    poller.close()


async def test_it_goes_at_the_end_of_the_batch(answers: Answers) -> None:
    stream, tails, client = answers
    assert stream.write(b"hello") == 5
    assert arrived(client) == 0
    tails.push_held()
    assert client.recv(9) == b"hello"
    stream.write(b"again")  # who talks on is not held up
    assert client.recv(9) == b"again"


async def test_an_end_right_behind_it_goes_in_the_same_segment(answers: Answers) -> None:
    stream, tails, client = answers
    before = segments_in(client)
    stream.write(b"hello and good-bye")
    stream.finish()
    assert client.recv(99) == b"hello and good-bye" and client.recv(1) == b""
    assert segments_in(client) == before + 1
    tails.push_held()


async def test_a_second_piece_in_the_batch_takes_it_along(answers: Answers) -> None:
    stream, tails, client = answers
    stream.write(b"one")
    stream.write(b"two")
    assert client.recv(9) == b"onetwo"
    tails.push_held()


async def test_a_large_first_piece_is_none(answers: Answers) -> None:
    stream, tails, client = answers
    stream.write(bytes(LARGE))
    stream.write(b"end")
    assert arrived(client) == LARGE + 3
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)
    assert not len(tails)


async def test_a_client_that_has_finished_is_answered_too(answers: Answers) -> None:
    stream, tails, client = answers
    client.shutdown(socket.SHUT_WR)
    stream.resume(0.0)
    stream.resume(0.0)
    stream.write(b"hello")
    tails.push_held()
    assert client.recv(9) == b"hello"


async def test_one_that_closes_within_the_batch(answers: Answers) -> None:
    stream, tails, client = answers
    stream.write(b"hello")
    stream.close()
    tails.push_held()
    assert client.recv(9) == b"hello" and client.recv(1) == b""


@pytest.mark.parametrize("how", ["abort", "cut"])
async def test_a_reset_right_behind_it_does_not_take_it_back(answers: Answers, how: str) -> None:
    """A server that has not read all of the request, and closes."""
    stream, tails, client = answers
    stream.write(b"413 too large")
    stream.connection.host_reset = lambda now: stream.close()  # type: ignore[method-assign]
    getattr(stream, how)()
    tails.push_held()
    assert client.recv(99) == b"413 too large"
    with pytest.raises(ConnectionResetError):
        client.recv(1)


async def test_an_end_that_is_put_off_does_not_keep_it(answers: Answers) -> None:
    stream, _, client = answers
    client.shutdown(socket.SHUT_WR)
    told = stream.connection
    told.window = 9  # type: ignore[attr-defined]
    stream.write(b"hello")
    stream.resume(0.0)
    stream.finish()
    assert client.recv(9) == b"hello"
    for _ in range(ROUNDS + 1):
        await asyncio.sleep(0)
    assert client.recv(1) == b""
