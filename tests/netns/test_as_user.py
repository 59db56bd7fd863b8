"""The same, as root on behalf of a user, and as a user; needs root, to be another."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netd.netns.plan import OpenTap, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, program

USER = 54321  # a uid that need not exist
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")

# A mount namespace of its own, where /dev/net is what the test says; then the user.
STAGE = """
set -e
mount -t tmpfs -o mode=755 tmpfs /dev/net
[ "$1" = none ] || { mknod /dev/net/tun c 10 200; chmod "$1" /dev/net/tun; }
uid=$2; shift 2
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all "$@"
"""

ASK = """
import asyncio, json, os, subprocess
from netd.errors import NetdError
from netd.netns.plan import TapPlan
from netd.netns.spawn import Agent
async def main():
    target = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    target.stdout.readline()
    agent = Agent()
    await agent.start()
    try:
        tap = await agent.open_tap(os.open(f"/proc/{target.pid}/ns/net", os.O_RDONLY), TapPlan("tap0", 1500))
        print(json.dumps(["made", tap.mac]))
    except NetdError as e:
        print(json.dumps([e.code, str(e), e.hint]))
    target.kill()
    await agent.stop()
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def the_tree_may_be_read() -> None:
    as_user("0666", "true")


def as_user(
    mode: str, *command: str, fds: tuple[int, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    words = [program("unshare"), "--mount", "--propagation", "private", "sh", "-c", STAGE, "sh", mode, str(USER)]
    if not Path("/dev/net").is_dir():
        pytest.skip("no /dev/net")
    readable = [*words, "test", "-r", __file__, "-a", "-x", sys.executable]
    if subprocess.run(readable, check=False).returncode != 0:
        pytest.skip(f"uid {USER} may not read this tree or {sys.executable}")
    return subprocess.run(
        [*words, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        pass_fds=fds,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", **environment},
    )


@pytest.mark.parametrize(
    ("mode", "says", "hint"),
    [
        ("0600", "/dev/net/tun cannot be opened: Permission denied", "as root: chmod 0666 /dev/net/tun"),
        ("none", "/dev/net/tun cannot be opened: No such file or directory", "as root: modprobe tun"),
    ],
)
def test_tun_is_not_accessible(mode: str, says: str, hint: str) -> None:
    done = as_user(mode, sys.executable, "-c", ASK)
    code, message, told = json.loads(done.stdout)
    assert (code, message) == ("tap_unavailable", says), done.stderr
    assert told.startswith(hint)


def test_root_for_a_user() -> None:
    """The daemon is root, the namespace a user's: the user's namespace is entered all the same."""
    script = (
        f"echo $$; exec setpriv --reuid {USER} --regid {USER} --clear-groups unshare -rn sh -c 'echo; exec sleep 60'"
    )
    target = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert target.stdout is not None
    pid = int(target.stdout.readline())
    target.stdout.readline()
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)

    async def ask() -> OpenTap:
        agent = Agent()
        await agent.start()
        try:
            return await agent.open_tap(fd, TapPlan("tap0", 1500, address="10.0.2.100/24", gateway="10.0.2.2"))
        finally:
            await agent.stop()

    tap = asyncio.run(ask())
    enter = [program("nsenter"), "--target", str(pid), "--net"]
    assert "10.0.2.100/24" in subprocess.check_output([*enter, program("ip"), "-4", "-o", "address"], text=True)
    os.close(tap.fd)
    os.close(fd)
    target.kill()
    target.communicate()


@pytest.mark.parametrize(
    ("file", "least"), [("open_tap", 30), ("host_like", 30), ("host_view", 10), ("sockets", 30), ("channel", 5)]
)
def test_the_same_as_a_user(file: str, least: int) -> None:
    """The tests of that file, run by an unprivileged user with an open /dev/net/tun."""
    foreign = Namespace()  # root's
    tests = str(Path(__file__).with_name(f"test_{file}.py"))
    suite = [sys.executable, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider", "-x"]
    done = as_user("0666", *suite, fds=(foreign.fd,), NETD_TEST_FOREIGN_NETNS=str(foreign.fd))
    foreign.close()
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= least and "SKIPPED" not in done.stdout, done.stdout
