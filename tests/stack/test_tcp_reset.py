"""RST and SYN where they do not belong, and what belongs to nothing (RFC 9293 §3.5.2-3, §3.10.7; RFC 5961 §3, §4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack.limits import Limits
from netd.stack.tcp.states import STATES

from .guest import Conversation, Guest
from .host import FakeStream
from .world import World

WINDOW = Limits().receive_window


def established(tcp: Conversation, stream: FakeStream) -> None:
    pass


def fin_wait_1(tcp: Conversation, stream: FakeStream) -> None:
    stream.ends()
    tcp.sees(FIN | ACK)


def fin_wait_2(tcp: Conversation, stream: FakeStream) -> None:
    fin_wait_1(tcp, stream)
    tcp.sends(ACK)


def close_wait(tcp: Conversation, stream: FakeStream) -> None:
    tcp.sends(FIN | ACK)
    tcp.sees(ACK)


def closing(tcp: Conversation, stream: FakeStream) -> None:
    fin_wait_1(tcp, stream)
    tcp.sends(FIN | ACK, ack=1)
    tcp.sees(ACK)


def last_ack(tcp: Conversation, stream: FakeStream) -> None:
    close_wait(tcp, stream)
    stream.ends()
    tcp.sees(FIN | ACK)


def time_wait(tcp: Conversation, stream: FakeStream) -> None:
    fin_wait_2(tcp, stream)
    tcp.sends(FIN | ACK)
    tcp.sees(ACK)


Scene = Callable[[Conversation, FakeStream], None]
SYNCHRONIZED = [established, fin_wait_1, fin_wait_2, close_wait, closing, last_ack, time_wait]
every_state = pytest.mark.parametrize("scene", SYNCHRONIZED, ids=lambda scene: scene.__name__)


def enters(guest: Guest, scene: Scene) -> tuple[Conversation, FakeStream]:
    tcp, stream = guest.connects()
    scene(tcp, stream)
    (connection,) = guest.world.interface.tcp.connections.values()
    assert STATES[connection.state] == scene.__name__
    return tcp, stream


@every_state
@pytest.mark.parametrize("flags", [RST, RST | ACK], ids=["RST", "RST-ACK"])
def test_an_exact_reset_ends_it(world: World, guest: Guest, scene: Scene, flags: int) -> None:
    tcp, stream = enters(guest, scene)
    tcp.sends(flags)
    tcp.sees_nothing()
    assert stream.closed
    assert stream.aborted == (scene.__name__ in ("established", "fin_wait_1", "fin_wait_2", "close_wait"))
    assert world.interface.flow_counts()["tcp"] == 0
    assert world.counters.tcp_resets_from_guest == 1
    world.passes(3600)
    tcp.sees_nothing()


@every_state
@pytest.mark.parametrize("ahead", [1, 1000, WINDOW - 1])
def test_a_reset_in_the_window_is_challenged(world: World, guest: Guest, scene: Scene, ahead: int) -> None:
    """RFC 5961 §3.2."""
    tcp, stream = enters(guest, scene)
    tcp.sends(RST, seq=tcp.seq + ahead)
    tcp.sees(ACK, ack=tcp.seq)
    assert world.interface.flow_counts()["tcp"] == 1
    assert not stream.aborted


@every_state
@pytest.mark.parametrize("ahead", [-1, -1000, WINDOW, 0x7FFFFFFF, -0x80000000])
def test_a_reset_outside_the_window_is_dropped(world: World, guest: Guest, scene: Scene, ahead: int) -> None:
    tcp, _ = enters(guest, scene)
    tcp.sends(RST, seq=tcp.seq + ahead)
    tcp.sees_nothing()
    assert world.interface.flow_counts()["tcp"] == 1
    assert world.counters.drop_tcp_out_of_window == 1


# In TIME-WAIT a later SYN is a new incarnation (RFC 9293 §3.6.1).
CHALLENGED = [
    (scene, flags, ahead)
    for scene in SYNCHRONIZED
    for flags in (SYN, SYN | ACK)
    for ahead in (-1, 0, 5, WINDOW * 2)
    if not (scene is time_wait and flags == SYN and ahead >= 0)
]


@pytest.mark.parametrize(("scene", "flags", "ahead"), CHALLENGED)
def test_a_syn_in_a_synchronized_state_is_challenged(
    world: World, guest: Guest, scene: Scene, flags: int, ahead: int
) -> None:
    """RFC 5961 §4.2, whatever its number."""
    tcp, stream = enters(guest, scene)
    tcp.sends(flags, b"data", seq=tcp.seq + ahead)
    tcp.sent_up_to = tcp.seq
    tcp.sees(ACK, ack=101 if scene in (established, fin_wait_1, fin_wait_2) else 102)
    assert not stream.taken and not stream.aborted


@every_state
def test_an_ack_of_the_unsent_is_answered(world: World, guest: Guest, scene: Scene) -> None:
    """RFC 9293 §3.10.7.4: drop, and say what is right."""
    tcp, _ = enters(guest, scene)
    seq = tcp.seq
    tcp.sends(ACK | PSH, b"x", ack=1000)
    tcp.edge = 0
    tcp.sees(ACK, ack=seq)


@every_state
def test_an_old_ack_changes_nothing(world: World, guest: Guest, scene: Scene) -> None:
    tcp, _ = enters(guest, scene)
    tcp.sends(ACK, ack=-5)
    tcp.sees_nothing()
    assert world.interface.flow_counts()["tcp"] == 1


@pytest.mark.parametrize("scene", SYNCHRONIZED[:-1], ids=lambda scene: scene.__name__)
def test_the_host_resets(world: World, guest: Guest, scene: Scene) -> None:
    tcp, stream = enters(guest, scene)
    stream.resets()
    segment = tcp.sees(RST | ACK)
    assert segment.ack == tcp.seq
    assert stream.closed
    assert world.interface.flow_counts()["tcp"] == 0
    tcp.sends(ACK | PSH, b"late")
    assert tcp.sees(RST).seq == tcp.ack


def test_the_host_fails_on_write(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.failing = True
    tcp.sends(ACK | PSH, b"hello")
    tcp.sees(RST | ACK, seq=1)
    tcp.sees_nothing()  # no ACK behind the RST
    assert stream.closed


def test_the_host_fails_on_the_last_of_many(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    with world.batch():
        tcp.sends(ACK | PSH, b"hello")
        stream.failing = True
        tcp.sends(ACK | PSH, b"hello")
        tcp.sends(ACK | PSH, b"hello")
    tcp.sees(RST | ACK, seq=1, ack=106)
    tcp.sees(RST, seq=1)  # for the third, which belongs to nothing
    tcp.sees_nothing()


@pytest.mark.parametrize("scene", [established, fin_wait_1, fin_wait_2])
def test_the_host_fails_on_the_fin(world: World, guest: Guest, scene: Scene) -> None:
    tcp, stream = enters(guest, scene)
    stream.failing = True
    tcp.sends(ACK | FIN)
    if scene is not established:
        tcp.sees(ACK, ack=102)
    tcp.sees(RST | ACK, ack=102)
    assert stream.closed
    assert world.interface.flow_counts()["tcp"] == 0
    assert world.interface.poll_at() >= 0
    world.passes(3600)
    tcp.sees_nothing()


def test_the_host_fails_when_it_should_take_what_is_held(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 0
    tcp.sends(ACK | PSH, b"hello")
    tcp.sees(ACK)
    stream.failing = True
    stream.takes(10)
    tcp.sees(RST | ACK)
    assert stream.closed
    assert world.interface.tcp.memory.used == 0


def test_the_host_fails_when_the_window_opens(world: World, guest: Guest) -> None:
    """Read errors are found from within an acknowledgment, too."""
    tcp, stream = guest.connects(wscale=0, wnd=100)
    stream.gets(b"x" * 200)
    tcp.sees(ACK | PSH, None)
    stream.pull = lambda: stream.connection.host_reset(world.now)  # type: ignore[method-assign]
    tcp.sends(ACK | PSH | FIN, b"y", wnd=100)
    tcp.sees(RST | ACK)
    tcp.sees_nothing()
    assert stream.closed and not stream.taken


def test_the_host_fails_at_the_very_beginning(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN)
    stream = world.host.stream
    stream.connects()
    tcp.sees(SYN | ACK)
    stream.pull = lambda: stream.connection.host_reset(world.now)  # type: ignore[method-assign]
    tcp.sends(ACK | PSH, b"y")
    tcp.sees(RST | ACK)
    tcp.sees_nothing()
    assert stream.closed and not stream.taken


def test_a_reset_behind_data_in_one_batch_silences_its_ack(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    with world.batch():
        tcp.sends(ACK | PSH, b"hello")
        tcp.sends(RST)
    tcp.sees_nothing()
    assert stream.taken == b"hello" and stream.aborted


def test_a_reset_gives_back_what_is_held(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 0
    tcp.sends(ACK | PSH, b"hello")
    tcp.sees(ACK)
    stream.gets(b"x" * 5000)
    tcp.sees(ACK | PSH, None)
    tcp.sends(RST)
    assert world.interface.tcp.memory.used == 0
    assert stream.aborted and stream.taken == b""


def test_the_hosts_late_events_find_nobody(world: World, guest: Guest) -> None:
    """A wake-up of the loop that was under way when the connection ended."""
    tcp, stream = guest.connects()
    (connection,) = world.interface.tcp.connections.values()
    connection.host_writable(world.now)
    tcp.sends(RST)
    assert repr(connection).endswith("closed>")
    for _ in range(2):
        connection.host_writable(world.now)
        connection.host_eof(world.now)
        connection.host_reset(world.now)
        connection.abort()
    tcp.sees_nothing()


# -- what belongs to nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "data", "ack"),
    [(FIN, b"", 101), (PSH, b"abc", 103), (FIN | PSH, b"abc", 104), (SYN | FIN, b"", 102), (0, b"", 100)],
)
def test_a_stray_without_ack_is_reset_with_one(world: World, guest: Guest, flags: int, data: bytes, ack: int) -> None:
    """RFC 9293 §3.10.7.1: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>."""
    guest.tcp().sends(flags, data, seq=100)
    segment = Conversation(guest, 40001, guest.tcp().remote, 80, 0).sees(RST | ACK, seq=0, ack=None)
    assert segment.ack == ack
    assert world.counters.drop_tcp_stray == world.counters.tcp_resets_to_guest == 1


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, FIN | ACK, SYN | ACK])
def test_a_stray_with_ack_is_reset_at_it(world: World, guest: Guest, flags: int) -> None:
    """RFC 9293 §3.10.7.1: <SEQ=SEG.ACK><CTL=RST>."""
    tcp = guest.tcp()
    tcp.sends(flags, b"data", seq=100, ack=4_000_000_000)
    assert tcp.sees(RST).seq == 4_000_000_000


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, RST | FIN | ACK])
def test_a_stray_reset_is_counted_and_not_answered(world: World, guest: Guest, flags: int) -> None:
    guest.tcp().sends(flags)
    guest.sees_nothing()
    assert world.counters.drop_tcp_stray == 1
    assert not world.host.streams


def test_a_stray_while_the_host_connects_is_counted(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN)
    tcp.sends(ACK, seq=101)
    tcp.sends(RST, seq=700)
    tcp.sees_nothing()
    assert world.counters.drop_tcp_stray == 2


def test_without_offload_resets_have_finished_checksums(plain: Guest) -> None:
    tcp = plain.tcp()
    tcp.sends(ACK, ack=7)
    assert tcp.sees(RST).seq == 7
    other = plain.tcp()
    other.sends(FIN)
    other.sees(RST | ACK)


def test_a_lone_reset(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(ACK, ack=7)
    tcp.sees(RST)
