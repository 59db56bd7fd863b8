"""Run by test_units.py as a normal user in a session of tests/machine/user-systemd; the tests build on each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
UNITS = Path.home() / ".config/systemd/user"
DOORS = Path(os.environ["XDG_RUNTIME_DIR"]) / "netd"
VERSION = int(subprocess.check_output(["systemctl", "--version"], text=True).split()[1])


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", "--user", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"systemctl {words}: {done.stderr}"
    return done.stdout.strip()


def show(what: str, unit: str = "netd.service") -> str:
    return systemctl("show", "-P", what, unit)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, systemctl("show", "netd.service")
        time.sleep(0.02)


def ask(command: str, door: str = "api.sock") -> dict[str, object]:
    kind = socket.SOCK_SEQPACKET if door == "attach.sock" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.settimeout(10)
        s.connect(str(DOORS / door))
        s.send(command.encode())
        answer = json.loads(s.recv(10_000))
        assert isinstance(answer, dict)
        return answer


@pytest.fixture(scope="module")
def namespace() -> Iterator[int]:
    """A process in a network namespace of this user's."""
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        yield sleeper.pid
        sleeper.kill()


def tap_index(pid: int) -> int:
    enter = ["nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials"]
    [link] = json.loads(subprocess.check_output([*enter, "ip", "-json", "link", "show", "tap0"]))
    return int(link["ifindex"])


def test_the_manager_is_there() -> None:
    assert systemctl("is-system-running") == "running"
    run = ["systemd-run", "--user", "--wait", "--pipe", "--quiet", "sh", "-c", "echo from a unit; exit 5"]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (5, "from a unit\n")
    subprocess.run(["systemd-run", "--user", "--wait", "--quiet", "echo", "to the journal"], check=True)
    journal = ["journalctl", "--user", "-o", "cat"]  # fails until there is one
    until(lambda: b"to the journal" in subprocess.run(journal, check=False, capture_output=True).stdout)


def test_units_are_well_formed() -> None:
    command = Path.home() / ".local/bin/netd"
    command.parent.mkdir(parents=True)
    command.write_text(
        f"#!/bin/sh\nexport PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={TREE}\n"
        f'[ "$*" = serve ] && exec {sys.executable} {TREE}/tests/systemd/standin.py\n'
    )
    command.chmod(0o755)
    UNITS.mkdir(parents=True)
    (UNITS / "netd.socket").write_text((TREE / "systemd/netd.socket").read_text())
    (UNITS / "netd.service").write_text((TREE / "systemd/netd.service").read_text().replace("@NETD@ ", f"{command} "))
    verify = ["systemd-analyze", "--user", "verify", UNITS / "netd.socket", UNITS / "netd.service"]
    done = subprocess.run(verify, check=False, capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line]
    if VERSION < 254:
        said = [line for line in said if "Unknown key 'FileDescriptorStorePreserve'" not in line]
    assert (done.returncode, said) == (0, [])
    systemctl("daemon-reload")
    # What is left of the exposure: capabilities, which a user's service has none of and cannot give up, and the
    # mount namespace that netd.service says why it has none.
    subprocess.run(["systemd-analyze", "--user", "security", "--threshold=70", "netd.service"], check=True)
    assert show("StartLimitIntervalUSec") == "0"


def test_enabling_the_socket_is_enough() -> None:
    systemctl("enable", "--now", "netd.socket")
    assert stat.S_IMODE(DOORS.stat().st_mode) == 0o700
    for door in ("attach.sock", "api.sock"):
        assert stat.S_IMODE((DOORS / door).stat().st_mode) == 0o600
    assert show("ActiveState") == "inactive"
    answer = ask("state", "attach.sock")
    assert answer["listeners"] == {"attach.sock": "SOCK_SEQPACKET", "api.sock": "SOCK_STREAM"}
    assert answer["stored"] == []
    assert (show("ActiveState"), show("StatusText")) == ("active", "standing in")
    assert ask("state")["pid"] == answer["pid"]


def test_the_agent_works_within_the_hardening(namespace: int) -> None:
    assert ask(f"tap {namespace}") == {"offload": True}
    assert tap_index(namespace) > 1
    until(lambda: show("NFileDescriptorStore") == "1")
    status = Path(f"/proc/{ask('state')['agent']}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status


@pytest.mark.parametrize("how", ["restart", "SIGKILL", "SIGABRT"])
def test_the_tap_outlives_the_daemon(namespace: int, how: str) -> None:
    before, index = ask("state"), tap_index(namespace)
    if how == "restart":
        systemctl("restart", "netd.service")
    else:
        os.kill(int(str(before["pid"])), getattr(signal, how))
    after = ask("state")  # waits in the socket until the next one is there
    assert after["pid"] != before["pid"] and after["stored"] == ["tap0"]
    assert tap_index(namespace) == index
    until(lambda: not Path(f"/proc/{before['agent']}").exists())


def test_it_comes_back_however_often() -> None:
    """More than systemd's own limit of 5 in 10 s."""
    for _ in range(7):
        pid = int(str(ask("state")["pid"]))
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: show("MainPID") not in ("0", str(pid)) and show("ActiveState") == "active")


def test_stop_and_start_again(namespace: int) -> None:
    before = ask("state")
    index = tap_index(namespace)
    started = time.monotonic()
    systemctl("stop", "netd.service")
    assert time.monotonic() - started < 5
    assert show("ActiveState") == "inactive"
    for pid in (before["pid"], before["agent"]):
        assert not Path(f"/proc/{pid}").exists()
    assert (DOORS / "attach.sock").is_socket() and (DOORS / "api.sock").is_socket()
    after = ask("state")  # the socket still starts it
    assert after["pid"] != before["pid"]
    if VERSION >= 254:  # FileDescriptorStorePreserve=
        assert after["stored"] == ["tap0"] and tap_index(namespace) == index
    else:
        assert after["stored"] == []


def test_stopping_the_socket_closes_the_doors() -> None:
    systemctl("disable", "--now", "netd.socket", "netd.service")
    assert not (DOORS / "attach.sock").exists() and not (DOORS / "api.sock").exists()


def test_the_service_alone_brings_the_socket() -> None:
    systemctl("start", "netd.service")
    assert show("ActiveState", "netd.socket") == "active"
    assert ask("state")["stored"] == []
    systemctl("stop", "netd.socket", "netd.service")
