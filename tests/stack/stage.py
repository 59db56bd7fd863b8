"""A wire that loses, repeats, delays and reorders, and a virtual clock for whoever is connected by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random

from wire import oracle

from .guest import Guest
from .host import FakeStream
from .kernel import Kernel
from .world import Sent, World

NEVER = float("inf")


@dataclass(frozen=True)
class Faults:
    """Probabilities for each segment, seconds of delay."""

    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0  # overtaken by others
    jitter: float = 0.02
    delay: float = 0.0005


class Stage:
    """Events in the order of their times; one random source, so that a seed tells the whole story."""

    def __init__(self, seed: int, faults: Faults, start: float = 1000.0) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.now = start
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.lost = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heappush(self._events, (self.now + seconds, next(self._order), action))

    def carry(self, deliver: Callable[[], None]) -> None:
        """One segment over the wire, or not."""
        faults, random = self.faults, self.random
        if random.random() < faults.loss:
            self.lost += 1
            return
        for _ in range(1 + (random.random() < faults.repeat)):
            late = random.random() * faults.jitter if random.random() < faults.late else 0.0
            self.after(faults.delay + late, deliver)

    def next_at(self) -> float:
        return self._events[0][0] if self._events else NEVER

    def step(self) -> None:
        """Everything that is due."""
        while self._events and self._events[0][0] <= self.now:
            heappop(self._events)[2]()


def segments(sent: Sent) -> list[oracle.Segment]:
    """A super-frame as the device would cut it: each piece can be lost by itself."""
    assert sent.packet is not None
    whole = oracle.read_tcp(sent.packet, sent.data)
    size = sent.gso_size or max(len(whole.payload), 1)
    pieces = [whole.payload[n : n + size] for n in range(0, len(whole.payload), size)] or [b""]
    last = len(pieces) - 1
    return [
        oracle.Segment(
            whole.sport,
            whole.dport,
            (whole.seq + n * size) % (1 << 32),
            whole.ack,
            whole.flags if n == last else whole.flags & ~(oracle.FIN | oracle.PSH),
            whole.wnd,
            whole.options,
            piece,
        )
        for n, piece in enumerate(pieces)
    ]


class HostLife:
    """What happens on the host's side of a stream: bursts of bytes, a send buffer that fills and empties, the end."""

    def __init__(self, stage: Stage, stream: FakeStream, data: bytes, waits_for_fin: bool) -> None:
        self.stage, self.stream, self.data = stage, stream, data
        self.waits_for_fin = waits_for_fin
        self.given = 0
        stream.capacity = 0
        stream.read_at_most = stage.random.choice((1 << 30, 5000, 100))
        stream.frames = stage.random.choice((1, 4))
        self.live()

    def live(self) -> None:
        stream, random = self.stream, self.stage.random
        if stream.closed:
            return
        if random.random() < 0.7:
            stream.takes(random.choice((0, 1, 777, 20_000, 200_000)))
        if self.given < len(self.data):
            size = random.choice((1, 100, 5_000, 70_000))
            stream.gets(self.data[self.given : self.given + size])
            self.given += size
        elif not stream.eof and (stream.finished or not self.waits_for_fin):
            stream.ends()
        self.stage.after(random.random() * 0.02, self.live)


def play(world: World, kernel: Kernel, stage: Stage, *, inbound: bool, host: bytes, host_waits: bool) -> FakeStream:
    """The guest is ``kernel``; the whole life of one connection. The host's stream, at its end."""
    guest = Guest(world)
    tcp = guest.tcp(port=5000) if not inbound else None
    world.now = stage.now
    if tcp is not None:
        port, remote, rport = tcp.port, tcp.remote, tcp.rport
        kernel.connects(stage.now)
    else:
        tcp, _ = guest.is_called(cport=6000, port=80)
        port, remote, rport = tcp.port, tcp.remote, tcp.rport
    lives: list[HostLife] = []

    def frames(now: float) -> None:
        for seq, ack, flags, wnd, payload, options in kernel.out:
            peer = world.cast.real(remote)
            segment = oracle.tcp(guest.address, peer, port, rport, seq, ack, flags, wnd, payload, options)
            frame = guest.frame(remote, 6, segment)
            stage.carry(lambda frame=frame: world.receive(frame))
        kernel.out.clear()
        while world.sent:
            sent = world.sent.popleft()
            for piece in segments(sent):
                stage.carry(lambda piece=piece: kernel.hears(piece, stage.now))
        if world.host.streams and not lives:
            stream = world.host.stream
            if inbound:
                lives.append(HostLife(stage, stream, host, host_waits))
            elif tcp is not None:

                def connects() -> None:
                    stream.connects()
                    lives.append(HostLife(stage, stream, host, host_waits))

                lives.append(None)  # type: ignore[arg-type]
                stage.after(0.01, connects)

    deadline = stage.now + 3600
    turns = 0
    while True:
        frames(stage.now)
        stream = world.host.stream if world.host.streams else None
        if kernel.done and stream is not None and stream.closed and not world.interface.tcp.connections:
            return stream
        turns += 1
        assert turns < 60_000, "no end"
        stage.now = max(stage.now, min(stage.next_at(), kernel.wake_at, world.interface.poll_at()))
        assert stage.now < deadline, "stalled"
        world.now = stage.now
        stage.step()
        if kernel.wake_at <= stage.now:
            kernel.wakes(stage.now)
        if world.interface.poll_at() <= stage.now:
            world.interface.poll(stage.now)
            world.flush()
