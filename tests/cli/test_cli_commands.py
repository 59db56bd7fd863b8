"""The command as a process, against the API with the stand-in daemon: exit codes, formats, messages."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netd import __version__
from netd.cli.networks import ago
from tests.cli.conftest import TREE, Netd, command, environment
from tests.standin import ServerThread


def attach(netd: Netd, pid: int, name: str, *more: str) -> str:
    said = netd("attach", str(pid), "--name", name, *more)
    assert said.status == 0, said
    return said.out.strip()


def test_life_of_a_network(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    id = attach(
        netd, netns_pid, "web", "-p", "127.0.0.1::80", "--mtu", "1500", "--cidr", "10.7.0.0/16", "--ifname", "e0"
    )
    assert re.fullmatch(r"[0-9a-f]{12}", id)
    spec = server.daemon.network(id).spec
    assert (spec.mtu, spec.cidr, spec.ifname, spec.allow_host_loopback) == (1500, "10.7.0.0/16", "e0", False)
    said = netd("ps")
    heading, row = said.out.splitlines()
    assert heading.split("  ")[0] == "NETWORK ID"
    assert re.match(rf"{id}  web         10\.7\.0\.100  fd[0-9a-f:]+  api ", row)
    assert "->80/tcp" in row
    assert (said.status, said.err) == (0, "")
    said = netd("detach", "web")
    assert (said.status, said.out, said.err) == (0, "web\n", "")
    assert netd("ps", "-n").out == ""


def test_attach_by_path(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    said = netd("attach", f"/proc/{netns_pid}/ns/net", "--lifeline", "explicit", "--allow-host-loopback")
    assert said.status == 0, said
    network = server.daemon.network(said.out.strip())
    assert network.lifeline.kind == "explicit"
    assert network.spec.allow_host_loopback
    netd("attach", "nosuch").failed(f"{os.getcwd()}/nosuch: No such file or directory")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "missing command 'netd COMMAND'"),
        (("frob",), "unrecognized command `netd frob`"),
        (("port add",), "unrecognized command"),
        (("ps", "--frob"), "unrecognized arguments: --frob"),
        (("ps", "--form", "json"), "unrecognized arguments: --form"),
        (("ps", "-f", "colour=red"), "colour is an invalid filter"),
        (("ps", "-f", "name"), "is not a filter"),
        (("ps", "-f", "name=("), "not a regular expression"),
        (("--url", "http://x", "ps"), "only unix://"),
        (("--url", "unix://relative", "ps"), "only unix://"),
        (("--url",), "expected one argument"),
        (("--log-level", "loud", "ps"), "invalid choice"),
        (("detach",), "give the networks to detach"),
        (("inspect",), "the following arguments are required: ID"),
        (("attach",), "PID|NETNS_PATH"),
        (("attach", "1", "-p", "x"), "'x' is not a port to publish"),
        (("attach", "1", "--mtu", "big"), "invalid int value"),
        (("attach", "4194304"), "there is no process 4194304"),
        (("attach", "1", "--mtu", "1"), "mtu"),
        (("port", "add", "web"), "required: SPEC"),
        (("port", "add", "web", "0"), "'0' is not a port"),
        (("port", "add", "nosuch", "80"), "no network"),
        (("port",), "you must supply"),
        (("port", "web", "80/x"), "port formats are port/protocol"),
        (("completion", "tcsh"), "invalid choice"),
        (("port", "no/such"), "no network with name or ID 'no/such'"),
    ],
)
def test_errors(netd: Netd, server: ServerThread, words: tuple[str, ...], says: str) -> None:
    said = netd(*words)
    said.failed(says)
    assert said.out == ""


def test_not_running(netd: Netd, runtime_dir: Path) -> None:
    for words in (("ps",), ("detach", "a", "b"), ("port", "web")):
        netd(*words).failed(
            f"{runtime_dir}/api.sock", "netd is not running", "systemctl --user start netd", "netd serve"
        )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime_dir / "api.sock"))
    netd("info").failed("netd is not running")


def test_which_socket(netd: Netd, server: ServerThread, tmp_path: Path) -> None:
    elsewhere = {"NETD_RUNTIME_DIR": "/nonexistent"}
    netd("info", **elsewhere).failed("/nonexistent/api.sock")
    assert netd("--url", server.url, "info", **elsewhere).status == 0
    assert netd("info", NETD_HOST=server.url, **elsewhere).status == 0
    netd("--url", "unix:///other", "info", NETD_HOST=server.url).failed("/other")
    netd("info", NETD_RUNTIME_DIR="", XDG_RUNTIME_DIR="/run/nobody").failed("/run/nobody/netd/api.sock")
    config = tmp_path / "netd.toml"
    config.write_text(f'runtime_dir = "{server.socket.parent}"\n')
    assert netd("info", NETD_RUNTIME_DIR="", NETD_CONFIG=str(config)).status == 0
    config.write_text("runtime_dir = [")
    netd("info", NETD_RUNTIME_DIR="", NETD_CONFIG=str(config)).failed("netd.toml")


def test_version(netd: Netd, server: ServerThread) -> None:
    assert netd("--version").out == f"netd version {__version__}\n"
    both = json.loads(netd("version", "--format", "json").out)
    assert both["client"]["version"] == both["server"]["version"] == __version__
    assert netd("version", "--format", "{{.Server.APIVersion}}").out == "1\n"
    assert netd("version").out.count(__version__) == 2


def test_version_without_a_daemon(netd: Netd) -> None:
    said = netd("version")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("Client:")
    assert "Server" not in said.out


def test_info(netd: Netd, server: ServerThread) -> None:
    assert f"version: {__version__}\n" in netd("info").out
    assert json.loads(netd("info", "--format", "json").out)["pid"] == os.getpid()
    assert netd("info", "--format", "{{.PID}} {{.Networks}}").out == f"{os.getpid()} 0\n"


def test_formats_of_lists(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    id = attach(netd, netns_pid, "web", "-p", "80")
    port = server.daemon.network("web").forwards()[0].spec.host_port
    (network,) = json.loads(netd("ps", "--format", "json").out)
    assert (network["id"], network["ports"][0]["host_port"]) == (id, port)
    assert netd("ps", "-q").out == f"{id}\n"
    assert netd("ps", "--format", "{{.Name}} {{.GuestIP}} {{.Ports}}").out == f"web 10.0.2.100 0.0.0.0:{port}->80/tcp\n"
    assert netd("ps", "--format", r"table {{.Name}}\t{{.ID}}").out == f"NAME        ID\nweb         {id}\n"
    assert netd("ps", "-n", "--format", r"table {{.Name}}\t{{.ID}}").out == f"web         {id}\n"
    said = netd("ps", "--format", "{{.Bogus}}")
    said.failed(".Bogus", ".GuestIP", ".CreatedAt")
    assert netd("port", "ls", "--format", "{{.Network}} {{.HostPort}}").out == f"web {port}\n"
    assert json.loads(netd("port", "ls", "--format", "json").out)[0]["network_id"] == id
    heading, row = netd("port", "ls", "web").out.splitlines()
    assert re.split(r"  +", heading) == [
        "NETWORK", "PORT ID", "HOST IP", "HOST PORT", "CONTAINER PORT", "PROTOCOL", "ORIGIN", "CONNECTIONS",
    ]  # fmt: skip
    assert row.split() == ["web", "1", "0.0.0.0", str(port), "80", "tcp", "run", "0"]


def test_long_ports_are_cut(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web", *("-p", "80") * 5)
    assert netd("ps").out.endswith("...\n")
    assert netd("ps", "--no-trunc").out.count("->80/tcp") == 5


def test_filters(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    for name in ("web", "webapp", "db"):
        attach(netd, netns_pid, name, *(("-p", "53/udp") if name == "db" else ()))

    def names(*words: str) -> list[str]:
        return netd("ps", "--format", "{{.Name}}", *words).out.split()

    assert names() == ["web", "webapp", "db"]
    assert names("-f", "name=^web$", "-f", "name=db") == ["web", "db"]
    assert names("--filter", "name=web", "--filter", "origin=run") == []
    assert names("-f", f"id={server.daemon.network('db').id}") == ["db"]
    port = server.daemon.network("db").forwards()[0].spec.host_port
    assert names("-f", f"port={port}/udp") == ["db"]
    assert netd("port", "ls", "-q", "-f", "protocol=udp").out == "1\n"
    assert netd("port", "ls", "-q", "-f", "protocol=tcp").out == ""


def test_inspect_several(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web")
    assert [n["name"] for n in json.loads(netd("inspect", "web").out)] == ["web"]
    said = netd("inspect", "nosuch", "web")
    said.failed("no network with name or ID 'nosuch'")
    assert [n["name"] for n in json.loads(said.out)] == ["web"]
    assert json.loads(netd("inspect", "nosuch").out) == []
    assert netd("inspect", "web", "web", "--format", "{{.Name}}").out == "web\nweb\n"


def test_detach_several(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    for name in ("a", "b", "c"):
        attach(netd, netns_pid, name)
    said = netd("detach", "a", "nosuch", "b")
    said.failed("nosuch")
    assert said.out == "a\nb\n"
    said = netd("detach", "nosuch", "-i")
    assert (said.status, said.out) == (0, "nosuch\n")
    assert netd("detach", "--all").status == 0
    assert not server.daemon.networks


def test_ports(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web")
    said = netd("port", "add", "web", "127.0.0.1::80", "53/udp")
    tcp, udp = (forward.spec.host_port for forward in server.daemon.network("web").forwards())
    assert said.out == f"80/tcp -> 127.0.0.1:{tcp}\n53/udp -> 0.0.0.0:{udp}\n"
    assert netd("port", "web").out == f"53/udp -> 0.0.0.0:{udp}\n80/tcp -> 127.0.0.1:{tcp}\n"
    assert netd("port", "web", "80").out == f"127.0.0.1:{tcp}\n"
    id = server.daemon.network("web").id
    assert netd("port", "-a").out == f"{id}\t53/udp -> 0.0.0.0:{udp}\n{id}\t80/tcp -> 127.0.0.1:{tcp}\n"
    netd("port", "web", "81").failed('failed to find published port "81"')
    said = netd("port", "add", "web", f"127.0.0.1:{tcp}:81", "90")
    said.failed("is in use")
    assert said.out.startswith("90/tcp -> 0.0.0.0:"), "the rest is done"
    netd("port", "add", "web", "91", "x").failed("'x' is not a port")
    assert len(server.daemon.network("web").forwards()) == 3, "what cannot be read stops it all"
    said = netd("port", "rm", "web", str(tcp), "99", f"{udp}/udp", "--close")
    said.failed("no published port 99")
    assert said.out == f"{tcp}\n{udp}/udp\n"
    assert server.daemon.network("web").closed_connections == [1, 2]
    assert netd("port", "rm", "-i", "web", "99").status == 0
    assert netd("port", "rm", "web", "3").status == 0
    assert netd("port", "web").out == ""


def test_a_range_without_host_ports(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web")
    assert len(netd("port", "add", "web", "80-82").out.splitlines()) == 3
    assert [f.spec.container_port for f in server.daemon.network("web").forwards()] == [80, 81, 82]


def test_ports_on_ipv6(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web", "-p", "[::1]::80")
    said = netd("port", "add", "web", "[::]::53/udp", "[0::1]::90")
    (one, two, three) = (f.spec.host_port for f in server.daemon.network("web").forwards())
    assert said.out == f"53/udp -> [::]:{two}\n90/tcp -> [::1]:{three}\n"
    with socket.create_connection(("::1", one)):
        pass
    assert netd("port", "web", "80").out == f"[::1]:{one}\n"
    assert netd("port", "ls", "--format", "{{.HostIP}}").out == "::1\n::\n::1\n"
    assert netd("ps", "--format", "{{.Ports}}").out.startswith(f"[::1]:{one}->80/tcp, ")
    said = netd("port", "add", "web", f"[::1]:{one}:81")
    said.failed("is in use")
    netd("port", "add", "web", "[::g]:8080:80").failed("'::g' is not an IP address")
    netd("port", "add", "web", "[fe80::1%lo]:8080:80").failed("zone")
    netd("port", "add", "web", "::1:8080:80").failed("an IPv6 address needs brackets")
    assert netd("port", "rm", "web", str(one)).status == 0


def test_ipv6_addresses(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "six", "--cidr6", "fd12:0:0:1::/64")
    attach(netd, netns_pid, "four", "-4")
    attach(netd, netns_pid, "four-too", "--ipv4-only", "--mtu", "576")
    heading, six, four, _ = netd("ps").out.splitlines()
    assert re.split(r"  +", heading)[2:5] == ["ADDRESS", "IPV6 ADDRESS", "ORIGIN"]
    assert six.split()[2:5] == ["10.0.2.100", "fd12::1:0:ff:fe00:1", "api"]
    assert four.split()[2:4] == ["10.0.2.100", "api"]
    assert netd("ps", "--format", "{{.GuestIP6}}", "-f", "name=six").out == "fd12::1:0:ff:fe00:1\n"
    [shown] = json.loads(netd("inspect", "six").out)
    assert (shown["cidr6"], shown["gateway_ip6"], shown["dns_ip6"]) == (
        "fd12:0:0:1::/64",
        "fd12:0:0:1::2",
        "fd12:0:0:1::3",
    )
    assert netd("inspect", "four", "--format", "{{.CIDR6}}|{{.GuestIP6}}|").out == "||\n"
    netd("ps", "--format", "{{.Bogus}}").failed(".CIDR6", ".GuestIP6", ".DNSIP6")
    netd("attach", str(netns_pid), "-4", "--cidr6", "fd00::/64").failed("do not go together")
    netd("attach", str(netns_pid), "--cidr6", "fd00::/48").failed("the prefix length is 64")


def test_messages_of_the_daemon(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web", "-p", "80")
    port = server.daemon.network("web").forwards()[0].spec.host_port
    netd("port", "add", "web", f"{port}:81").failed(f"0.0.0.0:{port}/tcp is in use")
    server.daemon.fails = ValueError("inner")
    said = netd("attach", str(netns_pid))
    said.failed("netd made a mistake")
    assert "inner" not in said.err


def test_debug_shows_the_traceback(netd: Netd) -> None:
    said = netd("--log-level", "debug", "ps")
    assert said.status == 1
    assert "Traceback" in said.err


@pytest.mark.parametrize(
    "words", [("--help",), ("help",), ("run", "--help"), ("help", "attach"), ("port", "add", "-h")]
)
def test_help(netd: Netd, words: tuple[str, ...]) -> None:
    said = netd(*words)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("usage: netd")


def test_a_closed_pipe_is_quiet(netd: Netd, server: ServerThread, netns_pid: int) -> None:
    attach(netd, netns_pid, "web")
    env = environment(NETD_HOST=server.url)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("inspect", "web"), env=env, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_quiet(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(runtime_dir / "api.sock"))
        mute.listen()
        env = environment(NETD_RUNTIME_DIR=str(runtime_dir))
        waiting = subprocess.Popen(command("ps"), env=env, stderr=subprocess.PIPE)
        conn, _ = mute.accept()
        conn.recv(100)
        waiting.send_signal(2)
        _, err = waiting.communicate(timeout=20)
        conn.close()
    assert (waiting.returncode, err) == (130, b"")


# ---- what else may be on the socket


@contextmanager
def speaker(path: Path, said: bytes) -> Iterator[None]:
    """Something that answers ``said`` to the first connection and closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        conn, _ = listener.accept()
        with conn:
            conn.recv(1 << 16)
            conn.sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()
        path.unlink()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (b"", "is not netd"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is not netd"),
        (b"HTTP/1.1 OK\r\n\r\n", "is not netd"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n[", "ends half way"),
        (b"HTTP/1.1 500 Oops\r\n\r\n<html>", "HTTP status 500"),
        (b'HTTP/1.1 404 No\r\n\r\n{"detail": 1}', "HTTP status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{", "netd made a mistake"),
    ],
)
def test_strange_answers(netd: Netd, runtime_dir: Path, said: bytes, says: str) -> None:
    with speaker(runtime_dir / "api.sock", said):
        netd("ps").failed(says)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv for a second uid")
def test_another_users_daemon(server: ServerThread) -> None:
    server.socket.parent.chmod(0o711)
    as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    env = environment(NETD_HOST=server.url)
    readable = subprocess.run([*as_other, *command("--version")], env=env, capture_output=True, check=False, timeout=60)
    if readable.returncode:
        pytest.skip("the tree or its Python cannot be read by another user")
    done = subprocess.run(as_other + command("ps"), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "permission denied" in done.stderr) == (125, True), done
    server.socket.chmod(0o666)
    done = subprocess.run(as_other + command("ps"), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "owner's uid only" in done.stderr) == (125, True), done


# ---- habits


def test_a_client_command_imports_little(netd: Netd, server: ServerThread) -> None:
    code = "import sys; from netd.cli import main; main(['ps']); print(*sys.modules)"
    env = environment(NETD_HOST=server.url)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "netd.cli.networks" in loaded
    assert not loaded & {
        "aiohttp",
        "pydantic",
        "asyncio",
        "uvloop",
        "http.client",
        "ssl",
        "subprocess",
        "dataclasses",
        "typing",
    }
    assert not {name for name in loaded if name.startswith("netd.") and not name.startswith("netd.cli")}


def test_modules_of_the_standard_library_only() -> None:
    for path in (TREE / "netd" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in sys.stdlib_module_names | {"netd"}, f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "About a minute ago"),
        (150, "2 minutes ago"),
        (3600, "About an hour ago"),
        (7200, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 20, "2 weeks ago"),
        (86400 * 90, "3 months ago"),
        (86400 * 800, "2 years ago"),
    ],
)
def test_ago(seconds: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 + seconds)
    assert ago("2027-01-15T08:00:00.000Z") == text


def test_the_sockets_file_mode(server: ServerThread) -> None:
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600


# ---- serve


def test_serve_refuses(netd: Netd, runtime_dir: Path) -> None:
    netd("serve", "--runtime-dir", str(runtime_dir / ("a" * 120))).failed("AF_UNIX path too long")
    netd("serve", NETD_LOG_LEVEL="loud").failed("log_level")
    netd("serve", NETD_RUNTIME_DIR="/proc/nowhere").failed("/proc/nowhere: No such file or directory")
    netd("serve", "--frob").failed("unrecognized arguments")


def test_serve_once(netd: Netd, runtime_dir: Path) -> None:
    env = environment(NETD_RUNTIME_DIR="/nonexistent")
    with subprocess.Popen(
        command("--log-level", "warn", "serve", "--runtime-dir", runtime_dir.name), env=env, cwd=runtime_dir.parent,
        stderr=subprocess.PIPE, text=True,
    ) as daemon:  # fmt: skip
        end = time.monotonic() + 20
        while netd("info").status and time.monotonic() < end:
            pass
        assert netd("info", "--format", "{{.RuntimeDir}}").out == f"{runtime_dir}\n"
        netd("serve").failed(str(runtime_dir))
        daemon.terminate()
        assert daemon.communicate(timeout=20)[1] == "", "nothing to warn of"
    assert daemon.returncode == 0
    assert list(runtime_dir.iterdir()) == []
