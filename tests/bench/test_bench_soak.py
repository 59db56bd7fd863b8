"""The judge of a standstill: slow is not still."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench import soak_ends

STILL = 0.3


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A giver with a large buffer, a taker with a small one."""
    monkeypatch.setattr(soak_ends, "STILL", STILL)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as giver:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        giver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        giver.settimeout(STILL)
        giver.connect(listener.getsockname())
        taker, _ = listener.accept()
        with taker:
            yield giver, taker


def test_a_full_buffer_that_drains_slowly_is_no_standstill(ends: tuple[socket.socket, socket.socket]) -> None:
    giver, taker = ends
    size = 4 << 20
    got = bytearray()

    def sip() -> None:
        until = time.monotonic() + 4 * STILL  # a third of the buffer takes much longer at this rate
        while data := taker.recv(2048 if time.monotonic() < until else 1 << 20):
            got.extend(data)
            if time.monotonic() < until:
                time.sleep(0.01)

    thread = threading.Thread(target=sip)
    thread.start()
    end = soak_ends.End()
    waits: list[bool] = []
    ask = end.moves
    end.moves = lambda sock: waits.append(ask(sock)) or waits[-1]  # type: ignore[func-returns-value, method-assign]
    try:
        giver_done = threading.Thread(target=end.give, args=(giver, size))
        giver_done.start()
        thread.join(20)
        taker.close()  # the end of the other's stream
        giver_done.join(20)
    finally:
        giver.close()
    assert end.size == len(got) == size
    assert waits and all(waits), "it was never tried"


def test_a_taker_that_takes_nothing_is_one(ends: tuple[socket.socket, socket.socket]) -> None:
    giver, _ = ends
    end = soak_ends.End()
    with pytest.raises(TimeoutError):
        end.give(giver, 8 << 20)
    assert 0 < end.size < 8 << 20


def test_nor_does_one_that_ends_no_stream(ends: tuple[socket.socket, socket.socket]) -> None:
    giver, taker = ends
    end = soak_ends.End()
    with pytest.raises(TimeoutError):
        end.give(giver, 1000)
    assert taker.recv(2000)[8:] and end.size == 1000
