"""systemd/netd.socket and netd.service in a real user manager, and tests/machine/user-systemd itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
USER_SYSTEMD = TREE / "tests/machine/user-systemd"
USER = "netd-test"


@pytest.fixture(autouse=True)
def needs() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, for a user manager of its own")
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("systemd is not installed")
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")


def groups() -> set[str]:
    """The cgroups that sessions of user-systemd made."""
    look = 'mount -t cgroup2 none /mnt && find /mnt -name "netd-user-systemd.*"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", look]
    return set(subprocess.check_output(command, text=True).split())


def running_with(mark: str) -> int:
    def argv(entry: Path) -> bytes:
        try:
            return (entry / "cmdline").read_bytes()
        except OSError:
            return b""

    return sum(mark.encode() in argv(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    def state() -> tuple[str, str, list[str]]:
        return Path("/proc/self/mountinfo").read_text(), Path("/etc/passwd").read_text(), sorted(os.listdir("/run"))

    before, groups_before = state(), groups()
    yield
    assert state() == before
    assert groups() <= groups_before


def session(*command: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [USER_SYSTEMD, USER, *command], check=False, capture_output=True, text=True, timeout=timeout, input="fed\n"
    )


@pytest.mark.usefixtures("nothing_is_left")
def test_user_systemd() -> None:
    done = session(
        "sh", "-c", "id -un; cat; systemctl --user is-system-running; systemd-run --user -q sleep 99; exit 7"
    )
    assert (done.returncode, done.stdout) == (7, f"{USER}\nfed\nrunning\n"), done.stderr


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_user_systemd_is_killed(how: signal.Signals) -> None:
    mark = f"6{os.getpid()}.0625"  # seconds to sleep: nobody else's
    command = f"systemd-run --user -q sleep {mark}; echo up; sleep {mark}"
    running = subprocess.Popen([USER_SYSTEMD, USER, "sh", "-c", command], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    assert running_with(mark) > 1
    running.send_signal(how)
    running.communicate(timeout=20)
    end = time.monotonic() + 10
    while running_with(mark) or groups():
        assert time.monotonic() < end, (running_with(mark), groups())
        time.sleep(0.05)


def test_user_systemd_says_what_is_wrong() -> None:
    for words, says in ((("root", "true"), "root is not a normal user"), ((USER,), "usage: user-systemd USER CMD...")):
        done = subprocess.run([USER_SYSTEMD, *words], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (125, f"user-systemd: {says}\n")


@pytest.mark.usefixtures("nothing_is_left")
def test_units() -> None:
    if session("test", "-r", __file__, "-a", "-x", sys.executable).returncode != 0:
        pytest.skip(f"a normal user may not read this tree or {sys.executable}")
    suite = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        str(TREE / "tests/systemd/session.py"),
        "-x",
        "-v",
        "-p",
        "no:cacheprovider",
    ]
    done = session(*suite)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 11, done.stdout
