"""Leases: who has which address, until when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.services.leases import Client, Leases

A, B, C = b"A", b"B", b"C"
ANN, BOB, CID = Client(b"ann", b"\x01a"), Client(b"bob", b"\x01b"), Client(b"cid", b"\x01c")


def test_the_order_of_the_addresses_is_the_order_of_giving() -> None:
    leases = Leases([B, A])
    assert leases.offer(ANN, b"", 0, 60) == B
    assert leases.offer(BOB, b"", 0, 60) == A
    assert leases.offer(CID, b"", 0, 60) is None


def test_a_wish_is_granted_if_it_can_be() -> None:
    leases = Leases([A, B])
    assert leases.offer(ANN, B, 0, 60) == B
    assert leases.offer(BOB, B, 0, 60) == A
    assert leases.offer(BOB, b"?", 0, 60) == A


def test_an_offer_lapses() -> None:
    leases = Leases([A])
    assert leases.offer(ANN, b"", 0, 60) == A
    assert not leases.free(A, 59.9) and leases.free(A, 60)
    assert leases.offer(BOB, b"", 60, 120) == A
    assert leases.held(ANN) is None


def test_an_offer_does_not_shorten_a_lease() -> None:
    leases = Leases([A])
    assert leases.grant(ANN, A, 0, 1000)
    assert leases.offer(ANN, b"", 10, 70) == A
    assert not leases.free(A, 999)


def test_who_comes_back_finds_the_address_it_had() -> None:
    leases = Leases([A, B])
    assert leases.grant(BOB, A, 0, 1) and leases.grant(ANN, B, 0, 10)
    assert leases.offer(ANN, A, 100, 160) == B


def test_a_client_has_one_address() -> None:
    leases = Leases([A, B])
    assert leases.grant(ANN, A, 0, 10) and leases.grant(ANN, B, 0, 10)
    assert leases.held(ANN) == B and leases.free(A, 0)


def test_what_is_not_granted() -> None:
    leases = Leases([A])
    assert not leases.grant(ANN, B, 0, 10)
    assert leases.grant(ANN, A, 0, 10)
    assert not leases.grant(BOB, A, 9.9, 20)
    assert leases.grant(BOB, A, 10, 20)


def test_release_and_decline() -> None:
    leases = Leases([A, B])
    leases.release(ANN)
    leases.decline(ANN, 600)
    assert leases.grant(ANN, A, 0, 1000)
    leases.release(ANN)
    assert leases.free(A, 0) and leases.held(ANN) == A
    leases.decline(ANN, 600)
    assert leases.held(ANN) is None and not leases.free(A, 599) and leases.free(A, 600)
    assert leases.offer(ANN, A, 0, 60) == B


def test_one_that_gives_no_identifier_is_whoever_has_its_hardware_address() -> None:
    """Firmware without an identifier, the system with one, firmware again, a system with another."""
    leases = Leases([A, B])
    nic = b"\x01nic"
    for identifier in (nic, b"\xffduid-1", nic, b"\xffduid-2", nic):
        client = Client(identifier, nic)
        assert leases.offer(client, b"", 0, 60) == A
        assert leases.grant(client, A, 0, 86400)


def test_two_identifiers_are_two_clients() -> None:
    """RFC 2131 §4.2, also behind one hardware address; its own address is found before a relative's."""
    leases = Leases([A, B])
    nic = b"\x01nic"
    one, two, bare = Client(b"one", nic), Client(b"two", nic), Client(nic, nic)
    assert leases.grant(one, A, 0, 10) and leases.grant(two, B, 0, 10)
    assert (leases.held(one), leases.held(two)) == (A, B)
    assert leases.held(bare) == A
    leases = Leases([A, B])
    assert leases.grant(bare, A, 0, 10) and leases.grant(BOB, B, 0, 10)
    assert leases.grant(two, A, 0, 10)
    leases = Leases([A, B])
    assert leases.grant(two, A, 0, 0) and leases.grant(Client(b"x", b"x"), A, 0, 0)
    assert leases.grant(one, A, 0, 10) and leases.grant(Client(nic, b"other"), B, 0, 10)
    assert leases.held(bare) == B, "by its identifier, before the one by its hardware address"


clients = st.sampled_from([ANN, BOB, CID, Client(b"\x01a", b"\x01a"), Client(b"eve", b"\x01a")])
deeds = st.tuples(
    st.sampled_from(["offer", "grant", "release", "decline", "wait"]), clients, st.sampled_from([A, B, C, b"?"])
)


@quick
@given(st.lists(deeds, max_size=30))
def test_any_life(life: list[tuple[str, Client, bytes]]) -> None:
    """Invariant: an address that was granted is not granted or offered to another client while it lasts."""
    leases, now = Leases([A, B, C]), 0.0
    owner: dict[bytes, tuple[Client, float]] = {}
    for deed, client, address in life:
        got = None
        if deed == "offer":
            got = leases.offer(client, address, now, now + 60)
            assert got is None or leases.held(client) == got
        elif deed == "grant":
            got = address if leases.grant(client, address, now, now + 100) else None
        elif deed == "wait":
            now += 50
        else:
            held = leases.held(client)
            if held is not None:
                owner.pop(held, None)
            if deed == "release":
                leases.release(client)
            else:
                leases.decline(client, now + 600)
                assert held is None or not leases.free(held, now)
        if got is not None:
            before, until = owner.get(got, (client, 0.0))
            assert until <= now or before.same(client)
            owner = {a: o for a, o in owner.items() if not o[0].same(client) or a == got}
            if deed == "grant":
                owner[got] = client, now + 100
