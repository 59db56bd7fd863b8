"""The shim's steps spawn and run: `pasta CMD`, in real namespaces, as who runs the tests and as a normal user."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attach.harness import PLUGIN
from tests.plugin.peer import Bench, Peer, output

USER = 54321  # a uid that need not exist
_NS_GET_USERNS = 0xB701  # linux/nsfs.h

Shim = subprocess.Popen[bytes]


class Caller:
    """Starts `pasta` as ``uid`` and has it spawn a command."""

    def __init__(self, bench: Bench, directory: Path, uid: int) -> None:
        self.bench, self.uid = bench, uid
        os.chmod(bench.dir / "attach.sock", 0o777)
        self.plugin = directory / "plugin"  # where a normal user may read, too
        shutil.copytree(PLUGIN, self.plugin, symlinks=True)
        self.user: dict[str, Any] = {} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}

    def meet(self, **more: Any) -> tuple[Shim, Peer]:
        options = {"program": self.plugin / "pasta", **self.user, **more}
        return self.bench.meet(**options)

    def spawn(self, *argv: str, fields: dict[str, Any] | None = None, **more: Any) -> tuple[Shim, Peer, int, int]:
        """The shim, its peer, the command's pid, the network namespace."""
        shim, peer = self.meet(**more)
        answer, netns = ask_spawn(peer, *argv, **(fields or {}))
        assert answer["ok"] and answer["text"] == "", answer
        return shim, peer, answer["pid"], netns

    def run(self, *argv: str, fields: dict[str, Any] | None = None, **more: Any) -> tuple[int, str, str]:
        """Let ``argv`` run to its end: status, stdout, stderr."""
        shim, peer, _, netns = self.spawn(*argv, fields=fields, **more)
        os.close(netns)
        assert peer.ask("run") == ({"ok": True}, -1)
        assert peer.ended()
        peer.sock.close()
        return output(shim)


def ask_spawn(peer: Peer, *argv: str, **fields: Any) -> tuple[dict[str, Any], int]:
    return peer.ask(
        "spawn", **{"argv": list(argv), "arg0": "", "hostname": "", "userns": True, "pidns": True, **fields}
    )


def is_mapped(uid: int) -> bool:
    """Whether the uid exists in this user namespace."""
    ranges = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + count for first, _, count in ranges)


@pytest.fixture(params=["self", "user"])
def caller(request: pytest.FixtureRequest, bench: Bench, runtime_dir: Path) -> Iterator[Caller]:
    if request.param == "user" and not (os.getuid() == 0 and is_mapped(USER)):
        pytest.skip("needs root to be another user")
    if subprocess.run(["unshare", "-Urnmpf", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces for us")
    yield Caller(bench, runtime_dir, os.getuid() if request.param == "self" else USER)


@pytest.fixture
def root_caller(bench: Bench, runtime_dir: Path) -> Caller:
    if os.getuid() != 0:
        pytest.skip("needs root")
    return Caller(bench, runtime_dir, 0)


def is_gone(pid: int, seconds: float = 5) -> bool:
    """Whether the process ends (a zombie has ended)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.005)
    return False


def wait_for(ask: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not ask():
        assert time.monotonic() < end, what
        time.sleep(0.005)


# --- the namespaces ------------------------------------------------------------------------------------------------

LOOK = r"""
import json, os, socket
names = ["net", "mnt", "ipc", "uts", "pid", "user", "cgroup", "time"]
def read(path): return open(path).read().split()
print(json.dumps({
    "ns": {name: os.stat("/proc/self/ns/" + name).st_ino for name in names},
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    "uid_map": read("/proc/self/uid_map"), "gid_map": read("/proc/self/gid_map"), "setgroups": read("/proc/self/setgroups"),
    "pid": [os.getpid(), os.getppid()], "processes": sorted(int(n) for n in os.listdir("/proc") if n.isdigit()),
    "host": socket.gethostname(), "ping": read("/proc/sys/net/ipv4/ping_group_range"),
    "capabilities": [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")],
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1], "cwd": os.getcwd(),
    "links": sorted(os.listdir("/proc/self/net/dev_snmp6")) if os.path.exists("/proc/self/net/dev_snmp6") else ["lo"],
}))
"""


def test_the_command_is_root_in_namespaces_of_its_own(caller: Caller, tmp_path: Path) -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    try:
        status, out, err = caller.run(
            "/usr/bin/python3", "-c", LOOK, fields={"hostname": "pasta-here"}, cwd="/usr", pass_fds=[leaked]
        )
    finally:
        os.close(leaked)
    assert (status, err) == (0, "")
    seen = json.loads(out)
    for name, inode in seen["ns"].items():
        shared = name in ("cgroup", "time")
        assert (inode == os.stat(f"/proc/self/ns/{name}").st_ino) == shared, name
    assert seen["ids"] == [0, 0, 0, 0]
    assert seen["uid_map"] == seen["gid_map"] == ["0", str(caller.uid), "1"]
    assert seen["setgroups"] == ["deny"]
    assert seen["pid"] == [1, 0] and seen["processes"] == [1], "/proc is not that of the new pid namespace"
    assert seen["host"] == "pasta-here" and socket.gethostname() != "pasta-here"
    assert seen["ping"] == ["0", "0"]
    wanted = 1 << 12 | 1 << 21  # CAP_NET_ADMIN, CAP_SYS_ADMIN
    assert int(seen["capabilities"][0], 16) & wanted == wanted
    assert seen["fds"] == [0, 1, 2], "the caller's or the shim's descriptors"
    assert seen["cwd"] == "/usr" and seen["links"] == ["lo"]


def test_the_descriptor_is_of_the_commands_network_namespace(caller: Caller) -> None:
    shim, peer, pid, netns = caller.spawn("true")
    assert os.fstat(netns).st_ino == os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    userns = fcntl.ioctl(netns, _NS_GET_USERNS)
    assert os.fstat(userns).st_ino == os.stat(f"/proc/{pid}/ns/user").st_ino
    os.close(userns)
    os.close(netns)
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(shim.pid), "not the shim's child"
    peer.exit(0)
    assert output(shim)[0] == 0


def test_keeps_the_user_namespace_where_told_to(root_caller: Caller) -> None:
    status, out, err = root_caller.run("/usr/bin/python3", "-c", LOOK, fields={"userns": False})
    assert (status, err) == (0, "")
    seen = json.loads(out)
    assert seen["ns"]["user"] == os.stat("/proc/self/ns/user").st_ino
    for name in ("net", "mnt", "ipc", "uts", "pid"):
        assert seen["ns"][name] != os.stat(f"/proc/self/ns/{name}").st_ino
    assert seen["host"] == socket.gethostname() and seen["processes"] == [1]
    assert os.path.exists(f"/proc/{os.getpid()}"), "its /proc came out of its mount namespace"


def test_keeps_the_pid_namespace_where_told_to(caller: Caller) -> None:
    status, out, err = caller.run("/usr/bin/python3", "-c", LOOK, fields={"pidns": False})
    assert (status, err) == (0, "")
    seen = json.loads(out)
    for name in ("net", "mnt", "ipc", "uts", "user", "pid"):
        assert (seen["ns"][name] == os.stat(f"/proc/self/ns/{name}").st_ino) == (name == "pid"), name
    assert seen["pid"][0] in seen["processes"] and os.getpid() in seen["processes"]
    assert seen["ids"] == [0, 0, 0, 0] and seen["ping"] == ["0", "0"]
    assert caller.run("sh", "-c", "kill -TERM $$", fields={"pidns": False})[0] == 143


def test_without_the_right_to_it_says_so(caller: Caller) -> None:
    if caller.uid == 0:
        pytest.skip("root may")
    shim, peer = caller.meet()
    answer, netns = ask_spawn(peer, "true", userns=False)
    assert answer == {"ok": False, "errno": 1, "error": "unshare: Operation not permitted"} and netns == -1
    assert ask_spawn(peer, "true")[0]["ok"]  # a failure leaves nothing behind that would be in the way
    peer.exit(0)
    assert output(shim)[0] == 0


def test_a_host_name_that_is_none_is_told_and_no_obstacle(caller: Caller) -> None:
    shim, peer = caller.meet()
    answer, netns = ask_spawn(peer, "hostname", hostname="x" * 65)
    assert answer["ok"] and answer["text"] == "couldn't set the host name: Invalid argument"
    os.close(netns)
    assert peer.ask("run")[0]["ok"] and peer.ended()
    peer.sock.close()
    assert output(shim) == (0, f"{socket.gethostname()}\n", "")


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 7, 255])
def test_the_status_is_the_commands(caller: Caller, status: int) -> None:
    assert caller.run("sh", "-c", f"echo out; echo err >&2; exit {status}") == (status, "out\n", "err\n")


def test_128_and_the_signal_that_ended_it(caller: Caller) -> None:
    shim, peer, pid, netns = caller.spawn("sleep", "60")
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    os.kill(pid, signal.SIGKILL)
    assert peer.ended()
    peer.sock.close()
    assert output(shim) == (137, "", "")


def test_reads_the_callers_input_and_sees_the_environment(caller: Caller) -> None:
    shim, peer, _, netns = caller.spawn(
        "sh", "-c", "read word; echo $word $COLOUR", stdin=subprocess.PIPE, env={**caller.bench.env, "COLOUR": "blue"}
    )
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    assert shim.stdin is not None
    shim.stdin.write(b"given\n")
    shim.stdin.close()
    assert peer.ended()
    peer.sock.close()
    assert shim.stdout is not None and shim.stdout.read() == b"given blue\n"


@pytest.mark.parametrize(
    ("shell", "name"), [("/bin/dash", "-/bin/dash"), ("/bin/bash", "-/bin/bash"), (None, "-/bin/sh")]
)
def test_no_command_means_a_login_shell(caller: Caller, shell: str | None, name: str) -> None:
    env = {**caller.bench.env, "HOME": "/nonexistent"}
    if shell is not None:
        env["SHELL"] = shell
    reader, writer = os.pipe()
    os.write(writer, b"echo $0\n")
    os.close(writer)
    assert caller.run(env=env, stdin=reader) == (0, f"{name}\n", "")
    os.close(reader)


def test_what_it_is_called_by(caller: Caller) -> None:
    assert caller.run("sh", "-c", "tr '\\0' ' ' </proc/$$/cmdline", fields={"arg0": "other"})[1].startswith("other -c ")


@pytest.mark.parametrize(
    ("argv", "errno", "reason"),
    [
        (["/nonexistent/x"], 2, "No such file or directory"),
        (["no-such-command"], 2, "No such file or directory"),
        (["/etc/passwd"], 13, "Permission denied"),
        ([""], 2, "No such file or directory"),
    ],
)
def test_a_command_that_cannot_be_executed(caller: Caller, argv: list[str], errno: int, reason: str) -> None:
    shim, peer, pid, netns = caller.spawn(*argv, env={**caller.bench.env, "PATH": "/usr/bin:/bin"})
    os.close(netns)
    assert peer.ask("run") == ({"ok": False, "errno": errno, "error": reason}, -1)
    assert not os.path.exists(f"/proc/{pid}"), "not reaped"
    peer.exit(1, stderr=f"Failed to start command or shell: {reason}\n")
    assert output(shim) == (1, "", f"Failed to start command or shell: {reason}\n")


def test_a_script_without_a_first_line_runs_as_execvp_would_have_it(caller: Caller, runtime_dir: Path) -> None:
    script = runtime_dir / "script"
    script.write_text("echo script $1\n")
    script.chmod(0o755)
    env = {**caller.bench.env, "PATH": f"/nonexistent:{runtime_dir}:/bin"}
    assert caller.run("script", "x", env=env) == (0, "script x\n", "")


def test_finds_signals_as_they_were(caller: Caller) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; the shim handles SIGINT and SIGQUIT."""
    status, out, _ = caller.run("grep", "-E", "SigIgn|SigBlk|SigCgt", "/proc/self/status")
    lost = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1) | 1 << (signal.SIGINT - 1) | 1 << (signal.SIGQUIT - 1)
    assert status == 0
    assert not any(int(line.split()[1], 16) & lost for line in out.splitlines())


def test_a_caller_that_ignores_sigchld_gets_the_status_all_the_same(caller: Caller) -> None:
    quiet = {"preexec_fn": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None}
    assert caller.run("sh", "-c", "exit 5", **quiet)[0] == 5


def test_a_caller_without_standard_descriptors(caller: Caller) -> None:
    shell = ["/bin/sh", "-c", 'exec "$0" x <&- >&- 2>&-', str(caller.plugin / "pasta")]
    shim = subprocess.Popen(shell, env=caller.bench.env, **caller.user)
    caller.bench.running.append(shim)
    peer = caller.bench.peer()
    peer.hello()
    answer, netns = ask_spawn(
        peer, "/usr/bin/python3", "-ISc", "import os; os._exit(len(os.listdir('/proc/self/fd')) + 40)"
    )
    os.close(netns)
    assert peer.ask("run")[0]["ok"] and peer.ended()
    peer.sock.close()
    assert shim.wait(10) == 41  # the one that lists them


def test_a_second_command_is_refused(caller: Caller) -> None:
    shim, peer, _, netns = caller.spawn("sleep", "60")
    os.close(netns)
    assert ask_spawn(peer, "true")[0] == {"ok": False, "errno": 16, "error": "there is a command already"}
    peer.exit(0)
    assert output(shim)[0] == 0


def test_run_without_a_command(bench: Bench) -> None:
    shim, peer = bench.meet()
    peer.tell("run")
    assert output(shim)[0] == 1  # an operation that no daemon of ours asks for


# --- before it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "hang up", "killed", "terminated"])
def test_nothing_is_left_of_a_command_that_never_ran(caller: Caller, tmp_path: Path, how: str) -> None:
    mark = caller.bench.dir / "mark"
    shim, peer, pid, netns = caller.spawn("touch", str(mark))
    os.close(netns)
    if how == "exit":
        peer.exit(1, stderr="no network\n")
    elif how == "hang up":
        peer.sock.close()
    else:
        shim.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
    status, out, err = output(shim)
    expected = {
        "exit": (1, "no network\n"),
        "hang up": (1, "pasta: netd: lost the daemon: it ended before the network was ready\n"),
        "killed": (-9, ""),
        "terminated": (-15, ""),
    }
    assert (status, err) == expected[how] and out == ""
    assert is_gone(pid) and not mark.exists()
    if how in ("exit", "hang up"):
        assert not os.path.exists(f"/proc/{pid}"), "not reaped"


def test_a_command_killed_at_the_gate(caller: Caller) -> None:
    shim, peer, pid, netns = caller.spawn("true")
    os.close(netns)
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid)
    answer, _ = peer.ask("run")
    assert not answer["ok"]
    peer.exit(1)
    assert output(shim)[0] == 1


def test_the_namespace_lives_until_the_command_is_gone(caller: Caller) -> None:
    """The gate holds no more than the process: the daemon's connection is not inherited."""
    shim, peer, pid, netns = caller.spawn("sleep", "60")
    os.close(netns)
    wait_for(lambda: os.path.exists(f"/proc/{pid}/fd"), "no process")
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not any(link.startswith("socket:") for link in links), links
    shim.kill()
    assert peer.ended(), "somebody else has the connection"
    assert is_gone(pid)


# --- while it runs -------------------------------------------------------------------------------------------------


def test_serves_the_daemon_while_the_command_runs(caller: Caller) -> None:
    reader, writer = os.pipe()
    shim, peer, _, netns = caller.spawn("sh", "-c", "read word; exit $word", stdin=reader)
    os.close(reader)
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    for _ in range(3):
        assert peer.ask("print", stdout="said\n", stderr="")[0] == {"ok": True}
    assert peer.ask("open", path="/nonexistent")[0]["errno"] == 2
    os.write(writer, b"9\n")
    os.close(writer)
    assert peer.ended()
    peer.sock.close()
    assert output(shim) == (9, "said\nsaid\nsaid\n", "")


@pytest.mark.parametrize("how", ["hang up", "exit", "nonsense"])
def test_the_command_outlives_the_daemon(caller: Caller, how: str) -> None:
    reader, writer = os.pipe()
    shim, peer, pid, netns = caller.spawn("sh", "-c", "read word; exit $word", stdin=reader)
    os.close(reader)
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    if how == "hang up":
        peer.sock.close()
        told = "pasta: netd: lost the daemon: it went away; the command goes on without a network\n"
    elif how == "exit":
        peer.exit(1, stderr="netd: the network x was detached\n")
        assert peer.ended()
        told = "netd: the network x was detached\n"
    else:
        peer.sock.send(b"{")
        assert peer.ended()
        told = ""
    assert shim.stderr is not None
    line = shim.stderr.readline().decode()
    assert line == told or (not told and line.endswith("; the command goes on without a network\n"))
    assert shim.poll() is None and not is_gone(pid, 0.1)
    os.write(writer, b"6\n")
    os.close(writer)
    assert shim.wait(10) == 6
    assert shim.stderr.read() == b""


def test_the_end_is_told_to_the_daemon_and_waited_for(caller: Caller) -> None:
    """So that who starts the next command finds the ports free."""
    shim, peer, _, netns = caller.spawn("true")
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    assert peer.ended()
    with pytest.raises(subprocess.TimeoutExpired):
        shim.wait(0.3)
    peer.exit(1, stderr="what the observer of a network's end says\n")
    peer.sock.close()
    assert output(shim) == (0, "", "")


def test_a_daemon_that_does_not_part_is_left_after_a_second(caller: Caller) -> None:
    shim, peer, _, netns = caller.spawn("true")
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    begin = time.monotonic()
    assert output(shim)[0] == 0
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_end_of_the_shim_is_the_commands(caller: Caller, number: signal.Signals) -> None:
    script = "trap '' TERM HUP INT; echo ready; while :; do sleep 1; done"
    shim, peer, pid, netns = caller.spawn("sh", "-c", script)
    os.close(netns)
    assert peer.ask("run")[0]["ok"]
    assert shim.stdout is not None and shim.stdout.readline() == b"ready\n"
    shim.send_signal(number)
    assert peer.ended()
    assert shim.wait(10) == -number
    assert is_gone(pid)
    assert shim.stdout.read() == b"", "somebody of the pid namespace is left"


# --- at a terminal -------------------------------------------------------------------------------------------------


class Terminal:
    """A shim as the leader of a session with a terminal."""

    def __init__(self, caller: Caller, *argv: str, **fields: Any) -> None:
        self.caller = caller
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                if caller.user:
                    os.setgroups([])
                    os.setgid(caller.uid)
                    os.setuid(caller.uid)
                env = {**caller.bench.env, "SHELL": "/bin/bash", "HOME": "/nonexistent", "PS1": "> ", "TERM": "dumb"}
                os.execve(caller.plugin / "pasta", ["pasta"], env)
            finally:
                os._exit(99)
        self.said = b""
        self.peer = caller.bench.peer()
        self.peer.hello()
        answer, netns = ask_spawn(self.peer, *argv, **fields)
        assert answer["ok"], answer
        os.close(netns)
        self.command = answer["pid"]
        assert self.peer.ask("run")[0]["ok"]

    def sees(self, text: bytes) -> None:
        end = time.monotonic() + 10
        while text not in self.said:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, (text, self.said)
            self.said += os.read(self.fd, 4096)
        self.said = self.said.partition(text)[2]

    def types(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        assert self.peer.ended()
        self.peer.sock.close()
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(caller: Caller) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*argv: str, **fields: Any) -> Terminal:
        made.append(Terminal(caller, *argv, **fields))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_control_c_goes_to_a_command_that_expects_it(terminal: Callable[..., Terminal]) -> None:
    tty = terminal("sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep .02; done")
    tty.sees(b"ready")
    tty.types(b"\x03")
    tty.sees(b"caught")
    assert tty.status() == 9


def test_control_c_is_ignored_by_a_command_that_ignores_it(terminal: Callable[..., Terminal]) -> None:
    tty = terminal("sh", "-c", "trap '' INT; echo ready; read word; exit $word")
    tty.sees(b"ready")
    tty.types(b"\x03")
    tty.sees(b"^C")
    tty.types(b"4\n")
    assert tty.status() == 4


@pytest.mark.parametrize(("key", "status"), [(b"\x03", 130), (b"\x1c", 131)])
@pytest.mark.parametrize("pidns", [True, False])
def test_control_c_ends_a_command_that_knows_nothing_of_it(
    terminal: Callable[..., Terminal], key: bytes, status: int, pidns: bool
) -> None:
    """The first process of a pid namespace would be spared by the kernel."""
    tty = terminal("sh", "-c", "ulimit -c 0; exec cat", pidns=pidns)
    tty.types(b"ready\n")
    tty.sees(b"ready\r\nready\r\n")
    tty.types(key)
    assert tty.status() == status


def test_an_interactive_shell_has_its_jobs(terminal: Callable[..., Terminal]) -> None:
    tty = terminal("/bin/bash", "--norc", "--noprofile", "-i")
    tty.sees(b"> ")
    tty.types(b"sleep 60\n")
    tty.sees(b"sleep 60\r\n")
    time.sleep(0.2)  # for the shell to hand over the terminal: no event tells
    tty.types(b"\x03")
    tty.sees(b"> ")
    tty.types(b"echo after=$?\n")
    tty.sees(b"after=130")
    tty.types(b"exit 3\n")
    assert tty.status() == 3
