"""The whole interface under any bytes, shaped bytes, and sessions in which anything happens at any time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import strategies as st
from stack.cast import LOOPBACK, LOOPBACK6
from stack.guest import Guest
from stack.host import FakeListener
from stack.world import DNS, GATEWAY, GUEST, WEB, World, ip
from wire import oracle
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack.limits import Limits
from netd.stack.tcp.sender import CHUNK_COST
from netd.stack.tcp.states import CONNECTING

from .frames import shaped
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
    fragmented=3,
    fragments_each=4,
    fragment_bytes=3000,
)


def judged(world: World) -> int:
    """How often a frame was given a reason to be dropped."""
    return sum(n for name, n in world.counters.as_dict().items() if name.startswith("drop_"))


def outcomes(world: World, asked: list[bytes]) -> int:
    """How many things have become of frames: dropped, answered, given to the host, kept, learned from."""
    host, interface = world.host, world.interface
    given = len(host.streams) + sum(len(s.sent) for s in host.sockets) + len(host.queries)
    given += sum(len(e.sent) for e in host.echoes) + len(asked)
    kept = sum(len(p.pieces) for p in interface.reassembly.partials.values())
    return judged(world) + interface.counters.tx_frames + given + kept


class FakeServices:
    """Answers whoever asks with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def dhcpv4(self, message: bytes, mac: bytes, now: float) -> tuple[bytes, bytes] | None:
        self.asked.append(message)
        return message, message[:4] if len(message) > 3 else b"\xff" * 4

    def dhcpv6(self, message: bytes, now: float) -> bytes | None:
        self.asked.append(message)
        return message


ethertypes = st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06", b""])


@hunt(st.lists(st.tuples(st.binary(max_size=14), ethertypes, st.binary(max_size=200), st.booleans()), max_size=5))
def test_any_bytes(frames: list[tuple[bytes, bytes, bytes, bool]]) -> None:
    """Invariant: no exception, every frame counted, and a frame of noise is dropped under exactly one name, or
    kept as a fragment."""
    world = World(limits=TIGHT)
    for n, (head, kind, rest, vouched) in enumerate(frames, 1):
        world.receive((head + bytes(12))[:12] + kind + rest if kind else head + rest, vouched)
        kept = sum(len(p.pieces) for p in world.interface.reassembly.partials.values())
        assert judged(world) + kept == world.counters.rx_frames == n
    for sent in world.sent:
        assert sent.packet is None or world.interface.addressing.private(sent.packet.dst)
    world.sent.clear()
    world.ends()


frames_in = st.tuples(shaped(), st.booleans(), st.sampled_from([0, 0, 0, 1, 3, 1200, 65535]))


@hunt(st.lists(frames_in, max_size=8), st.booleans())
def test_shaped_frames(frames: list[tuple[bytes, bool, int]], offload: bool) -> None:
    """Invariant: no exception; every frame counted, and something becomes of each; what is sent is well formed and to
    the guest's own link; the host's loopback is reached by the gateway alone; bounds hold; and the end leaves nothing."""
    services = FakeServices()
    world = World(limits=TIGHT, offload=offload, loopback=offload, uso=offload, services=services)
    addressing = world.interface.addressing
    for frame, vouched, segment in frames:
        before, learned = outcomes(world, services.asked), dict(world.interface.neighbors._macs)
        connections = len(world.interface.tcp.connections)
        world.receive(frame, vouched, segment)
        if not connections and not learned:  # else it may be of something known already, with nothing new in it
            assert outcomes(world, services.asked) > before or world.interface.neighbors._macs, "nothing became of it"
        for sent in world.sent:
            packet = sent.packet
            if packet is not None:
                ours = packet.dst == addressing.broadcast or packet.dst[0] in (0xFF, 255)
                assert ours or addressing.private(packet.dst) or services.asked
    for socket in world.host.sockets:
        for target, _, _ in socket.sent:
            assert offload or target not in (LOOPBACK, LOOPBACK6)
    for stream in world.host.streams:
        assert stream.address is None or offload or stream.address[0] not in (LOOPBACK, LOOPBACK6)
    for ip_, mac in world.interface.neighbors._macs.items():
        assert addressing.may_be_guest(ip_) and not mac[0] & 1
    world.sent.clear()
    world.ends()


def around(random: Random, number: int, *more: int) -> int:
    """A sequence number where something interesting may happen."""
    offsets = (0, 0, 0, 0, 1, -1, 2, 500, -500, 8192, 8193, 1 << 31, -(1 << 31), random.getrandbits(32), *more)
    return (number + random.choice(offsets)) & 0xFFFFFFFF


class Chaos:
    """Guest and host do whatever they can think of; they know the numbers that matter."""

    def __init__(self, seed: int, offload: bool, family: int) -> None:
        self.random = random = Random(seed)
        loopback, uso = random.random() < 0.5, random.random() < 0.5
        self.world = World(limits=TIGHT, offload=offload, loopback=loopback, uso=uso, family=family)
        self.guest = Guest(self.world)
        self.real = self.world.cast.real
        self.world.interface.start(self.world.now)
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
        ports_ = int.from_bytes(key[-4:-2], "big"), int.from_bytes(key[-2:], "big")
        half = len(key) - 4 >> 1
        src, dst = key[:half], key[half:-4]
        segment = oracle.tcp(src, dst, *ports_, seq, ack, flags, wnd, data, options)
        self.sends(self.guest.frame(dst, 6, segment, src))

    # -- deeds ---------------------------------------------------------------------------------------------------

    def opens(self) -> None:
        random = self.random
        dst = random.choice((WEB, WEB, DNS, GATEWAY, ip("10.0.2.9")))
        key = (
            self.guest.address
            + self.real(dst)
            + random.randint(4000, 4009).to_bytes(2, "big")
            + random.choice((b"\x00\x50", b"\x00\x35"))
        )
        options = random.choice((b"", b"\x02\x04\x05\xb4\x01\x03\x03\x07", b"\x02\x04\x00\x01", b"\x03\x03\xff\x00"))
        self.tcp(key, random.choice((100, 0xFFFFFFFF, random.getrandbits(32))), 0, SYN, options=options)

    def called(self) -> None:
        world, random = self.world, self.random
        stream = world.host.new_stream(None)
        connection = world.interface.tcp.open_to_guest(
            self.real(WEB), random.randint(1, 5), self.guest.address, 80, stream, world.now
        )
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
            lambda: setattr(stream, "joins", not stream.joins),
            lambda: (setattr(stream, "eof", True), stream.gets(b"last"))[1],
        ]
        if random.random() < 0.05:
            deeds = [stream.resets, lambda: setattr(stream, "failing", True)]
        random.choice(deeds)()

    def datagram(self) -> None:
        world, random, guest = self.world, self.random, self.guest
        what = random.randint(0, 4)
        peer = random.choice((WEB, DNS, GATEWAY, ip("127.0.0.1"), ip("10.0.2.7"), random.randbytes(4)))
        sockets = [s for s in world.host.sockets if not s.closed]
        segment = random.choice((0, 0, 500))
        if what <= 1:
            port, size = random.choice((53, 5353, 1)), random.randint(0, 2000)
            guest.sends_udp(peer, port, bytes(size), random.randint(1, 4), segment=segment)
        elif what == 2 and sockets:
            random.choice(sockets).gets(peer, random.randint(1, 4), bytes(random.randint(0, 2000)), segment)
        elif what == 3 and sockets:
            random.choice(sockets).learns(peer, random.randint(1, 4), random.choice((0, 1, 3, 13)))
        else:
            self.listener.gets(peer, random.randint(1, 4), b"client")

    def other(self) -> None:
        random, guest = self.random, self.guest
        if random.random() < 0.3:
            offset, size = 8 * random.randint(0, 4), random.choice((8, 16, 24, 5))
            more, ident, data = random.random() < 0.7, random.randint(1, 4), bytes(size)
            if guest.cast.family == 4:
                guest.sends_ip(WEB, 17, data, ident=ident, fragment=offset >> 3 | (0x2000 if more else 0))
            else:
                head = bytes((17, 0)) + (offset | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
                guest.sends_ip(WEB, 44, data, extensions=head)
        elif random.random() < 0.5 and guest.cast.family == 6:
            target = self.real(random.choice((GATEWAY, DNS, GUEST, WEB, ip("10.0.2.9"))))
            options = random.choice((b"", b"\x01\x01" + guest.mac, b"\x02\x01" + guest.mac, b"\x01\x00"))
            message = guest.icmp(GATEWAY, random.randint(133, 137), 0, bytes(4), target + options)
            guest.sends_ip(GATEWAY, 58, message, ttl=random.choice((255, 255, 254)))
        elif random.random() < 0.5:
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


@hunt(st.integers(0, 2**64), st.booleans(), st.sampled_from((4, 6)), heavy=True)
def test_sessions(seed: int, offload: bool, family: int) -> None:
    """Invariant: what ``World.check`` says, after every event of 150: bounds, timers, memory counted to the byte; only
    well-formed frames; no call to a closed host side; and at the end nothing is left."""
    Chaos(seed, offload, family).lives(150)
