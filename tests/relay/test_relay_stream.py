"""The host side of a connection: when it tries, when it tells."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable

import pytest

from netd.pace import ALONE, SHARED, Pace, Turns
from netd.relay.poller import Poller
from netd.relay.source import ANYWHERE
from netd.relay.stream import FRAME, Address, Stream
from netd.relay.tails import Tails
from netd.relay.tcp_socket import accept, reset_on_close
from netd.stack.ports import NET_UNREACHABLE, RESET


class Told:
    """What a connection hears, in order (``ports.GuestStream``)."""

    def __init__(self) -> None:
        self.words: list[object] = []
        self.event = asyncio.Event()
        self.window = 0

    def host_connected(self, now: float) -> None:
        self.words.append("connected")
        self.event.set()

    def host_refused(self, code: int, now: float) -> None:
        self.words.append(code)
        self.event.set()

    def room(self, frames: int = 1) -> int:
        return self.window * frames

    def from_host(self, data: bytes, now: float) -> None:
        self.words.append(data)

    def host_paused(self, now: float) -> None: ...

    def host_eof(self, now: float, last: bytes = b"") -> None:
        self.words.append(("end", last))
        self.event.set()

    def host_writable(self, now: float) -> None: ...

    def host_reset(self, now: float) -> None:
        self.words.append("reset")
        self.event.set()


Begin = Callable[[list[Address]], tuple[Stream, Told]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Connects, within one call as a frame's."""

    loop = asyncio.get_running_loop()
    poller = Poller(loop, time.monotonic, Turns(Pace(loop, time.monotonic)))

    def connect(addresses: list[Address]) -> tuple[Stream, Told]:
        pace = Pace(loop, time.monotonic)
        stream = Stream(loop, time.monotonic, lambda: None, pace, poller, Tails(loop), None)
        stream.connection = told = Told()
        stream.connect(addresses, ANYWHERE)
        loop.call_soon(poller.tell)  # the end of the batch
        return stream, told

    yield connect
    assert not len(poller)
    poller.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_it_tries_at_once_and_tells_later(begin: Begin) -> None:
    """What a SYN costs counts to the turn of the guest that sent it; the stack is told at the batch's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        assert stream.sock is not None and stream.sock.getpeername() == listener.getsockname()
        assert told.words == []
        await asyncio.wait_for(told.event.wait(), 5)
        assert told.words == ["connected"]
        stream.close()


async def test_a_refusal_is_told_later_too(begin: Begin) -> None:
    stream, told = begin([("127.0.0.1", free_port())])
    assert told.words == []
    await asyncio.wait_for(told.event.wait(), 5)
    assert told.words == [RESET]
    stream.close()


async def test_the_next_address_is_tried(begin: Begin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([("127.0.0.1", free_port()), ("240.0.0.1", 9), listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        assert told.words == ["connected"]
        stream.close()


async def test_nothing_is_told_to_a_guest_that_gave_up(begin: Begin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = [begin([listener.getsockname()]), begin([("127.0.0.1", free_port())])]
        for stream, _ in ends:
            stream.close()
        await asyncio.sleep(0.05)
        assert [told.words for _, told in ends] == [[], []]


async def test_what_has_ended_is_freed_at_once(begin: Begin) -> None:
    """Connection and stream know each other; a collector that comes by later costs more than all the rest."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        told.host = stream  # type: ignore[attr-defined]
        gone = weakref.ref(told)
        stream.close()
        stream.close()
        await asyncio.sleep(0.01)
        del stream, told
        assert gone() is None


async def test_a_client_for_whom_there_is_no_room_is_reset(begin: Begin) -> None:
    """No connection has been made for its stream."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        sock, peer = accept(listener)
        assert peer == client.getsockname()
        poller = Poller(loop, time.monotonic, Turns(Pace(loop, time.monotonic)))
        pace = Pace(loop, time.monotonic)
        Stream(loop, time.monotonic, lambda: None, pace, poller, Tails(loop), sock).abort()
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)


async def test_no_address_at_all(begin: Begin) -> None:
    stream, told = begin([])
    await asyncio.wait_for(told.event.wait(), 5)
    assert told.words == [NET_UNREACHABLE]
    stream.close()


async def test_one_that_cannot_be_waited_for_is_reset(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's epoll watches, or memory, are used up."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as others:
        for _ in range(2):  # the backlog is full: the kernel goes on connecting
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        monkeypatch.setattr("netd.relay.poller.Poller.begin", full)
        stream, told = begin([listener.getsockname()])
        assert told.words == []
        await asyncio.wait_for(told.event.wait(), 5)
        assert told.words == ["reset"]
        stream.close()


async def reads(begin: Begin, window: int, *deeds: Callable[[socket.socket], object]) -> list[object]:
    """What the connection hears of what the host's peer does before it is looked at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        told.event.clear()
        told.words.clear()
        told.window = window
        stream.resume(0.0)
        peer, _ = listener.accept()
        with peer:
            for deed in deeds:
                deed(peer)
            while not any(isinstance(word, tuple) for word in told.words):
                await asyncio.wait_for(told.event.wait(), 5)
        stream.close()
        return told.words


async def test_the_last_bytes_and_the_end_are_told_together(begin: Begin) -> None:
    words = await reads(begin, 100, lambda peer: peer.send(b"last words"), lambda peer: peer.shutdown(socket.SHUT_WR))
    assert words == [("end", b"last words")]


async def test_what_does_not_fit_at_once_is_not_the_last(begin: Begin) -> None:
    words = await reads(begin, 6, lambda peer: peer.send(b"last words"), lambda peer: peer.shutdown(socket.SHUT_WR))
    assert words == [b"last w", ("end", b"ords")]


async def test_what_just_fits(begin: Begin) -> None:
    words = await reads(begin, 10, lambda peer: peer.send(b"last words"), lambda peer: peer.shutdown(socket.SHUT_WR))
    assert words == [b"last words", ("end", b"")]


@pytest.mark.parametrize(("turn", "several"), [(ALONE, 4), (SHARED, 1)])
async def test_what_filled_one_read_may_fill_several_frames(begin: Begin, turn: float, several: int) -> None:
    """As many as fit a turn, until a read finds less, or nothing; one again then."""
    assert several == max(round(turn / FRAME), 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        told.words.clear()
        told.window = 1000
        stream._pace.turn = turn
        stream._clock = lambda: 0.0  # the turn does not end
        peer, _ = listener.accept()
        with peer:
            for _ in range(2):
                peer.send(bytes(9500))
                stream.resume(0.0)
                async with asyncio.timeout(5):
                    while sum(len(word) for word in told.words if isinstance(word, bytes)) < 9500:
                        await asyncio.sleep(0)
                sizes = [len(word) for word in told.words if isinstance(word, bytes)]
                assert sizes == ([1000, 4000, 4000, 500] if several == 4 else [1000] * 9 + [500])
                told.words.clear()
            peer.send(bytes(5000))
            stream.resume(0.0)
            async with asyncio.timeout(5):
                while sum(len(word) for word in told.words if isinstance(word, bytes)) < 5000:
                    await asyncio.sleep(0)
            assert not stream._filled, "there was nothing more"
        stream.close()


async def test_no_more_frames_than_the_turn_has_left(begin: Begin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        told.words.clear()
        told.window = 1000
        stream._pace.turn = 4 * FRAME
        now = iter((0.0, 2 * FRAME, 3 * FRAME, 4.1 * FRAME))
        peer, _ = listener.accept()
        with peer:
            peer.send(bytes(9500))
            stream._clock = lambda: next(now)
            stream._fresh = False
            stream.resume(0.0)
            assert [len(word) for word in told.words if isinstance(word, bytes)] == [1000, 2000, 1000]
            stream._clock = time.monotonic
        stream.close()


@contextlib.asynccontextmanager
async def ended_by_the_peer(begin: Begin) -> AsyncIterator[tuple[Stream, Told, socket.socket]]:
    """The host's peer has finished sending, and that has been told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        told.event.clear()
        told.words.clear()
        told.window = 100
        stream.resume(0.0)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(5)
            peer.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(told.event.wait(), 5)
            told.event.clear()
            assert told.words == [("end", b"")]
            yield stream, told, peer
        stream.close()


async def heard(peer: socket.socket) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, peer.recv, 100)


async def test_the_second_end_is_put_off_for_a_moment(begin: Begin) -> None:
    async with ended_by_the_peer(begin) as (stream, _, peer):
        stream.finish()
        assert not select.select([peer], [], [], 0)[0]
        assert await heard(peer) == b""
        assert stream.sock is not None


async def test_a_peer_that_has_been_answered_waits_for_the_end(begin: Begin) -> None:
    """It has half-closed, and reads what it is told until then."""
    async with ended_by_the_peer(begin) as (stream, _, peer):
        assert stream.write(b"bye") == 3
        stream.finish()
        assert peer.recv(100) == b"bye" and peer.recv(100) == b""


async def test_its_close_says_so_as_well(begin: Begin) -> None:
    async with ended_by_the_peer(begin) as (stream, _, peer):
        assert stream.sock is not None
        fd = stream.sock.fileno()
        stream.finish()
        stream.close()
        stream.close()
        os.fstat(fd)
        assert await heard(peer) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize("how", [Stream.abort, Stream.cut])
async def test_a_reset_is_not_put_off(begin: Begin, how: Callable[[Stream], None]) -> None:
    async with ended_by_the_peer(begin) as (stream, told, peer):
        told.host_reset = lambda now: stream.close()  # type: ignore[method-assign]
        stream.finish()
        how(stream)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        await asyncio.sleep(0.01)  # what was put off finds nothing to do
        assert stream.sock is None


@pytest.mark.parametrize("last", [b"", b"bye"])
async def test_the_end_may_be_that_of_all(begin: Begin, last: bytes) -> None:
    """The guest had finished before: the connection lets go of its host side from within."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream, told = begin([listener.getsockname()])
        await asyncio.wait_for(told.event.wait(), 5)
        told.event.clear()
        told.window = 100
        stream.resume(0.0)
        peer, _ = listener.accept()
        ends = told.host_eof

        def all_ends(now: float, last: bytes = b"") -> None:
            ends(now, last)
            stream.close()

        told.host_eof = all_ends  # type: ignore[method-assign]
        assert stream.sock is not None
        fd = stream.sock.fileno()
        with peer:
            stream.finish()
            assert peer.recv(1) == b""
            peer.send(last)
            peer.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(told.event.wait(), 5)
            assert told.words[1:] == [("end", last)]
            assert stream.sock is None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


async def test_a_host_that_has_failed_is_told_by_the_end_that_was_put_off(begin: Begin) -> None:
    async with ended_by_the_peer(begin) as (stream, told, peer):
        reset_on_close(peer)
        peer.close()
        stream.finish()
        await asyncio.wait_for(told.event.wait(), 5)
        assert told.words == [("end", b""), "reset"]


async def test_a_read_that_stops_at_urgent_data_is_not_the_last(begin: Begin) -> None:
    words = await reads(
        begin,
        100,
        lambda peer: peer.send(b"before"),
        lambda peer: peer.send(b"!", socket.MSG_OOB),
        lambda peer: peer.send(b"behind"),
        lambda peer: peer.shutdown(socket.SHUT_WR),
    )
    assert words == [b"before", ("end", b"behind")]
