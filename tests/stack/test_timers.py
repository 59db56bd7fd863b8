"""Lazy deadlines: nobody fires early, nobody is forgotten, nobody who has left is kept."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.stack.timers import NEVER, Timers


class Owner:
    def __init__(self, again: float = 0.0) -> None:
        self.deadline = self.hinted = NEVER
        self.fired: list[float] = []
        self.again = again
        self.timers: Timers | None = None

    def on_deadline(self, now: float) -> None:
        assert self.deadline == NEVER
        self.fired.append(now)
        if self.again and self.timers is not None:
            self.timers.arm(self, now + self.again)


def test_an_empty_one_waits_for_nothing() -> None:
    timers = Timers()
    assert timers.poll_at() == NEVER
    timers.poll(1e9)
    assert len(timers) == 0


def test_moving_later_costs_no_entry() -> None:
    timers, owner = Timers(), Owner()
    for n in range(1000):
        timers.arm(owner, 10.0 + n)
    assert len(timers) == 1
    timers.poll(10.0)
    assert not owner.fired and timers.poll_at() == 1009.0
    timers.poll(1009.0)
    assert owner.fired == [1009.0]


def test_moving_earlier_fires_once() -> None:
    timers, owner = Timers(), Owner()
    timers.arm(owner, 10.0)
    timers.arm(owner, 5.0)
    timers.poll(5.0)
    timers.poll(20.0)
    assert owner.fired == [5.0]
    assert len(timers) == 0


def test_moving_to_and_fro_does_not_pile_up() -> None:
    timers, owner = Timers(), Owner(again=5.0)
    owner.timers = timers
    for now in range(1000):
        timers.arm(owner, now + 1.0)
        timers.poll(now + 1.0)
    assert len(owner.fired) == 1000
    assert len(timers) <= 6


def test_an_owner_may_wait_again_at_once() -> None:
    timers, owner = Timers(), Owner(again=1.0)
    owner.timers = timers
    timers.arm(owner, 1.0)
    for now in range(1, 6):
        timers.poll(float(now))
    assert owner.fired == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_those_who_left_are_let_go() -> None:
    timers = Timers()
    stays = Owner()
    timers.arm(stays, 500.0)
    gone = []
    for n in range(20_000):
        owner = Owner()
        timers.arm(owner, 600.0 + n)
        if n < 3:
            gone.append(weakref.ref(owner))
        owner.deadline = NEVER
    del owner
    gc.collect()
    assert len(timers) <= 1025
    assert all(ref() is None for ref in gone)
    timers.poll(500.0)
    assert stays.fired == [500.0]


def test_one_who_only_sleeps_can_be_woken_after_a_purge() -> None:
    timers, sleeper = Timers(), Owner()
    timers.arm(sleeper, 100.0)
    sleeper.deadline = NEVER
    for _ in range(2000):
        owner = Owner()
        timers.arm(owner, 50.0)
        owner.deadline = NEVER
    timers.arm(sleeper, 200.0)
    timers.poll(200.0)
    assert sleeper.fired == [200.0]


def test_one_who_waits_long_does_not_keep_the_others_from_the_lanes() -> None:
    timers = Timers()
    timers.poll(100.0)
    for far in (600.0, 240.0, 30.0, 10.0):
        timers.arm(Owner(), 100.0 + far)
    for n in range(100):
        timers.arm(Owner(), 101.0 + n / 1000)
        timers.arm(Owner(), 100.2 + n / 1000)
    assert len(timers._heap) == 4
    timers.poll(700.0)
    assert len(timers) == 0


def test_one_look_does_for_the_earlier_deadlines_that_follow() -> None:
    timers, owner, patient = Timers(), Owner(), Owner()
    timers.arm(owner, 1.0, 0.06)
    timers.arm(patient, 1.0, 0.06)
    for deadline in (0.07, 0.2, 0.1):
        timers.arm(owner, deadline, deadline)
    assert len(timers) == 2 and timers.poll_at() == 0.06
    for now in (0.06, 0.1, 0.5, 1.0):
        timers.poll(now)
    assert (owner.fired, patient.fired) == ([0.1], [1.0])


step = st.tuples(st.sampled_from(["arm", "arm", "look", "sleep", "poll"]), st.integers(0, 5), st.integers(0, 50))


@quick
@given(st.lists(step, max_size=60), st.integers(0, 3))
def test_against_a_model(steps: list[tuple[str, int, int]], purge_at: int) -> None:
    """Invariant: an owner fires at the first poll at or after its deadline, once; ``poll_at`` is never late."""
    timers = Timers()
    owners = [Owner() for _ in range(6)]
    model: dict[int, float] = {}
    expected: dict[int, list[float]] = {n: [] for n in range(6)}
    now = 0.0
    for verb, who, amount in steps:
        owner = owners[who]
        if verb == "arm":
            timers.arm(owner, now + amount)
            model[who] = now + amount
        elif verb == "look":
            timers.arm(owner, now + amount, now + amount // 3)
            model[who] = now + amount
        elif verb == "sleep":
            owner.deadline = NEVER
            model.pop(who, None)
        else:
            now += amount
            timers.poll(now)
            for n in [n for n, deadline in model.items() if deadline <= now]:
                del model[n]
                expected[n].append(now)
        if purge_at:
            timers._purge()
        assert timers.poll_at() <= min(model.values(), default=NEVER)
        assert {n: owner.fired for n, owner in enumerate(owners)} == expected
