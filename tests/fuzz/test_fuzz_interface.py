"""The whole interface under any bytes, shaped bytes, and sessions in which anything happens at any time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import strategies as st
from stack.guest import Guest
from stack.host import FakeListener
from stack.world import DNS, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, WEB, World, ip
from wire import oracle
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack.limits import Limits
from netd.stack.tcp.sender import CHUNK_COST
from netd.stack.tcp.states import CONNECTING

from .hunt import hunt

TIGHT = Limits(
    tcp_flows=6,
    tcp_half_open=3,
    udp_flows=3,
    echo_flows=2,
    neighbors=3,
    memory=20_000,
    throttled=1000,
    receive_window=8192,
    receive_window_plain=8192,
    send_buffer=8192,
)

addresses = st.sampled_from(
    [GUEST, GATEWAY, DNS, WEB, ip("10.0.2.200"), ip("10.0.2.255"), ip("255.255.255.255"), ip("224.0.0.5"), bytes(4)]
) | st.binary(min_size=4, max_size=4)
ports = st.sampled_from([0, 53, 80, 5000, 65535])
short = st.binary(max_size=100)


def judged(world: World) -> int:
    """How often a frame was given a reason to be dropped."""
    return sum(n for name, n in world.counters.as_dict().items() if name.startswith("drop_"))


@hunt(st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=5))
def test_any_bytes(frames: list[tuple[bytes, bool]]) -> None:
    """Invariant: no exception, every frame counted, and a frame of noise is dropped under exactly one name."""
    world = World(limits=TIGHT)
    for n, (frame, vouched) in enumerate(frames, 1):
        world.receive(frame, vouched)
        assert judged(world) == world.counters.rx_frames == n
    assert not world.sent
    world.ends()


@st.composite
def shaped(draw: st.DrawFn) -> bytes:
    """A frame that passes the first checks of some layer, and is noise behind it."""
    src, dst = draw(st.just(GUEST) | addresses), draw(addresses)
    sport, dport = draw(ports), draw(ports)
    kind = draw(st.sampled_from(["arp", "icmp", "udp", "tcp", "ip", "frame"]))
    noise = draw(short)
    if kind == "arp":
        packet = draw(st.just(oracle.arp(1, GUEST_MAC, src, bytes(6), dst)) | short)
        return oracle.eth(b"\xff" * 6, draw(st.binary(min_size=6, max_size=6)), 0x0806, packet)
    if kind == "frame":
        return oracle.eth(GATEWAY_MAC, GUEST_MAC, draw(st.integers(0, 65535)), noise)
    if kind == "icmp":
        rest = draw(st.binary(min_size=4, max_size=4))
        body = oracle.icmp(draw(st.just(8) | st.integers(0, 255)), draw(st.just(0) | st.integers(0, 255)), rest, noise)
        protocol = 1
    elif kind == "udp":
        body, protocol = oracle.udp(src, dst, sport, dport, noise, summed=draw(st.booleans())), 17
    elif kind == "tcp":
        number = st.integers(0, 0xFFFFFFFF)
        flags = draw(st.sampled_from([SYN, SYN, ACK, FIN | ACK, RST, SYN | ACK]) | st.integers(0, 255))
        options = draw(st.sampled_from([b"", b"\x02\x04\x05\xb4\x01\x03\x03\x07"]) | st.binary(max_size=40))
        wnd = draw(st.integers(0, 65535))
        body = oracle.tcp(src, dst, sport, dport, draw(number), draw(number), flags, wnd, noise, options[:40])
        protocol = 6
    else:
        body, protocol = noise, draw(st.sampled_from([1, 6, 17]) | st.integers(0, 255))
    words = draw(st.integers(0, 10))
    fragment = draw(st.sampled_from([0, 0, 0, 0x4000]) | st.integers(0, 65535))
    packet = oracle.ip4(src, dst, protocol, body, options=b"\x01" * 4 * words, fragment=fragment)
    frame = bytearray(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, packet) + draw(st.just(b"") | short))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.just(len(frame)) | st.integers(0, len(frame)))])


@hunt(st.lists(st.tuples(shaped(), st.booleans()), max_size=8), st.booleans())
def test_shaped_frames(frames: list[tuple[bytes, bool]], offload: bool) -> None:
    """Invariant: no exception; every frame counted; what is sent is well formed and to the guest's own subnet; bounds
    hold; and the end leaves nothing."""
    world = World(limits=TIGHT, offload=offload, loopback=offload)
    for frame, vouched in frames:
        world.receive(frame, vouched)
        for sent in world.sent:
            assert sent.packet is None or sent.packet.dst[:3] == GUEST[:3]
    world.sent.clear()
    world.ends()


def around(random: Random, number: int, *more: int) -> int:
    """A sequence number where something interesting may happen."""
    offsets = (0, 0, 0, 0, 1, -1, 2, 500, -500, 8192, 8193, 1 << 31, -(1 << 31), random.getrandbits(32), *more)
    return (number + random.choice(offsets)) & 0xFFFFFFFF


class Chaos:
    """Guest and host do whatever they can think of; they know the numbers that matter."""

    def __init__(self, seed: int, offload: bool) -> None:
        self.random = random = Random(seed)
        self.world = World(limits=TIGHT, offload=offload, loopback=random.random() < 0.5)
        self.guest = Guest(self.world)
        self.listener = FakeListener(self.world, GUEST, 5000)
        self.frame = b""
        self.deeds: list[Callable[[], None]] = [
            *[self.segment] * 12,
            *[self.stream] * 8,
            *[self.opens] * 3,
            *[self.mutant] * 2,
            *[self.time] * 3,
            self.called,
            self.datagram,
            self.other,
            self.deafness,
        ]

    def lives(self, deeds: int) -> None:
        world = self.world
        for _ in range(deeds):
            if self.random.random() < 0.2:
                with world.batch():
                    for _ in range(self.random.randint(1, 6)):
                        self.random.choice([self.segment, self.segment, self.mutant, self.stream])()
            else:
                self.random.choice(self.deeds)()
            world.sent.clear()
            flows = TIGHT.tcp_flows * 2 * (TIGHT.throttled + CHUNK_COST)
            assert world.interface.tcp.memory.used <= TIGHT.memory + 2 * 65535 + flows
            assert sum(not s.closed for s in world.host.streams) <= TIGHT.tcp_flows
        world.ends()

    def sends(self, frame: bytes) -> None:
        self.frame = frame
        self.world.receive(frame)

    def tcp(self, key: bytes, seq: int, ack: int, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        wnd = self.random.choice((0, 1, 100, 1460, 8192, 65535))
        ports_ = int.from_bytes(key[8:10], "big"), int.from_bytes(key[10:12], "big")
        segment = oracle.tcp(key[:4], key[4:8], *ports_, seq, ack, flags, wnd, data, options)
        self.sends(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, oracle.ip4(key[:4], key[4:8], 6, segment)))

    # -- deeds ---------------------------------------------------------------------------------------------------

    def opens(self) -> None:
        random = self.random
        dst = random.choice((WEB, WEB, DNS, GATEWAY, ip("10.0.2.9")))
        key = GUEST + dst + random.randint(4000, 4009).to_bytes(2, "big") + random.choice((b"\x00\x50", b"\x00\x35"))
        options = random.choice((b"", b"\x02\x04\x05\xb4\x01\x03\x03\x07", b"\x02\x04\x00\x01", b"\x03\x03\xff\x00"))
        self.tcp(key, random.choice((100, 0xFFFFFFFF, random.getrandbits(32))), 0, SYN, options=options)

    def called(self) -> None:
        world, random = self.world, self.random
        stream = world.host.new_stream(None)
        connection = world.interface.tcp.open_to_guest(WEB, random.randint(1, 5), GUEST, 80, stream, world.now)
        if connection is None:
            stream.abort()
        else:
            stream.connection = connection
            stream.capacity = random.choice((0, 100, None))
            world.flush()

    def segment(self) -> None:
        random = self.random
        connections = list(self.world.interface.tcp.connections.values())
        if not connections:
            self.opens()
            return
        c = random.choice(connections)
        seq = around(random, c.rcv_nxt, -1)
        ack = random.choice((c.snd_nxt, c.snd_nxt, around(random, c.snd_una), around(random, c.snd_nxt)))
        usual = (ACK, ACK, ACK | PSH, ACK | PSH, ACK | FIN, SYN | ACK, RST, SYN, RST | ACK, ACK | FIN | PSH)
        flags = random.choice(usual) if random.random() < 0.95 else random.getrandbits(8)
        size = random.choice((0, 0, 1, 100, 1460, 8192, 20_000))
        self.tcp(c.key, seq, ack, flags, bytes(size), random.choice((b"", b"\x02\x04\x02\x00", b"\x03\x03\x02\x00")))

    def mutant(self) -> None:
        frame = bytearray(self.frame or b"\x00" * 60)
        for _ in range(self.random.randint(0, 3)):
            frame[self.random.randrange(len(frame))] = self.random.getrandbits(8)
        self.world.receive(bytes(frame[: self.random.choice((len(frame), self.random.randint(0, len(frame))))]))

    def stream(self) -> None:
        world, random = self.world, self.random
        streams = [s for s in world.host.streams if not s.closed]
        if not streams:
            return
        stream = random.choice(streams)
        state = getattr(stream.connection, "state", None)
        if state == CONNECTING:
            random.choice((stream.connects, stream.connects, stream.refuses, lambda: stream.refuses(1)))()
            return
        deeds: list[Callable[[], None]] = [
            lambda: stream.gets(bytes(random.choice((1, 100, 5000, 50_000)))),
            lambda: stream.gets(bytes(random.choice((1, 100, 5000, 50_000)))),
            lambda: stream.takes(random.choice((0, 1, 1000, 100_000, None))),
            lambda: stream.takes(random.choice((0, 1, 1000, 100_000, None))),
            lambda: setattr(stream, "capacity", random.choice((0, 0, 50, None))),
            lambda: setattr(stream, "read_at_most", random.choice((1, 10, 1 << 30))),
            stream.ends,
        ]
        if random.random() < 0.05:
            deeds = [stream.resets, lambda: setattr(stream, "failing", True)]
        random.choice(deeds)()

    def datagram(self) -> None:
        world, random, guest = self.world, self.random, self.guest
        what = random.randint(0, 4)
        peer = random.choice((WEB, DNS, GATEWAY, ip("127.0.0.1"), ip("10.0.2.7"), random.randbytes(4)))
        sockets = [s for s in world.host.sockets if not s.closed]
        if what <= 1:
            guest.sends_udp(peer, random.choice((53, 5353, 1)), bytes(random.randint(0, 2000)), random.randint(1, 4))
        elif what == 2 and sockets:
            random.choice(sockets).gets(peer, random.randint(1, 4), bytes(random.randint(0, 2000)))
        elif what == 3 and sockets:
            random.choice(sockets).learns(peer, random.randint(1, 4), random.randint(0, 15))
        else:
            self.listener.gets(peer, random.randint(1, 4), b"client")

    def other(self) -> None:
        random, guest = self.random, self.guest
        if random.random() < 0.5:
            guest.sends_arp(random.randint(1, 2), bytes((10, 0, 2, random.randint(1, 9))), GATEWAY)
        else:
            guest.sends_echo(random.choice((WEB, GATEWAY, DNS)), random.randint(1, 4), 1, bytes(random.randint(0, 99)))
        for echo in self.world.host.echoes:
            if not echo.closed and random.random() < 0.5:
                echo.flow.to_guest(1, b"reply")

    def time(self) -> None:
        world = self.world
        if any(owner.deadline < 1e12 for owner in world.owners()) and self.random.random() < 0.7:
            world.jump()
        else:
            world.passes(self.random.choice((0.0005, 0.01, 1.0, 61.0, 700.0)))

    def deafness(self) -> None:
        self.world.deaf = not self.world.deaf


@hunt(st.integers(0, 2**64), st.booleans(), heavy=True)
def test_sessions(seed: int, offload: bool) -> None:
    """Invariant: what ``World.check`` says, after every event of 150: bounds, timers, memory counted to the byte; only
    well-formed frames; no call to a closed host side; and at the end nothing is left."""
    Chaos(seed, offload).lives(150)
