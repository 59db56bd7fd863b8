"""Whatever the wire does, both streams arrive whole, both ends see the end, and nothing is left.

The guest is ``kernel.Kernel``, a TCP that shares no code with netd, or a second netd.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import slow

from netd.stack.limits import Limits

from .kernel import Kernel
from .stage import Faults, Stage, play
from .world import World

# A segment may be lost more often in a row than on a TAP: more patience. 2 MSL are no longer a second, either.
PATIENT = Limits(retries=30, syn_retries=12, rto_max=5.0, time_wait=120.0, receive_window=1 << 18, send_buffer=1 << 18)


def payload(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def story(
    seed: int,
    faults: Faults,
    *,
    up: int,
    down: int,
    inbound: bool = False,
    offload: bool = True,
    mss: int = 1460,
    wscale: int = 7,
    buffer: int = 100_000,
    burst: int = 4,
    iss: int = 7,
    who_waits: int = 0,
    limits: Limits = PATIENT,
    start: float = 1000.0,
    family: int = 4,
) -> tuple[World, Kernel, Stage]:
    stage = Stage(seed, faults, start)
    world = World(offload=offload, limits=limits, start=start, family=family)
    kernel = Kernel(
        stage.random,
        iss,
        payload(seed, up),
        mss=mss,
        wscale=wscale,
        buffer=buffer,
        burst=burst,
        waits_for_fin=who_waits == 1,
    )
    host = payload(seed + 1, down)
    stream = play(world, kernel, stage, inbound=inbound, host=host, host_waits=who_waits == 2)
    assert bytes(kernel.received) == host
    assert bytes(stream.taken) == kernel.data
    assert stream.finished and stream.closed and not stream.aborted
    assert world.interface.tcp.memory.used == 0
    assert world.counters.tcp_timeouts == 0
    world.sent.clear()
    world.ends()
    return world, kernel, stage


@slow
@given(
    seed=st.integers(0, 2**32),
    faults=st.builds(
        Faults,
        loss=st.sampled_from((0.0, 0.01, 0.1, 0.25)),
        repeat=st.sampled_from((0.0, 0.1, 0.3)),
        late=st.sampled_from((0.0, 0.02, 0.2)),
        jitter=st.sampled_from((0.0005, 0.02)),
    ),
    up=st.sampled_from((0, 1, 3000, 50_000, 150_000)),
    down=st.sampled_from((0, 1, 3000, 50_000, 150_000)),
    inbound=st.booleans(),
    offload=st.booleans(),
    mss=st.sampled_from((1460, 536, 100)),
    wscale=st.sampled_from((-1, 0, 7, 14)),
    buffer=st.sampled_from((2000, 30_000, 300_000)),
    burst=st.integers(1, 6),
    iss=st.sampled_from((0, 2**32 - 1, 2**32 - 20_000, 2**31 - 5000)),
    who_waits=st.integers(0, 2),
    family=st.sampled_from((4, 6)),
)
def test_both_streams_arrive_whole(seed, faults, **what) -> None:  # type: ignore[no-untyped-def]
    if what["wscale"] == 14:
        what["buffer"] = max(what["buffer"], 1 << 15)
    if what["mss"] == 100:
        what["up"], what["down"] = min(what["up"], 50_000), min(what["down"], 50_000)
    story(seed, faults, **what)


@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_loss_does_not_stall(loss: float, inbound: bool, family: int) -> None:
    """A megabyte each way: fast retransmit and partial ACKs carry it, not a ladder of time-outs."""
    world, _, stage = story(
        5, Faults(loss=loss), up=1_000_000, down=1_000_000, inbound=inbound, buffer=400_000, family=family
    )
    assert bool(stage.lost) == bool(loss)
    assert world.counters.tcp_retransmits <= 40 * stage.lost
    if not loss:
        assert world.counters.tcp_retransmits == 0


@slow
@given(seed=st.integers(0, 2**32), loss=st.sampled_from((0.0, 0.1)), memory=st.sampled_from((1, 20_000, 100_000)))
def test_with_hardly_any_memory(seed: int, loss: float, memory: int) -> None:
    limits = replace(PATIENT, memory=memory, throttled=3000)
    story(seed, Faults(loss=loss, late=0.05), up=40_000, down=40_000, limits=limits)


@slow
@given(seed=st.integers(0, 2**16), shift=st.integers(0, 2**32 - 1), turn=st.integers(0, 2**32 - 1))
def test_shifting_all_numbers_changes_nothing(seed: int, shift: int, turn: int) -> None:
    """The guest's numbers by ``shift``, netd's own by ``turn`` (its RFC 6528 clock), and both families: the same story
    to the segment."""
    faults = Faults(loss=0.05, repeat=0.05, late=0.05)
    told = []
    for iss, start, family in ((0, 1000.0, 4), (shift, 1000.0 + turn // 250_000 * 0.5, 4), (shift, 1000.0, 6)):
        world, kernel, stage = story(seed, faults, up=20_000, down=20_000, iss=iss, start=start, family=family)
        counters = world.counters.as_dict()
        counters["rx_bytes"] -= 20 * counters["rx_frames"] if family == 6 else 0  # the longer header
        told.append((counters, stage.lost, round(stage.now - start, 6), kernel.una - kernel.iss))
    assert told[0] == told[1] == told[2]
