"""Two of netd's own translators, each the other's guest: A opens towards its guest, B takes it for a guest that dials.

Super-frames travel whole here, with their sums still to be completed, as between two TAPs of one bridge.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from wire.prop import slow

from netd.stack.limits import Limits

from .cast import Cast
from .host import FakeStream
from .stage import Faults, HostLife, Stage
from .world import ADDRESSING, GUEST, World, ip, ip6

CLIENT = ip("10.9.9.9")
MIRROR = replace(
    ADDRESSING,
    guest=CLIENT,
    gateway=ip("10.9.9.1"),
    dns=ip("10.9.9.2"),
    network=int.from_bytes(ip("10.9.9.0"), "big"),
    guest6=Cast(6).real(CLIENT),
    gateway6=ip6("2001:db8::1"),
    dns6=b"",
    network6=int.from_bytes(Cast(6).real(bytes((10, 9, 9, 0))), "big"),
    mask6=((1 << 120) - 1) << 8,
)
PATIENT = Limits(retries=30, syn_retries=12, rto_max=5.0, time_wait=120.0, receive_window=1 << 17, send_buffer=1 << 17)


def carry(stage: Stage, source: World, target: World) -> None:
    while source.sent:
        sent = source.sent.popleft()
        assert sent.packet is not None and sent.packet.protocol == 6
        frame = sent.frame[: len(sent.frame) - len(sent.packet.payload)] + sent.data
        stage.carry(lambda frame=frame: target.receive(frame))


@slow
@given(
    seed=st.integers(0, 2**32),
    faults=st.builds(
        Faults,
        loss=st.sampled_from((0.0, 0.02, 0.2)),
        repeat=st.sampled_from((0.0, 0.2)),
        late=st.sampled_from((0.0, 0.1)),
    ),
    forth=st.sampled_from((0, 1, 20_000, 300_000)),
    back=st.sampled_from((0, 1, 20_000, 300_000)),
    offload=st.booleans(),
    waits=st.integers(0, 2),
    family=st.sampled_from((4, 6)),
)
def test_both_streams_arrive_whole(
    seed: int, faults: Faults, forth: int, back: int, offload: bool, waits: int, family: int
) -> None:
    stage = Stage(seed, faults)
    a = World(limits=PATIENT, offload=offload, family=family)
    b = World(limits=PATIENT, offload=offload, family=family, addressing=MIRROR)
    a.now = b.now = stage.now
    client = a.host.new_stream(None)
    real = a.cast.real
    connection = a.interface.tcp.open_to_guest(real(CLIENT), 6000, real(GUEST), 80, client, a.now)
    assert connection is not None
    client.connection = connection
    there, here = Random(seed).randbytes(forth), Random(seed + 1).randbytes(back)
    HostLife(stage, client, there, waits_for_fin=waits == 1)

    def connects(stream: FakeStream) -> None:
        def connected() -> None:
            stream.connects()
            HostLife(stage, stream, here, waits_for_fin=waits == 2)

        stage.after(0.01, connected)

    b.host.on_connect = connects
    turns = 0
    while True:
        carry(stage, a, b)
        carry(stage, b, a)
        both = (a.interface.tcp, b.interface.tcp)
        if client.closed and not any(tcp.connections or tcp.draining for tcp in both):
            break
        turns += 1
        assert turns < 60_000, "no end"
        stage.now = max(stage.now, min(stage.next_at(), a.interface.poll_at(), b.interface.poll_at()))
        assert stage.now < 1000 + 3600, "stalled"
        a.now = b.now = stage.now
        stage.step()
        for world in (a, b):
            if world.interface.poll_at() <= stage.now:
                world.interface.poll(stage.now)
                world.flush()
    (server,) = b.host.streams
    assert server.address == (GUEST, 80)
    assert bytes(client.taken) == here and bytes(server.taken) == there
    for stream in (client, server):
        assert stream.finished and stream.closed and not stream.aborted
    for world in (a, b):
        assert world.interface.tcp.memory.used == 0
        assert world.counters.tcp_timeouts == 0
        world.sent.clear()
        world.ends()
