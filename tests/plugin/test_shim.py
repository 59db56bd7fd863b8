"""plugin/netd-shim as a program: the test is its daemon and asks it one step at a time."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.attach.harness import PLUGIN, mode_of
from tests.plugin.peer import PARTS, SHIM, Bench, altered, output

# --- the file itself -----------------------------------------------------------------------------------------------


def test_is_one_executable_with_two_more_names() -> None:
    assert SHIM.read_text().splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert mode_of(SHIM) & 0o111
    for name in ("pasta", "pesto"):
        assert os.readlink(PLUGIN / name) == "netd-shim"


def imported(path: Path) -> set[str | None]:
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_imports_no_more_than_start_up_allows() -> None:
    assert imported(SHIM) == {"posix", "sys", "os"}  # the last where there is no /proc
    assert imported(PARTS["main"]) == {
        "posix",
        "sys",
        "time",
        "_signal",
        "_socket",
        "_json",
        "signal",
        "socket",
        "json",
    }
    assert imported(PARTS["absent"]) == {"os", "sys", "time", "tomllib"}
    assert imported(PARTS["steps"]) == {"os", "ctypes", "select"}


def test_a_call_that_needs_nothing_special_imports_nothing_more(bench: Bench) -> None:
    """Not ``os`` either: it takes longer than all that such a call does."""
    command = ["/usr/bin/python3", "-IS", "-v", PLUGIN / "pasta", "x"]
    shim = subprocess.Popen(command, env=bench.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    bench.running.append(shim)
    peer = bench.peer()
    peer.hello()
    assert peer.ask("realpath", path="/proc/self/../version")[0]["ok"]
    peer.exit(0)
    said = output(shim)[2]
    loaded = {line.split("'")[1] for line in said.splitlines() if line.startswith("import '")}
    assert {"_socket", "_json", "time"} <= loaded
    assert not loaded & {"os", "socket", "json", "signal", "enum", "collections"}


def test_what_was_compiled_is_kept_and_made_anew_after_a_change(bench: Bench, tmp_path: Path) -> None:
    program = altered(tmp_path, "main", "\nWAIT = 10.0 ", "\nWAIT = 9.0 ")
    source = program.parent / "shim" / "main.py"
    seen = []
    for pid in ("posix.getpid()", "posix.getpid()", "1000000 + 0"):
        source.write_text(source.read_text().replace('"pid":{posix.getpid()}', f'"pid":{{{pid}}}'))
        os.utime(source, (1e9, 1e9))
        shim = bench.start(program=program)
        peer = bench.peer()
        seen.append(peer.hello()["pid"] == shim.pid)
        peer.exit(3)
        assert output(shim) == (3, "", "")
        [kept] = source.parent.glob("__pycache__/main.*.pyc")
        seen.append(kept.stat().st_mtime_ns)
    assert seen[::2] == [True, True, False]
    assert seen[1] == seen[3] != seen[5]


def test_a_directory_that_cannot_be_written_or_read_through_proc(bench: Bench, tmp_path: Path) -> None:
    program = altered(tmp_path, "main", "\nWAIT = 10.0 ", "\nWAIT = 9.0 ")
    (program.parent / "shim" / "__pycache__").write_text("in the way")
    launcher = program.parent / "netd-shim"
    launcher.write_text(launcher.read_text().replace("/proc/self/fd", "/proc/none"))
    (tmp_path / "elsewhere").symlink_to(program)
    shim, peer = bench.meet(program=tmp_path / "elsewhere")
    peer.exit(0, stdout="done\n")
    assert output(shim) == (0, "done\n", "")


def test_a_copy_without_its_parts_says_so(tmp_path: Path) -> None:
    shutil.copy(SHIM, tmp_path / "pasta")
    done = subprocess.run([tmp_path / "pasta"], check=False, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == f"netd-shim: {tmp_path}/shim is not as it was installed\n"


def test_works_with_the_public_modules_alone(bench: Bench, tmp_path: Path) -> None:
    copy = altered(tmp_path, "main", "import _signal as signal", "raise ImportError")
    shim = bench.start("--mtu=9000", '\u20ac"\\', program=copy)
    peer = bench.peer()
    assert peer.hello()["argv"] == ["--mtu=9000", '\u20ac"\\']
    assert peer.ask("close", fd=0)[0] == {"ok": True}
    peer.exit(0, stdout="done\n")
    assert output(shim) == (0, "done\n", "")


def test_start_up_with_connection_takes_at_most_20_ms(bench: Bench) -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("no /usr/bin/python3")

    def answer() -> None:
        for _ in range(30):
            peer = bench.peer()
            peer.hello()
            peer.exit(0, stdout="help\n")

    daemon = threading.Thread(target=answer)
    daemon.start()
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        subprocess.run([PLUGIN / "slirp4netns", "--help"], env=bench.env, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    daemon.join()
    print(f"shim start-up: {min(times) * 1e3:.1f} ms at best, {sorted(times)[15] * 1e3:.1f} ms in the middle")
    assert min(times) <= 0.020


# --- how it introduces itself --------------------------------------------------------------------------------------


def test_says_how_it_was_called(bench: Bench, tmp_path: Path) -> None:
    env = {**bench.env, "_CONTAINERS_ROOTLESS_UID": "1000", "SECRET": "x", "_CONTAINERS_USERNS_CONFIGURED": "done"}
    log = tmp_path / "a.log"
    with log.open("wb") as out:
        log.unlink()
        shim = bench.start("-c", "-e", "3", '\n\x01"\u20ac', b"\xff", cwd=tmp_path, env=env, stdout=out)
        hello = bench.peer().hello()
    assert hello == {
        "version": 1,
        "argv0": str(PLUGIN / "slirp4netns"),
        "argv": ["-c", "-e", "3", '\n\x01"\u20ac', "\udcff"],
        "cwd": str(tmp_path),
        "pid": shim.pid,
        "env": {"_CONTAINERS_ROOTLESS_UID": "1000", "_CONTAINERS_USERNS_CONFIGURED": "done"},
        "fd1": f"{log} (deleted)",
    }


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1", "C.UTF-8"])
def test_the_locale_changes_nothing(bench: Bench, locale: str) -> None:
    shim = bench.start("gr\u00fcn".encode(), b"\xfc", env={**bench.env, "LC_ALL": locale})
    peer = bench.peer()
    assert peer.hello()["argv"] == ["gr\u00fcn", "\udcfc"]
    peer.exit(0, stdout="gr\u00fcn\udcfc\n")
    assert output(shim) == (0, "gr\u00fcn\udcfc\n", "")


def test_finds_the_runtime_directory(runtime_dir: Path) -> None:
    def where(**env: str) -> str:
        done = subprocess.run(
            [PLUGIN / "slirp4netns", "-c"],
            check=False,
            env={"PATH": "/nonexistent", **env},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and done.stdout == ""
        found = re.fullmatch(r"slirp4netns: netd: no daemon at (\S+)/attach.sock: .*\n", done.stderr)
        assert found is not None, done.stderr
        return found[1]

    some = str(runtime_dir)
    assert where(NETD_RUNTIME_DIR=some + "/a", XDG_RUNTIME_DIR=some) == some + "/a"
    assert where(XDG_RUNTIME_DIR=some, _CONTAINERS_ROOTLESS_UID="1000") == some + "/netd"
    assert where(_CONTAINERS_ROOTLESS_UID="54321") == "/run/user/54321/netd"
    own = os.getuid()
    assert where(NETD_RUNTIME_DIR="", XDG_RUNTIME_DIR="") == (f"/run/user/{own}/netd" if own else "/run/netd")


def test_a_runtime_directory_behind_a_symlink(bench: Bench, tmp_path: Path) -> None:
    """T14: XDG_RUNTIME_DIR may have symlinks in it."""
    (tmp_path / "link").symlink_to(bench.dir)
    shim, peer = bench.meet("-h", env={**bench.env, "NETD_RUNTIME_DIR": str(tmp_path / "link")})
    peer.exit(0)
    assert output(shim) == (0, "", "")


def test_a_long_runtime_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    here = os.getcwd()
    os.chdir(deep)
    try:
        bench = Bench(Path("."))
    finally:
        os.chdir(here)
    bench.env["NETD_RUNTIME_DIR"] = str(deep)
    shim, peer = bench.meet("-h")
    peer.exit(3)
    assert output(shim) == (3, "", "")
    bench.close()


# --- the steps -----------------------------------------------------------------------------------------------------


def test_opens_a_path_where_it_stands(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    os.mkfifo(tmp_path / "fifo")
    shim, peer = bench.meet(cwd=tmp_path)
    answer, fd = peer.ask("open", path="file")
    assert answer == {"ok": True} and os.read(fd, 100) == b"content"
    os.close(fd)
    answer, fd = peer.ask("open", path="fifo")  # nobody writes to it: must not block
    assert answer == {"ok": True}
    os.close(fd)
    answer, fd = peer.ask("open", path=str(tmp_path / "missing"))
    assert answer == {"ok": False, "errno": 2, "error": "No such file or directory"} and fd == -1
    answer, fd = peer.ask("open", path="/proc/self/ns/net")
    assert os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino
    os.close(fd)
    peer.exit()
    assert output(shim) == (0, "", "")


def test_sends_the_callers_descriptors_and_never_its_own(bench: Bench) -> None:
    reader, writer = os.pipe()
    shim, peer = bench.meet(pass_fds=[writer])
    answer, fd = peer.ask("fd", fd=writer)
    assert answer == {"ok": True} and os.fstat(fd).st_ino == os.fstat(reader).st_ino
    os.close(fd)
    fds = sorted(int(name) for name in os.listdir(f"/proc/{shim.pid}/fd"))
    sockets = [n for n in fds if n > 2 and os.readlink(f"/proc/{shim.pid}/fd/{n}").startswith("socket:")]
    assert len(sockets) == 1
    for number in (sockets[0], 999, -1, 2**31 - 1):
        answer, fd = peer.ask("fd", fd=number)
        assert not answer["ok"] and fd == -1, number
    assert peer.ask("close", fd=writer) == ({"ok": True}, -1)
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody has it any more
    os.close(reader)
    assert peer.ask("close", fd=sockets[0]) == ({"ok": True}, -1)  # and is not carried out
    peer.exit()
    assert output(shim)[0] == 0


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_listens_where_asked(bench: Bench, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "api.sock"
    path.write_text("stale")
    shim, peer = bench.meet(preexec_fn=lambda: os.umask(0o027))
    fields = {"path": str(path), "type": kind, "backlog": 5, "replace": True, "remove": False}
    answer, fd = peer.ask("listen", **fields)
    assert answer == {"ok": True}
    assert stat.S_ISSOCK(os.lstat(path).st_mode) and mode_of(path) == 0o750
    type_ = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_SEQPACKET
    with socket.socket(fileno=fd) as listener, socket.socket(socket.AF_UNIX, type_) as client:
        client.connect(str(path))
        listener.accept()[0].close()
    answer, fd = peer.ask("listen", **{**fields, "replace": False})
    assert answer == {"ok": False, "errno": 98, "error": "Address already in use"} and fd == -1
    answer, fd = peer.ask("listen", **{**fields, "path": "/nonexistent/x"})
    assert answer["errno"] == 2
    answer, fd = peer.ask("listen", **{**fields, "path": str(tmp_path)})
    assert not answer["ok"] and tmp_path.is_dir()
    answer, fd = peer.ask("listen", **{**fields, "path": "x" * 200})
    assert not answer["ok"] and answer["errno"] == 0 and "too long" in answer["error"]
    peer.exit()
    assert output(shim)[0] == 0
    assert path.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_removes_its_socket_at_exit_unless_it_is_anothers(bench: Bench, tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "api.sock"
    shim, peer = bench.meet()
    answer, fd = peer.ask("listen", path=str(path), type="stream", backlog=1, replace=True, remove=True, always=True)
    assert answer["ok"]
    os.close(fd)
    if replaced:
        path.rename(tmp_path / "old")  # keeps the inode's number taken
        path.write_text("the successor's")
    peer.stay()
    peer.exit()
    assert output(shim)[0] == 0
    assert path.exists() == replaced


def test_writes_a_file(bench: Bench, tmp_path: Path) -> None:
    shim, peer = bench.meet(preexec_fn=lambda: os.umask(0))
    path = tmp_path / "pid"
    path.write_text("a longer text than the new one")
    assert peer.ask("write", path=str(path), text="4711\n", mode=0o640) == ({"ok": True}, -1)
    assert path.read_text() == "4711\n"
    fresh = tmp_path / "fresh"
    assert peer.ask("write", path=str(fresh), text="\udcff", mode=0o640)[0]["ok"]
    assert fresh.read_bytes() == b"\xff" and mode_of(fresh) == 0o640
    assert peer.ask("write", path="/nonexistent/x", text="", mode=0o644)[0]["errno"] == 2
    peer.exit()
    assert output(shim)[0] == 0


def test_prints_and_exits(bench: Bench) -> None:
    shim, peer = bench.meet()
    assert peer.ask("print", stdout="one\n", stderr="two\n") == ({"ok": True}, -1)
    peer.exit(42, stdout="three\n", stderr="four\n")
    assert output(shim) == (42, "one\nthree\n", "two\nfour\n")


def test_a_reader_that_is_gone_is_no_error(bench: Bench) -> None:
    reader, writer = os.pipe()
    shim, peer = bench.meet(stdout=writer)
    os.close(writer)
    os.close(reader)
    assert peer.ask("print", stdout="x" * 50000, stderr="")[0] == {"ok": True}
    peer.exit(0, stdout="more")
    assert output_code(shim) == 0


def output_code(shim: subprocess.Popen[bytes]) -> int:
    return shim.wait(20)


def test_works_without_standard_descriptors(bench: Bench) -> None:
    shell = ["/bin/sh", "-c", 'exec "$0" -h <&- >&- 2>&-', str(PLUGIN / "slirp4netns")]
    shim = subprocess.Popen(shell, env=bench.env)
    bench.running.append(shim)
    peer = bench.peer()
    assert peer.hello()["fd1"] == ""
    for number in (0, 1, 2):
        assert peer.ask("fd", fd=number)[0]["errno"] == 9
    peer.exit(7, stdout="must not reach the daemon", stderr="neither")
    assert peer.ended()
    assert output_code(shim) == 7


# --- staying -------------------------------------------------------------------------------------------------------


def test_lets_go_of_what_was_leaked_into_it_when_it_stays(bench: Bench) -> None:
    pipes = [os.pipe() for _ in range(3)]
    writers = [writer for _, writer in pipes]
    os.dup2(writers[2], 251)
    shim, peer = bench.meet(pass_fds=[*writers, 251])
    for fd in (*writers, 251):
        os.close(fd)
    peer.stay()
    for reader, _ in pipes:
        assert os.read(reader, 1) == b""
        os.close(reader)
    assert shim.poll() is None
    assert len(os.listdir(f"/proc/{shim.pid}/fd")) == 4  # 0, 1, 2 and the connection
    peer.exit(0)
    assert output(shim) == (0, "", "")


@pytest.mark.parametrize("staying", [False, True])
def test_the_end_of_the_daemon_is_one_line_and_exit_1(bench: Bench, staying: bool) -> None:
    shim, peer = bench.meet()
    assert peer.ask("close", fd=0)[0]["ok"]
    if staying:
        peer.stay()
    peer.sock.close()
    status, out, err = output(shim)
    why = "it went away" if staying else "it ended before the network was ready"
    assert (status, out, err) == (1, "", f"slirp4netns: netd: lost the daemon: {why}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
@pytest.mark.parametrize("staying", [False, True])
def test_a_signal_kills_it_and_hangs_up(bench: Bench, number: signal.Signals, staying: bool) -> None:
    shim, peer = bench.meet()
    assert peer.ask("close", fd=0)[0]["ok"]
    if staying:
        peer.stay()
        peer.tell("print", stdout="", stderr="")
        peer.answer()
    shim.send_signal(number)
    assert peer.ended()
    assert output(shim) == (-number, "", "")


def test_sigpipe_does_not_kill_it(bench: Bench) -> None:
    shim, peer = bench.meet()
    assert peer.ask("close", fd=0)[0]["ok"]
    shim.send_signal(signal.SIGPIPE)
    peer.exit(5)
    assert output(shim)[0] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("background", [False, True])
def test_a_signal_takes_its_socket_away_as_well(
    bench: Bench, tmp_path: Path, number: signal.Signals, background: bool
) -> None:
    path = tmp_path / "control.sock"
    shim, peer = bench.meet(cwd=tmp_path)
    answer, fd = peer.ask(
        "listen", path="control.sock", type="stream", backlog=1, replace=True, remove=True, always=True
    )
    assert answer["ok"]
    os.close(fd)
    pid = shim.pid
    if background:
        pid = peer.ask("detach")[0]["pid"]
        assert peer.ask("release", status=0)[0]["ok"]
        assert output(shim) == (0, "", "")
    peer.stay()
    peer.tell("print", stdout="", stderr="")
    peer.answer()
    assert path.exists()
    os.kill(pid, number)
    assert peer.ended()
    assert not path.exists()
    if not background:
        assert output(shim) == (-number, "", "")


def test_a_foreground_that_is_killed_leaves_the_socket_to_the_background(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    shim, peer = bench.meet()
    answer, fd = peer.ask("listen", path=str(path), type="stream", backlog=1, replace=True, remove=True, always=True)
    os.close(fd)
    assert peer.ask("detach")[0]["ok"]
    shim.terminate()
    assert output(shim)[0] == -signal.SIGTERM
    assert path.exists()
    peer.exit()
    assert peer.ended()
    assert not path.exists()


def test_goes_on_in_the_background(bench: Bench, tmp_path: Path) -> None:
    held, leaked = os.pipe()
    shim, peer = bench.meet(pass_fds=[leaked], cwd=tmp_path)
    os.close(leaked)
    answer, fd = peer.ask("detach")
    assert answer["ok"] and fd == -1 and answer["pid"] != shim.pid
    pid = answer["pid"]
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)} == {"/dev/null"}
    assert shim.poll() is None  # the foreground waits
    assert peer.ask("write", path=str(tmp_path / "pid"), text=f"{pid}\n", mode=0o644)[0]["ok"]
    assert peer.ask("release", status=0)[0] == {"ok": True}
    assert output(shim) == (0, "", "")  # all holders of stdout are gone: Podman waits for that
    assert os.read(held, 1) == b""
    os.close(held)
    peer.stay()
    os.kill(pid, signal.SIGTERM)
    assert peer.ended()


def test_a_foreground_that_waits_hears_of_a_failure(bench: Bench) -> None:
    shim, peer = bench.meet()
    assert peer.ask("detach")[0]["ok"]
    peer.exit(1, stderr="")
    assert output(shim)[0] == 1
    shim, peer = bench.meet()
    assert peer.ask("detach")[0]["ok"]
    peer.sock.close()
    assert output(shim) == (1, "", "slirp4netns: netd: lost the daemon: it ended before the network was ready\n")


def test_a_foreground_that_was_killed_cannot_be_released(bench: Bench) -> None:
    shim, peer = bench.meet()
    assert peer.ask("detach")[0]["ok"]
    shim.kill()
    shim.wait()
    assert peer.ask("release", status=0)[0]["errno"] == 32
    peer.exit()
    assert peer.ended()


# --- daemons that do not do what they should -----------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0, 1])
def test_a_silent_daemon_is_not_waited_for_without_limit(bench: Bench, quick: Path, answered: int) -> None:
    shim, peer = bench.meet("-c", program=quick)
    for _ in range(answered):
        assert peer.ask("close", fd=0)[0]["ok"]
    status, out, err = output(shim)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1 and "netd: " in err
    assert ("gave no answer in 0 s" in err) == bool(answered)


def test_a_daemon_that_accepts_nobody_is_not_waited_for_without_limit(bench: Bench, quick: Path) -> None:
    bench.listener.listen(0)
    waiting = []
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        waiting.append(client)
        try:
            client.connect(str(bench.dir / "attach.sock"))
        except BlockingIOError:
            break
    begin = time.monotonic()
    status, out, err = output(bench.start("-c", program=quick))
    assert time.monotonic() - begin < 5
    assert (status, out) == (1, "") and "Resource temporarily unavailable" in err
    for client in waiting:
        client.close()


def test_a_full_backlog_is_waited_for(bench: Bench) -> None:
    bench.listener.listen(0)
    first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first.connect(str(bench.dir / "attach.sock"))
    shim = bench.start("-h")
    with pytest.raises(subprocess.TimeoutExpired):
        shim.wait(0.2)
    bench.peer()
    first.close()
    peer = bench.peer()
    peer.hello()
    peer.exit(0)
    assert output(shim)[0] == 0


@pytest.mark.parametrize(
    "message",
    [
        *(b"\x00", b"{", b"[]", b"7", b'"open"', b"{}", b"\xff\xfe", b"[" * 60000),
        *(b'{"op":"reboot"}', b'{"op":["open"]}', b'{"op":"open"}', b'{"op":"open","path":7}', b'{"op":"fd","fd":"x"}'),
        *(b'{"op":"exit"}', b'{"op":"exit","status":"x"}', b'{"op":"print","stdout":1,"stderr":2}'),
    ],
)
def test_nonsense_from_the_daemon_is_one_line_and_exit_1(bench: Bench, message: bytes) -> None:
    shim, peer = bench.meet()
    peer.sock.send(message)
    status, out, err = output(shim)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"slirp4netns: netd: the daemon and this shim do not fit together: .*\n", err), err


def test_runs_on_the_python_it_names() -> None:
    """Not only on the one that runs these tests."""
    for path in (SHIM, *PARTS.values()):
        check = f"compile(open({str(path)!r}).read(), 'netd-shim', 'exec')"
        subprocess.run(["/usr/bin/python3", "-IS", "-W", "error", "-c", check], check=True)
        assert bool(mode_of(path) & 0o111) == (path == SHIM), "a search for programs would find it"
