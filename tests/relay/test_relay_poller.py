"""The network's own epoll: what is told, to whom, and what is not told any more."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from netd.relay.poller import END, EVENT, READ, WRITE, Poller


@pytest.fixture(params=[8, 0.1], ids=["alone", "beside others"])
async def poller(request: pytest.FixtureRequest) -> AsyncIterator[Poller]:
    poller = Poller(asyncio.get_running_loop(), time.monotonic, Turns(request.param * EVENT))
    yield poller
    poller.close()


class Turns:
    """Each of ``length`` seconds."""

    def __init__(self, length: float) -> None:
        self.length = length
        self.asked = self.ended = 0

    def begin(self, now: float) -> float:
        self.asked += 1
        return self.length

    def end(self) -> None:
        self.ended += 1


class Waiting:
    """Does ``deed`` when told, and notes it."""

    def __init__(self, deed: Callable[[], None] = lambda: None) -> None:
        self.deed = deed
        self.told: list[int] = []
        self.event = asyncio.Event()

    def on_ready(self, events: int) -> None:
        self.told.append(events)
        self.event.set()
        self.deed()


def pair() -> tuple[socket.socket, socket.socket]:
    a, b = socket.socketpair()
    a.setblocking(False)
    return a, b


async def test_what_is_waited_for_is_told(poller: Poller) -> None:
    a, b = pair()
    with a, b:
        owner = Waiting(lambda: poller.change(a.fileno(), READ))
        poller.begin(a.fileno(), WRITE, owner)
        await asyncio.wait_for(owner.event.wait(), 5)
        assert owner.told[0] == WRITE
        owner.event.clear()
        owner.told.clear()
        await asyncio.sleep(0.01)
        assert owner.told == []  # writable still, and nobody asks
        owner.deed = lambda: poller.end(a.fileno())
        b.send(b"x")
        await asyncio.wait_for(owner.event.wait(), 5)
        assert owner.told == [select.EPOLLIN] and not len(poller)
        await asyncio.sleep(0.01)
        assert owner.told == [select.EPOLLIN]


async def test_one_that_ends_in_the_round_is_not_told(poller: Poller) -> None:
    """Its descriptor's number may be another one's by then, and the news is not for that one."""
    first, second, third = pair(), pair(), pair()
    owners: list[Waiting] = []
    newcomer = Waiting()

    def close_the_other() -> None:
        this = 0 if owners[0].told else 1
        other = 1 - this
        number = (first, second)[other][0].fileno()
        for end in (first, second):
            poller.end(end[0].fileno())
        (first, second)[other][0].close()
        assert os.dup2(third[0].fileno(), number) == number
        poller.begin(number, READ, newcomer)

    for mine, theirs in (first, second):
        owners.append(Waiting(close_the_other))
        poller.begin(mine.fileno(), READ, owners[-1])
        theirs.send(b"x")
    reused = {first[0].fileno(), second[0].fileno()}
    while not any(owner.told for owner in owners):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert len(owners[0].told) + len(owners[1].told) == 1
    assert newcomer.told == []
    third[1].send(b"x")
    await asyncio.wait_for(newcomer.event.wait(), 5)
    assert newcomer.told[0] == select.EPOLLIN
    for number in reused:
        if number in poller._owners:
            poller.end(number)
            os.close(number)
    for end in (*first, *second, *third):
        end.close()


async def test_all_have_their_turn(poller: Poller) -> None:
    """More than one round takes, each of them always ready."""
    ends = [pair() for _ in range(24)]
    owners = [Waiting() for _ in ends]
    for (mine, _), owner in zip(ends, owners, strict=True):
        poller.begin(mine.fileno(), WRITE, owner)
    for owner in owners:
        await asyncio.wait_for(owner.event.wait(), 5)
    counts = [len(owner.told) for owner in owners]
    assert max(counts) - min(counts) <= 1
    for mine, theirs in ends:
        poller.end(mine.fileno())
        mine.close()
        theirs.close()


async def test_an_end_is_told_to_whoever_waits_for_anything(poller: Poller) -> None:
    a, b = pair()
    with a:
        owner = Waiting(lambda: poller.end(a.fileno()))
        poller.begin(a.fileno(), READ, owner)
        b.close()
        await asyncio.wait_for(owner.event.wait(), 5)
        assert owner.told[0] & READ and owner.told[0] & END


async def test_nobody_is_told_out_of_turn() -> None:
    """The loop asks again until it is this network's turn."""
    turns = Turns(0.0)
    poller = Poller(asyncio.get_running_loop(), time.monotonic, turns)
    a, b = pair()
    with a, b:
        owner = Waiting(lambda: poller.end(a.fileno()))
        poller.begin(a.fileno(), WRITE, owner)
        while turns.asked < 5:
            await asyncio.sleep(0)
        assert owner.told == []
        turns.length = EVENT
        await asyncio.wait_for(owner.event.wait(), 5)
        assert owner.told == [WRITE]
    poller.close()


@pytest.mark.parametrize("length", [EVENT / 10, 1.0, 8 * EVENT])
async def test_a_turn_is_over_when_nothing_is_left(length: float) -> None:
    """Or what comes much later would count to it."""
    turns = Turns(length)
    poller = Poller(asyncio.get_running_loop(), time.monotonic, turns)
    a, b = pair()
    with a, b:
        owner = Waiting(lambda: poller.change(a.fileno(), READ))
        poller.begin(a.fileno(), WRITE, owner)
        await asyncio.wait_for(owner.event.wait(), 5)
        await asyncio.sleep(0.01)
        assert turns.ended == 1
        poller.end(a.fileno())
    poller.close()


async def test_outcomes_are_told_once_and_in_order(poller: Poller) -> None:
    """Those of connects that ended at once; one of them begins the next."""

    class Ended(Waiting):
        def on_outcome(self, error: int) -> None:
            self.told.append(error)
            self.deed()

    first, last = Ended(lambda: poller.tell_later(last, 111)), Ended()
    poller.tell_later(first, 0)
    poller.tell_later(last, 101)
    assert first.told == last.told == []
    poller.tell()
    assert (first.told, last.told) == ([0], [101, 111])
    poller.tell()
    assert (first.told, last.told) == ([0], [101, 111])


async def test_what_is_closed_need_not_be_ended(poller: Poller) -> None:
    a, b = pair()
    other, theirs = pair()
    owner, neighbor = Waiting(), Waiting()
    poller.begin(a.fileno(), READ, owner)
    poller.begin(other.fileno(), READ, neighbor)
    b.send(b"x")
    poller.forget(a.fileno())
    a.close()
    theirs.send(b"x")
    await asyncio.wait_for(neighbor.event.wait(), 5)
    assert not owner.told and len(poller) == 1
    poller.end(other.fileno())
    for sock in (b, other, theirs):
        sock.close()


async def test_one_that_lives_on_in_another_process_tells_nobody(poller: Poller) -> None:
    """A process that is being made has a duplicate until it runs its program."""
    a, b = pair()
    other, theirs = pair()
    neighbor = Waiting()
    poller.begin(a.fileno(), READ, Waiting())
    poller.begin(other.fileno(), READ, neighbor)
    b.send(b"x")
    duplicate = os.dup(a.fileno())
    poller.forget(a.fileno())
    a.close()
    theirs.send(b"x")
    await asyncio.wait_for(neighbor.event.wait(), 5)
    os.close(duplicate)
    poller.end(other.fileno())
    for sock in (b, other, theirs):
        sock.close()
