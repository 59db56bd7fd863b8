"""The DHCPv6 server as a guest sees it: RFC 8415 §16, §18.3, and what real clients sent."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.prop import quick

from netd.services import dhcpv6
from netd.services.dhcpv6 import Config, Server

from . import dhcp_clients

SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE, RECONFIGURE, INFORMATION = range(1, 12)
NA, TA, PD = 3, 4, 25
NO_ADDRS, NO_BINDING, NOT_ON_LINK, NO_PREFIX = 2, 3, 4, 6
GUEST, DNS = (b"\xfd" + bytes(13) + tail for tail in (b"\x01\x00", b"\x00\x03"))
OTHER, FOREIGN = b"\xfd" + bytes(14) + b"\x77", b"\x20\x01" + bytes(13) + b"\x01"
MAC = b"\x52\x55\x0a\x00\x02\x02"
OURS = b"\x00\x03\x00\x01" + MAC
DUID = b"\x00\x04" + b"u" * 16
XID = b"\x0a\x0b\x0c"
CONFIG = Config(server_mac=MAC, guest_ip=GUEST, dns=(DNS,), search=("example.org",))

Options = list[tuple[int, bytes]]


def tlv(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def ia(code: int, *addresses: bytes, iaid: int = 1) -> tuple[int, bytes]:
    head = struct.pack("!I", iaid) + (b"" if code == TA else struct.pack("!II", 3600, 5400))
    return code, head + b"".join(tlv(5, a + struct.pack("!II", 7200, 7500)) for a in addresses)


def say(kind: int, options: Options, xid: bytes = XID) -> bytes:
    return bytes((kind,)) + xid + b"".join(tlv(*o) for o in options)


def read(data: bytes) -> Options:
    """What the server wrote, to the last octet."""
    found = []
    while data:
        code, length = struct.unpack("!HH", data[:4])
        assert len(data) >= 4 + length
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return found


@dataclass
class Association:
    """An IA of a reply: addresses with their lifetimes, and the status."""

    iaid: int
    times: tuple[int, int]
    addresses: dict[bytes, tuple[int, int]]
    status: int | None


class Heard:
    def __init__(self, message: bytes) -> None:
        self.kind, self.xid, self.size = message[0], message[1:4], len(message)
        self.options: dict[int, bytes] = {}
        self.associations: dict[int, list[Association]] = {NA: [], TA: [], PD: []}
        for code, value in read(message[4:]):
            if code in self.associations:
                self.associations[code].append(self._association(code, value))
            else:
                assert code not in self.options
                self.options[code] = value
        assert self.options[2] == OURS
        self.status = int.from_bytes(self.options[13][:2], "big") if 13 in self.options else None

    @staticmethod
    def _association(code: int, value: bytes) -> Association:
        head = 4 if code == TA else 12
        inner = read(value[head:])
        statuses = [int.from_bytes(v[:2], "big") for c, v in inner if c == 13]
        addresses = {v[:16]: struct.unpack("!II", v[16:]) for c, v in inner if c == 5}
        assert len(statuses) <= 1 and len(statuses) + len(addresses) == len(inner)
        t1, t2 = (0, 0) if code == TA else struct.unpack("!II", value[4:12])
        return Association(int.from_bytes(value[:4], "big"), (t1, t2), addresses, (statuses or [None])[0])

    @property
    def one(self) -> Association:
        """Its only IA_NA."""
        (found,) = self.associations[NA]
        return found


class Client:
    """A guest that says what it likes."""

    def __init__(self, server: Server, duid: bytes = DUID) -> None:
        self.server, self.duid, self.now = server, duid, 0.0

    def says(self, kind: int, *options: tuple[int, bytes], server: bytes | None = None) -> Heard | None:
        """``server`` is the identifier to name; by default ours where one must be named."""
        if server is None:
            server = OURS if kind in (REQUEST, RENEW, RELEASE, DECLINE) else b""
        named = [(1, self.duid)] * bool(self.duid) + [(2, server)] * bool(server)
        answer = self.server.answer(memoryview(say(kind, [*named, *options])), self.now)
        if answer is None:
            return None
        heard = Heard(answer)
        assert heard.xid == XID and heard.options.get(1, b"") == self.duid
        return heard

    def hears(self, kind: int, *options: tuple[int, bytes], server: bytes | None = None) -> Heard:
        heard = self.says(kind, *options, server=server)
        assert heard is not None
        return heard


FULL = {GUEST: (86400, 86400)}
SEARCH = b"\x07example\x03org\x00"


@pytest.fixture
def server() -> Server:
    return Server(CONFIG)


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)


# -- an address ---------------------------------------------------------------------------------------------------


def test_the_guest_gets_its_address_and_all_it_must_know(client: Client) -> None:
    advertise = client.hears(SOLICIT, ia(NA))
    assert advertise.kind == ADVERTISE and advertise.options[7] == b"\xff"
    reply = client.hears(REQUEST, ia(NA, GUEST, iaid=7))
    assert reply.kind == REPLY and reply.options == {1: DUID, 2: OURS, 23: DNS, 24: SEARCH}
    for heard, iaid in ((advertise, 1), (reply, 7)):
        assert heard.one == Association(iaid, (43200, 69120), FULL, None)


def test_whoever_asks_is_the_guest(server: Server) -> None:
    """A new DUID is the same guest on a fresh file system."""
    for duid in (DUID, b"\x00\x01again", b"\x00\x01and again"):
        assert Client(server, duid).hears(REQUEST, ia(NA)).one.addresses == FULL


def test_hints_are_not_taken(client: Client) -> None:
    assert client.hears(SOLICIT, ia(NA, OTHER)).one.addresses == FULL
    assert client.hears(SOLICIT, ia(NA, FOREIGN)).one.addresses == FULL
    assert client.hears(REQUEST, ia(NA, OTHER)).one.addresses == FULL


def test_not_on_this_link(client: Client) -> None:
    """RFC 8415 §18.3.2: the IA as a whole."""
    heard = client.hears(REQUEST, ia(NA, GUEST, FOREIGN), ia(TA, FOREIGN))
    assert heard.one == Association(1, (0, 0), {}, NOT_ON_LINK)
    assert heard.associations[TA] == [Association(1, (0, 0), {}, NOT_ON_LINK)]


def test_rapid_commit(client: Client) -> None:
    """RFC 8415 §18.3.1."""
    heard = client.hears(SOLICIT, (14, b""), ia(NA), ia(PD))
    assert heard.kind == REPLY and heard.options[14] == b"" and 7 not in heard.options
    assert heard.one.addresses == FULL and heard.associations[PD][0].status == NO_PREFIX


def test_a_rapid_commit_of_nothing_is_an_advertise(client: Client) -> None:
    for options in ([ia(PD)], [ia(TA)], []):
        heard = client.hears(SOLICIT, (14, b""), *options)
        assert heard.kind == ADVERTISE and 14 not in heard.options
    client.hears(DECLINE, ia(NA, GUEST))
    assert client.hears(SOLICIT, (14, b""), ia(NA)).kind == ADVERTISE


@pytest.mark.parametrize("kind", [SOLICIT, REQUEST, RENEW, REBIND])
def test_what_there_is_none_of(client: Client, kind: int) -> None:
    heard = client.hears(kind, ia(TA), ia(PD), ia(NA), ia(NA, iaid=2))
    assert heard.associations[TA] == [Association(1, (0, 0), {}, NO_ADDRS)]
    assert heard.associations[PD] == [Association(1, (0, 0), {}, NO_PREFIX)]
    first, second = heard.associations[NA]
    assert first.addresses == FULL and second == Association(2, (0, 0), {}, NO_ADDRS)


@pytest.mark.parametrize("kind", [RENEW, REBIND])
def test_what_is_old_is_taken_back(client: Client, kind: int) -> None:
    """RFC 8415 §18.3.4, §18.3.5: lifetimes of zero."""
    heard = client.hears(kind, ia(NA, OTHER, FOREIGN), ia(NA, GUEST, FOREIGN, iaid=2), ia(TA, OTHER))
    other, ours = heard.associations[NA]
    assert ours == Association(2, (43200, 69120), FULL | {FOREIGN: (0, 0)}, None), "where it was"
    assert other == Association(1, (0, 0), {OTHER: (0, 0), FOREIGN: (0, 0)}, NO_ADDRS)
    assert heard.associations[TA] == [Association(1, (0, 0), {OTHER: (0, 0)}, NO_ADDRS)]
    assert heard.options.keys() == {1, 2, 23, 24}


def test_a_renewal_in_two_associations_keeps_the_address(client: Client) -> None:
    first, second = client.hears(RENEW, ia(NA, GUEST), ia(NA, GUEST, iaid=2)).associations[NA]
    assert first.addresses == FULL and second.addresses == {}


# -- confirm, release, decline --------------------------------------------------------------------------------


def test_confirm(client: Client) -> None:
    """RFC 8415 §18.3.3."""
    heard = client.hears(CONFIRM, ia(NA, GUEST), ia(TA, OTHER))
    assert (heard.kind, heard.status) == (REPLY, 0) and heard.options.keys() == {1, 2, 13}
    assert client.hears(CONFIRM, ia(NA, GUEST, FOREIGN)).status == NOT_ON_LINK
    assert client.says(CONFIRM, ia(NA)) is None
    assert client.says(CONFIRM) is None


@pytest.mark.parametrize(("length", "status"), [(0, 0), (16, NOT_ON_LINK), (120, NOT_ON_LINK), (128, NOT_ON_LINK)])
def test_on_link_is_the_prefix(length: int, status: int) -> None:
    client = Client(Server(replace(CONFIG, prefix_length=length)))
    assert client.hears(CONFIRM, ia(NA, FOREIGN)).status == status
    assert client.hears(CONFIRM, ia(NA, GUEST)).status == 0


@pytest.mark.parametrize("kind", [RELEASE, DECLINE])
def test_what_was_never_bound(client: Client, kind: int) -> None:
    """RFC 8415 §18.3.7, §18.3.8."""
    heard = client.hears(kind, ia(NA, GUEST), ia(NA, OTHER, iaid=2), ia(TA, GUEST), ia(PD))
    assert (heard.kind, heard.status) == (REPLY, 0) and heard.options.keys() == {1, 2, 13}
    assert heard.one == Association(2, (0, 0), {}, NO_BINDING)
    assert [i.status for code in (TA, PD) for i in heard.associations[code]] == [NO_BINDING] * 2


def test_who_declined_is_not_given_it_again_for_a_while(client: Client) -> None:
    client.hears(DECLINE, ia(NA, GUEST))
    other = Client(client.server, b"\x00\x04other")
    assert other.hears(SOLICIT, ia(NA)).one.addresses == FULL, "whose it is"
    client.now = dhcpv6.DECLINE_SECONDS - 0.1
    assert client.hears(SOLICIT, ia(NA)).one == Association(1, (0, 0), {}, NO_ADDRS)
    assert client.hears(RENEW, ia(NA, GUEST)).one == Association(1, (0, 0), {GUEST: (0, 0)}, NO_ADDRS)
    client.now = dhcpv6.DECLINE_SECONDS
    assert client.hears(SOLICIT, ia(NA)).one.addresses == FULL


def test_what_declines_nothing(client: Client) -> None:
    client.hears(DECLINE, ia(NA, OTHER))
    client.hears(DECLINE, ia(NA))
    client.hears(RELEASE, ia(NA, GUEST))
    assert client.hears(SOLICIT, ia(NA)).one.addresses == FULL


def test_so_many_are_remembered(server: Server) -> None:
    """Bound: MAX_DECLINED; the one that declined longest ago is forgotten, and a repetition makes it young."""
    clients = [Client(server, bytes((0, 4, n))) for n in range(dhcpv6.MAX_DECLINED + 1)]

    def given() -> list[int]:
        return [n for n, c in enumerate(clients) if c.hears(SOLICIT, ia(NA)).one.addresses]

    for c in [*clients[:-1], clients[1], clients[0]]:
        c.hears(DECLINE, ia(NA, GUEST))
    assert given() == [dhcpv6.MAX_DECLINED], "a repetition pushes nobody out"
    clients[-1].hears(DECLINE, ia(NA, GUEST))
    assert given() == [2]


# -- configuration ------------------------------------------------------------------------------------------------


def test_information_request(client: Client) -> None:
    """RFC 8415 §18.3.6, §16.12: with or without identifiers."""
    assert client.hears(INFORMATION).options == {1: DUID, 2: OURS, 23: DNS, 24: SEARCH}
    assert client.hears(INFORMATION, server=OURS).kind == REPLY
    nobody = Client(client.server, b"")
    assert nobody.hears(INFORMATION, (6, b"\x00\x17\x00\x20")).options == {
        2: OURS,
        23: DNS,
        32: (86400).to_bytes(4, "big"),
    }
    assert client.says(INFORMATION, server=b"\x00\x03another") is None
    for code in (NA, TA, PD):
        assert client.says(INFORMATION, ia(code)) is None


def test_the_option_request(client: Client) -> None:
    """RFC 8415 §21.7."""
    assert client.hears(REQUEST, ia(NA), (6, b"\x00\x18")).options.keys() == {1, 2, 24}
    assert client.hears(SOLICIT, ia(NA), (6, b"\x00\x17\x00")).options.keys() == {1, 2, 7, 23}
    assert client.hears(RENEW, ia(NA), (6, b"")).options.keys() == {1, 2}


def test_what_is_empty_is_not_told() -> None:
    client = Client(Server(Config(server_mac=MAC, guest_ip=GUEST, preference=0, preferred_seconds=100)))
    heard = client.hears(SOLICIT, ia(NA))
    assert heard.options == {1: DUID, 2: OURS, 7: b"\x00"}
    assert heard.one == Association(1, (50, 80), {GUEST: (100, 86400)}, None)


# -- who must be named (RFC 8415 §16) --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(1, 12))
@pytest.mark.parametrize("duid", [DUID, b""])
@pytest.mark.parametrize("named", [OURS, b"\x00\x03\x00\x01another", b"none"])
def test_identifiers(server: Server, kind: int, duid: bytes, named: bytes) -> None:
    with_server = {REQUEST, RENEW, RELEASE, DECLINE}
    without = {SOLICIT, CONFIRM, REBIND}
    options = [] if kind == INFORMATION else [ia(NA, GUEST)]
    heard = Client(server, duid).says(kind, *options, server=b"" if named == b"none" else named)
    if kind == INFORMATION:
        assert bool(heard) == (named in (OURS, b"none"))
    elif kind in with_server | without:
        fits = named == (OURS if kind in with_server else b"none")
        assert (heard is not None) == (fits and bool(duid))
    else:
        assert heard is None, "not a client's"


@pytest.mark.parametrize(("size", "good"), [(0, False), (2, False), (3, True), (130, True), (131, False)])
@pytest.mark.parametrize("kind", [SOLICIT, INFORMATION])
def test_the_length_of_a_duid(server: Server, kind: int, size: int, good: bool) -> None:
    """RFC 8415 §11.1."""
    assert (server.answer(say(kind, [(1, b"d" * size)]), 0.0) is not None) == good


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01\x00\x00",
        say(SOLICIT, [(1, DUID)])[:-1],
        say(12, [(1, DUID)]),
        say(SOLICIT, [(1, DUID), (99, bytes(4096))]),
    ],
    ids=["nothing", "cut header", "cut option", "relay-forward", "too long"],
)
def test_what_is_not_answered(server: Server, message: bytes) -> None:
    assert server.answer(message, 0.0) is None


def test_the_full_name_is_told_to_who_asks() -> None:
    """RFC 4704 §4.1."""
    client = Client(Server(replace(CONFIG, fqdn="box.example.org")))
    assert client.hears(SOLICIT, ia(NA), (6, b"\x00\x27")).options[39] == b"\x04\x03box\x07example\x03org\x00"
    assert 39 not in client.hears(SOLICIT, ia(NA), (6, b"\x00\x17")).options


# -- bounds -------------------------------------------------------------------------------------------------------


def test_so_many_associations_and_addresses() -> None:
    """Bounds: MAX_ASSOCIATIONS, MAX_ADDRESSES; and then a reply still fits an IPv6 packet of 1280 octets."""
    search = tuple("x" * 40 + f"{n}.org" for n in range(5))  # what resolv.conf(5) takes, 256 characters
    client = Client(Server(replace(CONFIG, dns=(DNS,) * 3, search=search)), b"d" * 130)
    client.hears(DECLINE, ia(NA, GUEST))
    addresses = [OTHER[:-1] + bytes((n,)) for n in range(5)]
    heard = client.hears(RENEW, *(ia(NA, *addresses, iaid=n) for n in range(20)))
    assert [i.iaid for i in heard.associations[NA]] == list(range(dhcpv6.MAX_ASSOCIATIONS))
    assert all(len(i.addresses) == dhcpv6.MAX_ADDRESSES for i in heard.associations[NA])
    assert heard.size + 48 <= 1280


def test_malformed_associations_are_left_out(client: Client) -> None:
    heard = client.hears(SOLICIT, (NA, b"short"), (TA, b""), ia(NA, iaid=3))
    assert heard.one.iaid == 3 and not heard.associations[TA]


# -- real clients -------------------------------------------------------------------------------------------------


def test_dhclient(server: Server) -> None:
    """With -P -N: a prefix, too."""
    for message, kind in ((dhcp_clients.DHCLIENT6_SOLICIT, ADVERTISE), (dhcp_clients.DHCLIENT6_REQUEST, REPLY)):
        answer = server.answer(message, 0.0)
        assert answer is not None and answer[1:4] == message[1:4]
        heard = Heard(answer)
        assert heard.kind == kind and heard.one.addresses == FULL
        assert heard.associations[PD][0].status == NO_PREFIX
        assert heard.options[23] == DNS and heard.options[24] == SEARCH
    answer = server.answer(dhcp_clients.DHCLIENT6_RELEASE, 1.0)
    assert answer is not None and Heard(answer).status == 0 and not Heard(answer).associations[NA]


def test_dhcpcd(server: Server) -> None:
    answer = server.answer(dhcp_clients.DHCPCD6_SOLICIT, 0.0)
    assert answer is not None
    heard = Heard(answer)
    assert heard.kind == REPLY and 14 in heard.options and heard.one.addresses == FULL


# -- any bytes ---------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 12), st.binary(max_size=120), st.booleans())
def test_any_options(kind: int, noise: bytes, named: bool) -> None:
    """Invariant: no exception, and a reply is well formed and of the same transaction."""
    message = say(kind, [(1, DUID)] + [(2, OURS)] * named) + noise
    answer = Server(CONFIG).answer(message, 0.0)
    assert answer is None or Heard(answer).xid == XID
