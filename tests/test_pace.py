"""When the loop sleeps and how long a turn is, with a clock and a loop that only move by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netd.pace import ALONE, CREDIT, MEMORY, NEAR, SHARED, STAY, YIELD, Pace


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

    def events(self, count: int, apart: float, owner: object = "a") -> None:
        for _ in range(count):
            self.now += apart
            self.pace.event(owner)


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
