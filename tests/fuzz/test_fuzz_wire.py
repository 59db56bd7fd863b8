"""Decoders under any bytes."""

from __future__ import annotations

from hypothesis import strategies as st
from wire import oracle

from netd.services import dns as forwarding
from netd.wire import checksum, dns, ipv6, ndp, tcp

from .hunt import hunt

any_bytes = st.binary(max_size=700)
pieces = st.lists(
    st.sampled_from([b"\x00", b"\x01", b"\x02\x04\x05\xb4", b"\x03\x03\x07", b"\x04\x02", b"\xfe\x00", b"\x08\x0a"])
    | st.binary(max_size=5),
    max_size=12,
).map(b"".join)


@hunt(any_bytes | pieces)
def test_tcp_options(data: bytes) -> None:
    """Invariant: no exception; an MSS of 16 bits or 0, a scale of -1..14, SACK only where its option is; an end of list
    hides what lies behind, a no-operation hides nothing."""
    mss, wscale, sack = tcp.parse_options(data)
    assert 0 <= mss <= 65535 and -1 <= wscale <= 14
    assert not sack or b"\x04\x02" in data
    assert tcp.parse_options(b"\x00" + data) == (0, -1, False)
    assert tcp.parse_options(b"\x01" + data) == (mss, wscale, sack)
    assert tcp.parse_options(b"\x04\x02" + data) == (mss, wscale, True)


headers6 = st.lists(
    st.tuples(st.sampled_from([0, 43, 44, 60, 60, 17, 59]), st.sampled_from([0, 0, 1, 2, 255]), st.integers(0, 2)),
    max_size=12,
).map(lambda items: b"".join(bytes((kind, size, 0, left)) + bytes(size * 8 + 4) for kind, size, left in items))


@hunt(any_bytes | headers6, st.integers(0, 255) | st.sampled_from([0, 43, 60]), any_bytes)
def test_extension_headers(data: bytes, first: int, behind: bytes) -> None:
    """Invariant: no exception; the walk ends inside the packet, forward only, at a header that is none of those it walks
    (or at segments left), named by a field before it; and what lies behind the packet does not count."""
    frame = memoryview(bytes(54) + data + behind)
    end = 54 + len(data)
    protocol, at, named = ipv6.walk(frame, 54, end, first)
    assert 54 <= at <= end and 20 <= named < max(at, 54) and (at - 54) % 8 == 0
    assert protocol == ipv6.ROUTING or protocol not in ipv6.EXTENSIONS
    assert at - 54 <= ipv6.EXTENSIONS_MAX * 2048
    if protocol >= 0:
        assert protocol == (first if named == 20 else frame[named])
    assert ipv6.walk(memoryview(bytes(54) + data), 54, end, first) == (protocol, at, named)


@hunt(any_bytes | st.lists(st.binary(min_size=6, max_size=6).map(lambda b: b"\x01\x01" + b)).map(b"".join))
def test_ndp_options(data: bytes) -> None:
    """Invariant: no exception; None, or options that together fill the message, each a multiple of 8 bytes long."""
    found = ndp.options(memoryview(data))
    if found is None:
        return
    assert len(data) % 8 == 0
    assert all((len(value) + 2) % 8 == 0 and bytes(value) in data for value in found.values())
    assert sum(len(value) + 2 for value in found.values()) <= len(data)
    assert bool(found) == bool(data)
    assert ndp.options(data + b"\x01") is None and ndp.options(data + b"\x01\x00") is None


@hunt(any_bytes)
def test_checksum(data: bytes) -> None:
    """Invariant: equal to the word loop, as one's complement numbers."""
    assert checksum.finish(checksum.total(data)) % 0xFFFF == oracle.checksum(data) % 0xFFFF


labels = st.lists(st.binary(max_size=66).map(lambda b: bytes((len(b),)) + b), max_size=5).map(b"".join)
messages = st.builds(
    lambda ident, flags, counts, name, rest: ident + flags + counts + name + rest,
    st.sampled_from([b"\x12\x34", b"\xbe\xef"]),
    st.binary(min_size=2, max_size=2) | st.sampled_from([b"\x01\x00", b"\x81\x80", b"\x81\x82", b"\x81\x85"]),
    st.sampled_from([b"\x00\x01" + bytes(6), bytes(8), b"\x00\x02" + bytes(6)]) | st.binary(min_size=8, max_size=8),
    labels.map(lambda b: b + b"\x00") | st.binary(max_size=20),
    st.sampled_from([b"\x00\x01\x00\x01", b"\x00\x41\x00\x01"]) | st.binary(max_size=30),
)


@hunt(any_bytes | messages)
def test_dns_messages(data: bytes) -> None:
    """Invariant: the end of a question lies inside the message or is 0; SERVFAIL is an answer of the same id and no
    longer than the query."""
    end = dns.question_end(memoryview(data))
    assert end == 0 or dns.SIZE + 5 <= end <= len(data)
    if len(data) >= dns.SIZE:
        answer = dns.servfail(data)
        assert len(answer) <= len(data)
        assert answer[:2] == data[:2] and answer[2] & 0x80 and answer[3] & 15 == dns.SERVFAIL
        assert not forwarding.acceptable(answer)


@hunt(messages, st.lists(messages | any_bytes, max_size=4))
def test_dns_transactions(query: bytes, heard: list[bytes]) -> None:
    """Invariant: only a message with our id, QR and our question (or a failure without one) is believed; the guest gets
    exactly one answer, with its own id, whatever was heard."""
    if not forwarding.acceptable(query):
        return
    transaction = forwarding.Transaction(query, 0xBEEF, ["192.0.2.1", "192.0.2.2"], lambda answer: None)
    asked = transaction.question
    assert query[dns.SIZE :].startswith(asked) and len(asked) >= 5
    for message in heard:
        if transaction.accept(message) is not None:
            assert message[:2] == b"\xbe\xef" and message[2] & 0x80
            found = message[dns.SIZE : dns.SIZE + len(asked)]
            assert found.lower() == asked.lower() or (message[4:6] == bytes(2) and message[3] & 15)
            assert transaction.finish() == query[:2] + message[2:]
    answer = transaction.finish()
    assert answer[:2] == query[:2] and answer[2] & 0x80
