"""What people look for trouble with, from inside a guest: the hops, the names and the errors are the true ones."""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd.settings import Settings
from tests.guest.programs import DNS6, GATEWAY6, SIX, needs, open_ping_sockets, says, start
from tests.guest.test_guest_dns import NameServer, name_servers, names
from tests.lab import HOST, OUTSIDE, PATIENCE, SILENT, UNREACHABLE, Netns, World, aside, until
from tests.relay.beyond import BEYOND, BEYOND6, HOST6, OUTSIDE6, Beyond
from tests.stage import Attach

FAR = {4: BEYOND, 6: BEYOND6}
ROUTER = {4: OUTSIDE, 6: OUTSIDE6}
SIZE = 60_000
both = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(autouse=True)
def _pings(world: World) -> None:
    open_ping_sockets(world)


@needs("ping")
@both
async def test_ping_reaches_everybody(beyond: Beyond, attach: Attach, family: int) -> None:
    guest = await attach(**SIX)
    gateway = {4: "10.0.2.2", 6: GATEWAY6}[family]
    targets = [gateway, {4: HOST, 6: HOST6}[family], ROUTER[family], FAR[family]]
    for target in (*targets, *(["fe80::2%tap0"] if family == 6 else [])):
        said = await says(guest, "ping", f"-{family}", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-s", "1000", target)
        assert "2 received, 0% packet loss" in said


@needs("ping")
@both
async def test_ping_with_a_time_to_live_of_one_hears_of_the_router(beyond: Beyond, attach: Attach, family: int) -> None:
    guest = await attach(**SIX)
    command = ("ping", f"-{family}", "-n", "-c", "1", "-W", "5", "-t", "1", FAR[family])
    said = await says(guest, *command, status=1)
    assert re.search(rf"From {ROUTER[family]}:? icmp_seq=1 Time (to live )?exceeded", said)


@needs("ping")
async def test_ping_hears_of_a_host_that_is_not_there(beyond: Beyond, attach: Attach) -> None:
    guest = await attach(**SIX)
    said = await says(guest, "ping", "-n", "-c", "1", "-W", "5", UNREACHABLE, status=1)
    assert f"From {OUTSIDE} icmp_seq=1 Destination Host Unreachable" in said
    said = await says(guest, "ping", "-6", "-n", "-c", "1", "-W", "5", "2001:db8:f:1::1", status=1)
    assert f"From {OUTSIDE6} icmp_seq=1 Destination unreachable: No route" in said


@needs("ping")
@both
async def test_ping_hears_of_a_narrow_path(beyond: Beyond, attach: Attach, family: int) -> None:
    """The link to the far network takes 1300 bytes."""
    guest = await attach(**SIX, mtu=1500)
    command = ("ping", f"-{family}", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-M", "do", "-s", "1400", FAR[family])
    said = await says(guest, *command, status=1)
    assert re.search(rf"From {ROUTER[family]}:? icmp_seq=1 (Frag needed|Packet too big).*mtu ?= ?1300", said)
    assert "mtu=1300" in said.replace(" ", "")  # the second one: the guest's kernel has learned it
    await says(guest, "ping", f"-{family}", "-n", "-c", "1", "-W", "5", "-s", "1400", FAR[family])


@needs("traceroute")
@pytest.mark.parametrize("method", [[], ["-I"]], ids=["udp", "icmp"])
@both
async def test_traceroute_shows_every_hop(beyond: Beyond, attach: Attach, family: int, method: list[str]) -> None:
    guest = await attach(**SIX)
    said = await says(guest, "traceroute", f"-{family}", "-n", "-w", "5", "-m", "5", *method, FAR[family])
    hops = [line.split()[1] for line in said.splitlines()[1:]]
    assert hops == [ROUTER[family], FAR[family]]
    assert "*" not in said and "!" not in said


@needs("traceroute")
async def test_traceroute_marks_what_a_router_refuses(beyond: Beyond, attach: Attach) -> None:
    guest = await attach(**SIX)
    said = await says(guest, "traceroute", "-n", "-q", "1", "-w", "1", "-m", "3", UNREACHABLE)
    assert re.search(rf"^ 1  {OUTSIDE}  .*!H", said, re.MULTILINE)
    said = await says(guest, "traceroute", "-n", "-q", "1", "-w", "0.2", "-m", "2", SILENT)
    assert said.count("*") == 2


@needs("mtr")
@pytest.mark.parametrize("method", [[], ["--udp"]], ids=["icmp", "udp"])
@both
async def test_mtr_loses_nothing(beyond: Beyond, attach: Attach, family: int, method: list[str]) -> None:
    guest = await attach(**SIX)
    said = await says(guest, "mtr", f"-{family}", "--report", "-n", "-c", "3", "-i", "0.2", *method, FAR[family])
    rows = re.findall(r"\|-- (\S+) +(\S+?)%? +(\d+) ", said)
    assert rows == [(ROUTER[family], "0.0", "3"), (FAR[family], "0.0", "3")]


@pytest.fixture
def page(beyond: Beyond, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(text, port) of a web server on both families of the far machine."""
    text = os.urandom(50_000).hex()
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "page").write_text(text)
    command = ["python3", "-u", "-m", "http.server", "--bind", "::", "--directory", str(tmp_path / "www"), "8000"]
    server = start(beyond.far, *command)
    assert server.stdout is not None
    server.stdout.readline()
    yield text, "8000"
    server.kill()
    server.communicate()


@needs("curl")
@both
async def test_curl(beyond: Beyond, attach: Attach, page: tuple[str, str], tmp_path: Path, family: int) -> None:
    guest = await attach(**SIX, mtu=1500)
    text, port = page
    address = f"[{BEYOND6}]" if family == 6 else BEYOND
    said = await says(
        *(guest, "curl", f"-{family}", "-sS", "-m", "20", "-o", str(tmp_path / "got")),
        *("-w", "%{remote_ip} %{http_code} %{size_download}\n", f"http://{address}:{port}/page"),
    )
    assert said.split() == [FAR[family], "200", str(len(text))]
    assert (tmp_path / "got").read_text() == text


@needs("dig")
@pytest.mark.parametrize("transport", [[], ["+tcp"]], ids=["udp", "tcp"])
@both
async def test_dig(world: World, attach: Attach, settings: Settings, family: int, transport: list[str]) -> None:
    names(settings, OUTSIDE)
    guest = await attach(**SIX)
    server = DNS6 if family == 6 else "10.0.2.3"
    with name_servers(NameServer(world.outside, OUTSIDE)):
        for kind, expected in (("A", OUTSIDE), ("AAAA", f"::ffff:{OUTSIDE}")):
            said = await says(guest, "dig", *transport, "+time=5", "+tries=1", f"@{server}", "www.example", kind)
            assert re.search(rf"^www\.example\.\s+60\s+IN\s+{kind}\s+{re.escape(expected)}$", said, re.MULTILINE)
            assert f";; SERVER: {server}#53({server}) ({'TCP' if transport else 'UDP'})" in said


@needs("nc", "socat", "ping")
@pytest.mark.parametrize("mtu", [1500, 65520])
@pytest.mark.parametrize("program", ["nc", "socat"])
@both
async def test_60_kB_in_datagrams_both_ways(
    beyond: Beyond, attach: Attach, family: int, program: str, mtu: int
) -> None:
    """Larger than the link takes. netcat puts no more than 16 KiB into one, socat all it is given."""
    guest = await attach(**SIX, mtu=mtu)
    address, port, sizes = ROUTER[family], 7000 + family, ("-b", "65507")
    literal = f"[{address}]" if family == 6 else address
    if program == "nc":
        listen = ("nc", f"-{family}", "-u", "-l", "-n", address, str(port))
        connect = ("nc", f"-{family}", "-u", "-n", address, str(port))
    else:
        listen = ("socat", "-T", "10", *sizes, f"UDP{family}-LISTEN:{port},rcvbuf=1000000", "-")
        connect = ("socat", "-T", "10", *sizes, "-", f"UDP{family}:{literal}:{port},rcvbuf=1000000")
    # Until neighbors know each other, a kernel holds back so much at most, and loses the oldest (arp(7), unres_qlen_bytes).
    await says(guest, "ping", f"-{family}", "-n", "-c", "1", "-W", "5", address)
    server = start(beyond.outside, *listen, stdin=subprocess.PIPE)
    await until(lambda: f":{port:04X} " in table_of(beyond.outside, family), "it listens")
    client = start(guest, *connect, stdin=subprocess.PIPE)
    try:
        for frm, to in ((client, server), (server, client)):
            text = os.urandom(SIZE // 2).hex().encode()
            assert frm.stdin is not None
            os.write(frm.stdin.fileno(), text)  # in one piece, and so read in one
            assert await aside(read, to, SIZE) == text
    finally:
        for process in (client, server):
            process.kill()
            process.communicate()
    assert guest.counters()["drop_fragment"] == 0


def read(process: subprocess.Popen[str], size: int) -> bytes:
    """``size`` bytes of what the program prints, or what there was before it stopped."""
    assert process.stdout is not None
    got = b""
    while len(got) < size and select.select([process.stdout], [], [], PATIENCE)[0]:
        chunk = os.read(process.stdout.fileno(), size)
        if not chunk:
            break
        got += chunk
    return got


def table_of(place: Netns, family: int) -> str:
    return place.run("cat", f"/proc/thread-self/net/udp{'6' if family == 6 else ''}")
