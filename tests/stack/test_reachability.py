"""A guest that does not acknowledge is asked for, and followed where it is now (RFC 4861 §7.3)."""

from __future__ import annotations

from wire import oracle

from netd.stack.limits import Limits
from netd.stack.reachability import MULTICAST, UNICAST
from netd.wire.tcp import ACK, PSH, SYN

from .guest import Conversation, Guest
from .world import GATEWAY, GATEWAY_MAC, GUEST_MAC, ROUTER6, World, ip, mac

NEW_MAC = mac("02:00:00:00:00:c8")


def silent(world: World, guest: Guest) -> Conversation:
    """A connection whose data has been sent three times in vain."""
    tcp, stream = guest.connects()
    stream.gets(b"hello")
    tcp.sees(ACK | PSH, b"hello")
    for _ in range(2):
        world.jump()
        tcp.sees(ACK | PSH, b"hello")
        assert not world.asked, "too early to doubt"
    world.jump()
    tcp.sees(ACK | PSH, b"hello")
    return tcp


def asked(world: World, guest: Guest, to: bytes) -> None:
    """One question, sent to the MAC ``to``; b"" for everybody."""
    sent = world.asked.popleft()
    target = guest.address
    if sent.packet is None:
        oper, sha, spa, tha, tpa = oracle.read_arp(sent.frame)
        assert (oper, sha, spa, tha, tpa) == (1, GATEWAY_MAC, GATEWAY, bytes(6), target)
        assert sent.frame[:12] == (to or b"\xff" * 6) + GATEWAY_MAC
        return
    packet = sent.packet
    assert packet.src == ROUTER6 and packet.ttl == 255 and sent.frame[6:12] == GATEWAY_MAC
    assert sent.data[8:] == target + b"\x01\x01" + GATEWAY_MAC
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]
    assert packet.dst == (target if to else group)
    assert sent.frame[:6] == (to or b"\x33\x33" + group[12:])


def answers(world: World, guest: Guest, with_mac: bytes) -> None:
    if guest.cast.family == 4:
        guest.sends_arp(2, guest.address, GATEWAY, with_mac)
        return
    body = guest.address + b"\x02\x01" + with_mac
    message = oracle.icmp6(guest.address, ROUTER6, 136, 0, b"\x60\x00\x00\x00", body)
    packet = oracle.ip6(guest.address, ROUTER6, 58, message, ttl=255)
    world.receive(oracle.eth(GATEWAY_MAC, with_mac, 0x86DD, packet))


def test_a_guest_whose_mac_has_changed_is_found(world: World, guest: Guest) -> None:
    tcp = silent(world, guest)
    asked(world, guest, GUEST_MAC)
    assert not world.asked
    world.passes(world.limits.probe * (UNICAST - 0.5))
    for _ in range(UNICAST - 1):
        asked(world, guest, GUEST_MAC)
    assert not world.asked
    world.passes(world.limits.probe)
    asked(world, guest, b"")
    for sent in world.sent:
        assert sent.frame[:6] == GUEST_MAC
    world.sent.clear()
    answers(world, guest, NEW_MAC)
    guest.mac = NEW_MAC
    world.jump()
    tcp.sees(ACK | PSH, b"hello")
    asked(world, guest, NEW_MAC)  # still in vain, as far as we know
    tcp.sends(ACK, ack=6)
    assert not world.interface.neighbors.doubted
    world.passes(60)
    assert not world.asked


def test_an_answer_from_where_it_was_ends_the_doubt(world: World, guest: Guest) -> None:
    tcp = silent(world, guest)
    asked(world, guest, GUEST_MAC)
    answers(world, guest, GUEST_MAC)
    assert not world.interface.neighbors.doubted
    tcp.sends(ACK, ack=6)
    world.passes(60)
    assert not world.asked


def test_so_does_a_flow_that_begins(world: World, guest: Guest) -> None:
    tcp = silent(world, guest)
    asked(world, guest, GUEST_MAC)
    guest.mac = NEW_MAC
    other, _ = guest.connects(rport=81)
    assert not world.interface.neighbors.doubted
    world.jump()
    tcp.sees(ACK | PSH, b"hello")
    tcp.sends(ACK, ack=6)
    other.sees_nothing()


def test_one_that_never_answers_is_forgotten(world: World, guest: Guest) -> None:
    """It is sent to as one that never spoke: at the device's own MAC."""
    guest.mac = NEW_MAC
    tcp = silent(world, guest)
    world.passes(world.limits.probe * (UNICAST + MULTICAST - 0.5))
    assert len(world.asked) == UNICAST + MULTICAST
    for n in range(UNICAST + MULTICAST):
        asked(world, guest, NEW_MAC if n < UNICAST else b"")
    assert all(sent.frame[:6] == NEW_MAC for sent in world.sent)
    world.sent.clear()
    world.passes(world.limits.probe)
    world.sent.clear()
    guest.mac = GUEST_MAC
    world.jump()
    tcp.sees(ACK | PSH, b"hello")
    tcp.sends(ACK, ack=6)


def test_a_guest_that_is_called_in_vain(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    tcp.sees(SYN)
    world.jump()
    tcp.sees(SYN)
    assert not world.asked
    world.jump()
    asked(world, guest, GUEST_MAC)
    answers(world, guest, GUEST_MAC)
    tcp.answers()
    assert not world.interface.neighbors.doubted and not stream.closed


def test_one_question_for_all_connections(world: World, guest: Guest) -> None:
    pairs = [guest.connects(rport=port) for port in range(80, 85)]
    for _, stream in pairs:
        stream.gets(b"hello")
    world.passes(0.9)
    assert len(world.asked) == 1
    world.sent.clear()
    for tcp, _ in pairs:
        tcp.sends(ACK, ack=6)


def test_what_is_doubted_is_bounded() -> None:
    world = World(limits=Limits(neighbors=3))
    doubt = world.interface.tcp.reachability.doubt
    for n in range(5):
        doubt(ip(f"10.0.2.{110 + n}"), world.now)
    assert len(world.interface.neighbors.doubted) == len(world.asked) == 3
    world.passes(60)
    assert not world.interface.neighbors.doubted
    assert len(world.asked) == 3 * (UNICAST + MULTICAST)
    world.ends()
