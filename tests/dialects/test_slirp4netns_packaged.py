"""The packaged slirp4netns as oracle: the same command line, the same exit status and the same words on stderr.

Every case of the table ends before a namespace is entered, at the latest for want of the process. The others are real
networks, from ready to the end by the exit fd, and the same requests to both api sockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from netd.attach.server import AttachServer
from tests.attach.harness import PLUGIN, Daemon, Shim
from tests.dialects.test_slirp4netns_restart import Manager, manager, netns_pid

__all__ = ["manager", "netns_pid"]  # fixtures

PID = "99999999"  # above every pid_max (2^22)
GENUINE = shutil.which("slirp4netns", path="/usr/bin:/usr/local/bin:/bin")

CASES = """
1
abc tap0
0 tap0
-- -5 tap0
12x tap0
+{pid} tap0
{pid} tap0
{pid} tap0 more words
{pid} -- -6 -c
--foo {pid} tap0
--foo=3 {pid} tap0
-Z {pid} tap0
-cZ {pid} tap0
--mtu
-m
-cm
--configure=1 {pid} tap0
--e {pid} tap0
--enable-s {pid} tap0
--en {pid} tap0
--o=3 {pid} tap0
--n {pid} tap0
--m=3 {pid} tap0
--d {pid} tap0
--c {pid} tap0
--ci {pid} tap0
--= {pid} tap0
--disable {pid} tap0
--disable-host {pid} tap0
--mtu=0 {pid} tap0
--mtu=1500x {pid} tap0
--mtu=65522 {pid} tap0
--mtu=4294968796 {pid} tap0
--mtu=0x10 {pid} tap0
--mtu=0576 {pid} tap0
--mtu= {pid} tap0
--mtu=x -h
-e -1 {pid} tap0
-e x {pid} tap0
-r x {pid} tap0
-e -e
-ce3 {pid} tap0
-c6e=3 {pid} tap0
-e 99999999999999999999 {pid} tap0
--exit-fd= {pid} tap0
--cidr=x {pid} tap0
--cidr= {pid} tap0
--cidr=10.0.2.0 {pid} tap0
--cidr=10.0.2.0/ {pid} tap0
--cidr=10.0.2.0/26 {pid} tap0
--cidr=10.0.2.0/0 {pid} tap0
--cidr=10.0.2.0/-1 {pid} tap0
--cidr=10.0.2.0/24x {pid} tap0
--cidr=10.0.2.5/24 {pid} tap0
--cidr=10.0.2/24 {pid} tap0
--cidr=300.0.2.0/24 {pid} tap0
--cidr=fd00::/64 {pid} tap0
--cidr=10.0.2.128/25 {pid} tap0
--cidr=10.0.2.0/24/3 {pid} tap0
--cidr=x abc tap0
--cidr=x --mtu=0
--cidr=x -h
--netns-type=path /nonexistent tap0
--netns-type=foo /nonexistent tap0
--netns-type= /nonexistent tap0
--netns-type=path /etc/passwd tap0
--netns-type=path /etc tap0
--userns-path=/nonexistent {pid} tap0
--userns-path=/etc/passwd {pid} tap0
--target-type=bess
--target-type=bess -c /x
--target-type=bess --netns-type=path /x
--target-type=bess --userns-path=/proc/self/ns/user /x
--target-type=bess /x y
--target-type=foo /x y
--target-type= /x y
--target-type=foo -h
--macaddress=1 {pid} tap0
--macaddress=x --target-type=foo a b
-c --macaddress=1 {pid} tap0
-c --macaddress=12:34 {pid} tap0
-c --macaddress=123 {pid} tap0
-c --macaddress=1: {pid} tap0
-c --macaddress=:1 {pid} tap0
-c --macaddress=1:2:3:4:5:6:7 {pid} tap0
-c --macaddress=11:22:33:44:55:66: {pid} tap0
-c --macaddress=11:22:33:44:55:66x {pid} tap0
-c --macaddress=0x1:2 {pid} tap0
-c --macaddress=-1:2 {pid} tap0
-c --macaddress=g {pid} tap0
-c --macaddress=1::2 {pid} tap0
-c --macaddress=1-2 {pid} tap0
-c --macaddress=0011:22:33:44:55:66 {pid} tap0
-c --macaddress=1:2:3:4:5:+6 {pid} tap0
-c --macaddress=aabbccddeeff {pid} tap0
--outbound-addr=nope {pid} tap0
--outbound-addr=127.1 {pid} tap0
--outbound-addr=1.2.3.4 {pid} tap0
--outbound-addr=1.2.3.4x {pid} tap0
--outbound-addr=01.2.3.4 {pid} tap0
--outbound-addr=lo {pid} tap0
--outbound-addr= {pid} tap0
--outbound-addr6=nope {pid} tap0
--outbound-addr6=::1 {pid} tap0
--outbound-addr6=1.2.3.4 {pid} tap0
-h
-h -Z
-hv
-Z -h
-- -h
--version=3
--help=3
-6 {pid} tap0
--enable-seccomp --enable-sandbox {pid} tap0
--no-host-loopback --create-sandbox {pid} tap0
--mtu=0 --cidr=x {pid} tap0
""".strip("\n").splitlines()


@pytest.mark.parametrize("words", ["", *CASES], ids=lambda words: words.format(pid="PID") or "nothing")
async def test_same_as_the_packaged_program(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, words: str
) -> None:
    if GENUINE is None:
        pytest.skip("slirp4netns is not installed")
    argv = words.format(pid=PID).split()
    theirs = await asyncio.to_thread(
        subprocess.run, [GENUINE, *argv], env={"LC_ALL": "C"}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    shim = Shim(runtime_dir, *argv, argv0=GENUINE)
    ours = await shim.run()
    shim.close()
    assert ours is not None and ours["op"] == "exit"
    assert (ours["status"], ours["stderr"]) == (theirs.returncode, theirs.stderr)
    assert ours["stdout"].startswith("Usage: ") == theirs.stdout.startswith("Usage: ")
    warnings = [line for line in theirs.stdout.splitlines() if line.startswith("WARNING:")]
    if "child failed" in theirs.stderr:
        warnings = warnings[: len(warnings) // 2]  # its fork prints the buffered half twice
    assert [line for line in ours["stdout"].splitlines() if line.startswith("WARNING:")] == warnings
    assert ("Usage: " in ours["stdout"]) == ("Usage: " in theirs.stdout)
    assert not daemon.networks


# --- networks ------------------------------------------------------------------------------------------------------


class Life:
    """One program on one namespace, until its exit fd hangs up."""

    def __init__(self, program: str, *argv: str, pid: int, env: dict[str, str]) -> None:
        self._exit, self._alive = os.pipe()
        ready, writing = os.pipe()
        words = [program, *argv, "-e", str(self._exit), "-r", str(writing), str(pid), "tap0"]
        self._process = subprocess.Popen(
            words, pass_fds=[self._exit, writing], env=env, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(writing)
        self.ready = b""
        while part := os.read(ready, 100):
            self.ready += part
        os.close(ready)

    def end(self) -> tuple[int, str, str]:
        os.close(self._alive)
        os.close(self._exit)
        out, err = self._process.communicate(timeout=20)
        return self._process.returncode, out, err


def both(
    manager: Manager, pid: int, *argv: str, ask: list[bytes] | None = None, api: Path | None = None
) -> list[object]:
    """What the packaged program and ours say and answer, in turn on the same namespace."""
    assert GENUINE is not None
    heard: list[object] = []
    for program, env in (
        (GENUINE, {"LC_ALL": "C", "PATH": os.environ["PATH"]}),
        (str(PLUGIN / "slirp4netns"), {**os.environ, "NETD_RUNTIME_DIR": str(manager.dir)}),
    ):
        life = Life(program, *argv, pid=pid, env=env)
        replies = [answer(api, request, manager) for request in ask or [] if api is not None]
        left = [api.exists()] if api is not None else []
        status, out, err = life.end()
        lines = [line for line in out.splitlines() if not line.startswith("seccomp: ")]
        said = [line for at, line in enumerate(lines) if line not in lines[:at]]  # its fork prints warnings twice
        left += [api.exists()] if api is not None else []
        told = [line for line in err.splitlines() if "tapfd=" not in line and not line.startswith(("api", "{"))]
        heard.append((life.ready, status, said, told, replies, left))
    return heard


def answer(path: Path, request: bytes, manager: Manager) -> bytes:
    while select.select([manager.notified], [], [], 0)[0]:
        manager.listen(0)  # a service manager always reads; its socket has room for a few words only
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


@pytest.mark.parametrize(
    "words",
    [
        "",
        "-c",
        "-c --mtu=65520 --disable-host-loopback",
        "-c --cidr=172.20.1.128/25 --disable-dns",
        "-c -6 --outbound-addr=127.0.0.1 --outbound-addr6=::1 --macaddress=2:3:4:5:6:7",
        "-c --enable-seccomp --no-host-loopback",
        "-c --outbound-addr=lo",
    ],
    ids=lambda words: words or "nothing",
)
def test_says_the_same_at_start_and_end(manager: Manager, netns_pid: int, words: str) -> None:
    if GENUINE is None:
        pytest.skip("slirp4netns is not installed")
    manager.start()
    theirs, ours = both(manager, netns_pid, *words.split())
    assert ours == theirs


def test_answers_the_same_on_the_api_socket(manager: Manager, netns_pid: int, tmp_path: Path) -> None:
    """What crashes or truncates the packaged program is not asked of it (see api_socket.py)."""
    if GENUINE is None:
        pytest.skip("slirp4netns is not installed")
    with socket.socket() as probe, socket.socket() as taken:
        probe.bind(("127.0.0.1", 0))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, busy = probe.getsockname()[1], taken.getsockname()[1]
        probe.close()

        def add(**changes: object) -> bytes:
            arguments = {
                "proto": "tcp",
                "host_addr": "127.0.0.1",
                "host_port": port,
                "guest_addr": "",
                "guest_port": 80,
            }
            arguments |= changes
            return json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode()

        requests = [
            b'{"execute":"list_hostfwd"}', add(), b'{"execute":"list_hostfwd"}', add(), add(proto="udp"),
            add(host_port=busy), add(host_addr="192.0.2.1"), add(host_addr="::1"), add(host_addr="::"),
            add(host_addr="x"), add(host_addr="127.1"), add(guest_addr="fd00::100"), add(guest_addr="x"),
            add(proto="sctp"), add(proto="tcp6"), add(proto="TCP"), add(proto=""), add(host_port=0),
            add(host_port="80"), add(guest_port=0), add(guest_port="80"), add(guest_port=None),
            b'{"execute":"list_hostfwd","arguments":{}}', b'{"execute":"remove_hostfwd","arguments":{"id":1}}',
            b'{"execute":"remove_hostfwd","arguments":{"id":1}}', b'{"execute":"remove_hostfwd","arguments":{"id":"2"}}',
            b'{"execute":"remove_hostfwd","arguments":{}}', b'{"execute":"list_hostfwd"}', add(),
            b"", b"x", b"[]", b"7", b"{}", b'{"execute":7}', b'{"execute":"quit"}', b'{"execute":"list_hostfwd"} x',
            b'/* c */{"execute":"list_hostfwd"}', b'{"execute":"list_hostfwd"} // c',
            b'\xef\xbb\xbf{"execute":"list_hostfwd"}', b'\x0c{"execute":"list_hostfwd"}',
            b'{"execute":"list_hostfwd","a":"\xff"}', b'{"execute":"list_hostfwd","execute":"quit"}',
            b'{"execute":"list_hostfwd","a":NaN}', b'{"execute":"list_hostfwd","a":1e999}', b'{"execute":"list_hostfwd"}'.ljust(4095),
            b'{"execute":"list_hostfwd"}'.ljust(4096),
        ]  # fmt: skip
        manager.start()
        api = tmp_path / "api"
        theirs, ours = both(manager, netns_pid, "-c", "-a", str(api), ask=requests, api=api)
    assert isinstance(theirs, tuple) and isinstance(ours, tuple)
    for request, expected, got in zip(requests, theirs[4], ours[4], strict=True):
        assert got == expected, request
    assert ours == theirs
