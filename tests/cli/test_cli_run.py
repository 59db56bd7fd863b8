"""``netd run`` for real: namespaces, a private daemon, a TAP, and nothing left of them."""

from __future__ import annotations

import ipaddress
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import command, environment


def usable() -> str:
    """Why ``netd run`` cannot work here, or nothing."""
    if subprocess.run(["unshare", "-rnm", "true"], capture_output=True, check=False).returncode != 0:
        return "user namespaces are not permitted here"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as exc:
        return f"/dev/net/tun: {exc.strerror}"
    return ""


pytestmark = pytest.mark.skipif(bool(usable()), reason=usable())
as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")

Done = subprocess.CompletedProcess[str]


class Place:
    """A runtime directory and a mark on the environment, by which everything a test started can be found again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"TEST_MARK={uuid.uuid4().hex}"
        self.mounts = Path("/proc/self/mountinfo").read_text()

    def env(self, **changes: str) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return environment(XDG_RUNTIME_DIR=str(self.directory), **{name: value}, **changes)

    def run(self, *words: str, input: str | None = None, **changes: str) -> Done:
        return self.execute(command("run", *words), input, **changes)

    def execute(self, argv: list[str], input: str | None = None, **changes: str) -> Done:
        env = self.env(**changes)
        return subprocess.run(argv, env=env, input=input, capture_output=True, text=True, timeout=60, check=False)

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command("run", *words), env=self.env(), stdin=pipe, stdout=pipe, text=True)

    def processes(self) -> list[str]:
        """Command lines of what carries the mark."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(f"{process.name} " + (process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def is_clean(self) -> None:
        """No process, no file, no mount is left."""
        assert self.processes() == []
        assert list(self.directory.iterdir()) == []
        assert Path("/proc/self/mountinfo").read_text() == self.mounts

    def becomes_clean(self) -> None:
        """The same, when there is nobody to wait for."""
        end = time.monotonic() + 15
        while (self.processes() or list(self.directory.iterdir())) and time.monotonic() < end:
            time.sleep(0.02)
        self.is_clean()


@pytest.fixture
def place(runtime_dir: Path) -> Place:
    return Place(runtime_dir)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("true",), 0),
        (("--", "false"), 1),
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("sh", "-c", "kill -KILL $$"), 137),
    ],
)
def test_exit_status(place: Place, words: tuple[str, ...], status: int) -> None:
    done = place.run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    place.is_clean()


@pytest.mark.parametrize(
    ("word", "status", "says"),
    [("nosuch-command", 127, "command not found"), ("/etc/passwd", 126, "Permission denied"), ("/etc", 126, "denied")],
)
def test_what_cannot_be_executed(place: Place, word: str, status: int, says: str) -> None:
    done = place.run(word)
    assert done.returncode == status
    assert done.stderr.startswith(f"Error: {word}: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    place.is_clean()


def test_the_default_is_the_shell(place: Place, tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\necho shell $#\n")
    shell.chmod(0o755)
    assert place.run(SHELL=str(shell)).stdout == "shell 0\n"


def test_options_of_the_command_are_its_own(place: Place) -> None:
    done = place.run("echo", "-p", "80", "--name", "x", "--", "--help")
    assert done.stdout == "-p 80 --name x -- --help\n"


def test_standard_input_and_environment_pass(place: Place) -> None:
    done = place.run("sh", "-c", "cat; echo $GREETING; pwd; ls /proc/self/fd | wc -l", input="hello\n", GREETING="hi")
    assert done.stdout.splitlines() == ["hello", "hi", os.getcwd(), "4"]  # 0 1 2, and the directory


def test_ignored_signals_are_not_inherited(place: Place) -> None:
    done = place.run("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")
    status = dict(line.split()[:2] for line in Path("/proc/self/status").read_text().splitlines() if "Sig" in line)
    pythons_own = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    ignored = int(status["SigIgn:"], 16) & ~pythons_own  # what whoever started us ignores
    assert done.stdout.split() == ["SigBlk:", status["SigBlk:"], "SigIgn:", f"{ignored:016x}"]


def test_the_network_inside(place: Place) -> None:
    script = """
        ip -j addr show tap0; ip route; id -u; cat /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_forward
        ping -qc1 -W5 10.0.2.2 >/dev/null && echo pong
    """
    done = place.run("--mtu", "1500", "sh", "-c", script)
    assert done.stderr == ""
    first, rest = done.stdout.split("\n", 1)
    (link,) = json.loads(first)
    assert link["mtu"] == 1500
    assert [a["local"] for a in link["addr_info"] if a["family"] == "inet"] == ["10.0.2.100"]
    assert rest.startswith("default via 10.0.2.2 dev tap0")
    assert re.search(r"\n0\nnameserver 10\.0\.2\.3\nnameserver fd[0-9a-f:]+::3\n", rest)
    assert rest.endswith("pong\n") or not shutil.which("ping")
    place.is_clean()


@pytest.mark.parametrize("options", ["-4", "--ipv4-only", "--mtu 1279"])
def test_ipv4_only(place: Place, options: str) -> None:
    netd = f"{sys.executable} -m netd"
    script = f"{netd} ps --format '{{{{.GuestIP}}}}|{{{{.GuestIP6}}}}'; grep nameserver /etc/resolv.conf"
    done = place.run(*options.split(), "sh", "-c", script)
    assert (done.stdout, done.stderr) == ("10.0.2.100|\nnameserver 10.0.2.3\n", "")


def test_what_the_guest_has_and_what_netd_says_of_it(place: Place) -> None:
    """The same MAC makes the same address, whoever computes it."""
    netd = f"{sys.executable} -m netd"
    script = f"ip -o link show tap0; {netd} ps --format '{{{{.CIDR6}}}} {{{{.GuestIP6}}}}'"
    done = place.run("sh", "-c", script)
    assert done.stderr == ""
    link, network = done.stdout.splitlines()
    found = re.search(r"link/ether ([0-9a-f:]{17})", link)
    assert found
    octets = bytes.fromhex(found[1].replace(":", ""))
    identifier = bytes((octets[0] ^ 2, *octets[1:3], 255, 254, *octets[3:]))
    cidr6, guest_ip6 = network.split()
    assert socket.inet_pton(socket.AF_INET6, guest_ip6)[8:] == identifier
    assert ipaddress.IPv6Address(guest_ip6) in ipaddress.IPv6Network(cidr6)
    assert place.processes() == []


def test_the_hosts_resolv_conf_is_as_before(place: Place) -> None:
    before = os.stat("/etc/resolv.conf"), Path("/etc/resolv.conf").read_text()
    place.run("true")
    assert (os.stat("/etc/resolv.conf"), Path("/etc/resolv.conf").read_text()) == before


@contextmanager
def greeter() -> Iterator[int]:
    """A server on the host's loopback that says hello; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    conn, _ = server.accept()
                except OSError:
                    return
                with conn:
                    conn.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


FETCH = "import socket, sys; print(socket.create_connection(('10.0.2.2', int(sys.argv[1])), 10).recv(100).decode())"


def test_the_hosts_loopback_only_when_allowed(place: Place) -> None:
    with greeter() as port:
        fetch = (sys.executable, "-c", FETCH, str(port))
        assert place.run("--allow-host-loopback", *fetch).stdout == "hello\n"
        refused = place.run(*fetch)
        assert refused.returncode == 1
        assert "hello" not in refused.stdout


SERVE = """
import socket
s = socket.create_server(("", 80))
print("listening", flush=True)
conn, peer = s.accept()
conn.sendall(b"from inside to " + peer[0].encode())
"""


def test_published_ports(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with place.start("-p", f"127.0.0.1:{port}:80", "--", sys.executable, "-c", SERVE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "listening\n"
        with socket.create_connection(("127.0.0.1", port), 10) as conn:
            assert conn.recv(100) == b"from inside to 10.0.2.2"
    assert running.returncode == 0
    place.is_clean()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_busy_port_and_the_command_never_runs(place: Place, tmp_path: Path) -> None:
    with greeter() as port:
        done = place.run("-p", f"127.0.0.1:{port}:80", "touch", str(tmp_path / "ran"))
    assert done.returncode == 125
    assert done.stderr.startswith("Error: ")
    assert str(port) in done.stderr
    assert not (tmp_path / "ran").exists()
    place.is_clean()


@pytest.mark.parametrize("options", ["-p x", "--mtu 1", "--name a/b", "--frob"])
def test_bad_options(place: Place, options: str) -> None:
    done = place.run(*options.split(), "true")
    assert done.returncode == 125
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    place.is_clean()


def test_more_ports_from_inside(place: Place) -> None:
    netd = f"{sys.executable} -m netd"
    format = "{{.Name}} {{.Origin}} {{.Lifeline}}"
    script = f"{netd} ps --format '{format}'; {netd} port add me 127.0.0.1::80; {netd} port me"
    done = place.run("--name", "me", "sh", "-c", script)
    lines = done.stdout.splitlines()
    assert lines[0] == "me run pidfd", done
    assert re.fullmatch(r"80/tcp -> 127\.0\.0\.1:\d+", lines[1])
    assert lines[1] == lines[2]


# ---- signals, the terminal, the end


def test_sigterm_is_passed_on(place: Place) -> None:
    script = "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    with place.start("sh", "-c", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.stdout.read() == "got\n"
    assert running.returncode == 7
    place.is_clean()


def test_killed_it_leaves_nothing(place: Place) -> None:
    with place.start("sh", "-c", "echo ready; exec sleep 600") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        assert len(place.processes()) >= 4  # us, the guard, the daemon, its agent, the command
        running.kill()
    place.becomes_clean()


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2, 0.3, 0.4])
def test_killed_on_the_way_it_leaves_nothing(place: Place, delay: float) -> None:
    with place.start("sleep", "600") as starting:
        try:
            starting.wait(delay)
        except subprocess.TimeoutExpired:
            starting.kill()
    place.becomes_clean()


@pytest.mark.parametrize("delay", [0.1, 0.25, 0.4])
def test_interrupted_on_the_way_it_leaves_nothing(place: Place, delay: float) -> None:
    with place.start("sleep", "600") as starting:
        try:
            starting.wait(delay)
        except subprocess.TimeoutExpired:
            starting.send_signal(signal.SIGINT)
            time.sleep(0.2)
            starting.terminate()  # in case it was past the point where it ignores the interrupt for the command's sake
    place.becomes_clean()


def test_the_daemons_death_is_survived(place: Place) -> None:
    with place.start("sh", "-c", "echo ready; read line; exit 3") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        (daemon,) = [int(line.split()[0]) for line in place.processes() if " serve " in line]
        os.kill(daemon, signal.SIGKILL)
        running.terminate()
        assert running.wait(20) == 143
    place.becomes_clean()


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, env)
        self.seen = ""

    def types(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def sees(self, pattern: str) -> None:
        """Wait until ``pattern`` is on the screen, and forget the screen up to there."""
        end = time.monotonic() + 20
        while not (match := re.search(pattern, self.seen)):
            assert select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen[match.end() :]

    def resumes(self) -> None:
        """``fg``, and the terminal is the job's: what is typed before that would be the shell's."""
        shell, end = os.tcgetpgrp(self.fd), time.monotonic() + 20
        self.types("fg\n")
        while os.tcgetpgrp(self.fd) == shell:
            assert time.monotonic() < end, self.seen
            time.sleep(0.005)

    def ends(self) -> int:
        while True:  # what is not read may keep it from ending
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_control_c(place: Place) -> None:
    script = "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(command("run", "sh", "-c", script), place.env())
    terminal.sees("ready")
    terminal.types("\x03")
    terminal.sees("got")
    assert terminal.ends() == 9
    place.is_clean()


def test_control_c_kills(place: Place) -> None:
    terminal = Terminal(command("run", "sh", "-c", "echo ready; exec sleep 600"), place.env())
    terminal.sees("ready")
    terminal.types("\x03")
    assert terminal.ends() == 130
    place.is_clean()


def test_job_control(place: Place) -> None:
    terminal = Terminal(command("run", "bash", "--norc", "-i"), place.env(PS1="$ ", TERM="dumb", HISTFILE=""))
    terminal.sees(r"\$ ")
    terminal.types("sh -c 'echo go; read word; echo got $word'\n")
    terminal.sees("\ngo")
    terminal.types("\x1a")
    terminal.sees(r"\[1\]\+ +Stopped")
    terminal.resumes()
    terminal.types("that\n")
    terminal.sees("\ngot that")
    terminal.sees(r"\$ ")
    terminal.types("sh -c 'echo go; exec sleep 600'\n")
    terminal.sees("\ngo")
    terminal.types("\x03")
    terminal.sees(r"\$ ")
    terminal.types("echo still $((40 + 2))\n")
    terminal.sees("still 42")
    terminal.types("exit 5\n")
    assert terminal.ends() == 5
    place.is_clean()


def test_stopped_and_continued_as_a_job(place: Place) -> None:
    """In an interactive shell outside, Ctrl-Z stops `netd run` and its command alike, `fg` goes on."""
    line = " ".join(command("run", "sh", "-c", "'echo ready; read word; echo got $word; exit 4'"))
    terminal = Terminal(["/bin/bash", "--norc", "-i"], place.env(PS1="> ", TERM="dumb", HISTFILE=""))
    terminal.sees("> ")
    terminal.types(line + "\n")
    terminal.sees("\nready")
    terminal.types("\x1a")
    terminal.sees("Stopped")
    terminal.resumes()
    terminal.types("that\n")
    terminal.sees("\ngot that")
    terminal.sees("> ")
    terminal.types("exit $?\n")
    assert terminal.ends() == 4
    place.is_clean()


# ---- another daemon, other users, other machines


@contextmanager
def shared_daemon(place: Place) -> Iterator[Path]:
    directory = place.directory / "netd"
    env = {**place.env(), "TEST_MARK": "another"}
    with subprocess.Popen(command("serve"), env=env, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        while "ready" not in (line := daemon.stderr.readline()):
            assert line, "the daemon did not start"
        yield directory
        daemon.terminate()


def networks(place: Place) -> list[str]:
    done = subprocess.run(command("ps", "-q"), env=place.env(), capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_a_running_daemon_is_used(place: Place) -> None:
    with shared_daemon(place) as directory:
        inspect = command("inspect", "shared", "--format", "{{.Origin}}")
        done = place.run("--name", "shared", *inspect)
        assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")
        assert networks(place) == []
        assert list(place.directory.iterdir()) == [directory]
        with place.start("sh", "-c", "echo ready; exec sleep 600") as running:
            assert running.stdout is not None
            running.stdout.readline()
            assert len(networks(place)) == 1
            running.kill()
        end = time.monotonic() + 10
        while networks(place) and time.monotonic() < end:
            time.sleep(0.02)
        assert networks(place) == []
        assert place.processes() == []


def test_the_daemon_that_was_named_must_answer(place: Place) -> None:
    done = place.run("true", NETD_HOST="unix:///nonexistent/api.sock")
    assert done.returncode == 125
    assert "/nonexistent/api.sock" in done.stderr
    place.is_clean()


def test_a_dead_socket_is_no_daemon(place: Place) -> None:
    (place.directory / "netd").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.directory / "netd" / "api.sock"))
    assert place.run("true").returncode == 0


def test_where_user_namespaces_are_not_permitted(place: Place) -> None:
    # The limit is each user namespace's own: in a new one it can be set to nothing.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = place.execute(["unshare", "-r", "sh", "-c", script, "sh", *command("run", "true")])
    assert done.returncode == 125, done
    assert "user namespaces are not permitted here" in done.stderr
    assert "sysctl user.max_user_namespaces" in done.stderr
    place.is_clean()


def test_without_a_tun_device(place: Place) -> None:
    script = 'mount -t tmpfs none /dev/net; exec "$@"'
    done = place.execute(["unshare", "-rm", "sh", "-c", script, "sh", *command("run", "true")])
    assert done.returncode == 125, done
    assert done.stderr.startswith("Error: /dev/net/tun: No such file or directory\n")


@as_root
def test_as_a_user(place: Place) -> None:
    """Uid 65534, with the device node open to all as udev leaves it; then with one for root alone."""
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]
    if place.execute([*user, sys.executable, "-c", "import netd"]).returncode:
        pytest.skip("the tree or its Python cannot be read by another user")
    os.chown(place.directory, 65534, 65534)
    node = 'umask 0; mount -t tmpfs none /dev/net; mknod -m $0 /dev/net/tun c 10 200; exec "$@"'
    run = command("run", "sh", "-c", "id -u; ip -br -4 addr show tap0")
    for mode, status in (("666", 0), ("600", 125)):
        done = place.execute(["unshare", "-m", "sh", "-c", node, mode, *user, *run])
        assert done.returncode == status, done
        if status == 0:
            assert re.fullmatch(r"0\ntap0 +\w+ +10\.0\.2\.100/24 *\n", done.stdout), done
        else:
            assert "/dev/net/tun: permission denied" in done.stderr
        place.is_clean()
