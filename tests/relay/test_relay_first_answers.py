"""What a container's server says first, and last, as a client outside hears it. What it does at once, without the loop
in between, netd finds in the TAP in one batch."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from netd.specs import ForwardSpec
from tests.lab import HOST, aside, segments_in
from tests.relay.beyond import Beyond
from tests.stage import Attach

ANSWER = b"413 too large\r\n"
HELD = 0.15  # seconds; the kernel itself lets go after 0.2


class Ends(NamedTuple):
    client: socket.socket
    server: socket.socket  # has a request to read


@pytest.fixture
async def ends(beyond: Beyond, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    monkeypatch.setattr("netd.pace.ALONE", 1.0)  # as Python, not compiled, one frame can take a turn
    guest = await attach()
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    with guest.listener(port=80) as listener, beyond.outside.socket() as client:
        await aside(client.connect, (HOST, port))
        client.settimeout(5)
        client.send(b"request")
        server, _ = await aside(listener.accept)
        await aside(select.select, [server], [], [], 5)
        guest.network._pace._shared_until = 0.0  # it is new: as if there were others
        guest.network._pace.turn = 1.0
        with server:
            yield Ends(client, server)


async def test_an_answer_and_the_end_come_in_one_segment(ends: Ends) -> None:
    assert ends.server.recv(99) == b"request"
    before = segments_in(ends.client)
    ends.server.send(ANSWER)
    ends.server.close()
    assert await aside(ends.client.recv, 99) == ANSWER
    assert await aside(ends.client.recv, 99) == b""
    assert segments_in(ends.client) == before + 1


async def test_who_talks_on_is_not_held_up(ends: Ends) -> None:
    for _ in range(3):
        began = time.monotonic()
        ends.server.send(ANSWER)
        assert await aside(ends.client.recv, 99) == ANSWER
        assert time.monotonic() - began < HELD


async def test_an_answer_is_not_lost_to_the_reset_behind_it(ends: Ends) -> None:
    """A server that closes before it has read all of the request."""
    ends.server.send(ANSWER)
    ends.server.close()
    assert await aside(ends.client.recv, 99) == ANSWER
    with pytest.raises(ConnectionResetError):
        await aside(ends.client.recv, 99)
