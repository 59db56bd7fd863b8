"""The DHCP server as a guest sees it: RFC 2131 §4.3, §4.4, and what real clients sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.services import dhcpv4
from netd.services.dhcpv4 import Config, Reply, Server

from . import dhcp_clients

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
ANY, ALL = bytes(4), b"\xff" * 4
COOKIE = b"\x63\x82\x53\x63"
MAC, MAC2 = b"\x52\x54\x00\x12\x34\x56", b"\x52\x54\x00\xab\xcd\xef"
XID = b"\xde\xad\xbe\xef"


def ip(last: int, net: bytes = b"\x0a\x00\x02") -> bytes:
    return net + bytes((last,))


GUEST, GATEWAY, DNS, POOL = ip(100), ip(2), ip(3), tuple(ip(n) for n in range(15, 31))
CONFIG = Config(
    server_ip=GATEWAY,
    mask=b"\xff\xff\xff\x00",
    guest_ip=GUEST,
    router=GATEWAY,
    dns=(DNS,),
    pool=POOL,
    mtu=1500,
    hostname="box",
    domain="example.org",
    search=("example.org", "lab.example"),
)


def bootp(
    options: dict[int, bytes],
    *,
    mac: bytes = MAC,
    ciaddr: bytes = ANY,
    giaddr: bytes = ANY,
    flags: int = 0,
    op: int = 1,
    htype: int = 1,
) -> bytes:
    data = bytearray(236)
    data[0:4] = bytes((op, htype, len(mac), 0))
    data[4:8], data[10:12] = XID, flags.to_bytes(2, "big")
    data[12:16], data[24:28] = ciaddr, giaddr
    data[28 : 28 + len(mac)] = mac
    tlvs = b"".join(
        bytes((code, len(value[i : i + 255]))) + value[i : i + 255]
        for code, value in options.items()
        for i in range(0, len(value) or 1, 255)
    )
    return bytes(data) + COOKIE + tlvs + b"\xff"


def read(options: bytes) -> dict[int, bytes]:
    """What the server wrote: every option whole, END, and nothing but padding behind."""
    found: dict[int, bytes] = {}
    while options[0] != 255:
        code, length = options[0], options[1]
        assert code != 0 and len(options) > 2 + length
        found[code] = found.get(code, b"") + options[2 : 2 + length]
        options = options[2 + length :]
    assert not any(options[1:])
    return found


class Heard:
    """A reply, read by the offsets of RFC 2131 figure 1."""

    def __init__(self, reply: Reply, asked: bytes) -> None:
        data = reply.message
        assert len(data) >= 300
        assert data[0] == 2 and data[1:3] == asked[1:3] and data[3] == 0
        assert data[4:8] == asked[4:8] and data[8:10] == bytes(2) and data[10:12] == asked[10:12]
        assert data[20:28] == bytes(8) and data[28:44] == asked[28:44] and not any(data[44:236])
        assert data[236:240] == COOKIE
        assert reply.broadcast == (reply.dst_ip == ALL) == (reply.dst_mac == b"\xff" * 6)
        self.ciaddr, self.yiaddr = data[12:16], data[16:20]
        self.options = read(data[240:])
        self.kind = self.options[53][0]
        assert self.options[54] == GATEWAY
        self.to = reply.dst_ip, reply.dst_mac
        self.broadcast = reply.broadcast
        self.size = len(data)


class Client:
    """A guest that says what it likes."""

    def __init__(self, server: Server, mac: bytes = MAC, ident: bytes = b"") -> None:
        self.server, self.mac, self.ident = server, mac, ident
        self.now = 0.0

    def says(
        self,
        kind: int,
        options: dict[int, bytes] | None = None,
        *,
        ciaddr: bytes = ANY,
        flags: int = 0,
    ) -> Heard | None:
        tlvs = {53: bytes((kind,)), **({61: self.ident} if self.ident else {}), **(options or {})}
        asked = bootp(tlvs, mac=self.mac, ciaddr=ciaddr, flags=flags)
        reply = self.server.answer(memoryview(asked), self.mac, self.now)
        return reply and Heard(reply, asked)

    def hears(
        self, kind: int, options: dict[int, bytes] | None = None, *, ciaddr: bytes = ANY, flags: int = 0
    ) -> Heard:
        heard = self.says(kind, options, ciaddr=ciaddr, flags=flags)
        assert heard is not None
        return heard

    def binds(self) -> bytes:
        """DISCOVER, OFFER, REQUEST, ACK."""
        offer = self.hears(DISCOVER)
        assert offer.kind == OFFER
        ack = self.hears(REQUEST, {50: offer.yiaddr, 54: GATEWAY})
        assert ack.kind == ACK and ack.yiaddr == offer.yiaddr
        return ack.yiaddr


@pytest.fixture
def server() -> Server:
    return Server(CONFIG)


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)


# -- who gets what ------------------------------------------------------------------------------------------------


def test_the_guest_gets_its_address_and_all_it_must_know(client: Client) -> None:
    offer = client.hears(DISCOVER)
    assert (offer.kind, offer.yiaddr, offer.ciaddr) == (OFFER, GUEST, ANY)
    assert offer.to == (GUEST, MAC), "RFC 2131 §4.1"
    ack = client.hears(REQUEST, {50: GUEST, 54: GATEWAY})
    assert (ack.kind, ack.yiaddr, ack.to) == (ACK, GUEST, (GUEST, MAC))
    told = {
        1: b"\xff\xff\xff\x00",
        3: GATEWAY,
        6: DNS,
        12: b"box",
        15: b"example.org",
        26: (1500).to_bytes(2, "big"),
        51: (86400).to_bytes(4, "big"),
        54: GATEWAY,
        58: (43200).to_bytes(4, "big"),
        59: (75600).to_bytes(4, "big"),
        119: b"\x07example\x03org\x00\x03lab\x07example\x00",
        121: b"\x00" + GATEWAY,
    }
    assert offer.options == {53: b"\x02", **told}
    assert ack.options == {53: b"\x05", **told}


def test_the_full_name_is_told_to_who_asks() -> None:
    """RFC 4702 §2: flags (N, E), two result codes, the name in DNS form."""
    client = Client(Server(replace(CONFIG, fqdn="box.example.org")))
    told = client.hears(DISCOVER, {55: b"\x51"}).options[81]
    assert told == b"\x0c\xff\xff" + b"\x03box\x07example\x03org\x00"
    assert 81 not in client.hears(DISCOVER, {55: b"\x01"}).options
    assert 81 not in Client(Server(replace(CONFIG, fqdn="x" * 64))).hears(DISCOVER).options, "no name at all"


def test_further_clients_get_the_pool_until_it_is_empty(server: Server) -> None:
    """Bound: as many leases as addresses; an address that rests comes free in the end."""
    clients = [Client(server, bytes((2, 0, 0, 0, 0, n))) for n in range(17)]
    assert [c.binds() for c in clients] == [GUEST, *POOL]
    late = Client(server)
    assert late.says(DISCOVER) is None
    assert [c.binds() for c in clients] == [GUEST, *POOL], "whoever has one keeps it"
    late.now = 86400.0
    assert late.binds() == GUEST


def test_our_own_addresses_are_never_given_out() -> None:
    server = Server(replace(CONFIG, pool=(GATEWAY, DNS, GUEST, ip(15))))
    assert Client(server).binds() == GUEST
    assert Client(server, MAC2).binds() == ip(15)
    assert Client(server, b"third!").says(DISCOVER, {50: DNS}) is None
    assert Client(server, b"third!").hears(REQUEST, {50: GATEWAY}).kind == NAK


def test_an_offer_is_kept_for_a_while(server: Server) -> None:
    one, two = Client(server), Client(server, MAC2)
    assert one.hears(DISCOVER).yiaddr == GUEST
    two.now = dhcpv4.OFFER_SECONDS - 0.1
    assert two.hears(DISCOVER).yiaddr == POOL[0]
    three = Client(server, b"third!")
    three.now = dhcpv4.OFFER_SECONDS
    assert three.hears(DISCOVER).yiaddr == GUEST


def test_a_wish_in_discover(server: Server) -> None:
    """RFC 2131 §4.3.1: its own address, the wanted one, the next."""
    one, two = Client(server), Client(server, MAC2)
    assert one.hears(DISCOVER, {50: ip(20)}).yiaddr == ip(20)
    assert one.hears(DISCOVER, {50: GUEST}).yiaddr == ip(20)
    assert two.hears(DISCOVER, {50: ip(20)}).yiaddr == GUEST
    assert Client(server, b"third!").hears(DISCOVER, {50: ip(99)}).yiaddr == POOL[0]


def test_client_identifiers(server: Server) -> None:
    """RFC 2131 §4.2: it is the identifier that counts, and the reply repeats it (RFC 6842 §3)."""
    one, two = Client(server, MAC, b"\xffone"), Client(server, MAC, b"\xfftwo")
    assert one.binds() == GUEST and two.binds() == POOL[0]
    moved = Client(server, MAC2, b"\xffone")
    assert moved.binds() == GUEST
    assert moved.hears(DISCOVER).options[61] == b"\xffone"
    assert Client(server, MAC2).hears(DISCOVER, {61: b""}).options.keys().isdisjoint({61})


def test_the_identifier_that_is_the_hardware_address(server: Server) -> None:
    """udhcpc sends it, dhclient does not: the same guest."""
    assert Client(server).binds() == Client(server, MAC, b"\x01" + MAC).binds() == GUEST


def test_without_a_hardware_address_the_frame_s_counts(server: Server) -> None:
    asked = bootp({53: b"\x01"}, mac=b"")
    reply = server.answer(asked, MAC, 0.0)
    assert reply is not None and reply.dst_mac == MAC and Heard(reply, asked).yiaddr == GUEST
    assert Client(server).binds() == GUEST


@pytest.mark.parametrize(("htype", "mac"), [(6, MAC2), (1, b"1234567"), (32, bytes(16))])
def test_replies_go_to_an_ethernet_address(server: Server, htype: int, mac: bytes) -> None:
    asked = bootp({53: b"\x01"}, mac=mac, htype=htype)
    reply = server.answer(asked, MAC, 0.0)
    assert reply is not None and Heard(reply, asked).to == (GUEST, MAC)


# -- REQUEST in its four states (RFC 2131 §4.3.2) ---------------------------------------------------------------


def test_selecting_another_server(server: Server) -> None:
    """No answer, and our offer is free for others."""
    one, two = Client(server), Client(server, MAC2)
    assert one.hears(DISCOVER).yiaddr == GUEST
    assert one.says(REQUEST, {50: ip(77), 54: ip(9)}) is None
    assert two.hears(DISCOVER).yiaddr == GUEST


def test_selecting_too_late(server: Server) -> None:
    one, two = Client(server), Client(server, MAC2)
    assert one.hears(DISCOVER).yiaddr == GUEST
    two.now = one.now = dhcpv4.OFFER_SECONDS
    assert two.binds() == GUEST
    nak = one.hears(REQUEST, {50: GUEST, 54: GATEWAY})
    assert nak.kind == NAK and nak.broadcast and nak.yiaddr == ANY


@pytest.mark.parametrize("flags", [0, 0x8000])
def test_init_reboot(client: Client, flags: int) -> None:
    """Also of one that we know nothing of: we may have been started anew."""
    ack = client.hears(REQUEST, {50: GUEST}, flags=flags)
    assert ack.kind == ACK and ack.yiaddr == GUEST and ack.broadcast == bool(flags)
    assert client.binds() == GUEST


@pytest.mark.parametrize("address", [ip(99), ip(20, b"\xc0\xa8\x01"), GATEWAY, b"\x0a\x00\x02", ALL])
def test_an_address_that_is_not_to_be_had(server: Server, address: bytes) -> None:
    """A NAK is broadcast (§4.1), names nothing but itself, and is at once: no time-out."""
    client = Client(server, MAC, b"\xffme")
    nak = client.hears(REQUEST, {50: address})
    assert nak.kind == NAK and nak.broadcast and nak.yiaddr == nak.ciaddr == ANY
    assert nak.options.keys() == {53, 54, 56, 61}
    if len(address) == 4:
        nak = client.hears(REQUEST, ciaddr=address)
        assert nak.kind == NAK and nak.broadcast and nak.ciaddr == ANY


def test_renewing_and_rebinding(client: Client) -> None:
    """Both name the address in ciaddr, and hear at ciaddr, whatever the flag says (§4.1)."""
    client.binds()
    client.now = 80000.0
    ack = client.hears(REQUEST, ciaddr=GUEST, flags=0x8000)
    assert (ack.kind, ack.ciaddr, ack.yiaddr, ack.to) == (ACK, GUEST, GUEST, (GUEST, MAC))
    other = Client(client.server, MAC2)
    other.now = 80000.0 + 86399.0
    assert other.binds() == POOL[0]
    other.now += 1.0
    assert other.hears(REQUEST, {50: GUEST}).kind == ACK


def test_another_s_address_cannot_be_renewed(client: Client) -> None:
    client.binds()
    assert Client(client.server, MAC2).hears(REQUEST, ciaddr=GUEST).kind == NAK
    assert client.hears(REQUEST, ciaddr=GUEST).kind == ACK


def test_a_client_that_changes_its_address(client: Client) -> None:
    client.binds()
    assert client.hears(REQUEST, {50: ip(20)}).yiaddr == ip(20)
    assert Client(client.server, MAC2).binds() == GUEST


def test_a_request_for_nothing(client: Client) -> None:
    assert client.says(REQUEST) is None
    assert client.says(REQUEST, {50: ANY, 54: GATEWAY}) is None


# -- where a reply goes (RFC 2131 §4.1) ---------------------------------------------------------------------------


def test_the_broadcast_flag(client: Client) -> None:
    assert client.hears(DISCOVER, flags=0x8000).broadcast
    assert not client.hears(DISCOVER, flags=0x7FFF).broadcast
    assert client.hears(DISCOVER, ciaddr=ip(99), flags=0x8000).broadcast
    offer = client.hears(DISCOVER, ciaddr=ip(99))
    assert offer.to == (GUEST, MAC) and offer.ciaddr == ANY, "neither message has a ciaddr (tables 3 and 5)"


# -- the other messages -------------------------------------------------------------------------------------------


def test_rapid_commit(client: Client) -> None:
    """RFC 4039 §3.1: the ACK at once, with the option, and the address is bound."""
    ack = client.hears(DISCOVER, {80: b""})
    assert ack.kind == ACK and ack.yiaddr == GUEST and ack.options[80] == b"" and 51 in ack.options
    other = Client(client.server, MAC2)
    other.now = 86399.0
    assert other.hears(DISCOVER).yiaddr == POOL[0]
    assert 80 not in client.hears(DISCOVER).options


@pytest.mark.parametrize("server_id", [{54: GATEWAY}, {}])
def test_release(client: Client, server_id: dict[int, bytes]) -> None:
    client.binds()
    assert client.says(RELEASE, server_id, ciaddr=GUEST) is None
    assert Client(client.server, MAC2).binds() == GUEST


def test_who_released_may_come_back(client: Client) -> None:
    client.hears(REQUEST, {50: ip(20)})
    client.says(RELEASE, {54: GATEWAY}, ciaddr=ip(20))
    assert client.binds() == ip(20)


def test_what_releases_nothing(client: Client) -> None:
    client.binds()
    assert client.says(RELEASE, {54: ip(9)}, ciaddr=GUEST) is None
    assert client.says(RELEASE, {54: GATEWAY}, ciaddr=ip(20)) is None
    other = Client(client.server, MAC2)
    assert other.says(RELEASE, {54: GATEWAY}, ciaddr=GUEST) is None
    assert other.binds() == POOL[0]


def test_decline(client: Client) -> None:
    """RFC 2131 §4.3.3: the address rests, and the client gets another."""
    client.binds()
    assert client.says(DECLINE, {50: GUEST, 54: GATEWAY}) is None
    client.now = dhcpv4.DECLINE_SECONDS - 0.1
    assert client.binds() == POOL[0]
    assert client.hears(REQUEST, {50: GUEST}).kind == NAK
    other = Client(client.server, MAC2)
    other.now = dhcpv4.DECLINE_SECONDS
    assert other.binds() == GUEST


def test_what_declines_nothing(client: Client) -> None:
    client.binds()
    other = Client(client.server, MAC2)
    assert other.says(DECLINE, {50: GUEST, 54: GATEWAY}) is None
    assert other.says(DECLINE) is None
    assert client.says(DECLINE, {50: GUEST, 54: ip(9)}) is None
    assert client.says(DECLINE, {50: ip(20), 54: GATEWAY}) is None
    assert client.hears(REQUEST, ciaddr=GUEST).kind == ACK


def test_inform(client: Client) -> None:
    """RFC 2131 §4.3.5: parameters, no lease, no yiaddr; to ciaddr."""
    ack = client.hears(INFORM, ciaddr=ip(50), flags=0x8000)
    assert (ack.kind, ack.ciaddr, ack.yiaddr, ack.to) == (ACK, ip(50), ANY, (ip(50), MAC))
    assert ack.options.keys() == {53, 54, 1, 3, 6, 12, 15, 26, 119, 121}
    assert client.hears(INFORM, {55: b"\x06\x33"}).broadcast, "an INFORM that hides its address"
    assert client.hears(INFORM, {55: b"\x06\x33"}).options.keys() == {53, 54, 6}
    assert client.says(INFORM, ciaddr=ip(50, b"\xc0\xa8\x01")) is None, "not of this link"
    assert Client(client.server, MAC2).binds() == GUEST, "nothing was leased"


@pytest.mark.parametrize("kind", [0, OFFER, ACK, NAK, 9, 255])
def test_what_is_no_clients_message(client: Client, kind: int) -> None:
    assert client.says(kind, {50: GUEST}, ciaddr=GUEST) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bootp({53: b"\x01"})[:239],
        bootp({53: b"\x01"}, op=2),
        bootp({53: b"\x01"}, giaddr=ip(9)),
        bootp({}),
        bootp({53: b""}),
        bootp({53: b"\x01\x01"}),
        bootp({53: b"\x01"}).ljust(4097, b"\x00"),
    ],
    ids=["nothing", "cut", "a reply", "relayed", "BOOTP", "no type", "two types", "too long"],
)
def test_what_is_not_answered(server: Server, message: bytes) -> None:
    assert server.answer(message, MAC, 0.0) is None


# -- options -----------------------------------------------------------------------------------------------------


def test_the_parameter_request_list(client: Client) -> None:
    """RFC 2132 §9.8: those and no others, in that order, but for the mask, which is first (§3.3)."""
    offer = client.hears(DISCOVER, {55: bytes((121, 3, 42, 6, 1, 6, 0, 255, 52))})
    assert list(offer.options) == [53, 54, 51, 58, 59, 1, 121, 3, 6]
    assert list(client.hears(DISCOVER, {55: b""}).options) == [53, 54, 51, 58, 59]


@pytest.mark.parametrize(
    ("asked", "given_"),
    [(3600, 3600), (1_000_000, 86400), (0xFFFFFFFF, 86400), (dhcpv4.MIN_LEASE_SECONDS - 1, 60), (0, 60)],
)
def test_a_shorter_lease(client: Client, asked: int, given_: int) -> None:
    options = client.hears(DISCOVER, {51: asked.to_bytes(4, "big")}).options
    assert [int.from_bytes(options[n], "big") for n in (51, 58, 59)] == [given_, given_ // 2, given_ * 7 // 8]


def test_the_configured_lease() -> None:
    client = Client(Server(replace(CONFIG, lease_seconds=30)))
    assert client.hears(DISCOVER, {51: bytes(4)}).options[51] == (30).to_bytes(4, "big")
    assert client.hears(DISCOVER, {51: b"\x01"}).options[51] == (30).to_bytes(4, "big")


def test_what_is_empty_is_not_told() -> None:
    config = Config(server_ip=GATEWAY, mask=b"\xff\xff\xff\x00", guest_ip=GUEST, domain="dömäin", hostname="h" * 256)
    assert Client(Server(config)).hears(DISCOVER).options.keys() == {53, 54, 51, 58, 59, 1}


def test_a_router_off_the_subnet() -> None:
    """RFC 3442, "local subnet routes": a route to it on the link comes first."""
    router = bytes((192, 0, 2, 1))
    config = replace(CONFIG, router=router)
    assert Client(Server(config)).hears(DISCOVER).options[121] == b"\x20" + router + ANY + b"\x00" + router


LONG = tuple(f"{'x' * 50}.example{n}" for n in range(20))


@pytest.mark.parametrize(
    ("config", "asked", "room"),
    [
        (CONFIG, {}, 576),
        (CONFIG, {57: b"\x00\x44"}, 576),
        (CONFIG, {57: b"\x02\x58"}, 600),
        (CONFIG, {57: b"\x05\xdc"}, 1500),
        (CONFIG, {57: b"\xff\xff"}, 1500),
        (replace(CONFIG, mtu=65520), {57: b"\xff\xff"}, 65520),
        (replace(CONFIG, mtu=0), {57: b"\xff\xff"}, 65535),
        (replace(CONFIG, mtu=400), {57: b"\xff\xff"}, 400),
        (replace(CONFIG, mtu=68), {57: b"\xff\xff"}, 328),
    ],
)
def test_no_more_than_the_client_takes(config: Config, asked: dict[int, bytes], room: int) -> None:
    """RFC 2131 §2, RFC 2132 §9.10: what finds no room is left out whole; an option of 300 octets is cut in two."""
    long = Client(Server(replace(config, search=LONG))).hears(DISCOVER, asked)
    assert long.size + 28 <= room
    assert (119 in long.options) == (room >= 1660)
    short = Client(Server(replace(config, search=LONG[:4]))).hears(DISCOVER, asked)
    assert short.size + 28 <= room
    assert (119 in short.options) == (room >= 600)
    assert short.options[1] == CONFIG.mask and short.options[121] == b"\x00" + GATEWAY
    exact = Client(Server(replace(config, search=()))).hears(DISCOVER, {**asked, 61: b"i" * 2000})
    assert (61 in exact.options) == (room > 2500)


@pytest.mark.parametrize(("length", "size"), [(252, 548), (253, 300)])
def test_to_the_last_octet(length: int, size: int) -> None:
    """Header and cookie are 240, 53 54 51 58 59 are 27, DNS 26, END 1: leaves 254 of 576 - 28."""
    config = Config(server_ip=GATEWAY, mask=b"", guest_ip=GUEST, dns=(DNS,) * 6, domain="d" * length)
    heard = Client(Server(config)).hears(DISCOVER)
    assert heard.size == size
    assert (15 in heard.options) == (size == 548)


# -- real clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discover", "request_"),
    [
        (dhcp_clients.UDHCPC_DISCOVER, dhcp_clients.UDHCPC_REQUEST),
        (dhcp_clients.DHCLIENT_DISCOVER, dhcp_clients.DHCLIENT_REQUEST),
    ],
    ids=["udhcpc", "dhclient"],
)
def test_udhcpc_and_dhclient(server: Server, discover: bytes, request_: bytes) -> None:
    """One after the other on the same interface they are the same guest."""
    for asked, kind in ((discover, OFFER), (request_, ACK)):
        reply = server.answer(asked, MAC, 0.0)
        assert reply is not None
        heard = Heard(reply, asked)
        assert (heard.kind, heard.yiaddr, heard.to) == (kind, GUEST, (GUEST, MAC))
        assert {1, 3, 6, 15, 51, 54} <= heard.options.keys()
    assert Client(server, MAC).binds() == GUEST


def test_dhclient_releases(server: Server) -> None:
    server.answer(dhcp_clients.DHCLIENT_REQUEST, MAC, 0.0)
    assert server.answer(dhcp_clients.DHCLIENT_RELEASE, MAC, 1.0) is None
    assert Client(server, MAC2).binds() == GUEST


def test_dhcpcd_commits_rapidly_and_is_then_the_same_guest(server: Server) -> None:
    """dhclient, without an identifier, was there before it."""
    server.answer(dhcp_clients.DHCLIENT_REQUEST, MAC, 0.0)
    reply = server.answer(dhcp_clients.DHCPCD_DISCOVER, MAC, 1.0)
    assert reply is not None
    heard = Heard(reply, dhcp_clients.DHCPCD_DISCOVER)
    assert (heard.kind, heard.yiaddr) == (ACK, GUEST) and heard.options[80] == b""
    assert heard.options[61][0] == 255 and heard.options[26] == (1500).to_bytes(2, "big")


# -- any bytes ---------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=80), st.sampled_from([ANY, GUEST, ip(9)])), max_size=6))
def test_any_options(life: list[tuple[int, bytes, bytes]]) -> None:
    """Invariant: no exception, and a reply is well formed and gives only what is ours to give."""
    server = Server(CONFIG)
    for kind, noise, ciaddr in life:
        asked = bootp({53: bytes((kind,))}, ciaddr=ciaddr)[:-1] + noise
        reply = server.answer(asked, MAC, 0.0)
        if reply is not None:
            assert Heard(reply, asked).yiaddr in (ANY, GUEST, *POOL)
