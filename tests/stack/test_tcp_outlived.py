"""This process ends and the guest lives on, as at a restart: it must not wait for ever, nor lose what it had finished."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH, RST

from .guest import Guest
from .world import World


@pytest.mark.parametrize("goes_on", [False, True], ids=["closed", "reading"])
def test_a_guest_that_outlives_us_is_told(world: World, guest: Guest, goes_on: bool) -> None:
    """Where it only reads it would wait for ever; what it had finished sending is delivered nevertheless."""
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | FIN, b"bye")
    tcp.sees(ACK, ack=105)
    if not goes_on:
        stream.ends()
        tcp.sees(FIN | ACK)
    world.interface.close(kept=True)
    if goes_on:
        tcp.sees(RST | ACK, seq=1, ack=105)
    tcp.sees_nothing()
    assert stream.taken == b"bye" and stream.closed and not stream.aborted


def test_the_last_ack_goes_with_that(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    world.interface.close(kept=True)
    tcp.sees(RST | ACK, seq=1, ack=102)
    tcp.sees_nothing()
    assert stream.closed and not stream.aborted


def test_who_has_not_finished_is_reset_on_both_sides(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK)
    world.interface.close(kept=True)
    tcp.sees(RST | ACK, seq=2, ack=101)
    tcp.sees_nothing()
    assert stream.aborted
