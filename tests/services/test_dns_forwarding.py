"""The DNS forwarder's decisions: which server, which answer, what the guest is told (RFC 1035, RFC 5452)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.services import dns

QR, RD, RA = 0x8000, 0x0100, 0x0080
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)


def name(text: str) -> bytes:
    return b"".join(bytes((len(x),)) + x.encode() for x in text.split(".") if x) + b"\x00"


def query(host: str = "www.example.org", ident: int = 0x1234, qtype: int = 1, flags: int = RD) -> bytes:
    return struct.pack("!6H", ident, flags, 1, 0, 0, 0) + name(host) + struct.pack("!HH", qtype, 1)


def reply(to: bytes, rcode: int = NOERROR, *, ident: int | None = None, host: bytes | None = None) -> bytes:
    found, _, _, _, _, _ = struct.unpack_from("!6H", to)
    head = struct.pack("!6H", found if ident is None else ident, QR | RD | RA | rcode, 1, 1, 0, 0)
    return (
        head + (to[12:] if host is None else host) + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x01\x02\x03\x04"
    )


def transaction(message: bytes, servers: int = 3, ident: int = 0xBEEF) -> dns.Transaction:
    addresses = [f"192.0.2.{n}" for n in range(1, servers + 1)]
    return dns.Transaction(message, ident, addresses, lambda answer: None)


def test_the_id_is_ours_towards_the_server_and_the_guests_towards_the_guest() -> None:
    """RFC 5452 §4.5."""
    asked = query()
    t = transaction(asked)
    assert t.message()[:2] == b"\xbe\xef"
    assert t.message()[2:] == asked[2:]
    assert t.accept(reply(t.message())) is True
    assert t.finish() == asked[:2] + reply(t.message())[2:]


@pytest.mark.parametrize("rcode", [NOERROR, FORMERR, NXDOMAIN, NOTIMP, 9])
def test_what_is_an_answer(rcode: int) -> None:
    """NXDOMAIN is one; FORMERR and NOTIMP tell the guest to ask in another way."""
    t = transaction(query())
    assert t.accept(reply(t.message(), rcode)) is True
    assert t.finish()[3] & 15 == rcode


@pytest.mark.parametrize("rcode", [SERVFAIL, REFUSED])
def test_what_sends_us_to_the_next_server(rcode: int) -> None:
    t = transaction(query())
    assert t.accept(reply(t.message(), rcode)) is False
    assert t.next_server() and t.servers[t.server] == "192.0.2.2"
    assert t.accept(reply(t.message())) is True
    assert t.finish()[3] & 15 == NOERROR


def test_when_all_fail_the_last_failure_is_told() -> None:
    t = transaction(query(), servers=2)
    assert t.accept(reply(t.message(), REFUSED)) is False
    assert t.next_server()
    assert not t.next_server()  # the second was silent
    assert t.finish() == query()[:2] + reply(t.message(), REFUSED)[2:]


def test_when_all_are_silent_it_is_servfail() -> None:
    t = transaction(query(), servers=2)
    assert t.next_server() and not t.next_server()
    answer = t.finish()
    assert answer[:2] == b"\x12\x34"
    assert struct.unpack("!H", answer[2:4])[0] == QR | RD | RA | SERVFAIL
    assert answer[12:] == query()[12:]


def test_without_servers_it_is_servfail() -> None:
    t = transaction(query(), servers=0)
    assert t.finish()[3] & 15 == SERVFAIL


def strangers() -> list[tuple[str, bytes]]:
    asked = transaction(query()).message()
    return [
        ("another id", reply(asked, ident=0xBEF0)),
        ("the guest's id", reply(asked, ident=0x1234)),
        ("a query", asked),
        ("another name", reply(asked, host=query("www.example.com")[12:])),
        ("a longer name", reply(asked, host=b"\x03sub" + asked[12:])),
        ("another type", reply(asked, host=query(qtype=28)[12:])),
        ("another class", reply(asked, host=asked[12:-1] + b"\x03")),
        ("no question", asked[:2] + struct.pack("!5H", QR | RA, 0, 0, 0, 0)),
        ("a cut question", reply(asked)[:20]),
        ("a cut header", reply(asked)[:11]),
        ("nothing", b""),
    ]


@pytest.mark.parametrize("message", [m for _, m in strangers()], ids=[n for n, _ in strangers()])
def test_a_stranger_is_not_believed(message: bytes) -> None:
    """RFC 5452 §9.1: id and question must match."""
    t = transaction(query())
    assert t.accept(message) is None
    assert t.finish()[3] & 15 == SERVFAIL, "nothing of it was kept"
    assert t.accept(reply(t.message())) is True


def test_types_are_compared_as_numbers_not_letters() -> None:
    """65 (HTTPS) and 97 differ as 'A' and 'a' do."""
    t = transaction(query(qtype=65))
    assert t.accept(reply(t.message(), host=query(qtype=97)[12:])) is None
    assert t.accept(reply(t.message())) is True


def test_a_server_may_change_the_case_of_a_name() -> None:
    t = transaction(query("wWw.eXaMpLe.org"))
    assert t.accept(reply(t.message(), host=query("www.example.ORG")[12:])) is True


@pytest.mark.parametrize("rcode", [FORMERR, NOTIMP])
def test_a_failure_may_leave_the_question_out(rcode: int) -> None:
    t = transaction(query())
    assert t.accept(t.message()[:2] + struct.pack("!5H", QR | rcode, 0, 0, 0, 0)) is True


def test_a_refusal_without_question_goes_to_the_next() -> None:
    t = transaction(query())
    assert t.accept(t.message()[:2] + struct.pack("!5H", QR | REFUSED, 0, 0, 0, 0)) is False


def test_a_truncated_answer_is_passed_on() -> None:
    """RFC 7766: the guest asks again over TCP."""
    t = transaction(query())
    message = bytearray(reply(t.message()))
    message[2] |= 2
    assert t.accept(bytes(message)) is True
    assert t.finish()[2] & 2


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "nothing"),
        (query()[:11], "no header"),
        (query()[:12], "no question"),
        (query()[:-1], "cut"),
        (query(flags=QR), "an answer"),
        (query()[:4] + b"\x00\x00" + query()[6:], "QDCOUNT 0"),
        (query()[:4] + b"\x00\x02" + query()[6:], "QDCOUNT 2"),
        (query()[:12] + b"\xc0\x0c\x00\x01\x00\x01", "a compressed name"),
        (query()[:12] + b"\x3f" * 40, "a label that never ends"),
    ],
)
def test_what_is_not_forwarded(message: bytes, why: str) -> None:
    assert not dns.acceptable(message), why


@pytest.mark.parametrize(
    "message", [query(), query(""), query(flags=0), query() + bytes(11), query("a" * 63 + ".b")], ids=len
)
def test_what_is_forwarded(message: bytes) -> None:
    """The root, EDNS behind the question, long labels."""
    assert dns.acceptable(message)


@quick
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_any_bytes(asked: bytes, heard: bytes) -> None:
    """Invariant: what is acceptable makes a transaction that hears any bytes and always ends in an answer to it."""
    if not dns.acceptable(asked):
        return
    t = transaction(asked)
    assert t.accept(heard) in (True, False, None)
    answer = t.finish()
    assert answer[:2] == asked[:2]
    assert answer[2] & 0x80


CONF = """
# nameserver 9.9.9.9
; nameserver 9.9.9.8
search example.org
nameserver 192.0.2.1
  nameserver\t2001:db8::1   # with a comment
options ndots:2
nameserver fe80::1%eth0
nameserver
nameservers 192.0.2.9
nameserver 192.0.2.4
"""


def test_the_servers_of_a_resolv_conf() -> None:
    """resolv.conf(5): at most MAXNS, in order; zone ids are kept."""
    assert dns.servers_in(CONF) == ["192.0.2.1", "2001:db8::1", "fe80::1%eth0"]
    assert dns.servers_in("") == []


def test_the_search_list_is_the_last_one() -> None:
    assert dns.search_in("domain example.org\nsearch a.example b.example\noptions ndots:2\n") == [
        "a.example",
        "b.example",
    ]
    assert dns.search_in("search a.example\n\ndomain example.org\n") == ["example.org"]
    assert dns.search_in("nameserver 192.0.2.1\n") == [] == dns.search_in("search\n")
    assert len(dns.search_in("search " + "x " * 100)) == dns.MAX_SEARCH


@quick
@given(st.text(max_size=200))
def test_any_resolv_conf(text: str) -> None:
    servers = dns.servers_in(text)
    assert len(servers) <= dns.MAX_SERVERS
    assert all(server and not server.split()[1:] for server in servers)


def test_the_times_fit_a_guests_patience() -> None:
    """resolv.conf(5): a client gives a server 5 seconds; all of ours must have had their turn by the second try."""
    assert dns.TRY_SECONDS * dns.MAX_SERVERS <= 10
    assert 0 < dns.MAX_TRANSACTIONS <= 4096
