"""When the loop sleeps and how long a turn is, with a clock and a loop that only move by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netd.pace import ALONE, CREDIT, DEBT, LATE, MANY, MEMORY, NEAR, SHARED, STAY, YIELD, Pace, Turns


class Loop:
    """``call_soon`` alone."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None], *args: Any) -> None:
        self.ready.append(callback)

    def turns(self) -> bool:
        """One iteration; whether anything was ready."""
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()
        return bool(ready)


class Stage:
    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop()
        self.pace = Pace(self.loop, lambda: self.now)  # type: ignore[arg-type]
        self.turns = {name: Turns(self.pace) for name in "ab"}

    def events(self, count: int, apart: float, owner: str = "a") -> None:
        for _ in range(count):
            self.now += apart
            self.pace.event(self.turns[owner])

    def turn(self, owner: str, took: float) -> float:
        """One that is asked for and, where it is given, used; what was given."""
        given = self.turns[owner].begin(self.now)
        if given:
            self.now += took
            self.pace.event(self.turns[owner])
        return given


def test_events_far_apart_let_the_loop_sleep() -> None:
    stage = Stage()
    stage.events(5, 2 * NEAR)
    assert not stage.loop.ready


def test_events_in_quick_succession_keep_it_awake_for_a_moment() -> None:
    stage = Stage()
    stage.events(3, NEAR / 2)
    assert stage.loop.turns() and len(stage.loop.ready) == 1
    stage.now += STAY * 0.9
    assert stage.loop.turns() and stage.loop.ready
    stage.now += STAY * 0.2
    assert stage.loop.turns() and not stage.loop.ready


def test_whoever_waits_for_the_cpu_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not between an event and what is to be done next."""
    yielded: list[float] = []
    stage = Stage()
    monkeypatch.setattr("os.sched_yield", lambda: yielded.append(stage.now))
    stage.events(3, NEAR / 2)
    event = stage.now
    for _ in range(5):
        assert stage.loop.turns()
        stage.now += YIELD * 0.9
    assert yielded == [event + YIELD * 0.9 * n for n in (2, 3, 4)]


def test_credit_is_used_up_by_far_events() -> None:
    stage = Stage()
    stage.events(100, NEAR / 2)
    stage.events(CREDIT, 2 * NEAR)
    stage.now += STAY * 2
    while stage.loop.turns():
        pass
    stage.events(1, 2 * NEAR)
    assert not stage.loop.ready


def test_turns_are_short_while_two_networks_have_something_to_do() -> None:
    stage = Stage()
    assert stage.pace.turn == ALONE
    stage.events(3, 0.001, "a")
    stage.events(1, 0.001, "b")
    assert stage.pace.turn == SHARED
    stage.events(1, MEMORY * 0.9, "b")
    assert stage.pace.turn == SHARED
    stage.events(1, MEMORY * 0.2, "b")
    assert stage.pace.turn == ALONE


def test_who_took_more_than_its_turn_waits_as_long_as_that_was_too_much() -> None:
    stage = Stage()
    stage.events(1, 0.001, "b")
    assert stage.turn("a", 5 * SHARED) == SHARED
    ended = stage.now
    assert not stage.turn("a", 0)
    assert stage.turn("b", SHARED / 2) == SHARED
    stage.now = ended + 3.9 * SHARED
    assert not stage.turn("a", 0)
    assert stage.turn("b", SHARED / 2) == SHARED
    stage.now = ended + 4.1 * SHARED
    assert stage.turn("a", SHARED / 2) == SHARED
    assert stage.turn("a", SHARED / 2) == SHARED


def test_nobody_waits_for_a_network_that_has_nothing_to_do() -> None:
    stage = Stage()
    stage.events(2, 2 * MEMORY, "a")
    for _ in range(3):
        assert stage.turn("a", 5 * ALONE) == ALONE


def test_a_debt_is_bounded() -> None:
    """The clock runs on while another program has the CPU."""
    stage = Stage()
    stage.events(1, 0.001, "b")
    stage.turn("a", MEMORY / 2)
    assert not stage.turn("a", 0)
    stage.now += DEBT * 1.1
    assert stage.turn("a", 0)


def test_events_that_no_turn_was_asked_for_owe_nothing() -> None:
    stage = Stage()
    stage.events(1, 0.001, "b")
    stage.turn("a", SHARED / 2)
    stage.events(1, 5 * SHARED, "a")
    assert stage.turn("a", SHARED / 2)


class Work:
    """What is put off, by its number."""

    def __init__(
        self, stage: Stage, number: int, done: list[int], error: Exception | None = None, took: float = 0.0
    ) -> None:
        self.stage, self.number, self.done, self.error, self.took = stage, number, done, error, took
        stage.pace.put_off(self)

    def do_now(self) -> None:
        self.done.append(self.number)
        self.stage.now += self.took
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("before", [1, 3], ids=["asleep", "awake"])
def test_what_is_put_off_is_done_when_a_round_has_nothing_to_do(before: int) -> None:
    """One thing a round: what comes meanwhile goes first."""
    stage, done = Stage(), list[int]()
    stage.events(before, NEAR / 2)
    for number in range(2):
        Work(stage, number, done)
    assert stage.loop.turns() and done == []
    stage.events(1, NEAR / 100)
    assert stage.loop.turns() and done == []
    assert stage.loop.turns() and done == [0]
    stage.events(1, NEAR / 100)
    assert stage.loop.turns() and done == [0]
    assert stage.loop.turns() and done == [0, 1]
    stage.now += STAY
    stage.loop.turns()
    assert not stage.loop.ready, "the loop may sleep again"


def test_nothing_is_put_off_for_long() -> None:
    stage, done = Stage(), list[int]()
    Work(stage, 0, done)
    began = stage.now
    while not done:
        stage.events(1, LATE / 10)
        assert stage.loop.turns()
    assert LATE < stage.now - began < 1.5 * LATE


def test_whatever_is_late_is_done_as_a_turn_has_time_for_it() -> None:
    stage, done = Stage(), list[int]()
    stage.events(2, 2 * MEMORY)  # of one network alone
    for number in range(MANY):
        Work(stage, number, done)
    stage.now += LATE * 0.99
    stage.events(1, 0)
    assert stage.loop.turns() and done == []
    stage.events(1, LATE * 0.02)
    assert stage.loop.turns() and len(done) == MANY
    for number in range(10):
        Work(stage, number, done, took=ALONE / 4)
    del done[:]
    stage.events(1, LATE * 1.01)
    assert stage.loop.turns() and done == [0, 1, 2, 3]


def test_no_more_than_so_much_is_put_off() -> None:
    stage, done = Stage(), list[int]()
    for number in range(MANY + 2):
        Work(stage, number, done)
    assert done == [0, 1]


def test_what_fails_does_not_hold_up_the_rest() -> None:
    stage, done = Stage(), list[int]()
    Work(stage, 0, done, OSError("no"))
    Work(stage, 1, done)
    with pytest.raises(OSError, match="no"):
        while stage.loop.turns():
            pass
    while stage.loop.turns():
        pass
    assert done == [0, 1]
    Work(stage, 2, done)
    while stage.loop.turns():
        pass
    assert done == [0, 1, 2]
