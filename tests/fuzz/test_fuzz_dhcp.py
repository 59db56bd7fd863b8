"""DHCP servers under any bytes: what a guest may send to ports 67 and 547."""

from __future__ import annotations

from hypothesis import strategies as st

from netd.services import dhcpv4, dhcpv6
from netd.wire import dhcpv4 as wire4
from netd.wire import dhcpv6 as wire6

from .hunt import hunt

GATEWAY, GUEST = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 100))
POOL = tuple(bytes((10, 0, 2, n)) for n in (15, 16, 17))
MACS = [b"\x52\x54\x00\x00\x00\x01", b"\x52\x54\x00\x00\x00\x02", b"\xff" * 6]
CONFIG4 = dhcpv4.Config(
    server_ip=GATEWAY,
    mask=b"\xff\xff\xff\x00",
    guest_ip=GUEST,
    router=GATEWAY,
    dns=(bytes((10, 0, 2, 3)),),
    pool=POOL,
    mtu=1500,
    domain="example.org",
    search=("example.org",) * 9,
)
GUEST6, DNS6, DUID = b"\xfd" + bytes(14) + b"\x64", b"\xfd" + bytes(14) + b"\x03", b"\x00\x01client"
CONFIG6 = dhcpv6.Config(server_mac=MACS[0], guest_ip=GUEST6, dns=(DNS6,), search=("example.org",))
OURS6 = b"\x00\x03\x00\x01" + MACS[0]

short = st.binary(max_size=40)
addresses = st.sampled_from([bytes(4), GATEWAY, GUEST, *POOL, b"\xff" * 4]) | st.binary(min_size=4, max_size=4)


def mutated(draw: st.DrawFn, message: bytes) -> bytes:
    """A few octets changed, perhaps cut."""
    data = bytearray(message)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 4]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@st.composite
def bootp(draw: st.DrawFn) -> bytes:
    """Mostly a message that means something."""
    tlv = st.tuples(st.sampled_from([12, 50, 51, 52, 54, 55, 57, 61, 61, 80, 121]) | st.integers(0, 255), short)
    options = [bytes((53, 1, draw(st.sampled_from([1, 1, 3, 3, 3, 4, 7, 8]) | st.integers(0, 9))))]
    if draw(st.booleans()):
        options.append(b"\x32\x04" + draw(addresses))
    if draw(st.booleans()):
        options.append(b"\x36\x04" + draw(st.just(GATEWAY) | addresses))
    if draw(st.booleans()):
        options.append(b"\x39\x02" + draw(st.binary(min_size=2, max_size=2)))
    options += [bytes((code, len(value))) + value for code, value in draw(st.lists(tlv, max_size=4))]
    mac = draw(st.sampled_from(MACS))
    head = b"\x01\x01\x06\x00" + draw(st.binary(min_size=4, max_size=4)) + b"\x00\x00"
    head += draw(st.sampled_from([b"\x00\x00", b"\x80\x00"])) + draw(addresses) + bytes(12)
    fields = draw(short).ljust(64, b"\x00") + draw(short).ljust(128, b"\x00")
    noise = draw(st.sampled_from([b"", b"\xff", b"\x00" * 50]) | short)
    return mutated(draw, head + mac + bytes(10) + fields + b"\x63\x82\x53\x63" + b"".join(options) + noise)


@hunt(
    st.lists(
        st.tuples(bootp() | st.binary(max_size=600), st.sampled_from(MACS), st.sampled_from([0, 0, 1, 61, 86401])),
        max_size=12,
    )
)
def test_dhcpv4(life: list[tuple[bytes, bytes, int]]) -> None:
    """Invariant: no exception; a reply is a BOOTREPLY to that transaction and hardware, of a size the client takes; a
    lease is of our addresses, and is not given to two hardware addresses and identifiers while it lasts."""
    server, now = dhcpv4.Server(CONFIG4), 0.0
    owner: dict[bytes, tuple[set[bytes], float]] = {}
    for message, mac, pause in life:
        now += pause
        reply = server.answer(message, mac, now)
        asked = wire4.parse(message)
        if asked is None:
            assert reply is None
            continue
        names = {asked.options.get(61) or b"", bytes((asked.htype,)) + asked.chaddr, b"\x01" + mac} - {b""}
        if asked.options.get(53) in (b"\x04", b"\x07"):  # one of its own may be free now
            owner = {a: o for a, o in owner.items() if not o[0] & names}
        if reply is None:
            continue
        told = wire4.parse(reply.message)
        assert told is not None and told.op == wire4.BOOTREPLY and told.options[54] == GATEWAY
        assert (told.xid, told.flags, told.chaddr) == (asked.xid, asked.flags, asked.chaddr)
        assert 300 <= len(reply.message) <= 1472 and len(reply.dst_ip) == 4 and len(reply.dst_mac) == 6
        assert reply.broadcast == (reply.dst_ip == b"\xff" * 4)
        assert reply.dst_ip in (told.yiaddr, asked.ciaddr, b"\xff" * 4)
        if told.yiaddr == bytes(4):
            assert told.options[53] in (b"\x05", b"\x06") and 51 not in told.options
            continue
        assert told.yiaddr in (GUEST, *POOL)
        before, until = owner.get(told.yiaddr, (names, 0.0))
        assert until <= now or before & names
        owner = {a: o for a, o in owner.items() if not o[0] & names}
        if told.options[53] == b"\x05":
            owner[told.yiaddr] = names, now + int.from_bytes(told.options[51], "big")


def option6(code: int, value: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


@st.composite
def dhcp6(draw: st.DrawFn) -> bytes:
    """Mostly a message that means something."""
    kind = draw(st.sampled_from([1, 3, 4, 5, 6, 8, 9, 11]) | st.integers(0, 255))
    options = [(1, draw(st.sampled_from([DUID, b"\x00\x01another", OURS6]) | short))]
    if draw(st.just(kind in (3, 5, 8, 9)) | st.booleans()):
        options.append((2, draw(st.just(OURS6) | short)))
    for code in draw(st.lists(st.sampled_from([3, 3, 4, 25]), max_size=12)) if kind != 11 else []:
        listed = draw(st.lists(st.sampled_from([GUEST6, DNS6, b"\x20" * 16]), max_size=3))
        inner = b"".join(option6(5, address + bytes(8)) for address in listed) + draw(st.just(b"") | short)
        options.append((code, draw(st.binary(min_size=4, max_size=4)) + (b"" if code == 4 else bytes(8)) + inner))
    options += draw(st.lists(st.tuples(st.sampled_from([6, 14, 13]) | st.integers(0, 300), short), max_size=3))
    return mutated(draw, bytes((kind, 1, 2, 3)) + b"".join(option6(*o) for o in options))


@hunt(st.lists(st.tuples(dhcp6() | st.binary(max_size=300), st.sampled_from([0, 1, 601])), max_size=12))
def test_dhcpv6(life: list[tuple[bytes, int]]) -> None:
    """Invariant: no exception; a reply is an Advertise or Reply to that transaction and DUID, fits 1280 octets, and
    gives at most one association an address, which is the guest's."""
    server, now = dhcpv6.Server(CONFIG6), 0.0
    for message, pause in life:
        now += pause
        answer = server.answer(message, now)
        asked = wire6.parse(message)
        if answer is None or asked is None:
            assert answer is None
            continue
        told = wire6.parse(answer)
        assert told is not None and told.xid == asked.xid and told.type in (wire6.ADVERTISE, wire6.REPLY)
        assert told.type == wire6.REPLY or asked.type == wire6.SOLICIT
        assert told.first(1) == asked.first(1) and told.first(2) == OURS6
        assert len(answer) + 48 <= 1280
        alive = []
        for code, value in told.options:
            if code not in (3, 4, 25):
                continue
            inner = wire6.options(value[4 if code == 4 else 12 :])
            assert inner is not None
            alive += [v[:16] for c, v in inner if c == 5 and any(v[16:])]
        assert alive in ([], [GUEST6])
