"""Ports that Podman has pasta publish: every protocol, family, side and form of 505-networking-pasta.bats, and clashes."""

from __future__ import annotations

import re

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, until
from tests.podman.podman import GENUINE, PASTA, VERSION, Podman
from tests.podman.probes import HOST6, USR, WORLD6, Answer, ask, ask_one, serve

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

ADDRESS = {(4, "tap"): HOST, (6, "tap"): HOST6, (4, "loopback"): "127.0.0.1", (6, "loopback"): "::1"}
ONE_FAMILY = pytest.mark.xfail(VERSION < (6,) and GENUINE, reason="pasta 2025-05 is content with one family")
SHARED = pytest.mark.xfail(GENUINE, reason="pasta shares UDP ports (SO_REUSEADDR)")
INTERFACE = {"tap": "eth0", "loopback": "lo"}


@pytest.mark.parametrize("side", ["tap", "loopback"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_form_of_a_published_port(
    podman: Podman, machine: Machine, protocol: str, family: int, side: str
) -> None:
    """The host asks by its own address ("tap") or loopback: single, range, translated, both, bound to an address
    or an interface. An empty datagram goes through as well, and is answered.
    """
    address, interface = ADDRESS[family, side], INTERFACE[side]
    forms = {
        "single": ([f"-p=5001:5001/{protocol}"], {5001: 5001}),
        "range": ([f"-p=5011-5013:5011-5013/{protocol}"], {p: p for p in (5011, 5012, 5013)}),
        "translated": ([f"-p=5021:6021/{protocol}"], {5021: 6021}),
        "translated range": ([f"-p=5031-5033:6031-6033/{protocol}"], {p: p + 1000 for p in (5031, 5032, 5033)}),
        "address": ([f"-p=[{address}]:5041:6041/{protocol}"], {5041: 6041}),
        "address and range": ([f"-p=[{address}]:5051-5053:5051-5053/{protocol}"], {p: p for p in (5051, 5052, 5053)}),
        "interface": ([], {5061: 5061}),
        "interface and range": ([], {p: p + 1000 for p in (5071, 5072, 5073)}),
    }
    option = f"--{protocol}-ports"
    raw = [option, f"{address}%{interface}/5061", option, f"{address}%{interface}/5071-5073:6071-6073"]
    options = [f"--network=pasta:{','.join(raw)}", *(o for given, _ in forms.values() for o in given)]
    ports = {form: list(pairs.items()) for form, (_, pairs) in forms.items()}
    serve(podman, "who", options, sorted({inner for pairs in ports.values() for _, inner in pairs}))
    questions = [(form, outer, inner) for form, pairs in ports.items() for outer, inner in pairs]
    for words in ("x", ""):
        if words or protocol == "udp":  # a connection of nothing says nothing
            answers = ask(machine, "user", [(protocol, address, outer, words) for _, outer, _ in questions])
            got = [(form, outer, a and (a.family, a.port, a.words)) for (form, outer, _), a in zip(questions, answers, strict=True)]  # fmt: skip
            assert got == [(form, outer, (family, inner, words)) for form, outer, inner in questions]
            sources = {a.source for a in answers if a}
            assert not any(s.startswith("127.") or s == "::1" for s in sources), sources
    closed = [(protocol, address, 5000, "x"), (protocol, address, 5014, "x"), (protocol, address, 6021, "x")]
    assert ask(machine, "user", closed) == [None, None, None]
    outside = ask(machine, "world", [(protocol, HOST if family == 4 else HOST6, p, "x") for p in (5001, 5032, 5041)])
    source = WORLD if family == 4 else WORLD6
    bound = Answer(family, source, 6041, "x") if side == "tap" else None
    assert outside == [Answer(family, source, 5001, "x"), Answer(family, source, 6032, "x"), bound]


def test_a_page_through_a_published_port(podman: Podman) -> None:
    """500: "port on localhost". No host address is both families' wildcard (T12)."""
    podman.up("web", "-p", "8080:80", "--", "httpd", "-f", "-h", "/etc", "-p", "[::]:80")
    for url in ("127.0.0.1", "[::1]", HOST, f"[{HOST6}]"):
        assert podman.answers(f"http://{url}:8080/passwd").startswith("root:")
    for url in (HOST, f"[{HOST6}]"):
        assert podman.answers(f"http://{url}:8080/passwd", "world").startswith("root:")
    for _ in range(20):
        assert podman.answers("http://127.0.0.1:8080/passwd").startswith("root:")


@pytest.mark.parametrize("protocol", ["tcp", pytest.param("udp", marks=SHARED)])
def test_a_busy_port_is_refused_and_its_owner_goes_on(podman: Podman, machine: Machine, protocol: str) -> None:
    serve(podman, "first", ["-p", f"9020:7001/{protocol}"], [7001])
    for publish in (f"9020:7001/{protocol}", f"9018-9021:7018-7021/{protocol}"):
        said = podman("run", "--name", "second", "-p", publish, IMAGE, "true", status=126)
        assert re.search(r"9020.*ddress already in use", said, re.DOTALL), said
        podman("rm", "-f", "second")
    for port, expected in ((9020, Answer(4, WORLD, 7001, "hello")), (9019, None)):
        assert ask_one(machine, "world", protocol, HOST, port) == expected
    podman("rm", "-f", "-t0", "first")
    serve(podman, "third", ["-p", f"9020:7001/{protocol}"], [7001])
    assert ask_one(machine, "world", protocol, HOST, 9020) == Answer(4, WORLD, 7001, "hello")


@ONE_FAMILY
def test_a_port_of_another_programs_is_refused(podman: Podman, machine: Machine) -> None:
    other = machine.start(["python3", "-m", "http.server", "9025", "-b", "0.0.0.0"])
    try:
        until(lambda: "9025" in machine.run(["ss", "-Hltn"]), "other server")
        said = podman("run", "--rm", "-p", "9025:80", IMAGE, "true", status=126)
        assert re.search(r"9025.*ddress already in use", said, re.DOTALL), said
    finally:
        other.end()
        other.communicate()


@ONE_FAMILY
def test_a_wildcard_holds_both_families(podman: Podman) -> None:
    """500 of Podman 6: "dual-stack conflicts with explicit wildcards"."""
    podman.up("both", "-p", "9030:8080", "--", "sleep", "60")
    for wildcard in ("0.0.0.0", "[::]"):
        said = podman("run", "--rm", "-p", f"{wildcard}:9030:8080", IMAGE, "true", status=126)
        assert "ddress already in use" in said and "9030" in said, said
    podman("rm", "-f", "-t0", "both")
    if VERSION < (6,):  # which takes 0.0.0.0 for no address
        return
    podman.up("four", "-p", "0.0.0.0:9030:8080", "--", "sleep", "60")
    podman.up("six", "-p", "[::]:9030:8080", "--", "sleep", "60")
    said = podman("run", "--rm", "-p", "9030:8080", IMAGE, "true", status=126)
    assert "ddress already in use" in said and "9030" in said, said


def test_the_port_is_really_bound(podman: Podman, machine: Machine) -> None:
    """500: "port forward range" has another program find the host's port taken."""
    podman.up("range", "-p", "127.0.0.1:9040-9042:7040-7042", "--", "sleep", "60")
    bind = "import socket, sys; socket.socket().bind(('127.0.0.1', int(sys.argv[1])))"
    for port, status in ((9040, 1), (9041, 1), (9042, 1), (9043, 0)):
        said = machine.run(["/usr/bin/python3", "-c", bind, str(port)], status=status)
        assert ("ddress already in use" in said) == bool(status)


def test_only_the_named_host_address_listens(podman: Podman, machine: Machine) -> None:
    serve(podman, "who", ["-p", "127.0.0.1:9050:7001", "-p", "127.0.0.1:9050:7001/udp"], [7001])
    for protocol in ("tcp", "udp"):
        assert ask_one(machine, "user", protocol, "127.0.0.1", 9050) is not None
        assert ask_one(machine, "user", protocol, HOST, 9050) is None
        assert ask_one(machine, "world", protocol, HOST, 9050) is None


def test_what_listens_on_the_containers_loopback_is_not_published(podman: Podman, machine: Machine) -> None:
    """podman#24045: a forward ends at the container's public address, also for the host's loopback."""
    podman.up("inner", "-p", "9060:80", "--", "httpd", "-f", "-h", "/etc", "-p", "127.0.0.1:80")
    until(lambda: podman("exec", "inner", "wget", "-qO-", "http://127.0.0.1/passwd", status=None), "server")
    for who, address in (("user", "127.0.0.1"), ("user", HOST), ("world", HOST)):
        said = machine.run(["curl", "-s", "-m", "5", f"http://{address}:9060/passwd"], who, status=None)
        assert "root:" not in said


def test_the_source_of_a_connection_is_kept(podman: Podman, machine: Machine) -> None:
    """Also with an address of the container's own, and with a user namespace of its own."""
    for options in (["--network=pasta:-a,192.0.2.50,-g,192.0.2.1,-n,24"], ["--userns=keep-id"]):
        serve(podman, "who", [*options, "-p", "9070:7001", "-p", "9070:7001/udp"], [7001])
        for protocol in ("tcp", "udp"):
            assert ask_one(machine, "world", protocol, HOST, 9070) == Answer(4, WORLD, 7001, "hello")
        podman("rm", "-f", "-t0", "who")


@pytest.mark.xfail(GENUINE and VERSION < (6,), strict=False, reason="pasta 2025-05 now and then cuts one short")
def test_sixteen_downloads_at_once(podman: Podman, machine: Machine) -> None:
    make = "mkdir -p /www; head -c 2000000 /dev/urandom >/www/f; md5sum </www/f; exec httpd -f -h /www"
    podman.up("web", "-p", "9080:80", "--", "sh", "-c", make)
    whole = until(lambda: podman("logs", "web").split(), "file to fetch")[0]
    until(lambda: machine.run(["sh", "-c", f"curl -sf http://{HOST}:9080/f | wc -c"]) == "2000000", "server")
    for who, address in (("world", HOST), ("user", "127.0.0.1")):
        fetch = f"seq 16 | xargs -P16 -I% sh -c 'curl -sf -m 20 http://{address}:9080/f | md5sum'"
        sums = machine.run(["sh", "-c", fetch], who)
        assert [line.split()[0] for line in sums.splitlines()] == [whole] * 16


def test_three_hundred_clients_one_after_the_other(podman: Podman, machine: Machine) -> None:
    serve(podman, "who", ["-p", "9090:7001"], [7001])
    for _ in range(5):
        answers = ask(machine, "user", [("tcp", "127.0.0.1", 9090, "x")] * 60)
        assert answers.count(None) == 0


def test_a_port_from_a_containers_own_user_namespace(podman: Podman) -> None:
    for userns in ("keep-id", "auto", "nomap"):
        podman.up("web", f"--userns={userns}", USR, "-p", "9095:8080", "--", "httpd", "-f", "-h", "/etc", "-p", "8080")
        assert podman.answers("http://127.0.0.1:9095/passwd").startswith("root:")
        assert podman("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", "web")
        podman("rm", "-f", "-t0", "web")
