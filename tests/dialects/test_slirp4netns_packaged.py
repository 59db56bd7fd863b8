"""The packaged slirp4netns as oracle: the same command line, the same exit status and the same words on stderr.

Every case ends before a namespace is entered, at the latest for want of the process.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from netd.attach.server import AttachServer
from tests.attach.harness import Daemon, Shim

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
